"""Prompts of a split with one resampling that all their numbers share, and means with intervals."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mechsafety.core.seeding import named_generator
from mechsafety.data.prompts import PromptPairs
from mechsafety.metrics.resampling import (
    MIN_CLUSTERS,
    Resampling,
    percentile_interval,
    resample_together,
)
from mechsafety.studies.arms import cluster_word, clusters_of


@dataclass(frozen=True)
class Sample:
    """The prompts of one split, and one resampling of them that all its numbers share."""

    harmful: Resampling
    harmless: Resampling
    harmful_clusters: tuple[str, ...]
    harmless_clusters: tuple[str, ...]
    note: str
    """What a draw keeps together."""

    @property
    def n_units(self) -> int:
        """Independent units behind a number that needs both classes: those of the smaller one."""
        return min(self.harmful.n_units, self.harmless.n_units)

    @staticmethod
    def of(pairs: PromptPairs, by: str | None, draws: int, seed: int, name: str) -> "Sample":
        """Clusters drawn whole; twins share the cluster of their harmful prompt."""
        sides = [clusters_of(side, by) for side in pairs.sets]
        twins = pairs.pairing == "twins"
        shared = [sides[0], sides[0]] if twins else sides
        fewest = min(len(set(side)) for side in shared)
        few = fewest < MIN_CLUSTERS
        if few:
            shared = [tuple(map(str, range(len(side)))) for side in sides]
        if not twins:
            # The same name in two independent lists is not the same cluster.
            shared = [
                tuple(f"{cluster} ({side.name})" for cluster in clusters)
                for side, clusters in zip(pairs.sets, shared, strict=True)
            ]
        generator = named_generator(seed, "resampling", name)
        harmful, harmless = resample_together(shared, draws, generator)
        units = " + ".join(str(len(set(side))) for side in (shared[:1] if twins else shared))
        kept = f"{units} {'pairs' if twins else 'prompts'}" if few else f"{units} units"
        word = cluster_word(pairs.first, by)
        note = (
            f"Intervals of scores resample {kept} ({name}) one by one: {fewest} of {word} "
            "are too few to keep whole, so they may be too narrow."
            if few
            else f"Intervals resample {kept} ({name}, {word}) whole"
            + (", twins together." if twins else ".")
        )
        return Sample(harmful, harmless, sides[0], sides[1], note)


@dataclass(frozen=True)
class Estimates:
    """A number for each cell, with pointwise 95 % intervals."""

    value: Float[Tensor, "*cell"]
    low: Float[Tensor, "*cell"]
    high: Float[Tensor, "*cell"]
    n: int

    def interval(self, *cell: int) -> tuple[float, float]:
        """Of one cell."""
        return float(self.low[cell]), float(self.high[cell])


def estimates(scores: Float[Tensor, "prompt *cell"], sample: Resampling) -> Estimates:
    """Means over prompts and their intervals; NaN where a cell was not measured."""
    low, high = percentile_interval(sample.means(scores), sample.n_units)
    return Estimates(scores.double().mean(0), low, high, len(scores))


Clusters = tuple[str, ...] | None
"""Cluster of each row; None where every row is its own."""


def undivided(pairs: PromptPairs, by: str | None) -> tuple[Clusters, Clusters]:
    """Clusters of both sides for resampling; None where every prompt is its own, or too few.

    Twins go as one, under the cluster of their first prompt; two lists have clusters of their own,
    which may be shared, so that both sides have them or neither.
    """
    sides = [clusters_of(side, by) for side in pairs.sets]
    if pairs.pairing == "twins":
        sides = sides[:1]
    if min(len(set(names)) for names in sides) < MIN_CLUSTERS:
        return None, None
    if all(len(set(names)) == len(names) for names in sides):
        return None, None
    return sides[0], None if len(sides) == 1 else sides[1]
