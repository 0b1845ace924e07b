"""The reproduce script, on planted folders always and on the published files where they are."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "reproduce" / "lat_concentration.py"
N_HARMFUL, N_HARMLESS, WIDTH = 24, 29, 60
LAYERS = (9, 14)
MASSIVE = 17


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("lat_concentration")


def planted(shift: float, burst: bool, n_harmless: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        for name, n in (("harmful", N_HARMFUL), ("harmless", n_harmless)):
            rows = torch.randn(n, WIDTH, generator=generator)
            rows[:, 4] += shift * (name == "harmful")
            if burst:
                # Other prompts in each class, so that pairs do not cancel.
                rows[3 * (name == "harmless") :: 6, MASSIVE] += 400
            tensors[f"{name}.layer{layer}"] = rows
    return tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two arms: `calm` has a real shift, `wild` none but a massive channel."""
    save_file(
        {key: rows.half() for key, rows in planted(10.0, False, N_HARMFUL, 1).items()},
        tmp_path / "calm.safetensors",
    )
    save_file(
        {key: rows.bfloat16() for key, rows in planted(0.0, True, N_HARMFUL, 2).items()},
        tmp_path / "wild.safetensors",
    )
    return tmp_path


def run_json(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    code = script.main([*map(str, arguments), "--json"])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    found = json.loads(out)
    assert (code == 0) is found["ok"]
    return found


def cell_of(found: dict, arm: str, control: str = "all", centered: bool = False) -> dict:
    [cell] = [
        each
        for each in found["cells"]
        if (each["arm"], each["layer"], each["control"], each["centered"])
        == (arm, 14, control, centered)
    ]
    return cell


@pytest.mark.parametrize("pairing", ["list", "all"])
def test_a_shift_is_specific_to_harm_and_a_massive_channel_is_not(
    script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str], pairing: str
) -> None:
    found = run_json(script, capsys, "--activations", folder, "--pairing", pairing)
    arms = {each["arm"]: each for each in found["arms"]}
    assert arms["calm"]["massive_channels"] == []
    assert arms["wild"]["massive_channels"] == [MASSIVE]
    assert found["removed_channels"] == [MASSIVE]
    assert len(found["cells"]) == 2 * len(LAYERS) * 2 * 5
    calm, wild = cell_of(found, "calm"), cell_of(found, "wild")
    # The arm without a shift has the larger share, and it is as large between harmless prompts.
    assert wild["top2"] > calm["top2"] > calm["null_high"]
    assert wild["excess_low"] < 0 < wild["excess_high"]
    assert calm["excess_low"] > 0.1
    assert cell_of(found, "wild", "channels_out")["top2"] < 0.4 < wild["top2"]
    assert cell_of(found, "wild", "pairs_out")["top2"] < 0.5
    assert cell_of(found, "wild", "placebo_out")["top2"] > 0.8
    assert cell_of(found, "calm", "channels_out")["top2"] == pytest.approx(calm["top2"], abs=0.03)
    assert cell_of(found, "calm", "pairs_out")["n_harmful"] == N_HARMFUL - (
        8 if pairing == "list" else 4
    )
    assert "massive channels 17" in wild["mechanism"]
    assert found["checks"] == []
    for cell in found["cells"]:
        for name in ("top2", "cross_fitted_top2", "harmless_harmless", "excess"):
            assert cell[f"{name}_low"] <= cell[name] <= cell[f"{name}_high"]
    # The interval of the difference between arms is paired by prompt.
    [difference] = [
        each
        for each in found["differences"]
        if (each["layer"], each["control"], each["centered"]) == (14, "all", False)
    ]
    assert (difference["arm"], difference["minus"]) == ("wild", "calm")
    assert difference["top2"] == pytest.approx(wild["top2"] - calm["top2"])


def test_unequal_counts_need_first_or_all(
    script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, burst in (("calm", False), ("wild", True)):
        save_file(planted(10.0, burst, N_HARMLESS, 5), folder / f"{name}.safetensors")
    assert script.main(["--activations", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "24 harmful and 29 harmless" in error
    assert "'first'" in error
    first = run_json(script, capsys, "--activations", folder, "--pairing", "first", "--layers", 14)
    assert cell_of(first, "calm")["n_harmless"] == N_HARMFUL
    every = run_json(script, capsys, "--activations", folder, "--pairing", "all", "--layers", 14)
    assert cell_of(every, "calm")["n_harmless"] == N_HARMLESS
    assert {each["layer"] for each in every["cells"]} == {14}


def test_a_layer_where_the_classes_do_not_differ_is_reported_and_stops_nothing(
    script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "wild.safetensors").unlink()
    tensors = planted(10.0, False, N_HARMFUL, 1)
    tensors["harmless.layer9"] = tensors["harmful.layer9"].clone()
    save_file(tensors, folder / "calm.safetensors")
    found = run_json(script, capsys, "--activations", folder)
    notes = {(each["layer"], "note" in each) for each in found["cells"]}
    assert notes == {(9, True), (14, False)}
    assert script.main(["--activations", str(folder)]) == 0
    assert "no spectrum" in capsys.readouterr().out


def test_a_published_number_that_differs_is_named_and_the_exit_code_is_1(
    script: ModuleType,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arm = script.read_arm_files(folder)[0]
    truth = cell_of(run_json(script, capsys, "--activations", folder, "--layers", 14), "calm")
    monkeypatch.setitem(script.HASHES, arm.content_hash, "baseline")
    expected = [
        script.Expected("baseline", 14, "top2", round(truth["top2"], 3), 1e-3),
        script.Expected("baseline", 14, "c1", truth["c1"] + 0.002, 1e-3),
        script.Expected("baseline", 14, "top2", 0.0, 1e-3, control="channels_out"),
    ]
    monkeypatch.setattr(script, "PUBLISHED", expected)
    # Recognized by its tensors, under any name.
    shutil.move(folder / "calm.safetensors", folder / "renamed.safetensors")
    assert script.main(["--activations", str(folder), "--layers", "14"]) == 1
    printed = capsys.readouterr()
    assert "2 of 3 published numbers agree" in printed.out
    assert printed.err.count("differs from the published value") == 1
    assert "baseline layer 14 c1 (uncentered, every channel and pair)" in printed.err


def damage(folder: Path, kind: str) -> Path:
    path = folder / "wild.safetensors"
    tensors = load_file(path)
    if kind == "missing folder":
        return folder / "nowhere"
    if kind == "no files":
        (folder / "empty").mkdir()
        return folder / "empty"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        return folder
    if kind == "nan":
        tensors["harmless.layer14"][3, 5] = float("nan")
    if kind == "layers":
        del tensors["harmful.layer9"], tensors["harmless.layer9"]
    if kind == "widths":
        tensors = {key: rows[:, :40].contiguous() for key, rows in tensors.items()}
    if kind == "key":
        tensors["harmful.layerX"] = tensors.pop("harmful.layer9")
    if kind == "one class":
        del tensors["harmless.layer9"]
    if kind == "integers":
        tensors["harmful.layer9"] = torch.ones(N_HARMFUL, WIDTH, dtype=torch.int32)
    if kind == "row counts":
        tensors["harmful.layer9"] = tensors["harmful.layer9"][:9].clone()
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing folder", "no such folder"),
        ("no files", "no .safetensors files"),
        ("truncated", "no whole safetensors file"),
        ("nan", "harmless.layer14 has NaN or infinity in 1 of 24 rows, first in row 3"),
        ("layers", "different layers: calm [9, 14], wild [14]"),
        ("widths", "different widths: calm 60, wild 40"),
        ("key", "cannot read the key 'harmful.layerX'"),
        ("one class", "layers [9] have not both classes"),
        ("integers", "torch.int32"),
        ("row counts", "different shapes"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str], kind: str, words: str
) -> None:
    assert script.main(["--activations", str(damage(folder, kind)), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_as_a_command_it_prints_one_line_of_json_and_no_traceback(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--activations", str(folder), "--layers", "14"]
    done = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["layers"] == [14]
    (folder / "calm.safetensors").write_bytes(b"")
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
def test_layer_12_of_the_published_files_agrees_in_every_number(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "llama2_7b_lat_study"
    found = run_json(script, capsys, "--activations", folder, "--layers", 12)
    assert [each for each in found["checks"] if not each["ok"]] == []
    assert len(found["checks"]) > 20
    arms = {each["arm"]: each["massive_channels"] for each in found["arms"]}
    assert arms == {"baseline": [], "at": [], "lat": [1415, 2533]}
    # The concentration of LAT is published; that it is not specific to harm is not.
    [gained] = [
        each
        for each in found["differences"]
        if (each["arm"], each["control"], each["centered"]) == ("lat", "all", False)
    ]
    assert gained["top2_low"] > 0.2
    assert gained["excess_high"] < 0


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
@pytest.mark.parametrize("pairing", ["list", "first"])
def test_every_layer_of_the_published_files_agrees(
    script: ModuleType, capsys: pytest.CaptureFixture[str], pairing: str
) -> None:
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "llama2_7b_lat_study"
    found = run_json(script, capsys, "--activations", folder, "--pairing", pairing)
    assert [each for each in found["checks"] if not each["ok"]] == []
    assert len(found["checks"]) == len(script.PUBLISHED) + 3
