# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# plotly comes without complete types.
"""A record's figures as Plotly objects: what the report draws, for wandb, which draws Plotly."""

from html import escape
from typing import TYPE_CHECKING, Final

from mechsafety.report.drawing import Drawing, Facet, Grid, Series, Token
from mechsafety.report.tokens_text import said, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_PANELS: Final = 12
"""Panels of one figure that are mirrored; the report has all."""
_DASHES: Final = ("solid", "dash", "dot", "dashdot", "longdash")


def plotly_figures(drawing: Drawing) -> dict[str, "go.Figure"]:
    """One Plotly figure a panel, by the options that chose it (`layer=3,form=zero`)."""
    figures: dict[str, go.Figure] = {}
    for chosen, facets in list(drawing.panels.items())[:MAX_PANELS]:
        numbers = [int(number) for number in chosen.split(",") if number]
        options = ",".join(
            f"{choice.name}={choice.options[number]}"
            for choice, number in zip(drawing.choices, numbers, strict=True)
        )
        figures[options] = _figure(drawing, facets)
    return figures


def _figure(drawing: Drawing, facets: list[Facet]) -> "go.Figure":
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    described = drawing.figure
    if described.kind == "tokens":
        tokens = [token for facet in facets for token in facet.tokens]
        return go.Figure(_prompt(tokens), layout={"title": escape(described.title)})
    figure = make_subplots(
        cols=max(1, len(facets)), shared_yaxes=True, subplot_titles=[f.title for f in facets]
    )
    for column, facet in enumerate(facets, start=1):
        if facet.grid is not None:
            figure.add_trace(_heatmap(facet.grid), row=1, col=column)
        if facet.order:
            # Plotly's own order is that of the first trace, which need not have all the words.
            figure.update_xaxes(type="category", categoryarray=facet.order, col=column)
        for series in facet.series:
            figure.add_trace(_trace(described.kind, series), row=1, col=column)
    for name, x in described.marks.items():
        figure.add_vline(x=x, line_dash="dot", annotation_text=name)
    for name, y in described.reference.items():
        figure.add_hline(y=y, line_dash="dot", annotation_text=name)
    figure.update_xaxes(title_text=described.x_title)
    figure.update_yaxes(title_text=described.y_title, col=1)
    figure.update_layout(title=described.title, template="plotly_white")
    return figure


def _prompt(tokens: list[Token]) -> "go.Table":
    """One row a token: Plotly has no chart of running text."""
    import plotly.graph_objects as go

    columns = {
        "token": [str(token.index) for token in tokens],
        "text": [visible(token.text) for token in tokens],
        "part": [visible(token.part) if token.part else "" for token in tokens],
        "read or written": [", ".join(said(token)) for token in tokens],
    }
    # Plotly reads a little HTML in its texts, and tokens such as `<|end|>` would vanish.
    cells = [[escape(text) for text in column] for column in columns.values()]
    return go.Table(header={"values": list(columns)}, cells={"values": cells, "align": "left"})


def _heatmap(grid: Grid) -> "go.Heatmap":
    import plotly.graph_objects as go

    return go.Heatmap(x=grid.x, y=grid.y, z=grid.value, customdata=grid.n)


def _trace(kind: str, series: Series) -> "go.Bar | go.Scatter":
    import plotly.graph_objects as go

    bars = None
    if series.low and series.high:
        above, below = _gaps(series.high, series.y, 1), _gaps(series.low, series.y, -1)
        bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    if kind == "bars":
        return go.Bar(
            name=series.name, x=series.x, y=series.y, error_y=bars, marker_color=series.color
        )
    return go.Scatter(
        name=series.name,
        x=series.x,
        y=series.y,
        error_y=bars,
        mode="markers" if kind == "scatter" else "lines+markers",
        marker={"color": series.color},
        line={"color": series.color, "dash": _DASHES[series.dash % len(_DASHES)]},
    )


def _gaps(ends: list[float | None], middle: list[float | None], sign: int) -> list[float | None]:
    """Lengths of error bars, which Plotly counts from the point."""
    return [
        None if end is None or at is None else sign * (end - at)
        for end, at in zip(ends, middle, strict=True)
    ]
