"""The reproduce script of the choice, on planted tables and, where they are, the published ones."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "reproduce" / "direction_selection.py"
POSITIONS, N_LAYERS = (-3, -2, -1), 5
PUBLISHED = {
    "gemma-2b-it": {"position": -2, "layer": 10, "kept": 13},
    "qwen-1_8b-chat": {"position": -2, "layer": 15, "kept": 12},
}
NOTHING = {"position": None, "layer": None, "kept": 0}


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("direction_selection")


def row(position: int, layer: int, bypass: Any, induce: Any, kl: Any) -> dict[str, Any]:
    return {
        "position": position,
        "layer": layer,
        "refusal_score": bypass,
        "steering_score": induce,
        "kl_div_score": kl,
    }


def table() -> list[dict[str, Any]]:
    """Of 15 candidates the best four are out for four reasons; then two are equal."""
    cells = itertools.product(POSITIONS, range(N_LAYERS))
    rows = {cell: row(*cell, bypass=2.0, induce=1.0, kl=0.01) for cell in cells}
    rows[-3, 4] |= {"refusal_score": -9.0}
    rows[-3, 1] |= {"refusal_score": -8.0, "kl_div_score": 0.2}
    rows[-2, 0] |= {"refusal_score": -7.0, "steering_score": -0.5}
    rows[-1, 3] |= {"refusal_score": -6.0, "steering_score": float("nan")}
    rows[-2, 3] |= {"refusal_score": -5.0}
    rows[-1, 2] |= {"refusal_score": -5.0}
    return list(rows.values())


def write(folder: Path, content: Any) -> Path:
    path = folder / "evaluations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def run_json(
    script: ModuleType, capsys: pytest.CaptureFixture[str], path: Path, *arguments: str
) -> tuple[int, dict[str, Any], str]:
    code = script.main(["--evaluations", str(path), "--json", *arguments])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    return code, json.loads(printed.out), printed.err


def test_the_published_filters_choose_the_lowest_bypass_that_they_keep(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, table())
    code, found, told = run_json(script, capsys, path)
    # Layer 4 of 5 is cut at each of three positions, and three more fail a filter each.
    assert (code, found) == (0, {"position": -2, "layer": 3, "kept": 9})
    assert told == ""


def test_neither_the_order_of_the_rows_nor_the_wrapping_changes_the_choice(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table()
    random.Random(3).shuffle(rows)
    places = {(r["position"], r["layer"]): i for i, r in enumerate(rows)}
    assert places[-1, 2] < places[-2, 3]  # a choice by file order would take the other
    for content in (rows, {"candidates": rows}, {"candidates": rows, "selected": None}):
        found = run_json(script, capsys, write(tmp_path, content))
        assert found[:2] == (0, {"position": -2, "layer": 3, "kept": 9})


@pytest.mark.parametrize(
    ("arguments", "choice", "n_kept"),
    [
        (["--prune-layers", "1.0"], (-3, 4), 12),
        (["--n-layers", "7"], (-3, 4), 12),
        (["--kl-threshold", "0.2"], (-3, 1), 10),
        (["--kl-threshold", "inf"], (-3, 1), 10),
        (["--induce-threshold", "-inf"], (-2, 0), 10),
        (["--induce-threshold", "−inf"], (-2, 0), 10),
        (["--induce-threshold=-inf"], (-2, 0), 10),
        (["--induce-threshold", "-.5"], (-2, 0), 10),
        (["--induce-threshold", "-0.4"], (-2, 3), 9),
    ],
)
def test_each_filter_can_be_moved_or_switched_off(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    choice: tuple[int, int],
    n_kept: int,
) -> None:
    path = write(tmp_path, {"candidates": table(), "selected": {"pos": -2, "layer": 3}})
    code, found, told = run_json(script, capsys, path, *arguments)
    assert (found["position"], found["layer"], found["kept"]) == (*choice, n_kept)
    # With other filters another choice is no fault.
    assert code == 0
    assert ("these are not the published filters" in told) is (choice != (-2, 3))


@pytest.mark.parametrize("key", ["refusal_score", "steering_score", "kl_div_score"])
@pytest.mark.parametrize("spelled", [None, float("nan")])
def test_nan_and_null_in_any_score_discard_the_row(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    key: str,
    spelled: float | None,
) -> None:
    rows = table()
    rows[1 * N_LAYERS + 3][key] = spelled
    loose = ["--kl-threshold", "inf", "--induce-threshold", "-inf", "--prune-layers", "1"]
    _, found, _ = run_json(script, capsys, write(tmp_path, rows))
    assert found == {"position": -1, "layer": 2, "kept": 8}
    # Two rows of 15 have NaN, and no filter keeps those.
    assert run_json(script, capsys, write(tmp_path, rows), *loose)[1]["kept"] == 13


def test_a_cell_that_the_table_lacks_is_no_candidate(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, [each for each in table() if each["layer"] in (3, 4)])
    assert script.main(["--evaluations", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 6 candidates are kept: 3 fail the layer cut" in printed
    assert "1 have NaN" in printed


def test_without_json_people_read_first_and_the_last_line_is_the_same(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, table())
    assert script.main(["--evaluations", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("9 of 15 candidates are kept: 3 fail the layer cut")
    assert "chosen: position -2, layer 3 (bypass -5.0000, induce 1.0000, kl 0.0100)" in lines
    assert json.loads(lines[-1]) == {"position": -2, "layer": 3, "kept": 9}


def test_another_choice_in_the_file_is_named_and_the_exit_code_is_1(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agreeing = {"candidates": table(), "selected": {"position": -2, "layer": 3}}
    assert run_json(script, capsys, write(tmp_path, agreeing))[0] == 0
    other = {"candidates": table(), "selected": {"pos": -1, "layer": 2}}
    code, found, told = run_json(script, capsys, write(tmp_path, other))
    assert (code, found["position"], found["layer"]) == (1, -2, 3)
    assert "the published filters give position -2, layer 3 (bypass -5.0000" in told
    assert "the file says position -1, layer 2 (bypass -5.0000" in told
    absent = {"candidates": table(), "selected": {"pos": -9, "layer": 2}}
    assert "(not among the candidates)" in run_json(script, capsys, write(tmp_path, absent))[2]


def test_where_nothing_is_kept_the_observed_scores_are_told(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {"candidates": table(), "selected": {"pos": -2, "layer": 3}})
    code, found, told = run_json(script, capsys, path, "--induce-threshold", "1.5")
    assert (code, found) == (1, NOTHING)
    assert "0 of 15 candidates are kept" in told
    assert "14 induce < 1.5 (largest 1; 10 fail nothing else)" in told
    assert "bypass lies in -9 to 2" in told
    assert "Traceback" not in told


def spoiled(**changes: Any) -> list[dict[str, Any]]:
    rows = table()
    rows[4] |= changes
    return rows


def without(key: str) -> list[dict[str, Any]]:
    rows = table()
    del rows[4][key]
    return rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "Expecting value"),
        ("{nonsense", "Expected a JSON file of candidates"),
        ("[" * 100_000, "recursion"),
        ([], "an empty list"),
        ({"candidates": {}}, "no list but {}"),
        ({"rows": []}, "no key 'candidates' among ['rows']"),
        ("3.5", "no list but 3.5"),
        ([*table(), 7], "row 15 is 7"),
        (without("kl_div_score"), "row 4 has no key 'kl_div_score'"),
        (without("layer"), "row 4 has no key 'layer'"),
        (spoiled(layer=-1), "row 4: 'layer' is -1"),
        (spoiled(layer=10**9), "row 4: 'layer' is 1000000000"),
        (spoiled(layer=1.0), "row 4: 'layer' is 1.0"),
        (spoiled(position=True), "row 4: 'position' is True"),
        (spoiled(refusal_score="low"), "row 4: 'refusal_score' is 'low'"),
        (spoiled(refusal_score=10**400), "beyond float64"),
        (spoiled(layer=3), "row 4 is a second one for position -3, layer 3"),
        ({"candidates": table(), "selected": {"pos": -1}}, "'selected' is {'pos': -1}"),
        ({"candidates": table(), "selected": 4}, "'selected' is 4"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: Any,
    words: str,
) -> None:
    assert script.main(["--evaluations", str(write(tmp_path, content)), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prune-layers", "1.5"], "prune_layers"),
        (["--n-layers", "4"], "up to layer 4"),
        (["--kl-threshold", "-inf"], "kl_threshold"),
        (["--induce-threshold", "nan"], "induce_threshold"),
        (["--induce-threshold", "low"], "--induce-threshold"),
        (["--induce-threshold"], "expected one argument"),
        (["--kl-threshold", "--json"], "expected one argument"),
    ],
)
def test_a_bad_option_is_exit_code_2(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    try:
        code = script.main(["--evaluations", str(write(tmp_path, table())), *arguments])
    except SystemExit as stopped:  # argparse
        code = stopped.code
    assert code == 2
    assert words in capsys.readouterr().err


def test_as_a_command_it_prints_one_line_of_json_and_no_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    path = write(tmp_path, table())
    command = [sys.executable, str(SCRIPT), "--evaluations", str(path)]
    done = subprocess.run(
        [*command, "--induce-threshold", "-inf", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"position": -2, "layer": 0, "kept": 10}
    path.unlink()
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "No such file" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
@pytest.mark.parametrize("run", PUBLISHED)
def test_the_published_runs_give_the_authors_choice_whole_bare_or_shuffled(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str
) -> None:
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "refusal_direction_runs"
    path = folder / f"{run}.direction_evaluations.json"
    assert run_json(script, capsys, path) == (0, PUBLISHED[run], "")
    stored = json.loads(path.read_text())
    random.Random(5).shuffle(stored["candidates"])
    bare = write(tmp_path, stored["candidates"])
    assert run_json(script, capsys, bare) == (0, PUBLISHED[run], "")
    # Moving the file's choice by one layer is noticed.
    stored["selected"]["layer"] += 1
    assert run_json(script, capsys, write(tmp_path, stored))[0] == 1
