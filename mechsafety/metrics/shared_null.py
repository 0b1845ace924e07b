"""Cosines between two models' directions, where the models share prompts and so share noise.

Two models of one base give nearly the same activation to the same prompt, so the differences of
*any* two sets of prompts point alike in both: on Llama-2-7B-chat the cosine of two arms is .96,
and .85 to .94 when the labels say nothing (layer 12, 100 + 100 prompts, two massive channels out).
Random vectors, or labels permuted in each model apart, would call the whole of it a finding.

Each model is refitted by one `Plan` of deals into a `DirectionStack`; all cosines of two models,
their null and their intervals are cosines of two stacks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechsafety.core.errors import ActivationError, DegenerateDirectionError, SampleError
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.best_match import BestMatch, chosen_and_measured, largest
from mechsafety.metrics.deals import Plan
from mechsafety.metrics.direction_stacks import DirectionStack
from mechsafety.metrics.spectral_intervals import Jackknifed

Statistic = Literal["raw", "disjoint", "disattenuated"]

STATISTICS: Final[dict[Statistic, str]] = {
    "raw": "directions of all prompts, the same in both models: their noise is shared",
    "disjoint": "half of the prompts in one model, the other half in the other, clusters whole "
    "where intervals keep them whole: no noise of prompts is shared",
    "disattenuated": "disjoint over the root of the product of reliabilities: no noise of prompts",
}

CHUNK: Final = 64
"""Deals whose unit vectors are held in float64 at once."""


@dataclass(frozen=True, slots=True)
class LayerCosines:
    """How alike the directions of two models are, and how much of that the prompts alone explain.

    Cells of a layer without a direction are NaN.
    """

    raw: Float[Tensor, "n_first n_second"]
    """Cosine of the directions of all prompts, the same in both models."""
    disjoint: Float[Tensor, "n_first n_second"]
    """Cosine of half A of one model with half B of the other, mean over splits and both ways: the
    noise of prompts is not shared, nor that of clusters where the plan deals them whole, and each
    direction has that of half the prompts."""
    disattenuated: Float[Tensor, "n_first n_second"]
    """`disjoint` / √(product of reliabilities), an estimate without that noise that can pass 1; NaN
    where a reliability is not above 0, so that there is no direction to speak of."""
    reliability_first: Float[Tensor, " n_first"]
    """Cosine of halves A and B within the first model, mean over splits: the ceiling of `disjoint`
    for a model compared with itself."""
    reliability_second: Float[Tensor, " n_second"]
    """As above, of the second model."""
    null: Float[Tensor, "draw n_first n_second"]
    """`raw` with the same permuted labels in both models, of residuals: each class about its own
    mean. What the models' shared prompts explain."""
    null_with_shift: Float[Tensor, "draw n_first n_second"]
    """As above of the rows themselves, as it is printed: with the shift left in, relabelings point
    along it in both models, and a shift that is alike hides in its own null."""
    independent_null: Float[Tensor, "draw n_first n_second"]
    """`raw` with other permuted labels in each model: a reference line, not the null."""
    base: Mapping[Statistic, Float[Tensor, "n_first n_second"]]
    """What the replicates perturb: the statistic with the few splits that they use."""
    replicates: Mapping[Statistic, Float[Tensor, "group n_first n_second"]]
    """`base` without each group of rows, the same in both models."""
    same_half: tuple[
        Float[Tensor, "split n_first n_second"], Float[Tensor, "split n_first n_second"]
    ]
    """Cosine of the directions of half A of both models, and of half B of both."""
    left_out_same_half: tuple[
        Float[Tensor, "group n_few n_first n_second"], Float[Tensor, "group n_few n_first n_second"]
    ]
    """As above, of the first few splits without each group."""
    left_out: Float[Tensor, " group"]
    """Share of the rows in each group."""
    fingerprint: str
    """Which rows each group holds."""

    @property
    def excess(self) -> Float[Tensor, "n_first n_second"]:
        """`raw` less the mean of the null: the value of the finding."""
        return self.raw - self.null.mean(dim=0)

    def null_range(
        self, confidence: float = 0.95
    ) -> tuple[Float[Tensor, "n_first n_second"], Float[Tensor, "n_first n_second"]]:
        """Quantiles of the null with this share of the draws between them."""
        tail = (1 - confidence) / 2
        return self.null.quantile(tail, dim=0), self.null.quantile(1 - tail, dim=0)

    def has_interval(self, statistic: Statistic) -> Bool[Tensor, "n_first n_second"]:
        """Cells that are a number, on all rows and without each group."""
        perturbed = self.replicates[statistic].isfinite().all(dim=0)
        return self._values(statistic).isfinite() & self.base[statistic].isfinite() & perturbed

    def jackknifed(self, statistic: Statistic, first: int, second: int) -> Jackknifed:
        """One cell, with what its interval comes from; cells can be subtracted.

        There is no percentile bootstrap of a cosine: repeated rows lengthen the noise that the two
        models share. The interval of `raw` and `disjoint` covers their expectation at this number
        of prompts, which is not the cosine of the models; that of `disattenuated` is aimed at it.

        Args:
            statistic: Which cosine.
            first: Index of the first model's layer.
            second: Index of the second model's layer.

        Raises:
            DegenerateDirectionError: The cell is no number, or not without some group
                (`has_interval` says where).
        """
        if not bool(self.has_interval(statistic)[first, second]):
            raise DegenerateDirectionError(
                f"interval of the {statistic} cosine at indices ({first}, {second}) of the "
                "layers: a model has no direction there, or none that two halves of the prompts "
                "agree on. Is the site read after the prompt? Ask `has_interval` for the others."
            )
        weights = torch.zeros_like(self.raw)
        weights[first, second] = 1
        return self._weighted(statistic, weights)

    def contrast(
        self, statistic: Literal["raw", "disjoint"], weights: Float[Tensor, "n_first n_second"]
    ) -> tuple[Jackknifed, Float[Tensor, " draw"]]:
        r"""$\sum_{ij} w_{ij} c_{ij}$, such as matched layers less others, and its null draws.

        The null of `raw` is the shared one. `disjoint` shares no noise, so that its null is the
        independent one; a single draw of it is noisier than a mean over splits, which makes the
        test stricter than its level. Labels that say nothing leave nothing to disattenuate.

        Args:
            statistic: Which cosine.
            weights: Of each cell (`matched_weights`); cells of weight 0 may be NaN.

        Raises:
            DegenerateDirectionError: A cell of other weight has no interval, or all weights are 0.
        """
        used = weights != 0
        missing = used & ~self.has_interval(statistic)
        if bool(missing.any()) or not bool(used.any()):
            cells = [(int(i), int(j)) for i, j in missing.nonzero()]
            raise DegenerateDirectionError(
                f"contrast of {statistic} cosines: of {int(used.sum())} cells with a weight, "
                f"{len(cells)} have no interval (indices {cells[:6]}). Give weight to cells where "
                "`has_interval` holds, at least one."
            )
        null = self.null if statistic == "raw" else self.independent_null
        return self._weighted(statistic, weights), null[:, used] @ weights.double()[used]

    def matched_weights(
        self, statistic: Statistic, matched: Bool[Tensor, "n_first n_second"]
    ) -> Float[Tensor, "n_first n_second"]:
        """Weights of the mean over `matched` cells less the mean over the others.

        Other cells without an interval have weight 0.

        Raises:
            DegenerateDirectionError: A matched cell has no interval, or no cell is matched, or no
                other is left.
        """
        usable = self.has_interval(statistic)
        others = ~matched & usable
        if not bool(matched.any() & others.any()) or bool((matched & ~usable).any()):
            raise DegenerateDirectionError(
                f"matched less other cells of the {statistic} cosine: {int(matched.sum())} cells "
                f"matched, {int((matched & ~usable).sum())} of them without an interval, and "
                f"{int(others.sum())} others. Match cells where `has_interval` holds, and not all."
            )
        return matched.double() / matched.sum() - others.double() / others.sum()

    def best_match(self) -> BestMatch:
        """For each layer of the first model, the most similar one of the second.

        Chosen on half A of both models and measured on half B of both, and the other way round, so
        the value is a raw cosine at half the prompts, without the optimism of a choice.
        """
        shares, values = chosen_and_measured(*self.same_half)
        n_few = self.left_out_same_half[0].shape[1]
        _, few = chosen_and_measured(*(half[:n_few] for half in self.same_half))
        _, without = chosen_and_measured(*self.left_out_same_half)
        return BestMatch(
            frequency=shares.mean(dim=0),
            value=values.mean(dim=0),
            null=largest(self.null),
            base=few.mean(dim=0),
            replicates=without.mean(dim=1),
            left_out=self.left_out,
            fingerprint=self.fingerprint,
        )

    def _weighted(self, statistic: Statistic, weights: Tensor) -> Jackknifed:
        used = weights != 0
        w = weights.double()[used]
        reach = float("inf") if statistic == "disattenuated" else float(w.abs().sum())
        return Jackknifed(
            value=float(self._values(statistic)[used] @ w),
            base=float(self.base[statistic][used] @ w),
            replicates=self.replicates[statistic][:, used] @ w,
            left_out=self.left_out,
            fingerprint=self.fingerprint,
            lowest=-reach,
            highest=reach,
        )

    def _values(self, statistic: Statistic) -> Tensor:
        values = {
            "raw": self.raw,
            "disjoint": self.disjoint,
            "disattenuated": self.disattenuated,
        }
        return values[statistic]


def layer_cosines(first: DirectionStack, second: DirectionStack, plan: Plan) -> LayerCosines:
    r"""Every layer of one model with every layer of the other, in three cosines and their null.

    `raw` shares the noise of the prompts between the models; `disjoint`, mean over splits and both
    ways of $\cos(A_1, B_2)$, does not, but each direction has the noise of half the prompts (and of
    their clusters, which halves share unless the plan was given them);
    `disattenuated` divides that by $\sqrt{\rho_1 \rho_2}$, $\rho = \cos(A, B)$ within a model.
    A model with itself gives the ceiling: its `disjoint` is its reliability. The value of a finding
    is the excess of `raw` over the shared null, or `disattenuated` itself.

    Cells of a layer that has no direction on all rows are NaN throughout. Computed in float64 by
    64 deals at a time: `8 · 64 · d · layers` bytes a model, and
    `16 · deals · n_first · n_second` for what is kept.

    Source: disattenuation by Spearman 1904, doi:10.2307/1412159.

    Args:
        first: `refitted` under `plan`, or carried into the second's space (`through`).
        second: As above; the layers need not be as many.
        plan: What both were refitted by.

    Raises:
        ActivationError: Directions of other widths.
        SampleError: A stack of another plan.
    """
    _check(first, second, plan)
    halves = _HalfCosines.of(first.halves, second.halves)
    few = halves.first(plan.n_few_splits)
    without = _HalfCosines.of(first.left_out_halves, second.left_out_halves)
    without = without.by_group(plan.groups.n_groups)
    raw = _cosines(first.whole[None], second.whole[None])[0]
    of_first, of_second = halves.reliabilities()
    return LayerCosines(
        raw=raw,
        disjoint=halves.disjoint(),
        disattenuated=halves.disattenuated(),
        reliability_first=of_first,
        reliability_second=of_second,
        null=_cosines(first.permuted, second.permuted),
        null_with_shift=_cosines(first.permuted_with_shift, second.permuted_with_shift),
        independent_null=_cosines(first.permuted, second.permuted.roll(1, dims=0)),
        base={"raw": raw, "disjoint": few.disjoint(), "disattenuated": few.disattenuated()},
        replicates={
            "raw": _cosines(first.left_out, second.left_out),
            "disjoint": without.disjoint(),
            "disattenuated": without.disattenuated(),
        },
        same_half=(halves.both_a, halves.both_b),
        left_out_same_half=(without.both_a, without.both_b),
        left_out=(plan.left_out.weights == 0).double().mean(1),
        fingerprint=plan.groups.fingerprint,
    )


class _HalfCosines(NamedTuple):
    """Cosines of halves, split by split; after `by_group`, group by group and split by split."""

    across: Tensor
    """[..., split, n_first, n_second]: half A of one, half B of the other, both ways."""
    of_first: Tensor
    """[..., split, n_first]: half A with half B of the first model."""
    of_second: Tensor
    """As above, of the second."""
    both_a: Tensor
    """[..., split, n_first, n_second]: half A of both."""
    both_b: Tensor
    """Half B of both."""

    @staticmethod
    def of(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> "_HalfCosines":
        across = (_cosines(first[0], second[1]) + _cosines(first[1], second[0])) / 2
        within = [
            torch.cat([(_unit(a) * _unit(b)).sum(dim=-1).cpu() for a, b in _chunks(*halves)])
            for halves in (first, second)
        ]
        same = _cosines(first[0], second[0]), _cosines(first[1], second[1])
        return _HalfCosines(across, within[0], within[1], *same)

    def first(self, n_splits: int) -> "_HalfCosines":
        return _HalfCosines(*(each[:n_splits] for each in self))

    def by_group(self, n_groups: int) -> "_HalfCosines":
        return _HalfCosines(*(each.unflatten(0, (n_groups, -1)) for each in self))

    def disjoint(self) -> Tensor:
        return self.across.mean(dim=-3)

    def reliabilities(self) -> tuple[Tensor, Tensor]:
        return self.of_first.mean(dim=-2), self.of_second.mean(dim=-2)

    def disattenuated(self) -> Tensor:
        of_first, of_second = self.reliabilities()
        # Without a reproducible direction there is nothing to divide by: NaN, also for two
        # reliabilities below 0, whose product would look fine.
        noise = of_first.where(of_first > 0, torch.nan)[..., :, None].sqrt()
        return self.disjoint() / (
            noise * of_second.where(of_second > 0, torch.nan)[..., None, :].sqrt()
        )


def _cosines(
    first: Float[Tensor, "deal n_first d"], second: Float[Tensor, "deal n_second d"]
) -> Float[Tensor, "deal n_first n_second"]:
    """Of every layer with every layer, deal by deal; NaN where a vector is zero."""
    found = [(_unit(x) @ _unit(y).mT).clamp(-1, 1).cpu() for x, y in _chunks(first, second)]
    return torch.cat(found)


def _chunks(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(first), CHUNK):
        yield first[start : start + CHUNK], second[start : start + CHUNK]


def _unit(vectors: Tensor) -> Tensor:
    wide = vectors.double()
    return wide / linalg.vector_norm(wide, dim=-1)[..., None]


def _check(first: DirectionStack, second: DirectionStack, plan: Plan) -> None:
    if first.whole.shape[1] != second.whole.shape[1]:
        raise ActivationError(
            f"cosines of two models: widths {first.whole.shape[1]} and {second.whole.shape[1]}. "
            "Directions of other widths have no cosine; fit a map on neutral prompts and carry one "
            "over (mechsafety.linalg.align, DirectionStack.through)."
        )
    if {first.fingerprint, second.fingerprint} != {plan.fingerprint}:
        raise SampleError(
            "cosines of two models: their directions were refitted by other plans, so they share "
            "neither permuted labels nor halves. Refit both by one plan, on one list of prompts."
        )
