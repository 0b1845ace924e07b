"""The reproduce script of the refusal direction: the geometry of planted and published tensors."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "reproduce" / "refusal_direction.py"
N_POSITIONS, N_LAYERS, D_MODEL = 3, 5, 7
RUNS = ("gemma-2b-it", "qwen-1_8b-chat")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refusal_direction", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["refusal_direction"] = module
    spec.loader.exec_module(module)
    return module


def planted() -> torch.Tensor:
    """Position i turns by 30° per layer from layer 1 on, at norm 2^layer; positions by 60°."""
    mean_diffs = torch.zeros(N_POSITIONS, N_LAYERS, D_MODEL, dtype=torch.float64)
    for i in range(N_POSITIONS):
        for layer in range(1, N_LAYERS):
            turn = math.radians(30 * layer + 60 * i)
            mean_diffs[i, layer, 2] = 2**layer * math.cos(turn)
            mean_diffs[i, layer, 5] = 2**layer * math.sin(turn)
    # What float64 sums of equal embeddings leave.
    mean_diffs[:, 0, 1] = 1e-15
    return mean_diffs


def write(path: Path, mean_diffs: torch.Tensor) -> Path:
    save_file({"mean_diffs": mean_diffs.contiguous()}, path)
    return path


def run_json(
    script: ModuleType, capsys: pytest.CaptureFixture[str], path: Path, *arguments: str
) -> tuple[int, dict[str, Any], str]:
    code = script.main(["--geometry", str(path), "--json", *arguments])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    return code, json.loads(printed.out), printed.err


def test_norms_and_cosines_are_those_of_the_planted_angles(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "own.safetensors", planted())
    code, found, told = run_json(script, capsys, path, "--position", "-2", "--layer", "3")
    assert code == 0
    assert "nothing was compared" in told
    assert found["layer_0"] == pytest.approx(1e-15)
    for i in range(N_POSITIONS):
        assert found["norms"][i] == pytest.approx([1e-15, 2, 4, 8, 16])
        # Rounding at layer 0 has no direction.
        assert found["next_layer"][i][0] is None
        assert found["next_layer"][i][1:] == pytest.approx([math.cos(math.radians(30))] * 3)
    assert [row[1:] for row in found["next_position"]] == [pytest.approx([0.5] * 4)] * 2
    cosines = [math.cos(math.radians(angle)) for angle in (60, 30, 0, 30)]
    assert found["to_layers"][0] is None
    assert found["to_layers"][1:] == pytest.approx(cosines)
    assert found["to_positions"] == pytest.approx([0.5, 1, 0.5])
    # Two dimensions hold everything.
    assert found["spectrum"][0] > 0.8
    assert sum(found["spectrum"][:2]) == pytest.approx(1)
    assert found["checks"] == []


def test_without_a_chosen_cell_neighbors_are_reported(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "own.safetensors", planted().half())
    code, found, _ = run_json(script, capsys, path)
    assert (code, found["chosen"], found["to_layers"]) == (0, None, None)
    assert script.main(["--geometry", str(path)]) == 0
    assert "cosine with next layer        –  0.866" in capsys.readouterr().out


def test_layer_0_that_is_not_zero_is_told(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = planted()
    assert "wrong hook" not in run_json(script, capsys, write(tmp_path / "a", shifted))[2]
    shifted[1, 0, 4] = 0.25
    assert "layer 0 reach 0.25" in run_json(script, capsys, write(tmp_path / "b", shifted))[2]


@pytest.fixture
def as_published(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted tensor as a run that was published."""
    run = script.PublishedRun(
        values_hash="unknown",
        shape=(N_POSITIONS, N_LAYERS, D_MODEL),
        chosen=(-2, 3),
        norms={0: "0", 3: "8.0000", 4: "16.0"},
        layers={2: ".866", 3: "1"},
        positions={-3: ".500", -2: "1"},
        spectrum=(),
    )
    monkeypatch.setattr(script, "PUBLISHED", {"planted": run})


@pytest.mark.usefixtures("as_published")
@pytest.mark.parametrize(
    ("cell", "factor", "named"),
    [
        ((1, 3), 1.0, []),
        ((1, 3), 1.0005, []),
        ((1, 3), 1.002, ["norm at position -2, layer 3"]),
        ((1, 4), 1.01, ["norm at position -2, layer 4"]),
        ((1, 0), 1e12, ["layer 0 is", "norm at position -2, layer 0"]),
    ],
)
def test_a_published_number_that_differs_is_named_and_the_exit_code_is_1(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cell: tuple[int, int],
    factor: float,
    named: list[str],
) -> None:
    changed = planted()
    changed[cell] *= factor
    code, found, told = run_json(script, capsys, write(tmp_path / "planted.safetensors", changed))
    assert code == bool(named)
    assert (found["ok"], found["published_as"], found["exact"]) == (not named, "planted", False)
    assert told.count("differs from the published value") == len(named)
    assert all(name in told for name in named)


@pytest.mark.usefixtures("as_published")
def test_a_turned_direction_is_noticed_by_its_cosines(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = planted()
    turned[0] = -turned[0]
    turned[1, 2] = turned[1, 2].roll(1)
    told = run_json(script, capsys, write(tmp_path / "planted.safetensors", turned))[2]
    assert "cosine of position -2, layer 3 with position -3 is -0.4999" in told
    assert "cosine of position -2, layer 3 with layer 2" in told
    assert told.count("differs") == 2


def damage(folder: Path, kind: str) -> Path:
    path = folder / "own.safetensors"
    tensors = {"mean_diffs": planted()}
    if kind == "missing":
        return path
    if kind == "truncated":
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:-9])
        return path
    if kind == "nan":
        tensors["mean_diffs"][1, 3, 2] = float("nan")
    if kind == "key":
        tensors = {"directions": tensors["mean_diffs"]}
    if kind == "shape":
        tensors["mean_diffs"] = tensors["mean_diffs"][0].clone()
    if kind == "integers":
        tensors["mean_diffs"] = tensors["mean_diffs"].int()
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no whole safetensors file"),
        ("truncated", "no whole safetensors file"),
        ("nan", "in 1 of 15 directions, first at position -2, layer 3"),
        ("key", "it holds directions"),
        ("shape", "shape [5, 7]"),
        ("integers", "torch.int32"),
    ],
)
def test_a_bad_file_is_one_message_and_exit_code_2(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: str
) -> None:
    assert script.main(["--geometry", str(damage(tmp_path, kind)), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--position", "-4", "--layer", "0"], "positions -3 to -1 and layers 0 to 4"),
        (["--position", "1", "--layer", "0"], "positions -3 to -1"),
        (["--position", "-1", "--layer", "5"], "layers 0 to 4"),
        (["--layer", "2"], "give both or neither"),
    ],
)
def test_a_cell_that_is_not_there_is_refused(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    path = write(tmp_path / "own.safetensors", planted())
    assert script.main(["--geometry", str(path), *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
@pytest.mark.parametrize("run", RUNS)
def test_the_published_tensors_agree_in_every_number_under_any_name(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str
) -> None:
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "refusal_direction_runs"
    mean_diffs = load_file(folder / f"{run}.safetensors")["mean_diffs"]
    # The authors saved float64.
    renamed = write(tmp_path / "renamed.safetensors", mean_diffs.double())
    for path in (folder / f"{run}.safetensors", renamed):
        code, found, told = run_json(script, capsys, path)
        assert (code, found["published_as"], found["exact"], told) == (0, run, True, "")
        assert len(found["checks"]) >= 20
        assert found["layer_0"] < 1e-14
    # One step of the layer axis is noticed.
    moved = write(tmp_path / f"{run}.safetensors", mean_diffs.roll(1, dims=1))
    code, found, told = run_json(script, capsys, moved)
    assert (code, found["exact"]) == (1, False)
    assert "largest |mean difference| at layer 0" in told


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
def test_as_a_command_it_prints_tables_and_the_number_of_agreements() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "refusal_direction_runs"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--geometry", str(folder / "gemma-2b-it.safetensors")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "20 of 20 published numbers agree" in done.stdout


def test_tolerance_is_a_thousandth_and_half_a_unit_of_the_last_digit(script: ModuleType) -> None:
    check = script.Check.of("norm", ".160", 0.1597)
    assert check.ok
    assert check.tolerance == pytest.approx(1.6e-4 + 5e-4)
    assert not dataclasses.replace(check, value=0.1593).ok
    assert not dataclasses.replace(check, value=None).ok
    assert not script.Check.of("norm", "26.2873", 26.32).ok
