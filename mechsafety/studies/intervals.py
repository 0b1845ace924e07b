"""Ends of few controls, and intervals that hold their estimate."""

from torch import Tensor

from mechsafety.metrics.intervals import Interval


def ends(draws: Tensor) -> tuple[float, float]:
    """Smallest and largest of a few controls, for which quantiles would be invented."""
    return float(draws.min()), float(draws.max())


def around(value: float, low: float, high: float) -> Interval:
    """An interval that holds its estimate: few clusters can leave it just outside."""
    return Interval(min(low, value), max(high, value))
