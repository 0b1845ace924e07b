"""Vectors that share passes do what each of them does alone, as a hook."""

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import DegenerateDirectionError
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import addition
from mechsafety.effects.adding import added_scores, dose_scores
from mechsafety.effects.scores import Halfway, run_halfway, score
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.models.model import Model
from mechsafety.models.tails import head_residual
from mechsafety.models.tokens import TokenizedPrompts, batches, from_ids
from tests.models.families import D_MODEL, N_LAYERS, tiny

from .conftest import BATCH_TOKENS, LAYER, Attackable

DOSES = (-1.0, 0.0, 0.5)
N_VECTORS = 5
REFUSAL = torch.tensor([7, 19])


def entered(layer: int, n_layers: int) -> ResidualSite:
    """The site at which a hook adds what a tail from this layer begins with."""
    last = layer == n_layers
    return ResidualSite(layer - last, "resid_post" if last else "resid_pre")


def one_by_one(
    model: Model, prompts: TokenizedPrompts, layer: int, vectors: Tensor, ids: Tensor
) -> Tensor:
    site = entered(layer, model.dims.n_layers)
    scores = [
        score(model, prompts, ids, BATCH_TOKENS, addition(site, vector, 1.0)).refusal
        for vector in vectors
    ]
    return torch.stack([found for found in scores if found is not None], dim=1)


@pytest.fixture(scope="module")
def starts(ssft: Attackable) -> dict[int, Halfway]:
    layers = range(ssft.model.dims.n_layers + 1)
    return run_halfway(ssft.model, ssft.target.harmless.tokens, layers, BATCH_TOKENS)


@pytest.fixture(scope="module")
def clean(ssft: Attackable) -> Tensor:
    found = score(
        ssft.model, ssft.target.harmless.tokens, ssft.target.refusal_ids, BATCH_TOKENS
    ).refusal
    assert found is not None
    return found


@pytest.mark.parametrize("layer", [0, LAYER, 4])
def test_every_score_is_that_of_a_hook_which_adds_the_vector(
    ssft: Attackable, starts: dict[int, Halfway], clean: Tensor, layer: int
) -> None:
    generator = torch.Generator().manual_seed(layer)
    vectors = torch.randn(N_VECTORS, ssft.model.dims.d_model, generator=generator)
    vectors[0] = 3 * ssft.source.subspace.vector
    ids = ssft.target.refusal_ids
    found = added_scores(ssft.model, starts[layer], vectors, ids, BATCH_TOKENS)
    expected = one_by_one(ssft.model, ssft.target.harmless.tokens, layer, vectors, ids)
    assert found.dtype == torch.float64
    assert (expected - clean[:, None]).abs().max() > 1  # the vectors do something
    assert expected.std(dim=0).min() > 1e-3  # and not the same to every prompt
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "neox", "gpt2"])
def test_other_families_agree_with_hooks_too(family: str, generator: torch.Generator) -> None:
    model = Model(tiny(family), None, None)
    prompts = from_ids([[5, 6, 7, 8], [9, 4, 11, 3, 8, 12], [31, 8]])
    vectors = torch.randn(N_VECTORS, D_MODEL, generator=generator)
    for layer in (1, N_LAYERS):
        start = run_halfway(model, prompts, [layer], BATCH_TOKENS)[layer]
        found = added_scores(model, start, vectors, REFUSAL, BATCH_TOKENS)
        expected = one_by_one(model, prompts, layer, vectors, REFUSAL)
        assert expected.std(dim=1).min() > 1e-3
        assert torch.allclose(found, expected, atol=1e-4)


def test_how_many_vectors_share_a_pass_does_not_change_their_scores(
    ssft: Attackable, starts: dict[int, Halfway], generator: torch.Generator
) -> None:
    vectors = torch.randn(N_VECTORS, ssft.model.dims.d_model, generator=generator)
    ids, start = ssft.target.refusal_ids, starts[LAYER]
    widest = max(batch.ids.numel() for batch, _ in start.batches)
    together = added_scores(ssft.model, start, vectors, ids, N_VECTORS * widest)
    for room in (1, 2 * widest):  # one vector at a time, though it has no room; two, then one
        assert torch.allclose(
            added_scores(ssft.model, start, vectors, ids, room), together, atol=1e-4
        )
    # Batches of other sizes come in another order, and their results in the prompts'.
    small = run_halfway(ssft.model, ssft.target.harmless.tokens, [LAYER], 40)[LAYER]
    assert len(small.batches) > len(start.batches)
    assert torch.allclose(
        added_scores(ssft.model, small, vectors, ids, BATCH_TOKENS), together, atol=1e-4
    )


def test_a_zero_vector_alone_is_the_baseline_bit_for_bit_and_close_to_it_among_others(
    ssft: Attackable, starts: dict[int, Halfway], clean: Tensor
) -> None:
    ids, nothing = ssft.target.refusal_ids, torch.zeros(1, ssft.model.dims.d_model)
    many = torch.cat([nothing, torch.ones(N_VECTORS, ssft.model.dims.d_model)])
    for layer in range(ssft.model.dims.n_layers):
        alone = added_scores(ssft.model, starts[layer], nothing, ids, BATCH_TOKENS)
        assert torch.equal(alone[:, 0], clean)
        shared = added_scores(ssft.model, starts[layer], many, ids, BATCH_TOKENS)
        assert (shared[:, 1] - clean).abs().max() > 0.01
        assert torch.allclose(shared[:, 0], clean, atol=1e-4)


def test_a_float64_model_keeps_its_precision(generator: torch.Generator) -> None:
    model = Model(tiny("llama").double(), None, None)
    prompts = from_ids([[5, 6, 7, 8], [9, 4, 11]])
    start = run_halfway(model, prompts, [2], BATCH_TOKENS)[2]
    vector = torch.randn(1, D_MODEL, generator=generator)
    found = added_scores(model, start, vector, REFUSAL, BATCH_TOKENS)
    # Logits pass through float32 on their way to a score; the stream itself must not.
    with torch.inference_mode():
        batch, residual = start.batches[0]
        logits = model.tail(residual + vector[0].double(), batch, 2)
    expected = refusal_score(logits.float(), REFUSAL)
    assert residual.dtype == torch.float64
    assert torch.equal(found[batch.rows, 0], expected)


def test_a_dose_is_a_multiple_of_the_mean_norm_along_the_unit_direction(
    ssft: Attackable, starts: dict[int, Halfway], clean: Tensor
) -> None:
    layers, ids = (3, 1), ssft.target.refusal_ids
    some = {layer: starts[layer] for layer in layers}
    direction = ssft.source.subspace.vector
    norms = {3: 4.0, 1: 2.5}

    def respond(direction: Tensor, doses: tuple[float, ...] = DOSES) -> Tensor:
        return dose_scores(ssft.model, some, direction, norms, doses, ids, BATCH_TOKENS)

    found = respond(direction)
    assert found.shape == (len(clean), len(layers), len(DOSES))
    unit = direction / direction.norm()
    for place, layer in enumerate(layers):  # in the order of `starts`, not of layers
        vectors = torch.tensor(DOSES)[:, None] * norms[layer] * unit
        expected = one_by_one(ssft.model, ssft.target.harmless.tokens, layer, vectors, ids)
        assert torch.allclose(found[:, place], expected, atol=1e-4)
        assert (found[:, place, 2] - found[:, place, 0]).abs().max() > 1
    assert torch.allclose(found[..., 1], clean[:, None].expand(-1, 2), atol=1e-4)
    # Its length says nothing, its sign what the dose's sign says.
    assert torch.allclose(respond(17 * direction), found, atol=1e-4)
    assert torch.allclose(respond(-direction, (1.0, 0.0, -0.5)), found, atol=1e-4)


def test_a_dose_after_the_last_block_moves_the_final_norm_and_the_unembedding_alone(
    ssft: Attackable, clean: Tensor
) -> None:
    model, prompts, ids = ssft.model, ssft.target.harmless.tokens, ssft.target.refusal_ids
    top = model.dims.n_layers
    starts = run_halfway(model, prompts, [top], BATCH_TOKENS)
    direction, norm = ssft.source.subspace.vector, 6.0
    found = dose_scores(model, starts, direction, {top: norm}, DOSES, ids, BATCH_TOKENS)
    expected = torch.empty_like(found)
    norm_and_head = model.hf.model.norm, model.hf.lm_head  # pyright: ignore
    with torch.inference_mode():
        for batch in batches(prompts, BATCH_TOKENS):
            stream = head_residual(
                model.hf,
                layer=top,
                input_ids=batch.ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
            )[:, -1]
            for place, dose in enumerate(DOSES):
                moved = stream + dose * norm * direction / direction.norm()
                logits = norm_and_head[1](norm_and_head[0](moved))
                expected[batch.rows, 0, place] = refusal_score(logits, ids)
    assert (expected[:, 0, 2] - clean).abs().max() > 0.1
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, torch.inf, torch.nan])
def test_a_direction_that_points_nowhere_is_refused(
    ssft: Attackable, starts: dict[int, Halfway], value: float
) -> None:
    nowhere = torch.full((ssft.model.dims.d_model,), value)
    with pytest.raises(DegenerateDirectionError, match=r"points nowhere.*classes differ"):
        dose_scores(ssft.model, starts, nowhere, {}, DOSES, ssft.target.refusal_ids, BATCH_TOKENS)
