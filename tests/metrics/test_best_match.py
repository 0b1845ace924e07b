"""The best of many is too good where it was chosen, and honest where it was not."""

import pytest
import torch
from torch import Tensor

from mechsafety.metrics.best_match import chosen_and_measured, largest
from mechsafety.metrics.deals import mean_differences, plan
from mechsafety.metrics.direction_stacks import refitted
from mechsafety.metrics.shared_null import LayerCosines, layer_cosines
from mechsafety.metrics.spectral_intervals import jackknife_groups

N_CLASS, D = 30, 50


def measured(first: Tensor, second: Tensor, seed: int = 0) -> LayerCosines:
    generator = torch.Generator().manual_seed(seed)
    groups = jackknife_groups(N_CLASS, N_CLASS, 6, generator)
    deals = plan(N_CLASS, N_CLASS, False, groups, 60, 20, 4, generator)
    stacks = [refitted(mean_differences, rows, deals) for rows in (first, second)]
    return layer_cosines(stacks[0], stacks[1], deals)


def noise(generator: torch.Generator, n_layers: int) -> Tensor:
    return torch.randn(2 * N_CLASS, n_layers, D, generator=generator, dtype=torch.float64)


def test_the_layer_with_the_same_direction_is_found(generator: torch.Generator) -> None:
    first, second = noise(generator, 2), noise(generator, 4)
    for mine, theirs, channel in ((0, 3, 5), (1, 1, 8)):
        first[:N_CLASS, mine, channel] += 4
        second[:N_CLASS, theirs, channel] += 4
    match = measured(first, second).best_match()
    assert match.frequency.argmax(dim=1).tolist() == [3, 1]
    torch.testing.assert_close(match.frequency.sum(1), torch.ones(2).double())
    assert match.frequency.max(dim=1).values.min() > 0.95
    for layer in range(2):
        cell = match.jackknifed(layer)
        low, high = cell.interval()
        assert float(match.null[:, layer].quantile(0.99)) < low < cell.value < high


def test_the_best_of_unrelated_layers_is_nothing_where_it_is_measured(
    generator: torch.Generator,
) -> None:
    values: list[float] = []
    optimistic: list[float] = []
    for seed in range(30):
        found = measured(noise(generator, 1), noise(generator, 9), seed)
        match = found.best_match()
        values.append(float(match.value))
        optimistic.append(float(found.same_half[0].amax(-1).mean()))
        assert match.value[0] < match.null[:, 0].quantile(0.99)
    assert sum(optimistic) / 30 > 0.15
    assert abs(sum(values) / 30) < 0.05


def test_choice_and_measure_by_hand() -> None:
    nan = torch.nan
    one = torch.tensor([[[0.1, 0.9, nan], [nan, nan, nan]]]).double()
    other = torch.tensor([[[0.5, 0.2, nan], [nan, nan, nan]]]).double()
    shares, values = chosen_and_measured(one, other)
    assert shares[0, 0].tolist() == [0.5, 0.5, 0]
    assert float(values[0, 0]) == pytest.approx((0.2 + 0.1) / 2)
    assert bool(shares[0, 1].isnan().all() & values[0, 1].isnan())
    assert float(largest(one)[0, 0]) == pytest.approx(0.9)
    assert bool(largest(one)[0, 1].isnan())
