"""Means over training seeds: the training run is the unit of replication, not the prompt."""

# SciPy comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from scipy import stats

from mechsafety.core.errors import SampleError
from mechsafety.metrics.intervals import Interval
from mechsafety.metrics.spectral_intervals import self_checked

MIN_SEEDS: Final = 6
"""Training seeds below which there is a count and no interval: report how many of them agree
(evidence.md 9)."""


@dataclass(frozen=True, slots=True)
class SeedMean:
    """A number over training runs."""

    value: float
    """Mean over all of them, each comparison once."""
    interval: Interval | None
    """Over seeds; None below `MIN_SEEDS` of them, or where all comparisons hang on one seed."""
    n_seeds: int
    """Different training seeds that enter."""


def over_seeds(values: Mapping[tuple[int, ...], float], confidence: float = 0.95) -> SeedMean:
    r"""Mean, with an interval from leaving each training seed out in turn.

    A comparison of two models of one seed (a base and what was trained from it) has one seed, of
    two seeds two; comparisons that share a seed are not independent, so they leave together:
    $\frac{n-1}{n} \sum_s (\bar\theta_{(s)} - \bar\theta_{(\cdot)})^2$, n the seeds, with Student's
    quantile at n − 1 degrees of freedom. With one seed a comparison this is Student's interval of
    the mean; with two it is the jackknife of a U-statistic, whose variance is never too small in
    expectation. Valid for seeds that tuned nothing, from `MIN_SEEDS` of them on: with fewer the
    interval is None.

    Source: Efron & Stein 1981, doi:10.1214/aos/1176345462.

    Args:
        values: The seeds that enter → the number.
        confidence: Coverage aimed at.

    Raises:
        SampleError: No values, a number that is not finite, or a value without a seed.
    """
    if not values or not all(key and math.isfinite(value) for key, value in values.items()):
        raise SampleError(
            f"mean over training seeds of {dict(values)}: expected at least one finite number, "
            "each with the seeds of the models that it compares."
        )
    seeds = sorted({seed for key in values for seed in key})
    mean = math.fsum(values.values()) / len(values)
    left: list[float] = []
    for seed in seeds:
        others = [value for key, value in values.items() if seed not in key]
        if others:
            left.append(math.fsum(others) / len(others))
    n = len(seeds)
    if n < MIN_SEEDS or len(left) < n:
        return SeedMean(mean, None, n)
    center = math.fsum(left) / n
    error = math.sqrt((n - 1) / n * math.fsum((each - center) ** 2 for each in left))
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return SeedMean(mean, self_checked(mean, Interval(mean - reach, mean + reach)), n)
