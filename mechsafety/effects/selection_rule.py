r"""Which candidate direction is chosen: the published filters, then the lowest bypass.

Of the candidates (position i, layer l) discard those with $l \ge \lfloor pL \rfloor$,
$\mathrm{KL} > t_\mathrm{KL}$, induce $< t_\mathrm{induce}$, or any score that is NaN; choose the
smallest bypass of the rest. Equal ones go to the first by position, then layer.
Source: arXiv:2406.11717, section 2.4, with the signs of its code, which keeps equality.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, NonNegativeFloat, field_validator
from torch import Tensor

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import SampleError

NOTHING: Final = -1
"""In place of position index and layer where no candidate is kept."""


# As YAML 1.1 reads them: without a dot, infinity is text.
_Inf = Literal["inf", "+inf"]
_MinusInf = Literal["-inf"]


class SelectionFilters(FrozenConfig):
    """Filters of the candidates; the defaults are the published ones.

    A threshold that nothing can fail (`.inf` for the KL, `-.inf` for induce) is read as None.
    """

    prune_layers: float = Field(default=0.8, gt=0, le=1)
    """Share of the depth whose block inputs are candidates: layers below `int(prune_layers *
    n_layers)`. Ablating at a later layer can work by deleting the unembedding of the refusal
    token. 1.0 keeps every block input; the final residual is never a candidate."""
    kl_threshold: NonNegativeFloat | None = 0.1
    """Candidates of which the ablation moves harmless prompts by more (nats) are discarded. None:
    any KL will do."""
    induce_threshold: float | None = 0.0
    """Candidates of which the addition gives harmless prompts a lower refusal score (log-odds) are
    discarded. None: any will do."""

    @field_validator("kl_threshold", mode="before", json_schema_input_type=float | _Inf | None)
    @classmethod
    def _no_upper_limit_is_off(cls, given: object) -> object:
        return None if _is_number(given, math.inf) else given

    @field_validator(
        "induce_threshold", mode="before", json_schema_input_type=float | _MinusInf | None
    )
    @classmethod
    def _no_lower_limit_is_off(cls, given: object) -> object:
        return None if _is_number(given, -math.inf) else given

    def layer_cut(self, n_layers: int) -> int:
        """The first layer that is no candidate, truncated as the published code does."""
        return int(self.prune_layers * n_layers)


def _is_number(given: object, number: float) -> bool:
    """Whether a value of YAML is this number; YAML 1.1 reads `-inf`, without a dot, as text."""
    try:
        return isinstance(given, int | float | str) and float(given) == number
    except (ValueError, OverflowError):
        return False


@dataclass(frozen=True)
class Failures:
    """Which candidates fail which filter; one may fail several."""

    layer: Bool[Tensor, "*draw position layer"]
    """At or beyond the layer cut."""
    kl: Bool[Tensor, "*draw position layer"]
    """KL above its threshold; NaN is not."""
    induce: Bool[Tensor, "*draw position layer"]
    """Induce below its threshold; NaN is not."""
    nan: Bool[Tensor, "*draw position layer"]
    """A score is NaN."""

    def count(self) -> Int[Tensor, "*draw position layer"]:
        """How many filters each candidate fails."""
        return self.layer.int() + self.kl.int() + self.induce.int() + self.nan.int()


def failures(
    filters: SelectionFilters,
    n_layers: int,
    induce: Float[Tensor, "*draw position layer"],
    kl: Float[Tensor, "*draw position layer"],
    bypass: Float[Tensor, "*draw position layer"] | None,
) -> Failures:
    """Each filter by itself. Compares in float64, so that a threshold is the number it says.

    Args:
        n_layers: Depth of the model; the scores may stop at an earlier layer.
        bypass: None where it is not known yet; its NaN then discards in `choose`.

    Raises:
        SampleError: More layers of scores than the model has.
    """
    if induce.shape[-1] > n_layers:
        raise SampleError(
            f"selection filters: scores of {induce.shape[-1]} layers, and the model has "
            f"{n_layers}. Candidates are block inputs, so leave the final residual out."
        )
    none = torch.zeros_like(induce, dtype=torch.bool)
    layers = torch.arange(induce.shape[-1], device=induce.device)
    nan = induce.isnan() | kl.isnan()
    return Failures(
        layer=none | (layers >= filters.layer_cut(n_layers)),
        kl=none if filters.kl_threshold is None else kl.double() > filters.kl_threshold,
        induce=none
        if filters.induce_threshold is None
        else induce.double() < filters.induce_threshold,
        nan=nan if bypass is None else nan | bypass.isnan(),
    )


def kept(
    filters: SelectionFilters,
    n_layers: int,
    induce: Float[Tensor, "*draw position layer"],
    kl: Float[Tensor, "*draw position layer"],
    bypass: Float[Tensor, "*draw position layer"] | None,
) -> Bool[Tensor, "*draw position layer"]:
    """The candidates that fail no filter; arguments and errors as for `failures`."""
    return failures(filters, n_layers, induce, kl, bypass).count() == 0


def choose(
    bypass: Float[Tensor, "*draw position layer"], kept: Bool[Tensor, "*draw position layer"]
) -> Int[Tensor, "*draw 2"]:
    """(position index, layer) of the lowest bypass among the kept, in every draw at once.

    Of equal ones the first by position, then layer, as the published stable sort takes it. Where
    nothing is kept both are `NOTHING`. Holds a few times the scores.

    Args:
        bypass: Mean refusal score of harmful prompts under ablation; NaN is never chosen.
        kept: From `kept`.
    """
    eligible = (kept & ~bypass.isnan()).flatten(-2)
    wide = bypass.double().flatten(-2)
    lowest = wide.masked_fill(~eligible, torch.inf).amin(dim=-1, keepdim=True)
    # Of several maxima argmax gives the first. Infinite scores stand behind `eligible`.
    first = (eligible & (wide == lowest)).int().argmax(dim=-1)
    n_layers = bypass.shape[-1]
    cell = torch.stack([first // n_layers, first % n_layers], dim=-1)
    return cell.masked_fill(~eligible.any(dim=-1, keepdim=True), NOTHING)


@dataclass(frozen=True)
class Discarded:
    """How many candidates each filter discards, and how near the best of them came."""

    filters: SelectionFilters
    """What they were held against."""
    n_layers: int
    """Depth of the model."""
    candidates: int
    """All of them."""
    kept: int
    """Those that fail no filter."""
    layer: int
    """Those at or beyond the layer cut."""
    kl: int
    """Those with too large a KL."""
    induce: int
    """Those with too low an induce score."""
    nan: int
    """Those with a score that is NaN."""
    only_kl: int
    """Those that fail the KL filter alone."""
    only_induce: int
    """Those that fail the induce filter alone."""
    smallest_failing_kl: float | None
    """In nats, of those that fail the KL filter; None where none does."""
    largest_failing_induce: float | None
    """Log-odds, of those that fail the induce filter; None where none does."""
    bypass: tuple[float, float] | None
    """Smallest and largest bypass of all candidates, log-odds; None where all are NaN."""

    def explain(self) -> str:
        """One sentence: how many are kept, and what the others fail, with the scores observed."""
        cut = self.filters.layer_cut(self.n_layers)
        parts = [f"{self.layer} fail the layer cut (layer ≥ {cut} of {self.n_layers})"]
        if self.filters.kl_threshold is not None:
            parts.append(
                f"{self.kl} KL > {self.filters.kl_threshold:g}"
                + _nearest("smallest", self.smallest_failing_kl, self.only_kl)
            )
        if self.filters.induce_threshold is not None:
            parts.append(
                f"{self.induce} induce < {self.filters.induce_threshold:g}"
                + _nearest("largest", self.largest_failing_induce, self.only_induce)
            )
        parts.append(f"{self.nan} have NaN")
        told = f"{self.kept} of {self.candidates} candidates are kept: {', '.join(parts)}"
        if self.bypass is None:
            return told + "."
        return told + f"; bypass lies in {self.bypass[0]:.4g} to {self.bypass[1]:.4g}."


def _nearest(which: str, value: float | None, alone: int) -> str:
    return "" if value is None else f" ({which} {value:.4g}; {alone} fail nothing else)"


def _extreme(scores: Float[Tensor, " n_failing"], of: Callable[[Tensor], Tensor]) -> float | None:
    return float(of(scores)) if len(scores) else None


def discarded(
    filters: SelectionFilters,
    n_layers: int,
    induce: Float[Tensor, "position layer"],
    kl: Float[Tensor, "position layer"],
    bypass: Float[Tensor, "position layer"],
    candidates: Bool[Tensor, "position layer"],
) -> Discarded:
    """Count what every filter discards; arguments and errors as for `failures`.

    Args:
        candidates: False where a cell is no candidate at all, such as one missing in a table.
    """
    failed = failures(filters, n_layers, induce, kl, bypass)
    total = failed.count()
    finite = bypass[candidates & ~bypass.isnan()]
    return Discarded(
        filters=filters,
        n_layers=n_layers,
        candidates=int(candidates.sum()),
        kept=int((candidates & (total == 0)).sum()),
        layer=int((candidates & failed.layer).sum()),
        kl=int((candidates & failed.kl).sum()),
        induce=int((candidates & failed.induce).sum()),
        nan=int((candidates & failed.nan).sum()),
        only_kl=int((candidates & failed.kl & (total == 1)).sum()),
        only_induce=int((candidates & failed.induce & (total == 1)).sum()),
        smallest_failing_kl=_extreme(kl[candidates & failed.kl], torch.amin),
        largest_failing_induce=_extreme(induce[candidates & failed.induce], torch.amax),
        bypass=(float(finite.min()), float(finite.max())) if len(finite) else None,
    )
