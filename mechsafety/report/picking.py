# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pandas has no complete stubs.
"""Which rows of a record a figure draws; refused where its description leaves that open."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import pandas as pd

from mechsafety.core.errors import RecordError
from mechsafety.core.result import Figure
from mechsafety.report.drawing import Number, rounded
from mechsafety.report.numbers import label

FIXED: Final = ("table", "metric", "value", "ci_low", "ci_high", "n", "unit", "note")
"""Columns of the metrics frame that are not dimensions."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the metrics, with its dimensions as words."""

    metric: str
    value: Number
    low: Number
    high: Number
    n: int
    where: Mapping[str, str]
    """Dimension → word, empty where the row has none."""

    def at(self, names: Iterable[str]) -> tuple[str, ...]:
        """The row's words for these dimensions."""
        return tuple(self.where[name] for name in names)


def dimensions(frame: pd.DataFrame) -> list[str]:
    """Columns that index the rows of `frame`, leaving out those that are empty in all of it."""
    return [
        str(c) for c in frame.columns if c not in FIXED and bool(frame[c].notna().to_numpy().any())
    ]


def keep(rows: pd.DataFrame, mask: object) -> pd.DataFrame:
    """The rows where `mask` is true."""
    return cast("pd.DataFrame", rows.loc[mask])


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with every dimension as it is shown: the same word whatever the column's type."""
    columns = {str(name): frame[name] for name in frame.columns}
    for name in (name for name in columns if name not in FIXED):
        column = columns[name].astype(object)
        words: dict[Any, str] = {value: label(value) for value in column.dropna().unique()}
        # Mapping the distinct values is what keeps 100,000 rows under a second.
        columns[name] = column.map(words.get).fillna("")
    return pd.DataFrame(columns, index=frame.index)


def is_number(text: str) -> bool:
    """Whether a label reads as a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def ordered(words: Iterable[str]) -> list[str]:
    """Distinct words: numbers by size, others in the order in which the study wrote them."""
    found = [word for word in dict.fromkeys(words) if word]
    return sorted(found, key=float) if all(map(is_number, found)) else found


def values(rows: pd.DataFrame, dimension: str | None) -> list[str]:
    """The words of one dimension in a metrics frame."""
    if dimension is None or dimension not in rows.columns:
        return []
    return ordered(map(label, rows[dimension].astype(object).dropna().unique()))


def listed(value: object) -> list[str]:
    """The labels that a `where` entry admits: one value, or a list of them."""
    return [label(v) for v in value] if isinstance(value, (list, tuple)) else [label(value)]


def place_names(figure: Figure) -> list[str]:
    """The dimensions that say where in a panel a row is drawn."""
    named = (figure.x, figure.y, figure.color, figure.dash, figure.facet)
    return list(dict.fromkeys(name for name in named if name is not None))


def pick(figure: Figure, metrics: pd.DataFrame) -> tuple[list[Cell], list[Cell]]:
    """The rows that `figure` draws, and those of its null and hover metrics.

    Raises:
        RecordError: A table, metric or dimension that the record does not have.
    """
    doing = f"drawing figure '{figure.id}'"
    needs_y = figure.kind in ("heatmap", "matrix")
    placed = figure.kind == "tokens" or None not in (figure.table, figure.metric, figure.x)
    if not placed or needs_y != (figure.y is not None):
        raise RecordError(
            f"{doing}: kind '{figure.kind}' needs table, metric and x, and "
            + ("a dimension on y." if needs_y else "draws the metric on y, so y stays out.")
        )
    rows = keep(metrics, metrics["table"] == figure.table)
    if rows.empty:
        tables = ", ".join(map(str, metrics["table"].unique())) or "none"
        raise RecordError(f"{doing}: there is no table '{figure.table}'. Tables: {tables}.")
    where = {name: listed(value) for name, value in figure.where.items()}
    shown = where.pop("metric", [])
    if "metric" not in figure.choose or not shown:
        shown = [str(figure.metric)]
    for name in (*place_names(figure), *figure.choose, *where):
        if name != "metric" and name not in dimensions(rows):
            raise RecordError(
                f"{doing}: table '{figure.table}' has no dimension '{name}'. Dimensions: "
                f"{', '.join(dimensions(rows))}."
            )
    rows = as_text(rows)
    for name, admitted in where.items():
        # A null or hover row may stand for all values of a dimension, and then leaves it empty.
        beside = ~rows["metric"].isin(shown) & (rows[name] == "")
        rows = keep(rows, rows[name].isin(admitted) | beside)
    own = keep(rows, rows["metric"].isin(shown))
    if own.empty:
        raise RecordError(
            f"{doing}: table '{figure.table}' has no rows of metric '{', '.join(shown)}'"
            + (f" where {where}." if where else ".")
        )
    also = [*figure.hover, *([figure.null_metric] if figure.null_metric else [])]
    return _cells(own), _cells(keep(rows, rows["metric"].isin(also)))


def _cells(rows: pd.DataFrame) -> list[Cell]:
    """Rows as plain values: a page groups them thousands of times, which frames are slow at."""
    names = [str(c) for c in rows.columns if c not in FIXED]
    fixed = [rows[c] for c in ("metric", "value", "ci_low", "ci_high", "n")]
    words = zip(*(rows[name] for name in names), strict=True) if names else ()
    return [
        Cell(
            str(metric),
            rounded(value),
            rounded(low),
            rounded(high),
            int(n),
            dict(zip(names, where, strict=True)),
        )
        for (metric, value, low, high, n), where in zip(
            zip(*fixed, strict=True), words, strict=True
        )
    ]


def refuse_overlap(figure: Figure, own: list[Cell]) -> None:
    """Refuse rows that would be drawn one on another.

    Raises:
        RecordError: Names the dimensions in which such rows differ.
    """
    names = [n for n in (*place_names(figure), *figure.choose) if n != "metric"]
    by_place: dict[tuple[str, ...], list[Cell]] = {}
    for cell in own:
        place = (*cell.at(names), cell.metric if "metric" in figure.choose else "")
        by_place.setdefault(place, []).append(cell)
    twice = [cells for cells in by_place.values() if len(cells) > 1]
    if not twice:
        return
    differ = [
        name
        for name in own[0].where
        if any(len({cell.where[name] for cell in cells}) > 1 for cells in twice)
    ]
    raise RecordError(
        f"drawing figure '{figure.id}': {sum(map(len, twice))} rows of table '{figure.table}' "
        f"would be drawn one on another. They differ in: "
        f"{', '.join(differ) or 'nothing (they are repeated)'}. Fix these with 'where', or offer "
        "them with 'choose' or 'facet'."
    )
