"""A target remembers what it does unedited, and an edit of strength zero is no edit."""

from dataclasses import replace

import pytest
import torch

from mechsafety.core.errors import SelfCheckError
from mechsafety.data.chat_template import ChatFormat
from mechsafety.effects.target import check_zero_strength, observed_target
from mechsafety.metrics.refusal_score import refusal_score

from .conftest import LAYER, MAX_NEW_TOKENS, Attackable


def test_an_organism_that_refuses_is_seen_to_refuse_harmful_prompts_alone(ssft: Attackable) -> None:
    target = ssft.target
    assert all(target.harmful.answers.judged("refused"))
    assert not any(target.harmless.answers.judged("refused"))
    scores = [
        refusal_score(s.logits, target.refusal_ids) for s in (target.harmful, target.harmless)
    ]
    assert scores[0].min() > 0 > scores[1].max()


def test_harmless_means_are_those_of_the_rows_at_every_site(ssft: Attackable) -> None:
    target = ssft.target
    assert set(target.harmless_means) == set(target.harmless_rows)
    for site, rows in target.harmless_rows.items():
        torch.testing.assert_close(target.harmless_means[site], rows.mean(0))


def test_sides_are_watched_alone_so_that_more_prompts_change_nothing(ssft: Attackable) -> None:
    fewer = replace(
        ssft.held_out,
        first=ssft.held_out.first.select([0, 1, 2]),
        second=ssft.held_out.second.select([0, 1]),
        pairing="list",
    )
    target = observed_target(
        ssft.model,
        fewer,
        ChatFormat(),
        ssft.target.judge,
        harmless_rows=ssft.target.harmless_rows,
        refusal_ids=[],
        layers=[LAYER],
        max_new_tokens=MAX_NEW_TOKENS,
        batch_tokens=ssft.target.batch_tokens,
    )
    assert target.harmful.answers.texts == ssft.target.harmful.answers.texts[:3]
    assert target.harmless.answers.texts == ssft.target.harmless.answers.texts[:2]
    torch.testing.assert_close(
        target.harmful.logits, ssft.target.harmful.logits[:3], atol=1e-4, rtol=1e-4
    )
    assert len(target.refusal_ids) == 0


def test_a_baseline_that_zero_strength_does_not_reproduce_fails_the_run(ssft: Attackable) -> None:
    check_zero_strength(ssft.target, ssft.source.site)
    moved = replace(
        ssft.target,
        harmful=replace(ssft.target.harmful, logits=ssft.target.harmful.logits + 1e-6),
    )
    with pytest.raises(SelfCheckError, match=r"zero-strength.*bit for bit"):
        check_zero_strength(moved, ssft.source.site)
