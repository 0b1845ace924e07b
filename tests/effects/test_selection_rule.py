"""The published filters and choice, on the stored runs where they are and on planted scores."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mechsafety.core.errors import SampleError
from mechsafety.effects.selection_rule import (
    NOTHING,
    SelectionFilters,
    choose,
    discarded,
    failures,
    kept,
)

N_DRAWS, N_POSITIONS, N_LAYERS = 29, 3, 7
OFF = SelectionFilters(prune_layers=1.0, kl_threshold=None, induce_threshold=None)


def random_scores(generator: torch.Generator, *draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """(induce, kl, bypass), rounded so that ties and scores at a threshold are common."""
    shape = (*draws, N_POSITIONS, N_LAYERS)
    induce = torch.randn(shape, generator=generator).mul(2).round()
    kl = torch.rand(shape, generator=generator).mul(5).round() / 20
    bypass = torch.randn(shape, generator=generator).mul(2).round()
    bypass[torch.rand(shape, generator=generator) < 0.1] = math.nan
    return induce, kl, bypass


def published(
    filters: SelectionFilters, n_layers: int, induce: Tensor, kl: Tensor, bypass: Tensor
) -> tuple[int, int] | None:
    """The published rule, candidate by candidate: filter, then a stable sort."""
    rows = []
    for position in range(bypass.shape[0]):
        for layer in range(bypass.shape[1]):
            b, i, k = (float(score[position, layer]) for score in (bypass, induce, kl))
            if any(math.isnan(score) for score in (b, i, k)):
                continue
            if layer >= int(filters.prune_layers * n_layers):
                continue
            if filters.kl_threshold is not None and k > filters.kl_threshold:
                continue
            if filters.induce_threshold is not None and i < filters.induce_threshold:
                continue
            rows.append((-b, position, layer))
    best = sorted(rows, key=lambda row: row[0], reverse=True)
    return (best[0][1], best[0][2]) if best else None


def test_draws_at_once_equal_the_published_loop(generator: torch.Generator) -> None:
    induce, kl, bypass = random_scores(generator, N_DRAWS, 2)
    filters = SelectionFilters(prune_layers=0.8, kl_threshold=0.1, induce_threshold=2.0)
    fine = kept(filters, N_LAYERS, induce, kl, bypass)
    cells = choose(bypass, fine)
    assert cells.shape == (N_DRAWS, 2, 2)
    answers = []
    for draw in range(N_DRAWS):
        for half in range(2):
            scores = (induce[draw, half], kl[draw, half], bypass[draw, half])
            answer = published(filters, N_LAYERS, *scores)
            answers.append(answer)
            assert tuple(cells[draw, half].tolist()) == (answer or (NOTHING, NOTHING))
            one = kept(filters, N_LAYERS, *scores)
            assert torch.equal(one, fine[draw, half])
            assert torch.equal(choose(scores[2], one), cells[draw, half])
    # There were draws of both kinds, and choices that differ.
    assert None in answers
    assert len(set(answers)) > 5


def test_of_equal_bypass_the_first_by_position_then_layer_is_chosen() -> None:
    bypass = torch.zeros(N_POSITIONS, N_LAYERS)
    bypass[1, 5] = bypass[2, 0] = bypass[1, 6] = -3.0
    everything = torch.ones_like(bypass, dtype=torch.bool)
    assert choose(bypass, everything).tolist() == [1, 5]
    everything[1, 5] = False
    assert choose(bypass, everything).tolist() == [1, 6]
    assert choose(torch.zeros_like(bypass), everything).tolist() == [0, 0]


@pytest.mark.parametrize("spoiled", [0, 1, 2], ids=["induce", "kl", "bypass"])
def test_nan_in_any_score_discards_whatever_the_filters_say(spoiled: int) -> None:
    scores = [torch.ones(N_POSITIONS, N_LAYERS) for _ in range(3)]
    scores[2][2, 4] = -5.0
    assert choose(scores[2], kept(OFF, N_LAYERS, *scores)).tolist() == [2, 4]
    scores[spoiled][2, 4] = math.nan
    fine = kept(OFF, N_LAYERS, *scores)
    assert not fine[2, 4]
    assert fine.sum() == N_POSITIONS * N_LAYERS - 1
    assert choose(scores[2], fine).tolist() == [0, 0]


def test_a_bypass_that_is_known_later_gives_the_same_choice(generator: torch.Generator) -> None:
    induce, kl, bypass = random_scores(generator, N_DRAWS)
    filters = SelectionFilters()
    early, late = (kept(filters, N_LAYERS, induce, kl, b) for b in (None, bypass))
    assert not torch.equal(early, late)
    assert torch.equal(choose(bypass, early), choose(bypass, late))


def test_scores_at_a_threshold_are_kept_in_either_precision() -> None:
    at = torch.full((1, 5), 0.1, dtype=torch.float64)
    zero = torch.zeros_like(at)
    filters = SelectionFilters()
    # 0.8 of 5 layers are 4; equality with the other thresholds is kept.
    assert kept(filters, 5, zero, at, zero).tolist() == [[True] * 4 + [False]]
    assert kept(filters, 5, zero - 1e-12, at, zero).sum() == 0
    assert kept(filters, 5, zero, at + 1e-12, zero).sum() == 0
    # Nearest float32 numbers to 0.1 lie on both sides of it, and the rule tells them apart.
    above = torch.tensor([[0.1, 0.09999999]], dtype=torch.float32)
    flat = torch.zeros_like(above)
    assert kept(filters, 5, flat, above, flat).tolist() == [[False, True]]


def test_one_filter_off_keeps_what_only_it_discards(generator: torch.Generator) -> None:
    induce, kl, bypass = random_scores(generator, N_DRAWS)
    every = kept(SelectionFilters(), N_LAYERS, induce, kl, bypass)
    for name, value in (("prune_layers", 1.0), ("kl_threshold", None), ("induce_threshold", None)):
        looser = SelectionFilters.model_validate({name: value})
        fine = kept(looser, N_LAYERS, induce, kl, bypass)
        assert (fine | every).equal(fine)
        assert fine.sum() > every.sum()
    assert kept(OFF, N_LAYERS, induce, kl, bypass).equal(~bypass.isnan())


def test_infinite_scores_are_compared_like_others() -> None:
    bypass = torch.tensor([[math.inf, math.inf, -math.inf]])
    all_but_last = torch.tensor([[False, True, False]])
    assert choose(bypass, all_but_last).tolist() == [0, 1]
    assert choose(bypass, torch.ones_like(all_but_last)).tolist() == [0, 2]
    assert choose(bypass, torch.zeros_like(all_but_last)).tolist() == [NOTHING, NOTHING]


def test_the_explanation_says_how_near_the_best_came() -> None:
    induce = torch.tensor([[-3.0, -0.25, 4.0, math.nan, 5.0], [-2.0, 1.0, 1.0, 1.0, 1.0]])
    kl = torch.tensor([[0.0, 0.01, 0.71, 0.02, 0.02], [0.9, 1.5, 1.5, 1.5, 9.0]])
    bypass = torch.tensor([[6.0, 5.0, -7.5, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    present = torch.ones_like(kl, dtype=torch.bool)
    filters = SelectionFilters(kl_threshold=0.5)
    told = discarded(filters, 5, induce, kl, bypass, present)
    assert told.explain() == (
        "0 of 10 candidates are kept: 2 fail the layer cut (layer ≥ 4 of 5), 6 KL > 0.5 (smallest "
        "0.71; 4 fail nothing else), 3 induce < 0 (largest -0.25; 2 fail nothing else), 1 have "
        "NaN; bypass lies in -7.5 to 6."
    )
    # A cell that is no candidate counts nowhere.
    present[0, 2] = False
    fewer = discarded(filters, 5, induce, kl, bypass, present)
    assert (fewer.candidates, fewer.kl, fewer.smallest_failing_kl) == (9, 5, pytest.approx(0.9))
    loose = discarded(OFF, 5, induce, kl, bypass * math.nan, present)
    assert loose.explain() == (
        "0 of 9 candidates are kept: 0 fail the layer cut (layer ≥ 5 of 5), 9 have NaN."
    )


def test_counts_are_those_of_the_failures(generator: torch.Generator) -> None:
    induce, kl, bypass = random_scores(generator)
    failed = failures(SelectionFilters(), N_LAYERS, induce, kl, bypass)
    present = torch.ones_like(failed.kl)
    counted = discarded(SelectionFilters(), N_LAYERS, induce, kl, bypass, present)
    found = [counted.layer, counted.kl, counted.induce, counted.nan]
    assert found == [int(each.sum()) for each in vars(failed).values()]
    assert min(found) > 0
    assert counted.kept == int((failed.count() == 0).sum()) > 0
    assert counted.kept + int((failed.count() > 0).sum()) == counted.candidates


def test_more_layers_than_the_model_has_are_refused() -> None:
    scores = torch.zeros(N_POSITIONS, N_LAYERS)
    with pytest.raises(SampleError, match="scores of 7 layers, and the model has 6"):
        kept(SelectionFilters(), N_LAYERS - 1, scores, scores, scores)


def test_a_threshold_that_nothing_can_fail_is_a_filter_that_is_off() -> None:
    endless = {"kl_threshold": math.inf, "induce_threshold": -math.inf}
    assert SelectionFilters(prune_layers=1.0, **endless) == OFF
    as_text = {name: str(limit) for name, limit in endless.items()}
    assert SelectionFilters.model_validate({"prune_layers": 1.0, **as_text}) == OFF
    assert SelectionFilters.model_validate({"kl_threshold": "0.5"}).kl_threshold == 0.5
    with pytest.raises(ValidationError, match="kl_threshold"):
        SelectionFilters.model_validate({"kl_threshold": "none"})
    for name, limit in endless.items():
        with pytest.raises(ValidationError, match=f"{name}\n.*finite"):
            SelectionFilters.model_validate({name: -limit})
        with pytest.raises(ValidationError, match="finite"):
            SelectionFilters.model_validate({name: math.nan})


@pytest.mark.parametrize("share", [0.0, 1.2, math.nan])
def test_a_share_of_the_depth_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(ValidationError, match="prune_layers"):
        SelectionFilters(prune_layers=share)


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
@pytest.mark.parametrize(
    ("run", "counts", "choice"),
    [
        ("qwen-1_8b-chat", (12, 120, 25, 53, 91), (-2, 15)),
        ("gemma-2b-it", (13, 90, 20, 4, 68), (-2, 10)),
    ],
)
def test_the_stored_runs_give_the_published_counts_and_the_authors_choice(
    run: str, counts: tuple[int, ...], choice: tuple[int, int]
) -> None:
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "refusal_direction_runs"
    stored = json.loads((folder / f"{run}.direction_evaluations.json").read_text())
    n_layers = 1 + max(row["layer"] for row in stored["candidates"])
    columns = ("steering_score", "kl_div_score", "refusal_score")
    induce, kl, bypass = (
        torch.tensor([row[c] for row in stored["candidates"]]).double().view(-1, n_layers)
        for c in columns
    )
    filters = SelectionFilters()
    told = discarded(filters, n_layers, induce, kl, bypass, ~bypass.isnan())
    assert (told.kept, told.candidates, told.layer, told.kl, told.induce) == counts
    position, layer = choose(bypass, kept(filters, n_layers, induce, kl, bypass)).tolist()
    assert (position - len(bypass), layer) == choice
    assert (stored["selected"]["pos"], stored["selected"]["layer"]) == choice
    # The filters matter: without them another candidate wins.
    assert choose(bypass, kept(OFF, n_layers, induce, kl, bypass)).tolist() != [position, layer]
