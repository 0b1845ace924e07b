# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# plotly comes without complete types.
"""A record's figures as Plotly objects: what the report draws, for wandb, which draws Plotly.

Each is written as one dictionary that Plotly checks once: building it call by call checks it
again at every call, which takes ten times as long.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

from mechsafety.core.result import Figure
from mechsafety.report.drawing import Drawing, Facet, Grid, Number, Series, Token
from mechsafety.report.tokens_text import said, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

Properties = dict[str, Any]
"""Of a Plotly object, as its JavaScript reads them."""

MAX_PANELS: Final = 12
"""Panels of one figure that are mirrored; the report has all."""
_DASHES: Final = ("solid", "dash", "dot", "dashdot", "longdash")
_NULL: Final = {"color": "rgba(120,128,138,0.35)", "thickness": 8, "width": 0}
# In place of Plotly's own template, whose 7 kB would be in every figure.
_PLAIN: Final = {"layout": {"plot_bgcolor": "white", "paper_bgcolor": "white"}}
_AXIS: Final = {"gridcolor": "#e8eaed", "linecolor": "#aab2bb", "zerolinecolor": "#e8eaed"}
_GAP: Final = 0.04
"""Between two facets, as a share of the width."""


def plotly_figures(drawing: Drawing) -> dict[str, "go.Figure"]:
    """One Plotly figure a panel, by the options that chose it (`layer=3,form=zero`)."""
    import plotly.graph_objects as go

    figures: dict[str, go.Figure] = {}
    for chosen, facets in list(drawing.panels.items())[:MAX_PANELS]:
        numbers = [int(number) for number in chosen.split(",") if number]
        options = {
            choice.name: choice.options[number]
            for choice, number in zip(drawing.choices, numbers, strict=True)
        }
        name = ",".join(f"{dimension}={option}" for dimension, option in options.items())
        figures[name] = go.Figure(_panel(drawing.figure, facets, options))
    return figures


def _panel(described: Figure, facets: list[Facet], options: dict[str, str]) -> Properties:
    # The limits, center and titles of a figure are those of its own metric.
    own = options.get("metric", described.metric) == described.metric
    title = {"text": escape(described.title)}
    layout: Properties = {"title": title, "template": _PLAIN}
    if described.kind == "tokens":
        tokens = [token for facet in facets for token in facet.tokens]
        return {"data": [_prompt(tokens)], "layout": layout}
    data: list[Properties] = []
    layout |= {"shapes": [], "annotations": [], "legend": {"tracegroupgap": 0}}
    for number, facet in enumerate(facets or [Facet("")], start=1):
        data += _traces(described, facet, number, own)
        layout |= _axes(described, facet, number, len(facets), own)
        layout["shapes"] += _lines(described, number, own)
        layout["annotations"] += _names(described, facet, number, own)
    return {"data": data, "layout": layout}


def _prompt(tokens: list[Token]) -> Properties:
    """One row a token: Plotly has no chart of running text."""
    columns = {
        "token": [str(token.index) for token in tokens],
        "text": [visible(token.text) for token in tokens],
        "part": [visible(token.part) if token.part else "" for token in tokens],
        "read or written": [", ".join(said(token)) for token in tokens],
    }
    cells = [_words(column) for column in columns.values()]
    return {
        "type": "table",
        "header": {"values": list(columns)},
        "cells": {"values": cells, "align": "left"},
    }


def _axis(letter: str, number: int) -> str:
    """Name of an axis as traces give it: `x`, `x2`, …"""
    return letter if number == 1 else f"{letter}{number}"


def _words(values: Sequence[Any]) -> list[Any]:
    """As Plotly shows them: it reads a little HTML, and tokens such as `<|end|>` would vanish."""
    return [escape(value) if isinstance(value, str) else value for value in values]


def _traces(described: Figure, facet: Facet, number: int, own: bool) -> Iterator[Properties]:
    axes = {"xaxis": _axis("x", number), "yaxis": _axis("y", number)}
    if facet.grid is not None:
        yield {**_heatmap(described, facet.grid, number, own), **axes}
    for series in facet.series:
        if series.null_low:
            yield {**_null(series), **axes}
        yield {**_trace(described.kind, series, first=number == 1), **axes}


def _heatmap(described: Figure, grid: Grid, number: int, own: bool) -> Properties:
    low, high = described.limits or (None, None)
    scale = {"zmin": low, "zmax": high, "zmid": None if low is not None else described.center}
    bar = {"title": {"text": escape(described.value_title)}} if own else {}
    return {
        "type": "heatmap",
        "x": _words(grid.x),
        "y": _words(grid.y),
        "z": grid.value,
        "customdata": [
            [_interval(*cell) for cell in zip(*row, strict=True)]
            for row in zip(grid.low, grid.high, grid.n, strict=True)
        ],
        "hovertemplate": "%{y}, %{x}: %{z}%{customdata}<extra></extra>",
        "colorbar": bar,
        "showscale": number == 1,
        **(scale if own else {}),
    }


def _trace(kind: str, series: Series, first: bool) -> Properties:
    common: Properties = {
        "name": escape(series.name),
        "legendgroup": escape(series.name),
        "showlegend": first,
        "x": _words(series.x),
        "y": series.y,
        "marker": {"color": series.color},
    }
    if kind == "scatter":  # a cloud of points, which have neither intervals nor an n each
        return {"type": "scatter", "mode": "markers", **common}
    ends = zip(series.low, series.high, series.n, strict=True)
    common |= {
        "error_y": _bars(series.y, series.low, series.high),
        "customdata": [_interval(*end) for end in ends],
        "hovertemplate": "%{x}: %{y}%{customdata}",
    }
    if kind == "bars":
        return {"type": "bar", **common}
    dash = _DASHES[series.dash % len(_DASHES)]
    line = {"color": series.color, "dash": dash}
    return {"type": "scatter", "mode": "lines+markers", "line": line, **common}


def _null(series: Series) -> Properties:
    """The null range behind a series, as wide gray bars around its middle."""
    middle = [
        None if low is None or high is None else (low + high) / 2
        for low, high in zip(series.null_low, series.null_high, strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "marker": {"size": 0.1, "color": _NULL["color"]},
        "x": _words(series.x),
        "y": middle,
        "error_y": {**_bars(middle, series.null_low, series.null_high), **_NULL},
        "name": f"null of {escape(series.name)}" if series.name else "null",
        "legendgroup": escape(series.name),
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _interval(low: Number, high: Number, n: int | None) -> str:
    """What hovering says after the value."""
    interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return interval + ("" if n is None else f" (n = {n})")


def _bars(middle: list[Number], low: list[Number], high: list[Number]) -> Properties:
    above, below = _gaps(high, middle, 1), _gaps(low, middle, -1)
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _gaps(ends: list[Number], middle: list[Number], sign: int) -> list[Number]:
    """Lengths of error bars, which Plotly counts from the point."""
    return [
        None if end is None or at is None else sign * (end - at)
        for end, at in zip(ends, middle, strict=True)
    ]


def _axes(described: Figure, facet: Facet, number: int, of: int, own: bool) -> Properties:
    """The two axes of one facet: side by side, on one scale of y."""
    wide = (1 - _GAP * (of - 1)) / max(1, of)
    left = (number - 1) * (wide + _GAP)
    x: Properties = {**_AXIS, "domain": [left, left + wide], "anchor": _axis("y", number)}
    y: Properties = {**_AXIS, "anchor": _axis("x", number)}
    x["title"] = {"text": escape(described.x_title)}
    if number == 1:
        y["title"] = {"text": escape(described.y_title)}
    elif described.kind != "scatter":
        y |= {"matches": "y", "showticklabels": False}
    if facet.order:
        # Plotly's own order is that of the first trace, which need not have all the words.
        x |= {"type": "category", "categoryarray": _words(facet.order)}
    if facet.grid is not None:
        # Otherwise layers `1, 2, 3` are taken for numbers and words that look like dates for dates.
        x["type"] = y["type"] = "category"
    elif described.limits is not None and own:
        y["range"] = list(described.limits)
    return {f"xaxis{_axis('x', number)[1:]}": x, f"yaxis{_axis('y', number)[1:]}": y}


def _lines(described: Figure, number: int, own: bool) -> Iterator[Properties]:
    """Marks such as attacked layers, and references such as chance."""
    x, y = _axis("x", number), _axis("y", number)
    style = {"type": "line", "layer": "below", "line": {"color": "#5c6670", "dash": "dot"}}
    for at in described.marks.values():
        yield {**style, "xref": x, "x0": at, "x1": at, "yref": f"{y} domain", "y0": 0, "y1": 1}
    for at in described.reference.values() if own else ():
        yield {**style, "xref": f"{x} domain", "x0": 0, "x1": 1, "yref": y, "y0": at, "y1": at}


def _names(described: Figure, facet: Facet, number: int, own: bool) -> Iterator[Properties]:
    """The facet's title; in the first facet also what its lines are."""
    x, y = _axis("x", number), _axis("y", number)
    plain = {"showarrow": False, "xref": f"{x} domain", "yref": f"{y} domain"}
    if facet.title:
        yield {**plain, "text": escape(facet.title), "x": 0.5, "y": 1, "yanchor": "bottom"}
    if number > 1:
        return
    for name, at in described.marks.items():
        yield {**plain, "text": escape(name), "xref": x, "x": at, "y": 1, "yanchor": "top"}
    for name, at in described.reference.items() if own else ():
        yield {**plain, "text": escape(name), "x": 1, "yref": y, "y": at, "yanchor": "bottom"}
