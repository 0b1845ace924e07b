"""Which refusal direction do the published filters choose from a stored table of scores?

    python experiments/reproduce/direction_selection.py --evaluations FILE [--json]
        [--kl-threshold X] [--induce-threshold X] [--prune-layers SHARE] [--n-layers N]

FILE is JSON: `{"selected": {"pos", "layer"}, "candidates": [...]}` or the bare list of candidates,
each with `position`, `layer`, `refusal_score` (bypass), `steering_score` (induce) and
`kl_div_score`, where NaN and null are scores that could not be computed. The order of the rows does
not matter: equal scores go to the first by position, then layer (arXiv:2406.11717 and its code).

`--induce-threshold -inf` and `--kl-threshold inf` switch a filter off. The last line of stdout is
`{"position", "layer", "kept"}`; with --json it is the only one. Exit codes: 0 done, 1 nothing is
kept, or the published filters choose another candidate than the file's `selected`, 2 bad input.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from mechsafety.core.config import parse_config
from mechsafety.core.errors import SampleError, did_you_mean
from mechsafety.core.progress import say
from mechsafety.core.scripts import exit_code
from mechsafety.effects.selection_rule import (
    NOTHING,
    Discarded,
    SelectionFilters,
    choose,
    discarded,
    kept,
)

SCORES: Final = {"bypass": "refusal_score", "induce": "steering_score", "kl": "kl_div_score"}
"""Our word for a score → its key in the published tables."""
MAX_LAYERS: Final = 10_000
THRESHOLDS: Final = ("--kl-threshold", "--induce-threshold")


@dataclass(frozen=True)
class Table:
    """Scores of the candidates, position × layer, NaN where there is none."""

    positions: list[int]
    """As in the file, ascending: the order in which equal scores are chosen."""
    n_layers: int
    """One more than the last layer of the file."""
    scores: Mapping[str, Tensor]
    """`bypass`, `induce` and `kl`, float64."""
    present: Tensor
    """Which cells the file has a candidate for."""
    selected: tuple[int, int] | None
    """The file's own choice, (position, layer)."""


def read_table(path: Path) -> Table:
    """The candidates of one file.

    Raises:
        SampleError: Missing, not JSON, without candidates, or with a row that is none.
    """
    doing = f"reading {path}"
    try:
        loaded: object = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SampleError(
            f"{doing}: {error}. Expected a JSON file of candidates, such as "
            "direction_evaluations.json of a published run."
        ) from None
    rows: object = loaded
    choice: object = None
    if isinstance(loaded, dict):
        mapping = cast("dict[str, object]", loaded)
        if "candidates" not in mapping:
            raise SampleError(
                f"{doing}: there is no key 'candidates' among {sorted(mapping)}. Expected "
                '{"selected": …, "candidates": [...]} or the bare list of candidates.'
            )
        rows, choice = mapping["candidates"], mapping.get("selected")
    if not isinstance(rows, list) or not rows:
        arrived = "an empty list" if rows == [] else f"no list but {json.dumps(rows):.60}"
        raise SampleError(
            f"{doing}: its candidates are {arrived}. Expected a list with one row for each "
            "position and layer."
        )
    found: dict[tuple[int, int], list[float]] = {}
    for i, row in enumerate(cast("list[object]", rows)):
        cell, values = read_row(f"{doing}: row {i}", row)
        if cell in found:
            raise SampleError(
                f"{doing}: row {i} is a second one for position {cell[0]}, layer {cell[1]}. Leave "
                "one of them out."
            )
        found[cell] = values
    positions = sorted({position for position, _ in found})
    n_layers = 1 + max(layer for _, layer in found)
    grid = torch.full((len(SCORES), len(positions), n_layers), math.nan, dtype=torch.float64)
    present = torch.zeros(len(positions), n_layers, dtype=torch.bool)
    for (position, layer), values in found.items():
        grid[:, positions.index(position), layer] = torch.tensor(values, dtype=torch.float64)
        present[positions.index(position), layer] = True
    scores = dict(zip(SCORES, grid, strict=True))
    return Table(positions, n_layers, scores, present, read_choice(doing, choice))


def read_row(doing: str, row: object) -> tuple[tuple[int, int], list[float]]:
    """(position, layer) of one candidate and its scores in the order of `SCORES`."""
    keys = ("position", "layer", *SCORES.values())
    if not isinstance(row, dict):
        raise SampleError(f"{doing} is {row!r}. Expected a mapping with {', '.join(keys)}.")
    mapping = cast("dict[str, object]", row)
    for key in keys:
        if key not in mapping:
            raise SampleError(f"{doing} has no key '{key}'. {did_you_mean(key, mapping)}")
    position, layer = (whole(f"{doing}: '{key}'", mapping[key]) for key in keys[:2])
    if not 0 <= layer < MAX_LAYERS:
        raise SampleError(
            f"{doing}: 'layer' is {layer}. Expected block inputs, counted from 0 (and below "
            f"{MAX_LAYERS})."
        )
    return (position, layer), [number(f"{doing}: '{k}'", mapping[k]) for k in SCORES.values()]


def read_choice(doing: str, choice: object) -> tuple[int, int] | None:
    """The file's own choice, if it has one; published files write `pos`."""
    if choice is None:
        return None
    mapping = cast("dict[str, object]", choice) if isinstance(choice, dict) else {}
    position, layer = mapping.get("pos", mapping.get("position")), mapping.get("layer")
    if position is None or layer is None:
        raise SampleError(
            f'{doing}: \'selected\' is {choice!r}. Expected {{"pos": …, "layer": …}}, or leave '
            "the key out."
        )
    return whole(f"{doing}: 'selected.pos'", position), whole(f"{doing}: 'selected.layer'", layer)


def whole(what: str, value: object) -> int:
    """A whole number, which `true` and 3.5 are not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SampleError(f"{what} is {value!r}. Expected a whole number.")
    return value


def number(what: str, value: object) -> float:
    """A score; null is NaN."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SampleError(f"{what} is {value!r}. Expected a number, NaN or null.")
    try:
        return float(value)
    except OverflowError:
        raise SampleError(f"{what} is a number beyond float64.") from None


def threshold(text: str) -> float:
    """Reads a number, with the minus sign of a page or that of the keyboard."""
    return float(text.replace("−", "-"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    defaults = SelectionFilters()
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary, allow_abbrev=False)
    parser.add_argument("--evaluations", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--kl-threshold",
        type=threshold,
        default=defaults.kl_threshold,
        metavar="X",
        help="discard a larger KL; default %(default)s, inf: off",
    )
    parser.add_argument(
        "--induce-threshold",
        type=threshold,
        default=defaults.induce_threshold,
        metavar="X",
        help="discard a smaller induce score; default %(default)s, -inf: off",
    )
    parser.add_argument(
        "--prune-layers",
        type=float,
        default=defaults.prune_layers,
        metavar="SHARE",
        help="keep layers below int(SHARE * depth); default %(default)s, 1.0: every layer",
    )
    parser.add_argument(
        "--n-layers", type=int, metavar="N", help="depth of the model; default: as in the file"
    )
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON line")
    return parser.parse_args(with_values_joined(arguments))


def with_values_joined(arguments: Sequence[str]) -> list[str]:
    """`--induce-threshold -inf` as one word: argparse takes -inf for another option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in THRESHOLDS and not argument.startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def run(options: argparse.Namespace) -> int:
    """Read, filter, choose, compare, print."""
    table = read_table(options.evaluations)
    filters = parse_config(
        SelectionFilters,
        {name: getattr(options, name) for name in SelectionFilters.model_fields},
        "filters",
    )
    n_layers = table.n_layers if options.n_layers is None else options.n_layers
    if n_layers < table.n_layers:
        raise SampleError(
            f"--n-layers {n_layers}: {options.evaluations} has candidates up to layer "
            f"{table.n_layers - 1}. Give the depth of the model, at least {table.n_layers}."
        )
    induce, kl, bypass = (table.scores[name] for name in ("induce", "kl", "bypass"))
    fine = kept(filters, n_layers, induce, kl, bypass)
    told = discarded(filters, n_layers, induce, kl, bypass, table.present)
    index, layer = map(int, choose(bypass, fine))
    chosen = None if index == NOTHING else (table.positions[index], layer)
    if not options.json:
        print_table(table, told, chosen)
    found: dict[str, Any] = dict(zip(("position", "layer"), chosen or (None, None), strict=True))
    print(json.dumps(found | {"kept": told.kept}))
    if chosen is None:
        guessed = (
            f" The depth, {n_layers}, is that of the table's last layer: give --n-layers if the "
            "model is deeper."
            if options.n_layers is None and told.layer
            else ""
        )
        say(
            f"no direction is chosen: {told.explain()}{guessed} Loosen a filter, or check on the "
            "prompts and refusal tokens of this table whether its model refuses at all."
        )
        return 1
    return compare(table, chosen, filters == SelectionFilters() and n_layers == table.n_layers)


def compare(table: Table, chosen: tuple[int, int], published: bool) -> int:
    """Hold the choice against the file's own; only the published filters must agree with it."""
    if table.selected is None or table.selected == chosen:
        return 0
    theirs, ours = (f"position {p}, layer {layer}" for p, layer in (table.selected, chosen))
    if not published:
        say(f"the file's own choice is {theirs}; these are not the published filters")
        return 0
    say(
        f"differs from the file's choice: the published filters give {ours} "
        f"({scores_at(table, chosen)}), the file says {theirs} "
        f"({scores_at(table, table.selected)})"
    )
    return 1


def scores_at(table: Table, cell: tuple[int, int]) -> str:
    """The scores of one candidate in words."""
    position, layer = cell
    if position not in table.positions or not 0 <= layer < table.n_layers:
        return "not among the candidates"
    at = table.positions.index(position), layer
    if not table.present[at]:
        return "not among the candidates"
    return ", ".join(f"{name} {float(table.scores[name][at]):.4f}" for name in SCORES)


def print_table(table: Table, told: Discarded, chosen: tuple[int, int] | None) -> None:
    """The choice and what was discarded, for people."""
    print(told.explain())
    print("\nfilter                    fails")
    cut = told.filters.layer_cut(told.n_layers)
    rules = (
        (f"layer ≥ {cut} of {told.n_layers}", told.layer),
        ("KL" + limit(">", told.filters.kl_threshold), told.kl),
        ("induce" + limit("<", told.filters.induce_threshold), told.induce),
        ("a score is NaN", told.nan),
    )
    for rule, count in rules:
        print(f"{rule:24} {count:6} of {told.candidates}")
    if chosen is not None:
        print(f"\nchosen: position {chosen[0]}, layer {chosen[1]} ({scores_at(table, chosen)})")


def limit(sign: str, value: float | None) -> str:
    """A filter's rule in words."""
    return " filter off" if value is None else f" {sign} {value:g}"


def main(arguments: list[str] | None = None) -> int:
    """Exit code; an error is one message."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
