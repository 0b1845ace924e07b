"""How alike are published refusal directions, of unrelated models and of arms of one model?

    python experiments/reproduce/published_directions.py [--directions DIR] [--arms DIR]
        [--layers 12 16] [--seed 0] [--json]

`--directions` takes a folder of safetensors files with `mean_diffs` [position, layer, d_model], as
`refusal_direction.py --geometry` reads them. Within each model: cosines of every layer with every
layer and of every position with every position, and the published geometry. Between models of one
width: cosines at the chosen cells, at layers of equal fraction of depth, and the best match over
all layers. These files hold mean differences only, so labels cannot be permuted: the null is the
second model's directions turned by random rotations, a reference line that any two models of one
base or one set of prompts would pass. Unrelated bases must stay inside it.

`--arms` takes a folder of activations, as `lat_concentration.py` does, of models that share base
and prompts. There the null is that of evidence: the same permuted labels in both models.

Exit codes: 0 done, 1 a published number differs or the computation failed, 2 bad input.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from lat_concentration import HASHES, number, span, with_interval
from refusal_direction import (
    PUBLISHED,
    ROUNDING,
    Check,
    cosines,
    listed,
    measure,
    published_name,
    read_mean_diffs,
    say_differences,
)
from refusal_direction import check as published_geometry
from torch import Tensor

from mechsafety.activations.arm_files import ArmFile, read_arm_files
from mechsafety.core.errors import ActivationError
from mechsafety.core.progress import progress, say
from mechsafety.core.scripts import exit_code
from mechsafety.core.seeding import named_generator
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.cka import cka, jackknifed_cka
from mechsafety.metrics.deals import mean_differences, plan
from mechsafety.metrics.direction_stacks import refitted
from mechsafety.metrics.massive_channels import (
    CONTROL_WORDS,
    Control,
    find_massive_channels,
    without_channels,
)
from mechsafety.metrics.matched_controls import control_test
from mechsafety.metrics.shared_null import layer_cosines
from mechsafety.metrics.spectral_intervals import LeaveOut, jackknife_groups

N_DRAWS: Final = 400
N_SPLITS: Final = 100
N_FEW_SPLITS: Final = 8
N_GROUPS: Final = 20
N_ROTATIONS: Final = 200

SHARED: Final = {"cosine": (0.961, 2e-3), "null_low": (0.86, 0.02), "null_high": (0.94, 0.01)}
"""Baseline with AT at layer 12, massive channels out. The ends of the null are quantiles of draws,
and published to two digits."""


@dataclass(frozen=True)
class Directions:
    """The mean differences of one file, rounding at layer 0 set to zero."""

    name: str
    """The file's stem."""
    values: Float[Tensor, "position layer d_model"]
    chosen: tuple[int, int] | None
    """The authors' (position, layer), if the file is a published one."""


def read_directions(folder: Path) -> tuple[list[Directions], list[Check]]:
    """Every file of a folder, and the published ones held against their geometry.

    Raises:
        ActivationError: No folder or no files, or a damaged one.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ActivationError(
            f"directions in {folder}: no .safetensors files there. Expected one for each model, "
            "with 'mean_diffs' [position, layer, d_model]; experiments/README.md says from where."
        )
    models: list[Directions] = []
    checks: list[Check] = []
    for path in paths:
        values = read_mean_diffs(path)
        name, _ = published_name(path, values)
        run = PUBLISHED[name] if name else None
        if run:
            found = published_geometry(measure(values, run.chosen), run)
            checks += [
                Check(f"{path.stem}: {e.name}", e.expected, e.value, e.tolerance) for e in found
            ]
        norms = linalg.vector_norm(values, dim=-1)
        values = values.masked_fill((norms <= ROUNDING * norms.max())[..., None], 0.0)
        models.append(Directions(path.stem, values, run.chosen if run else None))
    return models, checks


def every_with_every(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row row"]:
    """Cosine of each row with each; NaN where one is zero."""
    return cosines(rows[:, None], rows[None, :])


def within(model: Directions) -> dict[str, Any]:
    """Layer by layer at the chosen position, position by position at the chosen layer."""
    n_positions, n_layers, width = model.values.shape
    told: dict[str, Any] = {"model": model.name, "chosen": model.chosen}
    told |= {"n_positions": n_positions, "n_layers": n_layers, "d_model": width}
    geometry = measure(model.values, model.chosen)
    told |= {"spectrum": listed(geometry.spectrum)}
    told["layer_by_layer"] = [listed(every_with_every(rows)) for rows in model.values]
    told["position_by_position"] = [
        listed(every_with_every(model.values[:, layer])) for layer in range(n_layers)
    ]
    return told


def fraction_partner(layer: int, n_layers: int, n_other: int) -> int:
    """The layer of another model at the same fraction of depth."""
    return min(n_other - 1, round(layer * n_other / n_layers))


def statistics(
    first: Float[Tensor, "n_shared n_first d"],
    second: Float[Tensor, "n_shared n_second d"],
    chosen: tuple[Tensor, Tensor] | None,
) -> dict[str, float]:
    """What is compared with its null: unit directions of the positions that both have."""
    every = torch.einsum("pld,pmd->plm", first, second)
    partner = [fraction_partner(i, first.shape[1], second.shape[1]) for i in range(first.shape[1])]
    matched = every[:, torch.arange(first.shape[1]), torch.tensor(partner)]
    found = {
        "largest |cosine| at equal fractions of depth": float(matched.abs().max()),
        "largest |cosine| of any two layers": float(every.abs().max()),
        "root mean square cosine of any two layers": float(every.square().mean().sqrt()),
    }
    if chosen is not None:
        found["cosine of the chosen directions"] = float((chosen[0] * chosen[1]).sum())
    return found


def between(first: Directions, second: Directions, seed: int) -> dict[str, Any]:
    """Two models of one width against random rotations of the second."""
    shared = min(len(first.values), len(second.values))
    x, y = unit(first.values), unit(second.values)
    observed = statistics(x[-shared:], y[-shared:], chosen_pair(first, second, x, y))
    generator = named_generator(seed, f"rotations of {second.name} against {first.name}")
    flat = y.reshape(-1, y.shape[2])
    U, S, _ = linalg.svd(flat, full_matrices=False)
    rank = int((S / S[0] > ROUNDING).sum())
    drawn: list[dict[str, float]] = []
    for _ in progress(range(N_ROTATIONS), "random rotations", N_ROTATIONS):
        # The directions span few dimensions; a random frame for these is a random rotation.
        random = torch.randn(y.shape[2], rank, generator=generator, dtype=torch.float64)
        frame, _ = linalg.qr(random)
        turned = ((U[:, :rank] * S[:rank]) @ frame.T).reshape(y.shape)
        chosen = chosen_pair(first, second, x, turned)
        drawn.append(statistics(x[-shared:], turned[-shared:], chosen))
    rows: list[dict[str, Any]] = []
    for name, value in observed.items():
        null = torch.tensor([draw[name] for draw in drawn], dtype=torch.float64)
        signed = name == "cosine of the chosen directions"
        test = control_test(value, null, "two-sided" if signed else "greater")
        rows.append({"statistic": name, "value": value, **vars_of(test)})
    best = torch.einsum("pld,pmd->plm", x[-shared:], y[-shared:])
    where = divmod(int(best.abs().argmax()), best.shape[1] * best.shape[2])
    layers = divmod(where[1], best.shape[2])
    return {
        "first": first.name,
        "second": second.name,
        "null": "random rotations of the second model's directions (reference line)",
        "n_draws": N_ROTATIONS,
        "statistics": rows,
        "best_match": {"position": where[0] - shared, "layers": list(layers)},
    }


def vars_of(test: Any) -> dict[str, float]:
    """The fields of a test that are printed."""
    names = ("p_value", "resolution", "null_low", "null_high")
    return {name: getattr(test, name) for name in names}


def unit(values: Tensor) -> Tensor:
    """Unit directions; those without a direction stay zero."""
    return values / linalg.vector_norm(values, dim=-1).clamp(min=1e-300)[..., None]


def chosen_pair(
    first: Directions, second: Directions, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The authors' directions of both models, where both are published."""
    if first.chosen is None or second.chosen is None:
        return None
    return x[first.chosen], y[second.chosen]


def inside(pair: Mapping[str, Any]) -> list[Check]:
    """Published models of unrelated bases must look like random rotations of each other."""
    return [
        Check(
            f"{pair['first']} with {pair['second']}: p of the {row['statistic']} at least 0.01",
            1.0,
            row["p_value"],
            0.99,
        )
        for row in pair["statistics"]
    ]


def compare_arms(
    arms: Sequence[ArmFile], layers: Sequence[int], seed: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """Every two arms at each layer, with and without massive channels; and these channels.

    Raises:
        ActivationError: Arms of other prompts, or a single one.
    """
    counts = {arm.name: arm.counts for arm in arms}
    if len(arms) < 2 or len(set(counts.values())) > 1:
        raise ActivationError(
            f"--arms: harmful and harmless rows by arm {counts}. Expected two or more arms on the "
            "same prompts, row i of each from the same one."
        )
    n_harmful, n_harmless = arms[0].counts
    paired = n_harmful == n_harmless
    massive = sorted(
        {
            channel
            for arm in progress(arms, "massive channels", len(arms))
            for channel in find_massive_channels({i: arm.raw(i) for i in arm.layers}).channels
        }
    )
    groups = jackknife_groups(n_harmful, n_harmless, N_GROUPS, named_generator(seed, "groups"))
    group_of_row = torch.cat([groups.harmful, groups.harmless])
    leave_out = LeaveOut.of(groups, group_of_row, torch.zeros(1, dtype=torch.float64))
    controls: tuple[Control, ...] = ("all", "channels_out") if massive else ("all",)
    # The same deals and splits in every cell, so that cells can be compared.
    generator = named_generator(seed, "deals and splits")
    deals = plan(n_harmful, n_harmless, paired, groups, N_DRAWS, N_SPLITS, N_FEW_SPLITS, generator)
    cells: list[dict[str, Any]] = []
    for layer in progress(layers, "layers", len(layers)):
        for control in controls:
            out = massive if control == "channels_out" else []
            rows = {arm.name: both_classes(arm, layer, out) for arm in arms}
            stacks = {
                name: refitted(mean_differences, both[:, None], deals)
                for name, both in rows.items()
            }
            for one, other in itertools.combinations(rows, 2):
                found = layer_cosines(stacks[one], stacks[other], deals)
                first, second = rows[one], rows[other]
                raw, null = float(found.raw), found.null_with_shift[:, 0, 0]
                ends = torch.tensor([0.025, 0.975], dtype=null.dtype)
                low, high = (float(end) for end in null.quantile(ends))
                residual_low, residual_high = (float(end) for end in found.null_range())
                cells.append(
                    {
                        "first": one,
                        "second": other,
                        "layer": layer,
                        "control": control,
                        **with_interval("cosine", found.jackknifed("raw", 0, 0)),
                        "disjoint": float(found.disjoint),
                        "disattenuated": finite(found.disattenuated),
                        "reliability_first": float(found.reliability_first),
                        "reliability_second": float(found.reliability_second),
                        "null_mean": float(null.mean()),
                        "null_low": low,
                        "null_high": high,
                        **vars_p(raw, null),
                        "residual_null_mean": float(found.null.mean()),
                        "residual_null_low": residual_low,
                        "residual_null_high": residual_high,
                        "excess": float(found.excess),
                        **with_interval(
                            "cka", jackknifed_cka(first, second, "unbiased", leave_out)
                        ),
                        "cka_biased": cka(first, second, "biased"),
                    }
                )
    return cells, massive


def both_classes(arm: ArmFile, layer: int, out: Sequence[int]) -> Float[Tensor, "row d"]:
    """Harmful rows, then harmless ones, without the channels in `out`."""
    both = torch.cat([arm.harmful[layer], arm.harmless[layer]])
    return without_channels(both.double(), out)


def finite(value: Tensor) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if bool(value.isnan()) else float(value)


def vars_p(value: float, null: Tensor) -> dict[str, float]:
    """Rank of the cosine among the shared null's."""
    test = control_test(value, null, "greater")
    return {"p_value": test.p_value, "resolution": test.resolution}


def check_arms(cells: Sequence[Mapping[str, Any]], arms: Sequence[ArmFile]) -> list[Check]:
    """The known cell, where these are the published arms."""
    names = {HASHES.get(arm.content_hash): arm.name for arm in arms}
    # Which channels are massive depends on all three.
    if not {"baseline", "at", "lat"} <= names.keys():
        return []
    where = {names["baseline"], names["at"]}
    return [
        Check(f"baseline with at, layer 12, massive channels out: {column}", value, row[column], by)
        for row in cells
        if ({row["first"], row["second"]}, row["layer"], row["control"])
        == (where, 12, "channels_out")
        for column, (value, by) in SHARED.items()
    ]


def print_models(told: Mapping[str, Any]) -> None:
    """Directions, for people."""
    for model in told["models"]:
        at = model["chosen"]
        chosen = f", chosen position {at[0]}, layer {at[1]}" if at else ""
        print(
            f"{model['model']}: {model['n_positions']} positions, {model['n_layers']} layers, "
            f"d_model {model['d_model']}{chosen}"
        )
        if at:
            layers = model["layer_by_layer"][at[0]][at[1]]
            print("  cosine by layer     " + " ".join(number(c) for c in layers))
            positions = model["position_by_position"][at[1]][at[0]]
            print("  cosine by position  " + " ".join(number(c) for c in positions))
            print("  spectrum            " + " ".join(number(c) for c in model["spectrum"]))
    for pair in told["pairs"]:
        print(f"\n{pair['first']} with {pair['second']}; null: {pair['null']}, {N_ROTATIONS} draws")
        for row in pair["statistics"]:
            print(
                f"  {row['statistic']}: {number(row['value'])}, null {number(row['null_low'])} to "
                f"{number(row['null_high'])}, p {number(row['p_value'])} (resolution "
                f"{number(row['resolution'])})"
            )
        best = pair["best_match"]
        print(f"  best match: position {best['position']}, layers {best['layers']}")
    print(
        "These files hold mean differences only: the null that matters, the same permuted labels "
        "in both models, needs activations (--arms)."
    )


def print_arms(told: Mapping[str, Any]) -> None:
    """Arms, for people."""
    print(
        f"Massive channels: {', '.join(map(str, told['massive_channels'])) or 'none'}. Intervals: "
        f"95 %, delete-group jackknife. Null: the same permuted labels in both arms, {N_DRAWS} "
        "draws, 95 % range; of residuals: each class about its own mean, without the shift that "
        "would hide in its own null; the excess is over their mean. CKA: unbiased, both classes."
    )
    for row in told["arms"]:
        print(
            f"layer {row['layer']}, {row['first']} with {row['second']}, "
            f"{CONTROL_WORDS[row['control']]}: cosine {span(row, 'cosine')}, null "
            f"{number(row['null_low'])} to {number(row['null_high'])} (p {number(row['p_value'])}, "
            f"resolution {number(row['resolution'])}), of residuals "
            f"{number(row['residual_null_low'])} to {number(row['residual_null_high'])}, excess "
            f"{number(row['excess'])}; disjoint prompts {number(row['disjoint'])}, halves of "
            f"one arm {number(row['reliability_first'])} and {number(row['reliability_second'])}, "
            f"disattenuated {number(row['disattenuated'])}; CKA {span(row, 'cka')} (biased "
            f"{number(row['cka_biased'])})"
        )


def run(options: argparse.Namespace) -> int:
    """Read, measure, compare, print."""
    told: dict[str, Any] = {"seed": options.seed}
    checks: list[Check] = []
    if options.directions is not None:
        models, checks = read_directions(options.directions)
        told["models"] = [within(model) for model in models]
        told["pairs"] = [
            between(one, other, options.seed)
            for one, other in itertools.combinations(models, 2)
            if one.values.shape[2] == other.values.shape[2]
        ]
        published = {model.name for model in models if model.chosen}
        for pair in told["pairs"]:
            if {pair["first"], pair["second"]} <= published:
                checks += inside(pair)
    if options.arms is not None:
        arms = read_arm_files(options.arms)
        layers = sorted(set(options.layers or arms[0].layers))
        if not set(layers) <= set(arms[0].layers):
            raise ActivationError(f"--layers {layers}: the files hold layers {arms[0].layers}.")
        told["arms"], told["massive_channels"] = compare_arms(arms, layers, options.seed)
        checks += check_arms(told["arms"], arms)
    failed = [each for each in checks if not each.ok]
    if options.json:
        rows = [each.row() for each in checks]
        print(json.dumps({"ok": not failed} | told | {"checks": rows}, allow_nan=False))
    else:
        if "models" in told:
            print_models(told)
        if "arms" in told:
            print_arms(told)
        print(f"\n{len(checks) - len(failed)} of {len(checks)} published numbers agree")
    say_differences(failed)
    if not checks:
        say("none of these files is a published one, so nothing was compared")
    return 1 if failed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directions", type=Path, metavar="DIR", help="mean differences")
    parser.add_argument("--arms", type=Path, metavar="DIR", help="activations on shared prompts")
    parser.add_argument("--layers", type=int, nargs="+", metavar="L", help="of --arms; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    options = parser.parse_args(arguments)
    if options.directions is None and options.arms is None:
        parser.error("give --directions DIR, --arms DIR, or both")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Exit code; an error is one message."""
    options = parse(arguments)
    torch.set_num_threads(1)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
