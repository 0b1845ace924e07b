"""Seeds, and not comparisons, are what a mean over training runs is replicated by."""

import itertools
import math

import pytest
import torch

from mechsafety.core.errors import SampleError
from mechsafety.metrics.intervals import student_mean
from mechsafety.metrics.seeds import MIN_SEEDS, over_seeds

VALUES = (0.3, 0.7, 0.45, 0.8, 0.52, 0.61)


def test_with_one_seed_a_comparison_it_is_students_interval() -> None:
    found = over_seeds({(100 + i,): value for i, value in enumerate(VALUES)})
    expected = student_mean(torch.tensor(VALUES).double())
    assert found.interval == pytest.approx(expected)
    assert (found.value, found.n_seeds) == (pytest.approx(sum(VALUES) / 6), 6)


def pairs(generator: torch.Generator, n_seeds: int) -> dict[tuple[int, ...], float]:
    """A number of each two seeds, whose noise is that of the seeds."""
    own = torch.randn(n_seeds, generator=generator).tolist()
    return {(i, j): own[i] + own[j] for i, j in itertools.combinations(range(n_seeds), 2)}


def test_comparisons_that_share_seeds_are_not_counted_as_independent(
    generator: torch.Generator,
) -> None:
    covered = {"seeds": 0, "pairs": 0}
    for _ in range(300):
        values = pairs(generator, 6)
        interval = over_seeds(values).interval
        assert interval is not None
        covered["seeds"] += interval.low <= 0 <= interval.high
        naive = student_mean(torch.tensor(list(values.values())).double())
        covered["pairs"] += naive.low <= 0 <= naive.high
    assert covered["seeds"] / 300 > 0.92
    assert covered["pairs"] / 300 < 0.85


def test_for_all_pairs_of_a_sum_it_is_the_interval_of_the_seeds_themselves(
    generator: torch.Generator,
) -> None:
    values = pairs(generator, 6)
    # Leaving a seed out of Σ (a_i + a_j) over pairs leaves 2 · the mean of the others' a.
    first = (values[0, 1] + values[0, 2] - values[1, 2]) / 2
    own = [first, *(values[0, i] - first for i in range(1, 6))]
    expected = student_mean(torch.tensor([2 * each for each in own]).double())
    assert over_seeds(values).interval == pytest.approx(expected)


def test_too_few_seeds_have_a_mean_and_no_interval() -> None:
    assert over_seeds({(0,): 0.25}).interval is None
    two = over_seeds({(0,): 0.25, (1,): 0.75, (0, 1): 0.5})
    assert (two.value, two.interval, two.n_seeds) == (0.5, None, 2)
    few = {(i,): value for i, value in enumerate(VALUES[: MIN_SEEDS - 1])}
    assert over_seeds(few).interval is None
    assert over_seeds({**few, (MIN_SEEDS,): 0.4}).interval is not None
    # Six seeds, but without seed 0 nothing is left.
    star = over_seeds({(0, i): i / 4 for i in range(1, MIN_SEEDS)})
    assert (star.value, star.interval, star.n_seeds) == (0.75, None, MIN_SEEDS)
    same = over_seeds({(i,): 0.2 for i in range(MIN_SEEDS)})
    assert same.interval == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize("values", [{}, {(0,): math.nan}, {(): 0.5}])
def test_nothing_to_average_is_refused(values: dict[tuple[int, ...], float]) -> None:
    with pytest.raises(SampleError, match=r"at least one finite number"):
        over_seeds(values)
