"""What one figure draws, as plain values: the page's script lays it out and adds nothing.

A figure has panels (one a combination of drop-downs); a panel has facets side by side; a facet
has series, one grid of values or the tokens of one prompt.
"""

import math
from dataclasses import dataclass, field
from typing import SupportsFloat

from mechsafety.core.errors import RecordError
from mechsafety.core.result import Figure
from mechsafety.report.numbers import label

Number = float | None


@dataclass(frozen=True, slots=True)
class Series:
    """One line, group of bars or cloud of points."""

    name: str
    """What the legend says: the value of `color`, and of `dash` where there is one."""
    color: str
    """Hex color."""
    dash: int
    """Number of the line style; 0 is solid."""
    x: list[str] | list[float] | list[Number]
    y: list[Number]
    low: list[Number] = field(default_factory=list[Number])
    """Lower ends of the intervals; empty where a kind has none."""
    high: list[Number] = field(default_factory=list[Number])
    n: list[int] = field(default_factory=list[int])
    extra: list[list[str]] = field(default_factory=list[list[str]])
    """Texts of the figure's `hover` metrics, one list a point."""
    null_low: list[Number] = field(default_factory=list[Number])
    null_high: list[Number] = field(default_factory=list[Number])


@dataclass(frozen=True, slots=True)
class Grid:
    """Values on two categorical axes, each a list of rows of y: `value[y][x]`.

    A cell without a row has neither value nor `n`; one that could not be measured has its `n`.
    """

    x: list[str]
    y: list[str]
    value: list[list[Number]]
    low: list[list[Number]]
    high: list[list[Number]]
    n: list[list[int | None]]
    extra: list[list[list[str]]]


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a prompt, with what happens there."""

    index: int
    """Its place in the prompt, from 0."""
    text: str
    part: str
    """Part of the prompt, such as `template` or `instruction`; empty where none was named."""
    read: str
    """Name of the position that is read there; empty where none is."""
    write: str
    """Name of what is written there, `true` where it has none; empty where nothing is."""


@dataclass(frozen=True, slots=True)
class Facet:
    """One small panel."""

    title: str
    series: list[Series] = field(default_factory=list[Series])
    grid: Grid | None = None
    tokens: list[Token] = field(default_factory=list[Token])
    order: list[str] = field(default_factory=list[str])
    """Words on x in the study's order, of all facets of the panel; empty where x has numbers."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One drop-down."""

    name: str
    """The dimension that it chooses."""
    options: list[str]
    start: int
    """Number of the option shown first."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """All that the page's script needs to draw one figure."""

    figure: Figure
    choices: list[Choice]
    panels: dict[str, list[Facet]]
    """Facets by the numbers of the chosen options joined by commas; the first is shown first."""
    left_out: int = 0
    """Panels that the page does not hold, for its size."""
    points: int = 0
    """Points that the panels hold together."""
    total_points: int = 0
    """Points that the record holds for this figure."""


def choice(figure: Figure, name: str, options: list[str], start: object) -> Choice:
    """A drop-down of `options` that shows `start` first, or the first option without it.

    Raises:
        RecordError: `start` is no option.
    """
    wanted = label(start)
    if wanted and wanted not in options:
        raise RecordError(
            f"drawing figure '{figure.id}': it starts with {name} '{wanted}', which is not among "
            f"{', '.join(options)}."
        )
    return Choice(name, options, options.index(wanted) if wanted else 0)


def rounded(value: SupportsFloat | None) -> Number:
    """Five significant digits: more than a screen shows, at half the page's size."""
    if value is None:
        return None
    exact = float(value)
    return float(f"{exact:.5g}") if math.isfinite(exact) else None
