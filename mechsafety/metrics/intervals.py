"""Confidence intervals of rates, means and paired differences. SciPy computes; this decides how.

Shares, ranks and angles of spectra have no bootstrap here: duplicated rows inflate them.

Source: SciPy, arXiv:1907.10121.
"""

# SciPy comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from mechsafety.core.errors import SampleError


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """Two yes-or-no outcomes of the same prompts."""

    difference: float
    """Rate of the first minus rate of the second."""
    interval: Interval
    """Of the difference: Bonett & Price 2012, which stays honest at rates of 0 and 1."""
    p_value: float
    """Exact two-sided binomial test on the prompts where the outcomes differ."""
    only_first: int
    """Prompts with the outcome in the first alone."""
    only_second: int
    """Prompts with the outcome in the second alone."""
    n: int
    """Prompts."""


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate of independent trials. Valid at 0 and n successes.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.

    Raises:
        SampleError: No trials, or more successes than trials.
    """
    if not 0 <= successes <= n or n == 0:
        raise SampleError(
            f"wilson: {successes} successes in {n} trials; expected at least one trial and no "
            "more successes than trials."
        )
    found = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def wilson_clustered(
    outcomes: Bool[Tensor, " row"], clusters: Sequence[Hashable], confidence: float = 0.95
) -> Interval:
    """Wilson's interval with the number of trials that the clusters are worth.

    The effective n is p(1 − p) over the variance of the rate between clusters (never above n);
    where every outcome is the same, that variance is unknown and each cluster counts as one
    trial. Student's quantile for the number of clusters stands in for the normal one. Clusters
    that all happen to miss a rare outcome look independent: a rate of .1 that comes in nearly
    whole clusters, 15 of them, is covered 85 % of the time.

    Source: the score interval of Wilson 1927, doi:10.1080/01621459.1927.10502953.

    Args:
        outcomes: One per prompt.
        clusters: The cluster of each prompt; prompts of one cluster are not independent.
        confidence: Coverage aimed at.

    Raises:
        SampleError: Fewer than two clusters, or not one label per prompt.
    """
    values = outcomes.double().cpu().numpy()
    sums, counts = _by_cluster(values, clusters, "wilson_clustered")
    n, rate, n_clusters = len(values), float(values.mean()), len(sums)
    spread = float(((sums - rate * counts) ** 2).sum()) * n_clusters / (n_clusters - 1) / n**2
    worth = min(n, rate * (1 - rate) / spread) if 0 < rate < 1 and spread else n_clusters
    # Of the normal quantile, what Student's would be, as a change of n: both enter as z² / n.
    z = stats.norm.ppf((1 + confidence) / 2) / stats.t.ppf((1 + confidence) / 2, n_clusters - 1)
    worth = worth * float(z) ** 2
    half = float(stats.norm.ppf((1 + confidence) / 2)) ** 2 / worth
    center = (rate + half / 2) / (1 + half)
    width = (rate * (1 - rate) * half + half**2 / 4) ** 0.5 / (1 + half)
    return Interval(max(0.0, center - width), min(1.0, center + width))


def student_mean(values: Float[Tensor, " row"], confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of a few independent values, such as one per training seed.

    Source: Student 1908, doi:10.1093/biomet/6.1.1.

    Raises:
        SampleError: Fewer than two values, or one that is not finite.
    """
    sample = _finite(values, "student_mean")
    if len(sample) < 2:
        raise SampleError(
            f"student_mean: {len(sample)} value has no spread to learn from; expected at least "
            "two. For the interval behind `scope: method`, train at least six seeds."
        )
    if not np.ptp(sample):
        return Interval(float(sample[0]), float(sample[0]))
    found = stats.ttest_1samp(sample, 0.0).confidence_interval(confidence)
    return Interval(float(found.low), float(found.high))


def bootstrap_mean(
    values: Float[Tensor, " row"],
    generator: torch.Generator,
    resamples: int,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Expanded percentile bootstrap of a mean, over rows or over whole clusters of rows.

    The percentiles are those that make the interval as wide as Student's for that many rows
    or clusters: plain percentiles cover 89 % instead of 95 % for 8 normal values. With a long tail
    (lognormal) 20 values still cover only 88 %. Values that are all equal give an interval of no
    width: rates want `wilson` or `wilson_clustered`. In float64.

    Sources: Efron 1979, doi:10.1214/aos/1176344552; of clusters Field & Welsh 2007,
    doi:10.1111/j.1467-9868.2007.00593.x; expanded as in Hesterberg 2015, "What teachers should
    know about the bootstrap", arXiv:1411.5279, section 5.3.

    Args:
        values: One number per prompt.
        generator: Seeds NumPy's generator with one draw.
        resamples: At least 1,000 for an interval to be printed with two digits.
        clusters: The cluster of each row; prompts of one cluster are not independent.
        confidence: Coverage aimed at.

    Raises:
        SampleError: Fewer than two rows or clusters, a value that is not finite, or not one
            cluster label per row.
    """
    sample = _finite(values, "bootstrap_mean")
    labels = range(len(sample)) if clusters is None else clusters
    sums, counts = _by_cluster(sample, labels, "bootstrap_mean")
    n = len(sums)
    student = stats.t.ppf((1 + confidence) / 2, n - 1)
    expanded = 1 - 2 * float(stats.norm.sf(student * (n / (n - 1)) ** 0.5))
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    found = stats.bootstrap(
        (sums, counts),
        _ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        confidence_level=expanded,
        # SciPy would hold all resamples at once; so it holds 8 MB.
        batch=max(1, 1_000_000 // n),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def paired_difference(
    first: Float[Tensor, " n_first"],
    second: Float[Tensor, " n_second"],
    generator: torch.Generator,
    resamples: int,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """`bootstrap_mean` of first minus second: both sides keep the same prompts in each resample.

    Raises:
        SampleError: As `bootstrap_mean`, or sides of unequal length.
    """
    _same_length(first, second, "paired_difference")
    difference = first.double() - second.double()
    return bootstrap_mean(difference, generator, resamples, clusters, confidence)


def mcnemar(
    first: Bool[Tensor, " n_first"], second: Bool[Tensor, " n_second"], confidence: float = 0.95
) -> McNemar:
    """Difference between two rates measured on the same prompts.

    Sources: the test McNemar 1947, doi:10.1007/BF02295996; the interval Bonett & Price 2012,
    doi:10.3102/1076998611411915.

    Raises:
        SampleError: No prompts, or sides of unequal length.
    """
    _same_length(first, second, "mcnemar")
    n = len(first)
    if n == 0:
        raise SampleError("mcnemar: no prompts. Check the filters that selected them.")
    only_first = int((first & ~second).sum())
    only_second = int((~first & second).sum())
    differing = only_first + only_second
    p_value = float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0
    # One prompt of each kind is added (Laplace), so that no cell of the table is empty.
    a, b = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = float(stats.norm.ppf((1 + confidence) / 2)) * ((a + b - (a - b) ** 2) / (n + 2)) ** 0.5
    return McNemar(
        difference=(only_first - only_second) / n,
        interval=Interval(max(-1.0, a - b - half), min(1.0, a - b + half)),
        p_value=p_value,
        only_first=only_first,
        only_second=only_second,
        n=n,
    )


def _ratio(
    sums: NDArray[np.float64], counts: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    return sums.sum(axis=axis) / counts.sum(axis=axis)


def _by_cluster(
    values: NDArray[np.float64], clusters: Sequence[Hashable], what: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each cluster, in order of first appearance."""
    if len(clusters) != len(values):
        raise SampleError(
            f"{what}: {len(values)} values with {len(clusters)} cluster labels; expected one each."
        )
    codes: dict[Hashable, int] = {}
    index = np.array([codes.setdefault(label, len(codes)) for label in clusters], dtype=np.int64)
    if len(codes) < 2:
        raise SampleError(
            f"{what}: {len(values)} values in {len(codes)} independent units; expected at least "
            "two, since resampling one unit shows no spread."
        )
    counts = np.bincount(index).astype(np.float64)
    return np.bincount(index, weights=values).astype(np.float64), counts


def _finite(values: Tensor, what: str) -> NDArray[np.float64]:
    sample: NDArray[np.float64] = values.detach().double().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(sample))
    if len(bad):
        raise SampleError(
            f"{what}: values {bad[:8].tolist()} of {len(sample)} are not finite. Find the prompts "
            "that gave them; leaving them out here would change what is measured."
        )
    return sample


def _same_length(first: Tensor, second: Tensor, what: str) -> None:
    if len(first) != len(second):
        raise SampleError(
            f"{what}: {len(first)} values against {len(second)}; expected the same prompts in the "
            "same order on both sides."
        )
