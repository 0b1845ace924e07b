"""The engine finds what the published procedure finds, by less work."""

import pytest
import torch
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.positions import Position
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.effects.ablation import ZeroAblation, addition, zero_ablation
from mechsafety.effects.scores import first_token_logits
from mechsafety.effects.selection import (
    Candidates,
    Trial,
    make_trial,
    score_candidates,
    select_direction,
)
from mechsafety.effects.selection_rule import SelectionFilters, choose, kept
from mechsafety.metrics.kl import kl_divergence
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.models.model import Model
from mechsafety.models.tokens import tokenize
from mechsafety.organisms.prompts import twins

from .conftest import BATCH_TOKENS, Attackable

POSITIONS = (Position("eoi", -2), Position("last"))
OPEN = SelectionFilters(prune_layers=1.0, kl_threshold=0.5)


@pytest.fixture(scope="module")
def found(ssft: Attackable) -> tuple[Model, Trial, Candidates]:
    model, fit = ssft.model, twins(40, 0, "fit", preset="small")
    sites = tuple(ResidualSite(n, "resid_pre") for n in range(model.dims.n_layers))
    harmful, harmless = (
        collect(model, tokenize(model, side, ChatFormat()), sites, POSITIONS) for side in fit.sets
    )
    vectors = torch.stack(
        [
            torch.stack([harmful.rows(s, p).mean(0) - harmless.rows(s, p).mean(0) for s in sites])
            for p in POSITIONS
        ]
    )
    trial = make_trial(
        model,
        ssft.target.harmful.tokens,
        ssft.target.harmless.tokens,
        ssft.target.refusal_ids.tolist(),
        BATCH_TOKENS,
    )
    return model, trial, Candidates(tuple(map(str, POSITIONS)), sites, vectors)


def naive(model: Model, trial: Trial, vector: Tensor, site: ResidualSite) -> list[Tensor]:
    """Three passes with hooks on every block, as published."""
    ablation = zero_ablation(model.dims, vector[None])
    adding = addition(site, vector, 1.0)
    size = trial.batch_tokens
    bypass = first_token_logits(model, trial.harmful, size, ablation)
    ablated = first_token_logits(model, trial.harmless, size, ablation)
    added = first_token_logits(model, trial.harmless, size, adding)
    return [
        refusal_score(bypass, trial.refusal_ids),
        refusal_score(added, trial.refusal_ids),
        kl_divergence(trial.clean_harmless, ablated),
    ]


def test_every_score_is_that_of_three_passes_with_hooks(
    found: tuple[Model, Trial, Candidates],
) -> None:
    model, trial, candidates = found
    scores = select_direction(model, trial, candidates, OPEN).scores
    for p, s in ((0, 1), (1, 2), (1, 3)):
        expected = naive(model, trial, candidates.at(p, s), candidates.sites[s])
        assert expected[0].std() > 1e-3
        for mine, theirs in zip((scores.bypass, scores.induce, scores.kl), expected, strict=True):
            assert torch.allclose(mine[:, p, s], theirs, atol=1e-5)


def test_the_winner_of_both_modes_is_the_choice_from_the_exhaustive_table(
    found: tuple[Model, Trial, Candidates],
) -> None:
    model, trial, candidates = found
    full = select_direction(model, trial, candidates, OPEN, "exhaustive")
    fast = select_direction(model, trial, candidates, OPEN, "winner")
    means = [t.mean(0) for t in (full.scores.induce, full.scores.kl, full.scores.bypass)]
    table = choose(means[2], kept(OPEN, model.dims.n_layers, *means))
    assert full.chosen is not None
    assert full.chosen == fast.chosen == tuple(table.tolist())
    # Refusal is there, and the chosen direction lowers it.
    clean = refusal_score(trial.clean_harmful, trial.refusal_ids).mean()
    assert clean > 2
    assert full.scores.bypass[:, full.chosen[0], full.chosen[1]].mean() < clean - 1
    # What the fast mode did not need, it did not compute.
    assert fast.scores.bypass.isnan().sum() > full.scores.bypass.isnan().sum()


def test_candidates_score_the_same_together_and_alone(
    found: tuple[Model, Trial, Candidates], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trial, candidates = found
    together = score_candidates(model, trial, candidates)
    passes: list[str] = []

    def watched(weights: Tensor) -> ZeroAblation:
        passes.append("alone")
        return ZeroAblation(weights)

    monkeypatch.setattr("mechsafety.effects.selection.ZeroAblation", watched)
    monkeypatch.setattr("mechsafety.effects.selection.FULL", 0)
    alone = score_candidates(model, trial, candidates)
    assert len(passes) == int(candidates.real.sum())
    for one, other in ((together.bypass, alone.bypass), (together.kl, alone.kl)):
        assert one.std(dim=1).max() > 1e-2
        assert torch.allclose(one, other, atol=1e-5)


def test_filters_that_nothing_passes_leave_no_winner_in_either_mode(
    found: tuple[Model, Trial, Candidates],
) -> None:
    model, trial, candidates = found
    impossible = SelectionFilters(induce_threshold=1e6)
    for mode in ("exhaustive", "winner"):
        selection = select_direction(model, trial, candidates, impossible, mode)
        assert selection.chosen is None
        assert selection.site is None


def test_the_zero_direction_of_template_tokens_at_layer_0_changes_nothing(
    found: tuple[Model, Trial, Candidates],
) -> None:
    model, trial, candidates = found
    assert candidates.vectors[1, 0].abs().max() == 0
    scores = select_direction(model, trial, candidates, OPEN).scores
    clean = refusal_score(trial.clean_harmful, trial.refusal_ids)
    assert torch.allclose(scores.bypass[:, 1, 0], clean, atol=1e-5)
    assert scores.kl[:, 1, 0].abs().max() < 1e-6


def test_additions_at_other_streams_equal_hooks_too(
    found: tuple[Model, Trial, Candidates],
) -> None:
    model, trial, candidates = found
    sites = (ResidualSite(1, "resid_mid"), ResidualSite(model.dims.n_layers - 1, "resid_post"))
    other = Candidates(candidates.positions, sites, candidates.vectors[:, 2:4])
    scores = select_direction(model, trial, other, SelectionFilters(prune_layers=1.0)).scores
    for s, site in enumerate(sites):
        expected = naive(model, trial, other.at(1, s), site)[1]
        assert torch.allclose(scores.induce[:, 1, s], expected, atol=1e-4)
