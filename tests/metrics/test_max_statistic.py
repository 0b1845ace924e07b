"""A band for a whole map keeps its error over a search; intervals of single cells do not."""

import math

import pytest
import torch

from mechsafety.core.errors import SampleError
from mechsafety.metrics.max_statistic import adjusted_p, first_beyond, max_statistic_band

N_CELLS, N_DRAWS, N_MAPS = 40, 59, 400


def _maps(n: int, generator: torch.Generator) -> torch.Tensor:
    """Null maps whose neighboring cells correlate at .7, as neighboring layers do."""
    noise = torch.randn(n, N_CELLS, generator=generator, dtype=torch.float64)
    for cell in range(1, N_CELLS):
        noise[:, cell] = 0.7 * noise[:, cell - 1] + (1 - 0.7**2) ** 0.5 * noise[:, cell]
    return noise


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_a_null_map_has_a_cell_outside_as_often_as_the_band_says(
    generator: torch.Generator, alternative: str
) -> None:
    outside = pointwise = significant = 0
    for _ in range(N_MAPS):
        maps = _maps(N_DRAWS + 1, generator)
        observed, null = maps[0], maps[1:]
        band = max_statistic_band(null, alternative, 0.9)  # pyright: ignore[reportArgumentType]
        found = first_beyond(observed, band) is not None
        p = adjusted_p(observed, null, alternative)  # pyright: ignore[reportArgumentType]
        outside, significant = outside + found, significant + bool((p <= 0.1).any())
        low, high = null.quantile(0.05, dim=0), null.quantile(0.95, dim=0)
        edges = {"greater": observed > null.quantile(0.9, dim=0), "less": observed < low}
        edges["two-sided"] = (observed < low) | (observed > high)
        pointwise += bool(edges[alternative].any())
        assert band.error == pytest.approx(0.1)
    margin = 3 * (0.1 * 0.9 / N_MAPS) ** 0.5
    assert 0.1 - margin < outside / N_MAPS < 0.1 + margin
    # A band's edge and the p-value are the same test.
    assert outside == significant
    # One interval a cell is no test of the map: most null maps have a cell outside.
    assert pointwise / N_MAPS > 0.6


def test_one_planted_cell_is_found_and_is_the_onset(generator: torch.Generator) -> None:
    null, observed = _maps(N_DRAWS, generator), _maps(1, generator)[0]
    assert first_beyond(observed, max_statistic_band(null, "greater")) is None
    observed[[23, 31]] += 6
    band = max_statistic_band(null, "greater")
    assert first_beyond(observed, band) == 23
    assert first_beyond(observed.flip(0), band) == N_CELLS - 1 - 31
    assert first_beyond(-observed, max_statistic_band(null, "less")) == 23
    assert first_beyond(-observed, max_statistic_band(null, "two-sided")) == 23
    p = adjusted_p(observed, null, "greater")
    assert (p <= 0.05).nonzero().flatten().tolist() == [23, 31]
    assert float(p[23]) == pytest.approx(1 / (N_DRAWS + 1))


def test_edges_worked_by_hand() -> None:
    # Maxima of the 19 draws are 1 to 19, minima −1 to −19.
    null = torch.arange(1.0, 20)[:, None] * torch.tensor([1.0, 0.0, -1.0])
    greater = max_statistic_band(null, "greater")
    assert (greater.low, greater.high, greater.n_draws) == (-math.inf, 19.0, 19)
    assert (greater.error, greater.resolution) == (pytest.approx(0.05), pytest.approx(0.05))
    less = max_statistic_band(null, "less", 0.9)
    assert (less.low, less.high, less.error) == (-18.0, math.inf, pytest.approx(0.1))
    both = max_statistic_band(null, "two-sided", 0.8)
    assert (both.low, both.high, both.error) == (-18.0, 18.0, pytest.approx(0.2))
    p = adjusted_p(torch.tensor([18.0, 0.0, -30.0]), null, "two-sided")
    torch.testing.assert_close(p, torch.tensor([0.3, 1.0, 0.1]).double())


def test_too_few_draws_give_the_extreme_draw_and_say_which_error_that_keeps() -> None:
    null = torch.arange(1.0, 11)[:, None].expand(10, 3)
    band = max_statistic_band(null, "greater", 0.95)
    assert band.high == 10
    assert band.error == band.resolution == pytest.approx(1 / 11)
    assert max_statistic_band(null, "two-sided", 0.95).error == pytest.approx(2 / 11)


def test_values_without_a_number_are_refused() -> None:
    null = torch.ones(4, 3)
    null[2, 1] = torch.nan
    with pytest.raises(SampleError, match="a null of 4 draws over 3 cells"):
        max_statistic_band(null, "greater")
    with pytest.raises(SampleError, match="a level of 1"):
        max_statistic_band(torch.ones(4, 3), "greater", 1.0)
    band = max_statistic_band(torch.ones(4, 3), "greater", 0.5)
    with pytest.raises(SampleError, match="cell 1 of 2 is not a number"):
        first_beyond(torch.tensor([1.0, torch.nan]), band)
    with pytest.raises(SampleError, match="cell 0 of 3 is not finite"):
        adjusted_p(torch.tensor([torch.inf, 0.0, 0.0]), torch.ones(4, 3), "less")
