"""The tokens of a prompt from a record's rows, with the positions that are read and written."""

from typing import Final

import pandas as pd

from mechsafety.core.errors import RecordError
from mechsafety.core.result import Figure
from mechsafety.report.drawing import Token
from mechsafety.report.picking import Cell, pick

_MARKS: Final = ("token", "part", "read", "write")
_NOTHING: Final = ("", "false", "False")
"""Words that mark nothing; a column of several kinds holds truth values as capitalized text."""
_UNUSED: Final = ("x", "y", "color", "dash", "facet", "null_metric", "tensor")


def tokens(figure: Figure, metrics: pd.DataFrame) -> list[Token]:
    """The tokens that a `tokens` figure shows, in the prompt's order.

    Raises:
        RecordError: No such rows, a row without an index, or rows of several prompts.
    """
    doing = f"drawing figure '{figure.id}'"
    extra = [name for name in _UNUSED if getattr(figure, name) is not None]
    extra += [name for name in ("choose", "hover") if getattr(figure, name)]
    if figure.table is None or figure.metric is None or extra:
        raise RecordError(
            f"{doing}: kind 'tokens' needs table and metric, picks the prompt with 'where' and "
            f"draws nothing else; "
            + (f"leave out {', '.join(extra)}." if extra else "table or metric is missing.")
        )
    own, _ = pick(figure, metrics)
    if not any(cell.where.get("token") for cell in own):
        raise RecordError(
            f"{doing}: the rows of metric '{figure.metric}' have no dimension 'token', which holds "
            "the text of each token."
        )
    by_index: dict[int, list[Cell]] = {}
    for cell in own:
        if cell.value is None or not cell.value.is_integer():
            raise RecordError(
                f"{doing}: the token '{cell.where['token']}' has the value {cell.value}; the value "
                f"of '{figure.metric}' is the token's index in the prompt."
            )
        by_index.setdefault(int(cell.value), []).append(cell)
    if twice := [cells for cells in by_index.values() if len(cells) > 1]:
        differ = [
            name
            for name in own[0].where
            if name not in _MARKS
            and any(len({c.where[name] for c in cells}) > 1 for cells in twice)
        ]
        raise RecordError(
            f"{doing}: {len(twice)} places of the prompt have several tokens, so there are several "
            f"prompts. They differ in: {', '.join(differ) or 'nothing (rows are repeated)'}. Pick "
            "one with 'where'."
        )
    return [_token(index, cells[0]) for index, cells in sorted(by_index.items())]


def _token(index: int, cell: Cell) -> Token:
    read, write = (cell.where.get(name, "") for name in ("read", "write"))
    return Token(
        index=index,
        text=cell.where["token"],
        part=cell.where.get("part", ""),
        read="" if read in _NOTHING else read,
        write="" if write in _NOTHING else "true" if write == "True" else write,
    )
