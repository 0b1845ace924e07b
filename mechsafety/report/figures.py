"""From a figure's description to the numbers it draws. Rows are picked, never recomputed."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pandas as pd
from numpy.typing import NDArray

from mechsafety.core.result import Figure
from mechsafety.report.drawing import Choice, Drawing, Facet, Grid, Number, Series, choice
from mechsafety.report.numbers import estimate
from mechsafety.report.palette import PLAIN, colors, in_order
from mechsafety.report.picking import (
    Cell,
    is_number,
    ordered,
    pick,
    place_names,
    refuse_overlap,
    values,
)
from mechsafety.report.scatter import scatter
from mechsafety.report.tokens import tokens

Key = TypeVar("Key")

MAX_POINTS: Final = 20_000
"""Points of one figure that go into a page; panels beyond are counted as left out."""


def drawing(
    figure: Figure,
    metrics: pd.DataFrame,
    tensors: Mapping[str, NDArray[Any]],
    max_points: int = MAX_POINTS,
) -> Drawing:
    """The panels of `figure`, the one shown first ahead of the others.

    Raises:
        RecordError: The description names a table, metric, dimension or tensor that the record
            does not have, or leaves open which of several rows to draw at one place.
    """
    if figure.kind == "scatter":
        names = (figure.facet, *figure.choose)
        order = {name: values(metrics, name) for name in names if name is not None}
        return scatter(figure, tensors, order, max_points)
    if figure.kind == "tokens":
        found = tokens(figure, metrics)
        held = found[:max_points]
        return Drawing(figure, [], {"": [Facet("", tokens=held)]}, 0, len(held), len(found))
    own, also = pick(figure, metrics)
    refuse_overlap(figure, own)
    choices = [_choice(figure, name, own) for name in figure.choose]
    sizes = ordered(map(_word(figure.color), own))
    if all(map(is_number, sizes)):
        shade = in_order(sizes)
    else:
        # Over the whole record, so that an arm unknown to the palette has one color on the page.
        shade = colors(figure.color or "", values(metrics, figure.color))
    beside = _Beside.of(figure, also)
    chosen_of = _grouped(own, lambda cell: tuple(_word(name)(cell) for name in figure.choose))
    panels: dict[str, list[Facet]] = {}
    points = left_out = 0
    for combination in _combinations(choices):
        chosen = tuple(c.options[i] for c, i in zip(choices, combination, strict=True))
        drawn = chosen_of.get(chosen, [])
        if panels and drawn and points + len(drawn) > max_points:
            left_out += 1
        elif drawn:
            points += len(drawn)
            panels[",".join(map(str, combination))] = _facets(figure, drawn, beside, shade)
    return Drawing(figure, choices, panels, left_out, points, len(own))


@dataclass(frozen=True, slots=True)
class _Beside:
    """Rows of the null and of the `hover` metrics, found from the row that they stand beside."""

    figure: Figure
    names: tuple[str, ...]
    """Dimensions that both have, and which the figure names."""
    rows: Mapping[tuple[str, tuple[str, ...]], Cell]
    """By metric and by words for `names`."""

    @staticmethod
    def of(figure: Figure, also: Iterable[Cell]) -> "_Beside":
        names = tuple(n for n in (*place_names(figure), *figure.choose) if n != "metric")
        return _Beside(figure, names, {(cell.metric, cell.at(names)): cell for cell in also})

    def find(self, metric: str, cell: Cell) -> Cell | None:
        """The row of `metric` at the place of `cell`, or the one that stands for all colors."""
        shared = (self.figure.x, self.figure.y, self.figure.facet, *self.figure.choose)
        blank = tuple(cell.where[n] if n in shared else "" for n in self.names)
        return self.rows.get((metric, cell.at(self.names))) or self.rows.get((metric, blank))

    def texts(self, cell: Cell) -> list[str]:
        """The `hover` metrics beside `cell`."""
        found = (self.find(name, cell) for name in self.figure.hover)
        return ["—" if c is None else estimate(c.value, c.low, c.high) for c in found]

    def null(self, cell: Cell) -> Cell | None:
        """The null of `cell`, if it is of the figure's own metric: it says nothing of others."""
        metric = self.figure.null_metric
        return self.find(metric, cell) if metric and cell.metric == self.figure.metric else None


def _word(name: str | None) -> Callable[[Cell], str]:
    """Reads a dimension of a row; `metric` counts as one, and no dimension is one empty word."""
    if name is None:
        return lambda _: ""
    return lambda cell: cell.metric if name == "metric" else cell.where[name]


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], Key]) -> dict[Key, list[Cell]]:
    groups: dict[Key, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def _choice(figure: Figure, name: str, own: Iterable[Cell]) -> Choice:
    own_metric = figure.metric if name == "metric" else None
    start = figure.start.get(name, own_metric)
    return choice(figure, name, ordered(map(_word(name), own)), start)


def _combinations(choices: Sequence[Choice]) -> list[tuple[int, ...]]:
    """Every combination of options, the one shown first in front."""
    every = itertools.product(*(range(len(choice.options)) for choice in choices))
    start = tuple(choice.start for choice in choices)
    return sorted(every, key=lambda combination: combination != start)


def _facets(
    figure: Figure, drawn: list[Cell], beside: _Beside, shade: Mapping[str, str]
) -> list[Facet]:
    by_title = _grouped(drawn, _word(figure.facet))
    titles = ordered(by_title) if figure.facet else list(by_title)
    if figure.kind in ("heatmap", "matrix"):
        axes = _grid_axes(figure, drawn)
        return [Facet(title, grid=_grid(axes, by_title[title], beside)) for title in titles]
    order = _words(drawn, _word(figure.x))
    order = order if figure.kind == "bars" or not all(map(is_number, order)) else []
    return [
        Facet(title, _lines(figure, drawn, by_title[title], beside, shade), order=order)
        for title in titles
    ]


def _lines(
    figure: Figure,
    panel: list[Cell],
    facet: list[Cell],
    beside: _Beside,
    shade: Mapping[str, str],
) -> list[Series]:
    color, dash = _word(figure.color), _word(figure.dash)
    # The order of the whole panel, so that a facet without one line styles the others alike.
    styles = list(itertools.product(_words(panel, color), enumerate(_words(panel, dash))))
    groups = _grouped(facet, lambda cell: (color(cell), dash(cell)))
    return [
        _series(
            figure,
            groups[first, second],
            beside,
            name=" · ".join(filter(None, (_said(figure.color, first), _said(figure.dash, second)))),
            color=shade.get(first, PLAIN),
            dash=style,
        )
        for first, (style, second) in styles
        if (first, second) in groups
    ]


def _said(dimension: str | None, word: str) -> str:
    """A number with what it counts, because a legend of `0, 1, 2` says nothing."""
    return f"{(dimension or '').replace('_', ' ')} {word}" if is_number(word) else word


def _words(cells: Iterable[Cell], word: Callable[[Cell], str]) -> list[str]:
    return ordered(map(word, cells)) or [""]


def _series(
    figure: Figure, line: list[Cell], beside: _Beside, *, name: str, color: str, dash: int
) -> Series:
    by_x = {_word(figure.x)(cell): cell for cell in line}
    xs = ordered(by_x)
    cells = [by_x[x] for x in xs]
    null = [beside.null(cell) for cell in cells]
    null = null if any(cell is not None for cell in null) else []
    return Series(
        name=name,
        color=color,
        dash=dash,
        x=[float(x) for x in xs] if figure.kind != "bars" and all(map(is_number, xs)) else xs,
        y=[cell.value for cell in cells],
        low=[cell.low for cell in cells],
        high=[cell.high for cell in cells],
        n=[cell.n for cell in cells],
        extra=[beside.texts(cell) for cell in cells] if figure.hover else [],
        null_low=[None if cell is None else cell.low for cell in null],
        null_high=[None if cell is None else cell.high for cell in null],
    )


def _grid_axes(figure: Figure, panel: list[Cell]) -> tuple[list[str], list[str]]:
    """The words on x and y of all facets of a panel, so that their cells stand side by side."""
    xs, ys = (ordered(map(_word(name), panel)) for name in (figure.x, figure.y))
    if figure.kind == "matrix" and set(xs) == set(ys):
        xs = ys  # one order on both axes keeps a model's own cell on the diagonal
    return xs, ys


def _grid(axes: tuple[list[str], list[str]], drawn: list[Cell], beside: _Beside) -> Grid:
    figure = beside.figure
    x_word, y_word = _word(figure.x), _word(figure.y)
    xs, ys = axes
    by_place = {(x_word(cell), y_word(cell)): cell for cell in drawn}
    rows = [[by_place.get((x, y)) for x in xs] for y in ys]

    def each(read: Callable[[Cell], Number]) -> list[list[Number]]:
        return [[None if cell is None else read(cell) for cell in row] for row in rows]

    return Grid(
        x=xs,
        y=ys,
        value=each(lambda cell: cell.value),
        low=each(lambda cell: cell.low),
        high=each(lambda cell: cell.high),
        n=[[None if cell is None else cell.n for cell in row] for row in rows],
        extra=[[[] if cell is None else beside.texts(cell) for cell in row] for row in rows]
        if figure.hover
        else [],
    )
