"""What a study returns: tidy tables, tensors, findings, and figures as descriptions of tables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt
from typing_extensions import TypeVar

from mechsafety.core.config import FrozenConfig, Name

if TYPE_CHECKING:
    from torch import Tensor

Verdict = Literal["supported", "contradicted", "equivalent", "inconclusive"]
Scope = Literal["checkpoint", "method"]
Dimension = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a tidy table, with its interval and the dimensions that index it."""

    metric: str
    """What was measured, in the glossary's words."""
    value: float | None
    """The number; None where it could not be measured (and `note` says why)."""
    n: int
    """Number of independent units behind it."""
    unit: str
    """What `n` counts and what `value` is in, such as `share of variance (pairs)`."""
    ci_low: float | None = None
    """Lower end of the 95 % interval; None where the table names no interval."""
    ci_high: float | None = None
    """Upper end."""
    dimensions: Mapping[str, Dimension] = field(default_factory=dict[str, Dimension])
    """Columns that index the row: arm, layer, position, contrast, …"""


@dataclass(slots=True)
class Table:
    """Rows about one question. `caption` names the null, the pairing and the interval method."""

    name: str
    caption: str
    rows: list[Row] = field(default_factory=list[Row])

    def add(
        self,
        metric: str,
        value: float | None,
        *,
        n: int,
        unit: str,
        interval: tuple[float, float] | None = None,
        **dimensions: Dimension,
    ) -> None:
        """Append one row."""
        low, high = interval if interval is not None else (None, None)
        self.rows.append(Row(metric, value, n, unit, low, high, dimensions))

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


Cell = dict[str, str | int | float | bool | None]
CellT = TypeVar("CellT", default=Cell)


class DeclaredFinding(FrozenConfig, Generic[CellT]):
    """A claim as the YAML states it, before anything is measured (evidence.md 10).

    A study names the type of its cells, `DeclaredFinding[MyCell]`, so that a mistyped key is
    found before the run; the record keeps them as plain keys and values.
    """

    id: Name
    """Short name, unique in the experiment."""
    claim: str
    """The sentence that is tested."""
    scope: Scope
    """`checkpoint`: intervals over prompts; `method`: paired differences over training seeds."""
    margin: NonNegativeFloat
    """Smallest effect of interest, in the units of the effect (a share, degrees, log-odds of
    refusal, …); an interval inside ±margin is `equivalent`."""
    cell: CellT
    """The primary cell: layer by rule, position, centering, channels, pairing, form."""


class SpecificationCurve(FrozenConfig):
    """How a finding fares over every legal choice of analysis."""

    supported: NonNegativeInt
    """Choices under which the finding's verdict is `supported`."""
    total: NonNegativeInt
    """Choices that were tried."""
    flips: tuple[str, ...] = ()
    """Choices that, changed alone from the primary cell, change the verdict."""
    values: tuple[tuple[str, float], ...] = ()
    """(choice, effect) of each, sorted by effect: the curve itself."""


class Finding(FrozenConfig):
    """A named claim with its numbers. Never leaves a study without n, interval and null."""

    id: str
    claim: str
    scope: Scope
    value: float | None
    """The effect in the primary cell; None where it could not be measured."""
    ci_low: float | None
    ci_high: float | None
    null_low: float | None
    """2.5 % quantile of the null named in `null`."""
    null_high: float | None
    null: str
    """What the null is: how it was drawn, and from what."""
    n: NonNegativeInt
    unit: str
    verdict: Verdict
    margin: float
    explanation: str
    """One or two sentences in words and numbers that a reader can quote."""
    cell: Cell
    """The primary cell as resolved in this run."""
    specification: SpecificationCurve | None = None
    mechanism: str | None = None
    """Mechanism line of evidence.md 15."""
    notes: tuple[str, ...] = ()
    """Arms that differ in dtype or quantization, unvalidated proxies, exploratory labels."""


def verdict(
    value: float,
    ci_low: float,
    ci_high: float,
    margin: float,
    null: tuple[float, float] | None = None,
) -> Verdict:
    """The verdict of an effect that the claim says is positive.

    `supported` where the interval lies above 0, the effect is at least `margin`, and it lies
    above the null's range; `contradicted` where the interval lies below 0, the effect is at most
    −`margin`, and it lies below the null's range; `equivalent` where the interval lies inside
    ±`margin`; else `inconclusive`.

    Args:
        margin: Smallest effect of interest, in the units of `value`.
        null: 2.5 % and 97.5 % quantiles of the effect under the null. An effect inside them is
            what the data give without what the claim is about, however large it is.
    """
    null_low, null_high = null if null is not None else (0.0, 0.0)
    if -margin < ci_low and ci_high < margin:
        return "equivalent"
    if ci_low > 0 and value >= margin and value > null_high:
        return "supported"
    if ci_high < 0 and value <= -margin and value < null_low:
        return "contradicted"
    return "inconclusive"


class Figure(FrozenConfig):
    """A figure as a description of a table or of tensors; the report draws it, computing nothing.

    `lines`, `bars`, `heatmap` and `matrix` draw rows of `table` with `metric`, filtered by
    `where`; `scatter` draws tensors named `{tensor}.{panel}` of shape [point, 2] with
    labels `{tensor}.{panel}.label` (0 harmless, 1 harmful). `{panel}` is the value of `facet`
    (if any) and of each dimension of `choose`, joined by dots. Rows that a figure draws must
    differ in no dimension that it does not name: the report refuses to draw one row on another.

    `tokens` shows one prompt as its tokens, with the positions that are read and written marked.
    It draws rows of `table` with `metric`, one a token, whose value is the token's index and whose
    dimensions are `token` (its text), `part` (such as `template` or `instruction`), `read` (name
    of the position read there) and `write` (name of what is written there, or true); `where`
    chooses the prompt, and the other fields stay out. The text is on the page as it is, so the
    prompt is a harmless one or an organism's.
    """

    id: str
    title: str
    caption: str
    """What is shown, n, the interval and the null; printed under the figure."""
    kind: Literal["lines", "bars", "heatmap", "matrix", "scatter", "tokens"]
    table: str | None = None
    metric: str | None = None
    where: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Dimension → value that rows must have, or a list of the values they may have."""
    x: str | None = None
    y: str | None = None
    color: str | None = None
    """Dimension with one line or bar each; numbers are colored by size, words apart."""
    dash: str | None = None
    """Second dimension of `lines`, told apart by line style (at most five values)."""
    facet: str | None = None
    """Dimension with one small panel each, side by side on shared axes."""
    choose: tuple[str, ...] = ()
    """Dimensions offered as drop-downs above the figure (such as layer or form).

    `metric` counts as one: then `where` lists the metrics under the key `metric`.
    """
    start: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Drop-down → the option shown first; without it, `metric` or the first in the table."""
    hover: tuple[str, ...] = ()
    """Further metrics of the table, read at the same dimensions, that hovering shows as well.

    The one that is drawn is not said twice, so all metrics of a `choose` may stand here.
    """
    null_metric: str | None = None
    """Metric of the table whose intervals are the null range of this one, drawn in gray."""
    tensor: str | None = None
    marks: dict[str, float] = Field(default_factory=dict[str, float])
    """Named x positions drawn as vertical lines, such as attacked layers."""
    reference: dict[str, float] = Field(default_factory=dict[str, float])
    """Named y positions drawn as horizontal lines, such as chance."""
    limits: tuple[float, float] | None = None
    """Ends of the y axis, or of the color scale; without it they follow the data."""
    center: float | None = None
    """Value where the color scale turns from one hue to the other; None for a single hue."""
    x_title: str = ""
    y_title: str = ""
    """Axis title with its unit; for `heatmap` and `matrix`, `value_title` names the color."""
    value_title: str = ""


class Tolerance(FrozenConfig):
    """How far a number may lie from that of another machine: `absolute + relative · |number|`."""

    absolute: NonNegativeFloat = 0.0
    """In the metric's own units."""
    relative: NonNegativeFloat = 0.0
    """As a share of the recorded number."""

    def allows(self, before: float, now: float) -> bool:
        """Whether `now` lies within the tolerance of `before`."""
        return abs(now - before) <= self.absolute + self.relative * abs(before)


class Tolerances(FrozenConfig):
    """What a replay on another machine, version or number of threads may differ by.

    On the same ones nothing may. Rates of few prompts flip by whole prompts; a score moves in its
    last digits.
    """

    metrics: dict[str, Tolerance] = Field(default_factory=dict[str, Tolerance])
    """Metric, without what follows an `@`, → tolerance of its value and of its interval's ends.
    Metrics that are not named must be equal."""
    tensors: NonNegativeFloat = 0.0
    """Norm of a tensor's difference, as a share of its norm."""
    margins: NonNegativeFloat = 0.0
    """Difference of a finding's numbers, as a share of its margin."""

    def of(self, metric: str) -> Tolerance:
        """The tolerance of a metric, whatever answer length its name carries."""
        return self.metrics.get(metric.partition("@")[0], Tolerance())


@dataclass(frozen=True, slots=True)
class Result:
    """All that a study found. The runner records it; the study knows nothing of records."""

    tables: tuple[Table, ...]
    findings: tuple[Finding, ...]
    figures: tuple[Figure, ...] = ()
    tensors: Mapping[str, "Tensor"] = field(default_factory=dict[str, "Tensor"])
    notes: tuple[str, ...] = ()
    """Sentences every page of this result must show (evidence.md 15)."""
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Hashes of prompts, token ids, weights, tokenizer and template, by model; for the manifest."""
    tolerances: Tolerances = field(default_factory=Tolerances)
    """What a replay elsewhere may differ by."""
