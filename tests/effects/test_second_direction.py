"""What is fitted while the first direction is ablated, and what is left of the stream then."""

import pytest
import torch
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.positions import Position
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.effects.ablation import zero_ablation
from mechsafety.effects.scores import first_token_logits
from mechsafety.effects.second_direction import last_token_stream, refitted_candidates
from mechsafety.interventions.ablate import ablate
from mechsafety.models.hooking import intervene, reading
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenizedPrompts, from_ids, pad, tokenize
from mechsafety.organisms.prompts import twins
from tests.models.families import D_MODEL, tiny

from .conftest import BATCH_TOKENS, LAYER, Attackable

POSITIONS = (Position("eoi", -2), Position("last"))
# Not in the order of computation: results come in the order asked for.
SITES = tuple(ResidualSite(layer, "resid_pre") for layer in (LAYER, 3, 1))

Sides = tuple[TokenizedPrompts, TokenizedPrompts]


@pytest.fixture(scope="module")
def fit(ssft: Attackable) -> Sides:
    # Unequal sides, so that the classes cannot be mistaken for one another.
    first, second = (
        tokenize(ssft.model, side, ChatFormat())
        for side in twins(17, 0, "fit", preset="small").sets
    )
    return first, second.select(range(13))


def mean_difference(model: Model, fit: Sides, site: ResidualSite, position: Position) -> Tensor:
    first, second = (
        collect(model, side, [site], [position], batch_tokens=BATCH_TOKENS).rows(site, position)
        for side in fit
    )
    return first.double().mean(0) - second.double().mean(0)


def test_refitted_directions_are_the_mean_differences_of_the_model_under_ablation(
    ssft: Attackable, fit: Sides
) -> None:
    model, first = ssft.model, ssft.source.subspace.basis
    found = refitted_candidates(model, *fit, first, SITES, POSITIONS, BATCH_TOKENS)
    assert found.sites == SITES
    assert found.positions == ("eoi[-2]", "last")
    means: list[Tensor] = []
    for side in fit:
        seen: dict[ResidualSite, list[Tensor]] = {site: [] for site in SITES}
        reads = {
            site: lambda x, rows=rows: rows.append(x[0].double()) for site, rows in seen.items()
        }
        picked: list[Tensor] = []
        for ids, span in zip(side.ids, side.spans, strict=True):
            # One prompt at a time, to its end, with every hook of the ablation.
            with (
                torch.inference_mode(),
                intervene(model, zero_ablation(model.dims, first)),
                reading(model, reads),
            ):
                model.forward(pad([ids], [0], 0, "left"))
            at = [token for position in POSITIONS for token in position.tokens(span)]
            picked.append(torch.stack([seen[site][-1][at] for site in SITES], dim=1))
        means.append(torch.stack(picked).mean(0))
    assert means[0].std(dim=-1).min() > 1e-3
    assert torch.allclose(found.vectors, (means[0] - means[1]).float(), atol=1e-5)


def test_refitted_directions_are_orthogonal_to_the_first_and_not_what_projecting_gives(
    ssft: Attackable, fit: Sides
) -> None:
    model, first = ssft.model, ssft.source.subspace.basis
    found = refitted_candidates(model, *fit, first, SITES, POSITIONS, BATCH_TOKENS)
    for p, position in enumerate(POSITIONS):
        for s, site in enumerate(SITES):
            vector, clean = found.at(p, s), mean_difference(model, fit, site, position)
            assert vector.norm() > 0.1
            assert (clean.float() @ first.T).abs().max() > 0.1  # the first was in what it replaces
            assert (vector @ first.T).abs().max() < 1e-6 * vector.norm()
            projected = ablate(clean, first).float()
            if site.layer > 1:  # an ablation's effect needs a block to go through
                assert (vector - projected).norm() > 0.05 * vector.norm()


def test_projecting_the_first_out_of_its_own_mean_difference_leaves_nothing(
    ssft: Attackable, fit: Sides
) -> None:
    site, last = ResidualSite(LAYER, "resid_pre"), Position("last")
    first = mean_difference(ssft.model, fit, site, last)
    projected = ablate(first, first[None])
    assert projected.norm() < 1e-12 * first.norm()
    basis = (first / first.norm()).float()[None]
    refit = refitted_candidates(ssft.model, *fit, basis, [site], [last], BATCH_TOKENS).at(0, 0)
    # The model that runs without it shows what else tells the classes apart.
    assert refit.norm() > 0.1 * first.norm()


@pytest.mark.parametrize("family", ["gemma2", "neox", "gpt2"])
@pytest.mark.parametrize("layer", [0, 2])
def test_sites_below_the_top_serve_in_models_of_every_kind(
    family: str, layer: int, generator: torch.Generator
) -> None:
    """A pass ends after the last site, so that edits above it never run."""
    model = Model(tiny(family), None, None)
    fit = from_ids([[5, 6, 7, 8], [3, 4, 9, 11, 12]]), from_ids([[9, 6, 7], [11, 4, 9], [8, 30]])
    first = torch.randn(2, D_MODEL, generator=generator)
    site = ResidualSite(layer, "resid_pre")
    found = refitted_candidates(model, *fit, first, [site], POSITIONS[1:], BATCH_TOKENS)
    with intervene(model, zero_ablation(model.dims, first)):
        rows: list[Tensor] = []
        for side in fit:
            seen: list[Tensor] = []
            with torch.inference_mode(), reading(model, {site: lambda x, s=seen: s.append(x)}):
                model.forward(pad(side.ids, range(len(side)), 0, "left"))
            rows.append(seen[0][:, -1])
    expected = rows[0].mean(0) - rows[1].mean(0)
    assert expected.norm() > 0.1
    assert torch.allclose(found.at(0, 0), expected, atol=1e-4)


def test_the_stream_without_a_direction_has_no_projection_on_it(ssft: Attackable) -> None:
    model, prompts = ssft.model, ssft.target.harmful.tokens
    basis = ssft.source.subspace.basis
    clean = last_token_stream(model, prompts, SITES, BATCH_TOKENS)
    without = last_token_stream(model, prompts, SITES, BATCH_TOKENS, without=basis)
    assert clean.shape == without.shape == (len(SITES), len(prompts), model.dims.d_model)
    for layer, site in enumerate(SITES):
        rows = collect(model, prompts, [site], ["last"], batch_tokens=BATCH_TOKENS)
        assert torch.allclose(clean[layer], rows.rows(site, "last"), atol=1e-5)
    assert (clean @ basis.T).abs().max() > 0.1
    assert (without @ basis.T).abs().max() < 1e-5 * clean.norm(dim=-1).max()


def test_the_model_is_as_it_was_afterwards(ssft: Attackable, fit: Sides) -> None:
    model, first = ssft.model, ssft.source.subspace.basis
    before, name = first_token_logits(model, fit[0], BATCH_TOKENS), model.identity()
    refitted_candidates(model, *fit, first, SITES, POSITIONS, BATCH_TOKENS)
    last_token_stream(model, fit[0], SITES, BATCH_TOKENS, without=first)
    assert torch.equal(first_token_logits(model, fit[0], BATCH_TOKENS), before)
    assert model.identity() == name
    assert not model.wiring.edited
