"""One resampling of prompts for many numbers at once: maps, choices and differences share draws.

`bootstrap_mean` gives one interval. A map of a hundred cells, a selection among them and the
difference of two cells need the *same* prompts in every draw; as weights of rows they do, and each
number is then a product with the stored per-prompt scores, at no forward cost.
"""

# SciPy comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from mechsafety.core.errors import SampleError

MIN_CLUSTERS: Final = 4
"""Clusters below which a resampling by cluster has no spread to learn from."""


@dataclass(frozen=True)
class Resampling:
    """Draws of prompts, as the weight of each row in each draw."""

    weights: Float[Tensor, "draw row"]
    """Rows of each draw add up to 1, float64."""
    n_units: int
    """Independent units among these rows: their clusters, or the rows themselves."""

    def means(self, values: Float[Tensor, "row *cell"]) -> Float[Tensor, "draw *cell"]:
        """The mean over each draw's prompts of every column of per-prompt values."""
        flat = values.double().reshape(len(values), -1)
        return (self.weights @ flat).reshape(len(self.weights), *values.shape[1:])


def resample(clusters: Sequence[Hashable], n_draws: int, generator: torch.Generator) -> Resampling:
    """Clusters drawn with replacement, whole; rows where there are under `MIN_CLUSTERS` of them.

    Source: Field & Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x.

    Raises:
        SampleError: Fewer than two rows.
    """
    (one,) = resample_together([clusters], n_draws, generator)
    return one


def resample_together(
    sides: Sequence[Sequence[Hashable]], n_draws: int, generator: torch.Generator
) -> list[Resampling]:
    """One resampling of several sides that share clusters, such as both sides of twins.

    A cluster that is drawn twice counts twice on every side. A draw that leaves a side without a
    row is drawn again. Where a side has fewer than `MIN_CLUSTERS` clusters, rows are drawn.

    Source: Field & Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x.

    Args:
        sides: The cluster of each row, side by side; equal names are the same cluster.
        n_draws: At least 1,000 for an interval to be printed with two digits.
        generator: Draws are made on the generator's device.

    Raises:
        SampleError: A side of fewer than two rows.
    """
    if min(map(len, sides)) < 2:
        raise SampleError(
            f"resampling prompts: sides of {[len(side) for side in sides]} rows; expected at least "
            "two each, since one row shows no spread."
        )
    if min(len(set(side)) for side in sides) < MIN_CLUSTERS:
        # Rows of the same place on each side stay together, as twins do.
        sides = [range(len(side)) for side in sides]
    names = list(dict.fromkeys(name for side in sides for name in side))
    place = {name: i for i, name in enumerate(names)}
    members = [torch.tensor([place[name] for name in side]) for side in sides]
    counts = torch.zeros(n_draws, len(names), dtype=torch.float64)
    empty = torch.ones(n_draws, dtype=torch.bool)
    while bool(empty.any()):
        size = (int(empty.sum()), len(names))
        drawn = torch.randint(len(names), size, generator=generator, device=generator.device).cpu()
        fresh = torch.zeros(len(drawn), len(names), dtype=torch.float64)
        counts[empty] = fresh.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        empty = torch.stack([counts[:, rows].sum(1) == 0 for rows in members]).any(0)
    return [
        Resampling(times / times.sum(1, keepdim=True), len(set(side)))
        for times, side in zip([counts[:, rows] for rows in members], sides, strict=True)
    ]


def percentile_interval(
    draws: Float[Tensor, "draw *cell"], n_units: int, confidence: float = 0.95
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
    """Expanded percentile interval of each cell, pointwise.

    As wide as Student's for that many units; as `bootstrap_mean`. NaN where a cell was not
    measured.

    Source: Hesterberg 2015, arXiv:1411.5279, section 5.3.

    Args:
        draws: From `Resampling.means`, or differences of such.
        n_units: Independent units behind the draws; of a difference, those of the smaller side.
        confidence: Coverage aimed at.
    """
    student = stats.t.ppf((1 + confidence) / 2, n_units - 1)
    tail = float(stats.norm.sf(student * (n_units / (n_units - 1)) ** 0.5))
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = draws.double().quantile(ends, dim=0)
    return low, high


def weighted_auc(
    harmful_scores: Float[Tensor, " n_harmful"],
    harmless_scores: Float[Tensor, " n_harmless"],
    harmful: Resampling,
    harmless: Resampling,
) -> Float[Tensor, " draw"]:
    """AUC of every draw; ties count half.

    Raises:
        SampleError: A score that is not a number.
    """
    if bool(harmful_scores.isnan().any() | harmless_scores.isnan().any()):
        raise SampleError(
            "weighted_auc: a score is not a number, and NaN has no rank. Find its prompt."
        )
    above = harmful_scores[:, None] > harmless_scores[None, :]
    ties = harmful_scores[:, None] == harmless_scores[None, :]
    wins = above.double() + 0.5 * ties.double()
    return ((harmful.weights @ wins) * harmless.weights).sum(1)
