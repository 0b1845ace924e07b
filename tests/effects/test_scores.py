"""Scores of the first answer token, in the prompts' order, whatever is installed."""

import torch

from mechsafety.effects.ablation import addition
from mechsafety.effects.ablation_matrix import ablation_edits
from mechsafety.effects.scores import first_token_logits, run_halfway, score

from .conftest import BATCH_TOKENS, LAYER, Attackable


def test_batches_do_not_change_the_scores_or_their_order(ssft: Attackable) -> None:
    tokens = ssft.target.harmful.tokens
    assert len({len(ids) for ids in tokens.ids}) > 1  # lengths differ, so batches reorder them
    whole = first_token_logits(ssft.model, tokens, BATCH_TOKENS)
    small = first_token_logits(ssft.model, tokens, 40)
    alone = first_token_logits(ssft.model, tokens.select([3]), BATCH_TOKENS)
    assert torch.allclose(whole, small, atol=1e-4)
    assert torch.allclose(whole[3], alone[0], atol=1e-4)


def test_zero_strength_equals_the_baseline_bit_for_bit_with_zero_kl(ssft: Attackable) -> None:
    target = ssft.target
    nothing = addition(ssft.source.site, ssft.source.subspace.vector, 0.0)
    something = addition(ssft.source.site, ssft.source.subspace.vector, 1.0)
    clean = target.harmless.logits
    ids = target.refusal_ids
    found = score(ssft.model, target.harmless.tokens, ids, BATCH_TOKENS, nothing, clean)
    moved = score(ssft.model, target.harmless.tokens, ids, BATCH_TOKENS, something, clean)
    base = score(ssft.model, target.harmless.tokens, ids, BATCH_TOKENS)
    assert moved.kl is not None
    assert moved.kl.max() > 0.01
    assert found.kl is not None
    assert torch.equal(found.refusal, base.refusal)
    assert found.kl.abs().max() == 0


def test_ablation_bypasses_refusal_and_leaves_harmless_prompts_alone(ssft: Attackable) -> None:
    target, ids = ssft.target, ssft.target.refusal_ids
    edits = ablation_edits(target, ssft.source, "affine", ssft.source.subspace.basis)
    before = score(ssft.model, target.harmful.tokens, ids, BATCH_TOKENS).refusal
    after = score(ssft.model, target.harmful.tokens, ids, BATCH_TOKENS, edits).refusal
    harmless = score(
        ssft.model, target.harmless.tokens, ids, BATCH_TOKENS, edits, target.harmless.logits
    )
    assert before.mean() > 2
    assert after.mean() < -2
    assert harmless.kl is not None
    assert harmless.kl.mean() < 0.1


def test_the_upper_blocks_alone_give_the_same_scores(ssft: Attackable) -> None:
    target = ssft.target
    edits = ablation_edits(target, ssft.source, "affine", ssft.source.subspace.basis)
    halfway = run_halfway(ssft.model, target.harmful.tokens, [LAYER], BATCH_TOKENS)[LAYER]
    clean = target.harmful.logits
    whole = first_token_logits(ssft.model, target.harmful.tokens, BATCH_TOKENS, edits)
    upper = first_token_logits(ssft.model, target.harmful.tokens, BATCH_TOKENS, edits, halfway)
    assert (whole - clean).abs().max() > 1  # the edits do something
    assert torch.allclose(upper, whole, atol=1e-5)
