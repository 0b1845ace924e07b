"""Does latent adversarial training concentrate refusal? The published Llama-2-7B activations.

    python experiments/reproduce/lat_concentration.py --activations DIR [--json]

DIR holds one `{arm}.safetensors` for each arm, with the keys `harmful.layer{l}` and
`harmless.layer{l}` of shape [prompt, d_model]; `experiments/README.md` says where they come from.
The published claim (arXiv:2504.18872: two components hold about 75 % of the differences after
LAT, by list order, uncentered) comes out, and beside it what it hides: massive channels,
the same share between harmless prompts, and the permuted-label null.

Files of the study are recognized by the hash of their tensors, and their numbers are then compared
with `PUBLISHED`; other files are only reported. Exit codes: 0 done, 1 a published number differs or
the computation failed, 2 bad input.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mechsafety.activations.arm_files import ArmFile, read_arm_files
from mechsafety.core.errors import (
    ActivationError,
    DegenerateDirectionError,
)
from mechsafety.core.progress import progress, say
from mechsafety.core.scripts import exit_code
from mechsafety.core.seeding import named_generator
from mechsafety.metrics.concentration import (
    Concentration,
    ConcentrationSettings,
    concentration,
    mechanism_line,
)
from mechsafety.metrics.massive_channels import (
    CONTROL_WORDS,
    CONTROLS,
    Control,
    MassiveChannels,
    controlled,
    find_massive_channels,
    kept_rows,
    ordinary_channels,
)
from mechsafety.metrics.nulls import PERMUTED_LABELS
from mechsafety.metrics.pairing import PAIRING_WORDS, Pairing, paired_counts
from mechsafety.metrics.spectral_intervals import Jackknifed

# Hash of the tensors of a published file (`ArmFile.content_hash`) → its arm.
HASHES: Final = {
    "c3e104c20730eab3cc4260b0ee96068657cb3ef9806ead478978e8beafa6392f": "baseline",
    "9bc81a5d7aa02189b575c3333b72990409fa5d5543a89cfe40932977be8eecca": "at",
    "263f103d61e5512f50cfccb47e522133229a3d2a45be3a92ab7b6425fd4dca27": "lat",
}


@dataclass(frozen=True)
class Expected:
    """One published number: of which cell, which column, and how near it must come."""

    arm: str
    layer: int
    column: str
    value: float
    tolerance: float
    control: Control = "all"
    centered: bool = False

    @property
    def name(self) -> str:
        centering = "centered" if self.centered else "uncentered"
        choices = f"{centering}, {CONTROL_WORDS[self.control]}"
        return f"{self.arm} layer {self.layer} {self.column} ({choices})"


def _published() -> list[Expected]:
    rows: list[Expected] = []
    exact, drawn = 1e-3, 0.02
    # Share of component 1 and of 1 and 2, every channel, uncentered.
    table = {
        4: ((0.2843, 0.469), (0.3966, 0.517), (0.9552, 0.978)),
        8: ((0.2510, 0.320), (0.2612, 0.330), (0.8943, 0.918)),
        12: ((0.3814, 0.436), (0.3734, 0.425), (0.6350, 0.746)),
        16: ((0.5510, 0.593), (0.5482, 0.591), (0.4300, 0.677)),
        20: ((0.4910, 0.535), (0.4920, 0.537), (0.3896, 0.608)),
    }
    for layer, by_arm in table.items():
        for arm, (first, both) in zip(("baseline", "at", "lat"), by_arm, strict=True):
            rows += [
                Expected(arm, layer, "c1", first, exact),
                Expected(arm, layer, "top2", both, exact),
            ]
    # Centered first share.
    for layer, by_arm in {12: (0.0877, 0.0814, 0.6997), 16: (0.0967, 0.0995, 0.5044)}.items():
        for arm, first in zip(("baseline", "at", "lat"), by_arm, strict=True):
            rows.append(Expected(arm, layer, "c1", first, exact, centered=True))
    # Without the two massive channels.
    rows.append(Expected("baseline", 12, "top2", 0.436, exact, "channels_out"))
    for layer, shares in {
        12: (0.308, 0.155, 0.053),
        16: (0.459, 0.108, 0.043),
        20: (0.412, 0.134, 0.038),
    }.items():
        for column, share in zip(("c1", "c2", "c3"), shares, strict=True):
            rows.append(Expected("lat", layer, column, share, exact, "channels_out"))
    rows.append(Expected("lat", 12, "top2", 0.462, exact, "channels_out"))
    # Harmless against other harmless prompts, mean of 30 random pairings: drawn, so looser.
    for layer, lat, baseline in (
        (8, 0.913, 0.222),
        (12, 0.725, 0.211),
        (16, 0.516, 0.229),
        (20, 0.396, 0.206),
    ):
        rows.append(Expected("lat", layer, "harmless_harmless", lat, drawn))
        rows.append(Expected("baseline", layer, "harmless_harmless", baseline, drawn))
    for arm, excess in (("baseline", 0.22), ("at", 0.23), ("lat", 0.02)):
        rows.append(Expected(arm, 12, "excess", excess, drawn))
    for arm, harmful in (("baseline", 0.28), ("at", 0.26), ("lat", 0.74)):
        rows.append(Expected(arm, 12, "harmful_harmful", harmful, drawn))
    # The mechanism: the energy of the mean, and the rows that carry the first component.
    rows.append(Expected("lat", 12, "mean_energy_share", 0.11, 0.005))
    rows.append(Expected("baseline", 12, "mean_energy_share", 0.37, 0.005))
    rows.append(Expected("baseline", 12, "row_participation", 90, 1))
    rows.append(Expected("lat", 16, "row_participation", 41, 1))
    return rows


PUBLISHED: Final = _published()
PUBLISHED_MASSIVE: Final = {"baseline": (), "at": (), "lat": (1415, 2533)}


@dataclass
class Report:
    """All that is printed, in the order in which it is found."""

    pairing: Pairing
    arms: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    removed: tuple[int, ...] = ()
    cells: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    differences: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    checks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def with_interval(name: str, estimate: Jackknifed | None) -> dict[str, float | None]:
    """A number and the two ends of its interval, as columns."""
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = estimate.interval()
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}


def columns(cell: Concentration) -> dict[str, Any]:
    """One cell as a flat row."""
    null_low, null_high = cell.null_range or (None, None)
    return {
        "n_harmful": cell.n_harmful,
        "n_harmless": cell.n_harmless,
        **{f"c{i + 1}": float(share) for i, share in enumerate(cell.shares)},
        **with_interval("top2", cell.top2),
        **with_interval("cross_fitted_top2", cell.cross_fitted_top2),
        **with_interval("harmless_harmless", cell.unrelated["harmless-harmless"]),
        **with_interval("harmful_harmful", cell.unrelated["harmful-harmful"]),
        **with_interval("excess", cell.excess),
        **with_interval("spatial_sign_top2", cell.spatial_sign_top2),
        "null_low": null_low,
        "null_high": null_high,
        "repaired_low": cell.repaired_low,
        "repaired_high": cell.repaired_high,
        "mean_energy_share": cell.mean_energy_share,
        "row_participation": cell.row_participation,
        "n_rows": cell.n_rows,
        "effective_rank": cell.effective_rank,
        "participation_ratio": cell.participation_ratio,
    }


def measure(arms: list[ArmFile], layers: list[int], pairing: Pairing, seed: int) -> Report:
    """Every arm, layer, centering and control."""
    report = Report(pairing)
    found = {
        arm.name: find_massive_channels({layer: arm.raw(layer) for layer in arm.layers})
        for arm in progress(arms, "massive channels", len(arms))
    }
    report.removed = tuple(sorted({c for each in found.values() for c in each.channels}))
    keep = {arm.name: rows_kept(arm, arms, found, pairing) for arm in arms}
    report.arms = [describe_arm(arm, found[arm.name], keep[arm.name], pairing) for arm in arms]
    for layer in progress(layers, "layers", len(layers)):
        placebo = ordinary_channels(
            [arm.raw(layer) for arm in arms], report.removed, len(report.removed)
        )
        for centered in (False, True):
            plain: dict[str, Concentration | str] = {}
            for control in CONTROLS:
                where = {"layer": layer, "centered": centered, "control": control}
                cells = plain
                # With no massive channel anywhere every control is the cell itself.
                if control == "all" or report.removed:
                    cells = {
                        arm.name: cell_of(
                            arm, where, pairing, report.removed, placebo, keep[arm.name], seed
                        )
                        for arm in arms
                    }
                plain = plain or cells
                add_cells(report, where, cells, found)
    return report


def rows_kept(
    arm: ArmFile, arms: list[ArmFile], found: Mapping[str, MassiveChannels], pairing: Pairing
) -> tuple[Tensor, Tensor]:
    """Rows affected in no arm. Only arms of equal counts can share their prompts."""
    alike = [found[other.name].affected() for other in arms if other.counts == arm.counts]
    return kept_rows(alike, arm.counts[0], paired=pairing != "all")


def cell_of(
    arm: ArmFile,
    where: Mapping[str, Any],
    pairing: Pairing,
    massive: Iterable[int],
    placebo: Iterable[int],
    keep: tuple[Tensor, Tensor],
    seed: int,
) -> Concentration | str:
    """One cell, or why it has no spectrum."""
    layer, control = where["layer"], where["control"]
    if control in ("pairs_out", "both_out") and min(int(each.sum()) for each in keep) < 4:
        return "fewer than 4 rows are unaffected by massive channels in every arm"
    harmful, harmless = (
        controlled(by_layer[layer][: len(rows)], control, massive, placebo, rows)
        for by_layer, rows in ((arm.harmful, keep[0]), (arm.harmless, keep[1]))
    )
    settings = ConcentrationSettings(
        pairing=pairing,
        centered=where["centered"],
        null_draws=40,
        repairings=20,
        unrelated_pairings=30,
        spatial_sign=True,
    )
    try:
        # Equal generators give every arm the same groups, so that arms can be subtracted.
        return concentration(harmful, harmless, settings, named_generator(seed, "cell"))
    except DegenerateDirectionError as error:
        return str(error)


def add_cells(
    report: Report,
    where: Mapping[str, Any],
    cells: Mapping[str, Concentration | str],
    found: Mapping[str, MassiveChannels],
) -> None:
    """Rows for each arm's cell, and for the paired differences from the first arm."""
    first_name, first = next(iter(cells.items()))
    for name, cell in cells.items():
        row = {"arm": name, **where}
        if isinstance(cell, str):
            report.cells.append({**row, "note": cell})
            continue
        row |= columns(cell)
        if where["control"] == "all" and not where["centered"]:
            row["mechanism"] = mechanism_line(cell, found[name].channels)
        report.cells.append(row)
        if name != first_name and isinstance(first, Concentration):
            if cell.groups.fingerprint != first.groups.fingerprint:
                continue
            gained = {"arm": name, "minus": first_name, **where}
            report.differences.append(
                gained | with_interval("top2", cell.top2 - first.top2) | more_excess(cell, first)
            )


def more_excess(cell: Concentration, first: Concentration) -> dict[str, float | None]:
    """How much more specific to harm one arm's concentration is than the first arm's."""
    if cell.excess is None or first.excess is None:
        return with_interval("excess", None)
    return with_interval("excess", cell.excess - first.excess)


def describe_arm(
    arm: ArmFile, found: MassiveChannels, keep: tuple[Tensor, Tensor], pairing: Pairing
) -> dict[str, Any]:
    """What an arm's file holds and what the massive-channel rule says of it."""
    n_harmful, n_harmless = arm.counts
    paired = pairing != "all"
    return {
        "arm": arm.name,
        "published_as": HASHES.get(arm.content_hash),
        "n_harmful": n_harmful,
        "n_harmless": n_harmless,
        "d_model": arm.width,
        "massive_channels": list(found.channels),
        "peaks": {str(c): found.peaks[c] for c in found.channels},
        "highest_elsewhere": found.highest_elsewhere,
        "highest_elsewhere_channel": found.highest_elsewhere_channel,
        "affected_rows": int(found.affected().sum()),
        "left_out": int((~keep[0]).sum()) + (0 if paired else int((~keep[1]).sum())),
        "left_out_unit": "pairs" if paired else "rows",
    }


def check(report: Report, arms: list[ArmFile], layers: list[int]) -> None:
    """Compare with the published numbers, as far as the files of the study are there."""
    names = {a["published_as"]: a["arm"] for a in report.arms if a["published_as"]}
    for arm in report.arms:
        if arm["published_as"]:
            expected = list(PUBLISHED_MASSIVE[arm["published_as"]])
            judge(report, f"{arm['arm']} massive channels", expected, arm["massive_channels"], None)
    if report.pairing == "all":
        return
    complete = set(names) == set(PUBLISHED_MASSIVE) and len(arms) == len(names)
    by_cell = {(c["arm"], c["layer"], c["control"], c["centered"]): c for c in report.cells}
    here = [each for each in PUBLISHED if each.arm in names and each.layer in layers]
    for each in here:
        # Which channels go out of an arm depends on the other arms.
        if each.control == "all" or complete:
            cell = by_cell[names[each.arm], each.layer, each.control, each.centered]
            judge(report, each.name, each.value, cell.get(each.column), each.tolerance)


def judge(report: Report, name: str, expected: Any, value: Any, tolerance: float | None) -> None:
    """Put one comparison into the report; `tolerance` None asks for equality."""
    agrees = value == expected
    if tolerance is not None:
        agrees = value is not None and abs(value - expected) <= tolerance
    report.checks.append(
        {"name": name, "expected": expected, "value": value, "tolerance": tolerance, "ok": agrees}
    )


def number(value: float | None, digits: int = 3) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def span(row: Mapping[str, Any], name: str) -> str:
    """A number with its interval."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{number(row.get(name))} [{number(low)}, {number(high)}]"


def print_report(report: Report, layers: list[int]) -> None:
    """Tables for people."""
    unrelated = "mean of 30 random pairings within the class"
    if report.pairing == "all":
        unrelated = "every pairing within the class"
    print(f"Pairing: {report.pairing} ({PAIRING_WORDS[report.pairing]}).")
    print(
        "Intervals: 95 %, delete-group jackknife, of the expected share at this n. "
        f"Null: {PERMUTED_LABELS}, 95 % range. Unrelated contrasts: {unrelated}."
    )
    for arm in report.arms:
        known = f", published as {arm['published_as']}" if arm["published_as"] else ""
        peaks = ", ".join(f"{c} ({p:.0f} × median)" for c, p in arm["peaks"].items()) or "none"
        print(
            f"{arm['arm']}{known}: {arm['n_harmful']} harmful, {arm['n_harmless']} harmless, "
            f"d_model {arm['d_model']}; massive channels {peaks}; elsewhere at most "
            f"{arm['highest_elsewhere']:.0f} × (channel {arm['highest_elsewhere_channel']}); "
            f"{arm['affected_rows']} affected rows, {arm['left_out']} {arm['left_out_unit']} left "
            "out of every arm by the pair controls"
        )
    for layer in layers:
        for centered in (False, True):
            print(f"\nLayer {layer}, {'centered' if centered else 'uncentered'}")
            rows = [c for c in report.cells if (c["layer"], c["centered"]) == (layer, centered)]
            for row in rows:
                print(f"  {row['arm']}, {CONTROL_WORDS[row['control']]}: " + line(row))
            print_differences(report, layer, centered)


def line(row: Mapping[str, Any]) -> str:
    """One cell in words and numbers."""
    if "note" in row:
        return f"no spectrum: {row['note']}"
    text = (
        f"c1 {number(row['c1'], 4)}, c1+c2 {span(row, 'top2')}, cross-fitted "
        f"{span(row, 'cross_fitted_top2')}, null {number(row['null_low'])}–"
        f"{number(row['null_high'])}, harmless−harmless {span(row, 'harmless_harmless')}, "
        f"harmful−harmful {span(row, 'harmful_harmful')}, "
        f"excess over harmless−harmless {span(row, 'excess')}, "
        f"unit rows {span(row, 'spatial_sign_top2')}, rows carrying c1 "
        f"{number(row['row_participation'], 0)} of {row['n_rows']}"
    )
    if row["repaired_low"] is not None:
        text += (
            f", re-paired at random {number(row['repaired_low'])}–{number(row['repaired_high'])}"
        )
    return text + (f"\n    mechanism: {row['mechanism']}" if "mechanism" in row else "")


def print_differences(report: Report, layer: int, centered: bool) -> None:
    """Paired differences between arms, where their rows are the same prompts."""
    for row in report.differences:
        if (row["layer"], row["centered"]) == (layer, centered):
            print(
                f"  {row['arm']} − {row['minus']}, {CONTROL_WORDS[row['control']]}: c1+c2 "
                f"{span(row, 'top2')}, excess {span(row, 'excess')}"
            )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--activations", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pairing", choices=tuple(PAIRING_WORDS), default="list")
    parser.add_argument("--layers", type=int, nargs="+", metavar="L", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Read, measure, compare, print."""
    begun = time.perf_counter()
    arms = read_arm_files(options.activations)
    for arm in arms:
        try:
            paired_counts(*arm.counts, options.pairing)
        except ActivationError as error:
            raise ActivationError(f"{arm.name}: {error}") from None
    layers = sorted(set(options.layers or arms[0].layers))
    if not set(layers) <= set(arms[0].layers):
        raise ActivationError(f"--layers {layers}: the files hold layers {arms[0].layers}.")
    say(f"{len(arms)} arms, {len(layers)} layers, {len(CONTROLS)} controls, centered and not")
    report = measure(arms, layers, options.pairing, options.seed)
    check(report, arms, layers)
    failed = [each for each in report.checks if not each["ok"]]
    if options.json:
        found = {"ok": not failed, "pairing": report.pairing, "seed": options.seed}
        found |= {"layers": layers, "arms": report.arms, "removed_channels": report.removed}
        found |= {"cells": report.cells, "differences": report.differences}
        found |= {"checks": report.checks, "seconds": round(time.perf_counter() - begun, 1)}
        print(json.dumps(found, allow_nan=False))
    else:
        print_report(report, layers)
        print(
            f"\n{len(report.checks) - len(failed)} of {len(report.checks)} published numbers agree"
        )
    for each in failed:
        say(
            f"differs from the published value: {each['name']} is {each['value']}, expected "
            f"{each['expected']} ± {each['tolerance'] or 0}"
        )
    if not report.checks:
        say("these files are not those of the study (or not all of them), so nothing was compared")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Exit code; an error is one message."""
    options = parse(arguments)
    torch.set_num_threads(1)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
