# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# wandb and pandas come without complete types.
"""A record's numbers for wandb: all of them as one Table, and a part as scalars with names."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from mechsafety.core.result import Finding
from mechsafety.records.metrics_table import COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    import wandb

MAX_SCALARS: Final = 2_000
"""Numbers that also become scalars of their own; the Table always has all of them."""
ONLY_IN_TABLE: Final = "scalars_only_in_table"
"""Beginning of the summary's keys that say how many numbers of a table are no scalars."""
_OF_FINDINGS: Final = ("value", "ci_low", "ci_high", "null_low", "null_high", "n", "verdict")
_UNSAFE: Final = re.compile(r"[%/\x00-\x1f\x7f]")


def metrics_table(frame: "pd.DataFrame") -> "wandb.Table":
    """One row a number, with the types that the record's columns have."""
    import pandas as pd
    import wandb

    class PlainTable(wandb.Table):
        """Rows that are plain values already.

        wandb looks at every cell three times (infers its type when a row is added, and twice asks
        whether it is a tensor, an image or a date), which takes longer than all the rest of a
        mirror. Here the types come from the record, and the cells pass as they are.
        """

        def to_json(self, run_or_artifact: Any) -> dict[str, Any]:
            if not isinstance(run_or_artifact, wandb.Artifact):
                return super().to_json(run_or_artifact)
            rows, self.data = self.data, []
            try:
                described = super().to_json(run_or_artifact)
            finally:
                self.data = rows
            return {**described, "data": rows, "nrows": len(rows)}

    def kind(column: str) -> type:
        dtype = frame[column].dtype
        if pd.api.types.is_bool_dtype(dtype):
            return bool
        return float if pd.api.types.is_numeric_dtype(dtype) else str

    kinds = [kind(column) for column in frame.columns]
    table = PlainTable(columns=list(frame.columns), data=[], dtype=kinds, optional=True)
    table.data = _rows(frame)
    return table


def _rows(frame: "pd.DataFrame") -> list[list[Any]]:
    """Plain values, with None for what a row does not have."""
    plain = frame.astype(object)
    return plain.where(plain.notna(), None).to_numpy().tolist()


def findings_table(findings: Iterable[Finding]) -> "wandb.Table":
    """One row a finding, with its claim, interval, null and verdict."""
    import wandb

    columns = ["id", "claim", "scope", *_OF_FINDINGS, "null", "unit", "explanation"]
    rows: list[Any] = [[getattr(one, name) for name in columns] for one in findings]
    return wandb.Table(columns=[*columns], data=rows, allow_mixed_types=True)


def finding_scalars(findings: Iterable[Finding]) -> dict[str, Any]:
    """`finding/<id>/<what>` → number or verdict."""
    return {
        f"finding/{one.id}/{what}": getattr(one, what) for one in findings for what in _OF_FINDINGS
    }


def scalars(frame: "pd.DataFrame", most: int = MAX_SCALARS) -> dict[str, float | int]:
    """`table/metric/dimension=value/…` → number, and how many of a table are not among them.

    Small tables come first, because they hold what people compare runs by, and large ones the
    maps behind it. A name that is taken gets a number of its own, `…/#2`, so that no number hides
    another. `/` and `%` inside a part are written `%2F` and `%25`, as in a URL.
    """
    measured = frame.loc[frame["value"].notna()]
    sizes = Counter[str](measured["table"].tolist())
    found: dict[str, float | int] = {}
    left_out: dict[str, float | int] = {}
    for name, size in sorted(sizes.items(), key=lambda item: item[1]):
        room = most - len(found)
        if size > room:
            left_out[f"{ONLY_IN_TABLE}/{_part(name)}"] = size - room
        for row, value in _named(measured.loc[measured["table"] == name].head(room)):
            found[_free(row, found)] = value
    return found | left_out


def _named(rows: "pd.DataFrame") -> Iterator[tuple[str, float]]:
    dimensions = list(rows.columns)[len(COLUMNS) :]
    for row in _rows(rows):
        table, metric, number = row[:3]
        where = zip(dimensions, row[len(COLUMNS) :], strict=True)
        at = [f"{name}={_part(value)}" for name, value in where if value is not None]
        yield "/".join([_part(table), _part(metric), *at]), number


def _part(value: object) -> str:
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", str(value))


def _free(name: str, taken: dict[str, float | int]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}/#{number}"
    return free
