"""Searches over places, and what is chosen from a map."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mechsafety.effects.windows import windows
from mechsafety.metrics.resampling import Resampling
from mechsafety.studies.locating.measured import Windows, searched
from mechsafety.studies.locating.partial import Where
from tests.studies.locality_runs import Ran

N_SELECT, N_EVALUATE, N_LAYERS, N_DRAWS = 5, 7, 3, 4


# --- searches ------------------------------------------------------------------------------------


def test_a_search_finds_what_no_control_has_anywhere(generator: torch.Generator) -> None:
    null = torch.randn(19, 6, generator=generator)
    observed = torch.randn(6, generator=generator) / 4
    assert searched(observed, null).onset is None
    observed[4] = 60.0
    found = searched(observed, null)
    assert found.onset == 4
    assert float(found.p[4]) == pytest.approx(1 / 20) == found.band.resolution
    assert float(found.p[:4].min()) > 0.05


def test_a_cell_that_varies_more_does_not_set_the_band_for_all(generator: torch.Generator) -> None:
    null = torch.randn(19, 6, generator=generator)
    observed = torch.zeros(6)
    observed[2] = 8.0
    scale = torch.tensor([1.0, 1, 1, 1, 1, 100])
    assert searched(observed, null).onset == searched(observed * scale, null * scale).onset == 2


def test_a_cell_where_nothing_varies_has_no_effect(generator: torch.Generator) -> None:
    null = torch.randn(19, 3, generator=generator)
    null[:, 1] = 0
    observed = torch.tensor([50.0, 0.0, 50.0])
    assert searched(observed, null).p.tolist() == pytest.approx([0.05, 1.0, 0.05])
    still = searched(torch.zeros(3), torch.zeros(19, 3))
    assert still.onset is None
    assert still.p.tolist() == [1, 1, 1]


# --- choosing ------------------------------------------------------------------------------------


def test_a_resampling_of_every_prompt_once_chooses_what_the_table_does(ssft: Ran) -> None:
    found, selection = ssft.causal.map, ssft.causal.selection
    n_harmful, n_harmless = len(found.clean.harmful), len(found.clean.harmless)
    once = [
        Resampling(torch.full((2, n), 1 / n, dtype=torch.float64), n)
        for n in (n_harmful, n_harmless)
    ]
    same = replace(found, sample=replace(found.sample, harmful=once[0], harmless=once[1]))
    assert selection.chosen is not None
    assert same.choices(selection).tolist() == [list(selection.chosen)] * 2
    assert found.choice(selection) == selection.chosen


def test_a_zero_direction_is_never_chosen_however_well_it_scores(ssft: Ran) -> None:
    found, selection = ssft.causal.map, ssft.causal.selection
    last = found.candidates.positions.index("last")
    assert not bool(found.candidates.vectors[last, 0].any())
    bypass, induce = found.scores.bypass.clone(), found.scores.induce.clone()
    bypass[:, last, 0], induce[:, last, 0] = -100.0, 100.0
    rigged = replace(found, scores=replace(found.scores, bypass=bypass, induce=induce))
    chosen = rigged.choices(selection)
    assert not bool(((chosen[:, 0] == last) & (chosen[:, 1] == 0)).any())
    assert rigged.choice(selection) == selection.chosen


# --- windows -------------------------------------------------------------------------------------


def windowed(by_layer: Sequence[float]) -> Windows:
    """Each layer adds its effect; controls add nothing."""
    tried = windows(N_LAYERS, 1)
    effects = torch.tensor([sum(by_layer[a : b + 1]) for a, b in tried], dtype=torch.float64)
    n = N_SELECT + N_EVALUATE
    clean = torch.arange(n, dtype=torch.float64)
    scores = clean[None, :, None].repeat(N_DRAWS, 1, len(tried))
    scores[0] -= effects
    positions = clean[None, :, None] - torch.zeros(N_DRAWS, 1, 2, dtype=torch.float64)
    positions[0] -= torch.tensor([1.0, 2.0], dtype=torch.float64)
    return Windows.of(Where(scores, positions), tried, ("eoi[-2]", "last"), clean, N_SELECT)


def test_prompts_that_choose_a_window_come_before_those_that_measure_it() -> None:
    found = windowed([0.0, 3.0, 1.0])
    assert found.select.shape == (N_DRAWS, N_SELECT, 6)
    assert found.evaluate.shape == (N_DRAWS, N_EVALUATE, 6)
    whole = found.tried.index((0, N_LAYERS - 1))
    torch.testing.assert_close(found.evaluate[0][:, whole], torch.full((N_EVALUATE,), 4.0).double())
    assert not bool(found.evaluate[1:].any())
    assert found.by_position[0].tolist() == [[1.0, 2.0]] * N_EVALUATE
    assert not bool(found.by_position[1:].any())


def test_the_smallest_window_is_the_shortest_with_the_share_asked_for() -> None:
    found = windowed([0.0, 3.0, 1.0])
    effects = found.evaluate[0].mean(0)
    for share, window in ((0.7, (1, 1)), (0.9, (1, 2))):
        first, last = found.smallest(effects, share)
        assert (int(first), int(last)) == window
    grid = found.grid(effects)
    assert bool(grid[2, 0].isnan())
    assert float(grid[0, 2]) == 4
