"""The refusal direction of arXiv:2406.11717: geometry of its published mean differences.

    python experiments/reproduce/refusal_direction.py --geometry FILE [--json]
        [--position P --layer L]

FILE is a safetensors file with `mean_diffs` [position, layer, d_model]: mean harmful minus mean
harmless block input at the last positions of the prompt (position −1 last). Printed are its size at
layer 0 (zero in models whose positions enter by rotation: there a template token's block input
depends on nothing else), the norms, the cosines of neighbors and with the chosen direction, and the
spectrum of the stack of layers at the chosen position.

The tensors of the published runs are recognized by their values, or claimed by the file's name, and
are compared with `PUBLISHED`; others are only reported. Exit codes: 0 done, 1 a published number
differs or the computation failed, 2 bad input.
"""

# safetensors ships load_file with a partly unknown type.
# pyright: reportUnknownVariableType=false

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mechsafety.core.errors import ActivationError, InputError, MechsafetyError, PositionError
from mechsafety.core.progress import say
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.spectrum import variance_shares

RELATIVE: Final = 1e-3
"""How near a number must come to the published one, beside the rounding of its last digit."""
ZERO: Final = 1e-6
"""Largest |mean difference| that passes for zero; layers above have some of 1e-2 and more."""
ROUNDING: Final = 1e-9
"""Share of the largest norm below which a vector is rounding and has no direction."""
N_COMPONENTS: Final = 5


@dataclass(frozen=True)
class PublishedRun:
    """What was recomputed from one file of the public repository, digits as published."""

    values_hash: str
    """SHA-256 of shape and float32 values of `mean_diffs`."""
    shape: tuple[int, int, int]
    """Positions, layers, d_model."""
    chosen: tuple[int, int]
    """The authors' (position, layer)."""
    norms: dict[int, str]
    """Layer → norm at the chosen position, activation units."""
    layers: dict[int, str]
    """Layer → cosine with the chosen direction, at its position."""
    positions: dict[int, str]
    """Position → cosine with the chosen direction, at its layer."""
    spectrum: tuple[str, ...]
    """Shares of squared singular values of the layers at the chosen position, uncentered."""


PUBLISHED: Final = {
    "qwen-1_8b-chat": PublishedRun(
        "a316931d8844b2f2f1126161b72cbdfd54e81e8b817420a5ef5f1c38a875b32b",
        (5, 24, 2048),
        (-2, 15),
        {0: "0", 1: ".160", 2: ".369", 14: "16.17", 15: "26.2873", 23: "90.93"},
        {14: ".753", 15: "1", 16: ".800", 23: ".414"},
        {-5: ".213", -4: ".837", -3: ".229", -2: "1", -1: ".991"},
        (".849", ".074", ".025", ".014", ".010"),
    ),
    "gemma-2b-it": PublishedRun(
        "8f7ab9e17b5736049a91ec3696631c0db965ab467e2a921ed32164bb78fe9501",
        (5, 18, 2048),
        (-2, 10),
        {0: "0", 1: "2.04", 2: "1.87", 10: "10.0644", 17: "36.72"},
        {9: ".687", 10: "1", 11: ".764", 17: ".334"},
        {-5: ".222", -4: ".729", -3: ".296", -2: "1", -1: ".936"},
        (".774", ".120", ".042", ".019", ".014"),
    ),
}


@dataclass(frozen=True)
class Check:
    """One number held against a published one."""

    name: str
    expected: float
    value: float | None
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether they agree."""
        return self.value is not None and abs(self.value - self.expected) <= self.tolerance

    @staticmethod
    def of(name: str, published: str, value: float | None) -> "Check":
        """Against digits as published: within `RELATIVE`, and half a unit of the last digit."""
        expected = float(published)
        half_a_unit = 0.5 * 10.0 ** -len(published.partition(".")[2]) if "." in published else ZERO
        return Check(name, expected, value, RELATIVE * abs(expected) + half_a_unit)

    def row(self) -> dict[str, Any]:
        """As printed in JSON."""
        return {**vars(self), "ok": self.ok}


@dataclass(frozen=True)
class Geometry:
    """What is measured on one tensor of mean differences."""

    layer_0: float
    """Largest |mean difference| at layer 0, over positions; activation units."""
    norms: Float[Tensor, "position layer"]
    """Activation units."""
    next_layer: Float[Tensor, "position n_steps"]
    """Cosine of the directions of layers l and l + 1."""
    next_position: Float[Tensor, "n_steps layer"]
    """Cosine of the directions of positions i and i + 1."""
    to_layers: Float[Tensor, " layer"] | None
    """Cosine of the chosen direction with those of its position; None: none was chosen."""
    to_positions: Float[Tensor, " position"] | None
    """As above, with those of its layer."""
    spectrum: Float[Tensor, " component"] | None
    """Shares of squared singular values of the layers at the chosen position, uncentered."""


def read_mean_diffs(path: Path) -> Float[Tensor, "position layer d_model"]:
    """The tensor `mean_diffs` of one file, in float64.

    Raises:
        ActivationError: Damaged, or without such a tensor.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ActivationError(
            f"reading {path}: it is no whole safetensors file ({error}). Expected the tensor "
            "'mean_diffs' [position, layer, d_model]."
        ) from None
    if "mean_diffs" not in tensors:
        raise ActivationError(
            f"reading {path}: it holds {', '.join(sorted(tensors)) or 'no tensors'}. Expected "
            "'mean_diffs' [position, layer, d_model]."
        )
    found = tensors["mean_diffs"]
    if found.ndim != 3 or not found.is_floating_point() or not found.numel():
        raise ActivationError(
            f"reading {path}: 'mean_diffs' is {found.dtype} of shape {list(found.shape)}. Expected "
            "floats [position, layer, d_model]."
        )
    if not bool(found.isfinite().all()):
        bad = (~found.isfinite()).any(dim=2).nonzero()
        raise ActivationError(
            f"reading {path}: 'mean_diffs' has NaN or infinity in {len(bad)} of "
            f"{found.shape[0] * found.shape[1]} directions, first at position "
            f"{int(bad[0, 0]) - len(found)}, layer {int(bad[0, 1])}. Compute it again."
        )
    return found.double()


def published_name(path: Path, mean_diffs: Tensor) -> tuple[str | None, bool]:
    """The published run that a file is (True) or says by its name and shape to be (False)."""
    digest = hashlib.sha256(f"{tuple(mean_diffs.shape)}\n".encode())
    digest.update(mean_diffs.float().contiguous().numpy().tobytes())
    for name, run in PUBLISHED.items():
        if run.values_hash == digest.hexdigest():
            return name, True
    named = PUBLISHED.get(path.stem)
    claims = named is not None and named.shape == tuple(mean_diffs.shape)
    return (path.stem if claims else None), False


def measure(
    mean_diffs: Float[Tensor, "position layer d_model"], chosen: tuple[int, int] | None
) -> Geometry:
    """Norms, cosines and spectrum, in float64; a zero vector has no cosine (NaN)."""
    layer_0 = float(mean_diffs[:, 0].abs().max())
    norms = linalg.vector_norm(mean_diffs, dim=-1)
    # What rounding leaves at layer 0 has a direction of its own, which means nothing.
    mean_diffs = mean_diffs.masked_fill((norms <= ROUNDING * norms.max())[..., None], 0.0)
    to_layers = to_positions = spectrum = None
    if chosen is not None:
        position, layer = chosen
        direction = mean_diffs[position, layer]
        to_layers = cosines(mean_diffs[position], direction)
        to_positions = cosines(mean_diffs[:, layer], direction)
        spectrum = variance_shares(mean_diffs[position], centered=False, k=N_COMPONENTS)
    return Geometry(
        layer_0=layer_0,
        norms=norms,
        next_layer=cosines(mean_diffs[:, 1:], mean_diffs[:, :-1]),
        next_position=cosines(mean_diffs[1:], mean_diffs[:-1]),
        to_layers=to_layers,
        to_positions=to_positions,
        spectrum=spectrum,
    )


def cosines(
    a: Float[Tensor, "*batch d_model"], b: Float[Tensor, "*#batch d_model"]
) -> Float[Tensor, "*batch"]:
    """Cosine of each vector of `a` with that of `b`; NaN where one is zero."""
    product = (a * b).sum(-1)
    return product / (linalg.vector_norm(a, dim=-1) * linalg.vector_norm(b, dim=-1))


def check(found: Geometry, run: PublishedRun) -> list[Check]:
    """Every published number of one run."""
    assert found.to_layers is not None
    assert found.to_positions is not None
    assert found.spectrum is not None
    position, layer = run.chosen
    checks = [Check("largest |mean difference| at layer 0", 0.0, found.layer_0, ZERO)]
    checks += [
        Check.of(f"norm at position {position}, layer {at}", text, cell(found.norms[position], at))
        for at, text in run.norms.items()
    ]
    here = f"position {position}, layer {layer}"
    checks += [
        Check.of(f"cosine of {here} with layer {at}", text, cell(found.to_layers, at))
        for at, text in run.layers.items()
    ]
    checks += [
        Check.of(f"cosine of {here} with position {at}", text, cell(found.to_positions, at))
        for at, text in run.positions.items()
    ]
    checks += [
        Check.of(
            f"share of component {i + 1} at position {position}", text, cell(found.spectrum, i)
        )
        for i, text in enumerate(run.spectrum)
    ]
    return checks


def cell(values: Tensor, index: int) -> float | None:
    """One number; NaN is None, as JSON has it."""
    value = float(values[index])
    return None if value != value else value


def listed(values: Tensor | None) -> Any:
    """Nested lists for JSON, NaN as null."""
    if values is None:
        return None
    if values.ndim > 1:
        return [listed(row) for row in values]
    return [cell(values, i) for i in range(len(values))]


def geometry(options: argparse.Namespace) -> int:
    """Read, measure, compare, print."""
    path: Path = options.geometry
    mean_diffs = read_mean_diffs(path)
    name, exact = published_name(path, mean_diffs)
    run = PUBLISHED[name] if name else None
    chosen = chosen_cell(options, mean_diffs, run)
    found = measure(mean_diffs, chosen)
    checks = check(measure(mean_diffs, run.chosen), run) if run else []
    failed = [each for each in checks if not each.ok]
    if options.json:
        told: dict[str, Any] = {"ok": not failed, "published_as": name, "exact": exact}
        told |= {"shape": list(mean_diffs.shape), "chosen": chosen}
        told |= {key: listed(v) if key != "layer_0" else v for key, v in vars(found).items()}
        print(json.dumps(told | {"checks": [each.row() for each in checks]}, allow_nan=False))
    else:
        print_geometry(found, chosen, name, exact)
        if checks:
            print(f"\n{len(checks) - len(failed)} of {len(checks)} published numbers agree")
    for each in failed:
        say(
            f"differs from the published value: {each.name} is {each.value}, expected "
            f"{each.expected} ± {each.tolerance:.2g}"
        )
    if run is None:
        say("this is none of the published tensors, so nothing was compared")
        if found.layer_0 > ZERO:
            say(
                f"the mean differences at layer 0 reach {found.layer_0:.3g}. With rotary positions "
                "they are zero at template tokens; another value means wrong positions, a wrong "
                "hook, right padding, or a token that depends on the text before it"
            )
    return 1 if failed else 0


def chosen_cell(
    options: argparse.Namespace, mean_diffs: Tensor, run: PublishedRun | None
) -> tuple[int, int] | None:
    """(position, layer) from the command line, else the authors'."""
    if (options.position is None) != (options.layer is None):
        raise PositionError("--position and --layer: one is given alone; give both or neither.")
    if options.position is None:
        return run.chosen if run else None
    n_positions, n_layers, _ = mean_diffs.shape
    if not (-n_positions <= options.position < 0 and 0 <= options.layer < n_layers):
        raise PositionError(
            f"--position {options.position} --layer {options.layer}: the file has positions "
            f"{-n_positions} to -1 and layers 0 to {n_layers - 1}."
        )
    return options.position, options.layer


def print_geometry(
    found: Geometry, chosen: tuple[int, int] | None, name: str | None, exact: bool
) -> None:
    """Tables for people."""
    n_positions, n_layers = found.norms.shape
    if name:
        print(f"{name}, " + ("the published tensor" if exact else "by its name and shape"))
    print(f"{n_positions} positions, {n_layers} layers")
    print(f"largest |mean difference| at layer 0: {found.layer_0:.3g}")
    for i in range(n_positions):
        print(f"\nposition {i - n_positions}")
        print(f"  norm by layer            {numbers(found.norms[i])}")
        print(f"  cosine with next layer   {numbers(found.next_layer[i])}")
        if i + 1 < n_positions:
            print(
                f"  cosine with position {i + 1 - n_positions:2}  {numbers(found.next_position[i])}"
            )
    if chosen is None:
        return
    assert found.to_layers is not None
    assert found.to_positions is not None
    assert found.spectrum is not None
    print(f"\nposition {chosen[0]}, layer {chosen[1]}")
    print(f"  cosine by layer          {numbers(found.to_layers)}")
    print(f"  cosine by position       {numbers(found.to_positions)}")
    print(f"  spectrum of the layers   {numbers(found.spectrum)}")


def numbers(values: Tensor) -> str:
    """A row of numbers, a dash where there is none."""
    return " ".join("     –" if v is None else f"{v:6.3f}" for v in listed(values))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--geometry", type=Path, required=True, metavar="FILE")
    parser.add_argument("--position", type=int, help="chosen position, −1 last")
    parser.add_argument("--layer", type=int, help="chosen layer, from 0")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit code; an error is one message."""
    options = parse(arguments)
    torch.set_num_threads(1)
    try:
        return geometry(options)
    except InputError as error:
        say(f"error: {error}")
        return 2
    except MechsafetyError as error:
        say(f"failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
