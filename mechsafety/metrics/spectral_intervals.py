"""Intervals for spectral shares: the delete-group jackknife, on Gram matrices.

A percentile bootstrap repeats rows, and repeated rows concentrate a spectrum: its interval can
lie wholly above the estimate. Two methods that repeat none were tried on planted covariances
(`tests/metrics/test_spectral_intervals.py`): the delete-group jackknife and subsampling of halves.
Both cover; the jackknife ships, because its replicates can be subtracted between cells that share
their rows, and because it repeats a cross-fit with 4 splits where subsampling takes dozens of
draws.

What an interval covers: the *expected* share at this number of rows, of the statistic that it
stands beside. In-sample shares of n rows in d ≫ n dimensions lie above the population's share, and
cross-fitted ones below it; no resampling interval of either is one of the population's share.
"""

# SciPy comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from mechsafety.core.errors import ActivationError, SelfCheckError
from mechsafety.metrics.intervals import Interval


@dataclass(frozen=True)
class Groups:
    """Rows that are left out together: every row is in exactly one group, clusters undivided."""

    harmful: Int[Tensor, " n_harmful"]
    harmless: Int[Tensor, " n_harmless"]
    n_groups: int

    @property
    def fingerprint(self) -> str:
        """Equal for cells whose replicates leave out the same rows, and so can be subtracted."""
        both = torch.cat([self.harmful, torch.tensor([-1]), self.harmless]).to(torch.int16)
        return hashlib.sha256(both.numpy().tobytes()).hexdigest()[:16]

    def kept(self, group_of_row: Int[Tensor, " row"]) -> Float[Tensor, "group row"]:
        """Ones for the rows that stay when each group in turn is left out."""
        return (group_of_row[None, :] != torch.arange(self.n_groups)[:, None]).double()


def jackknife_groups(
    n_harmful: int,
    n_harmless: int,
    n_groups: int,
    generator: torch.Generator,
    clusters: Sequence[Hashable] | None = None,
    harmless_clusters: Sequence[Hashable] | None = None,
) -> Groups:
    """A random partition of the rows of both classes into at most `n_groups` groups.

    Where the classes have equal counts, row i of one goes with row i of the other, so that one
    partition serves pairs and classes alike. The same generator state gives the same partition.

    Args:
        n_harmful: Rows of the first class.
        n_harmless: Rows of the second class.
        n_groups: Most groups; fewer where there are fewer rows or clusters.
        generator: Decides the partition.
        clusters: Cluster of each harmful row, such as its object's kind. A cluster is never
            divided between groups.
        harmless_clusters: Cluster of each harmless row; those of the harmful rows where not given.

    Raises:
        ActivationError: Fewer than 4 rows or clusters, or clusters that do not fit the rows.
    """
    paired = n_harmful == n_harmless and harmless_clusters is None
    names: list[Hashable]
    if clusters is not None:
        names = list(clusters)
        others = names if harmless_clusters is None else list(harmless_clusters)
    else:
        names = [("harmful", i) for i in range(n_harmful)]
        # Row 3 of one class and row 3 of an unpaired other are no cluster.
        others = names if paired else [("harmless", i) for i in range(n_harmless)]
    if len(names) != n_harmful or len(others) != n_harmless:
        raise ActivationError(
            f"jackknife groups: {len(names)} and {len(others)} cluster names for {n_harmful} "
            f"harmful and {n_harmless} harmless rows. Give one name a row, for each class."
        )
    if clusters is None and not paired:
        x = _deal(names, n_groups, generator)
        y = _deal(others, n_groups, generator)
        count = min(len(x), len(y), n_groups)
        group = {name: i % count for part in (x, y) for i, name in enumerate(part)}
    else:
        order = _deal([*names, *others], n_groups, generator)
        sizes = dict.fromkeys(order, 0)
        for name in (*names, *others):
            sizes[name] += 1
        count = min(len(order), n_groups)
        group = _balanced(order, sizes, count)
    return Groups(
        torch.tensor([group[name] for name in names]),
        torch.tensor([group[name] for name in others]),
        count,
    )


def _deal(names: Sequence[Hashable], n_groups: int, generator: torch.Generator) -> list[Hashable]:
    """The distinct names in random order."""
    distinct = list(dict.fromkeys(names))
    if len(distinct) < 4 or n_groups < 4:
        raise ActivationError(
            f"jackknife groups: {len(distinct)} rows or clusters in at most {n_groups} groups give "
            "no interval; at least 4 of each are needed."
        )
    return [distinct[int(i)] for i in torch.randperm(len(distinct), generator=generator)]


def _balanced(
    order: Sequence[Hashable], sizes: dict[Hashable, int], n_groups: int
) -> dict[Hashable, int]:
    """Each cluster, in this order, into the group that has the fewest rows so far."""
    filled = [0] * n_groups
    group: dict[Hashable, int] = {}
    for name in order:
        group[name] = min(range(n_groups), key=filled.__getitem__)
        filled[group[name]] += sizes[name]
    return group


@dataclass(frozen=True)
class Jackknifed:
    """A number with its delete-group replicates, from which its interval comes.

    Cells on the same rows with the same groups can be subtracted: the interval of the difference
    then has the rows' shared noise taken out (a paired comparison).
    """

    value: float
    """The estimate, on all rows."""
    base: float
    """What the replicates perturb: `value`, or the same statistic with fewer random splits."""
    replicates: Float[Tensor, " group"]
    """The statistic without each group."""
    left_out: Float[Tensor, " group"]
    """Share of the rows in each group."""
    fingerprint: str
    """Which rows each group holds (`Groups.fingerprint`)."""
    lowest: float = -float("inf")
    """Least value that the statistic can take."""
    highest: float = float("inf")
    """Greatest value that the statistic can take."""

    @property
    def _informative(self) -> Bool[Tensor, " group"]:
        return self.left_out > 0

    @property
    def n_groups(self) -> int:
        """Groups that hold rows of this statistic."""
        return int(self._informative.sum())

    @property
    def standard_error(self) -> float:
        r"""Delete-m jackknife for groups of unequal size.

        $\frac1G \sum_j (\tilde\theta_j - \theta_J)^2 / (h_j - 1)$, $h_j$ the inverse share of
        group j and $\tilde\theta_j = h_j\theta - (h_j - 1)\theta_{(j)}$, rooted.
        Groups without a row of this statistic (those of the other class alone) take no part.

        Source: Busing, Meijer and van der Leeden 1999, doi:10.1023/A:1008800423698, eq. 5.
        """
        h, replicates = 1 / self.left_out[self._informative], self.replicates[self._informative]
        pseudo = h * self.base - (h - 1) * replicates
        center = len(h) * self.base - ((1 - 1 / h) * replicates).sum()
        return float(((pseudo - center) ** 2 / (h - 1)).mean().sqrt())

    def interval(self, confidence: float = 0.95) -> Interval:
        """The estimate plus and minus t · standard error, cut to the legal range.

        t has (groups − 1) degrees of freedom, of groups that hold rows of this statistic.

        Raises:
            SelfCheckError: The interval does not hold its own estimate, or is not finite.
        """
        t = float(stats.t.ppf((1 + confidence) / 2, self.n_groups - 1))
        reach = t * self.standard_error
        low, high = max(self.value - reach, self.lowest), min(self.value + reach, self.highest)
        return self_checked(self.value, Interval(low, high))

    def __sub__(self, other: "Jackknifed") -> "Jackknifed":
        """The difference, row group by row group.

        Raises:
            SelfCheckError: The two left out different rows, so their noise is not shared.
        """
        if self.fingerprint != other.fingerprint:
            raise SelfCheckError(
                "difference of two cells: their jackknife groups hold different rows, so an "
                "interval of the difference would mix them up. Give both cells the same groups, "
                "or generators with the same seed, and the same rows."
            )
        return Jackknifed(
            self.value - other.value,
            self.base - other.base,
            self.replicates - other.replicates,
            self.left_out,
            self.fingerprint,
        )


@dataclass(frozen=True)
class LeaveOut:
    """The rows of one statistic that stay when each group in turn is left out."""

    kept: Float[Tensor, "group row"]
    fingerprint: str

    @staticmethod
    def of(groups: Groups, group_of_row: Int[Tensor, " row"], like: Tensor) -> "LeaveOut":
        """Ones and zeros on the device of `like`."""
        return LeaveOut(groups.kept(group_of_row).to(like), groups.fingerprint)

    def share(self, value: float, base: float, replicates: Float[Tensor, " group"]) -> Jackknifed:
        """A statistic between 0 and 1 with its replicates, in the order of `kept`."""
        left_out = 1 - self.kept.mean(1)
        return Jackknifed(
            value, base, replicates.cpu(), left_out.cpu(), self.fingerprint, lowest=0.0, highest=1.0
        )


def independent_difference(
    first: Jackknifed, second: Jackknifed, confidence: float = 0.95
) -> tuple[float, Interval]:
    """First minus second where they rest on different prompts: their variances add.

    t has the degrees of freedom of the smaller number of groups.

    Raises:
        SelfCheckError: As `Jackknifed.interval`.
    """
    value = first.value - second.value
    error = (first.standard_error**2 + second.standard_error**2) ** 0.5
    groups = min(first.n_groups, second.n_groups)
    reach = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * error
    return value, self_checked(value, Interval(value - reach, value + reach))


def self_checked(value: float, interval: Interval) -> Interval:
    """`interval`, if it holds `value`.

    Raises:
        SelfCheckError: It does not, or an end is not a number; a run with such a number fails.
    """
    # Rounding may move a zero-width interval by one unit in the last place.
    slack = 1e-12 * max(1.0, abs(value))
    if not interval.low - slack <= value <= interval.high + slack:
        raise SelfCheckError(
            f"self-check: the interval [{interval.low:.6g}, {interval.high:.6g}] excludes its own "
            f"estimate {value:.6g}. The resampling does not fit the statistic."
        )
    return interval
