"""The command line: quick to answer, one error for bad input, one line for programs."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mechsafety.studies
from mechsafety.cli import app
from mechsafety.records.reading import open_run

ROOT = Path(__file__).parents[1]
TOYS = ROOT / "tests" / "execution" / "toy_studies"


@pytest.fixture(autouse=True)
def toy_studies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    mechsafety.studies.__path__.append(str(TOYS))
    yield
    mechsafety.studies.__path__.remove(str(TOYS))


def process(*program: object) -> "subprocess.CompletedProcess[str]":
    """Python in a process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, *map(str, program)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def command(*arguments: object) -> Any:
    """The command line in this process, where torch is imported already."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def toy_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text("study: toy\nseed: 5\n")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One completed run, made as a user makes it, shared by the commands that only read."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "toy.yaml").write_text("study: toy\n")
    toy = ROOT / "tests" / "execution" / "toy_command.py"
    done = process(toy, "run", folder / "toy.yaml", "--out", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return Path(json.loads(done.stdout)["runs"][0]["run"])


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "pandas", "wandb", "pyarrow", "plotly", "numpy", "pydantic")
    code = (
        "import sys\nfrom mechsafety.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"found = [name for name in {heavy} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
    assert "organisms" in done.stdout


def test_help_costs_little_more_than_typer_itself() -> None:
    def seconds(*program: str) -> float:
        times: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            process(*program)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    # A ratio in one process run: other work on the machine slows both.
    bare = seconds("-c", "import typer")
    assert seconds("-m", "mechsafety", "--help") < 2.0 * bare + 0.1


def test_a_run_prints_findings_and_last_the_path_of_its_page(
    toy_yaml: Path, tmp_path: Path
) -> None:
    done = command("run", toy_yaml, "--out", tmp_path / "runs", "--set", "size=4")
    assert done.exit_code == 0, done.stderr
    page = Path(done.stdout.splitlines()[-1])
    assert page.name == "report.html"
    assert page.exists()
    assert "SUPPORTED     squares_grow [checkpoint]" in done.stdout
    assert "2 [1.5, 2.5], null [-0.5, 0.5], margin 1, n = 7" in done.stdout
    assert "recording into" in done.stderr
    assert open_run(page).manifest.config["size"] == 4


def test_a_record_has_its_command_line(finished: Path) -> None:
    typed = open_run(finished).manifest.command_line
    assert typed[1:] == ("run", str(finished.parents[1] / "toy.yaml"), *typed[3:])
    assert typed[3:] == ("--out", str(finished.parents[1]), "--json")


def test_json_is_one_line_and_the_last(toy_yaml: Path, tmp_path: Path) -> None:
    done = command("run", toy_yaml, toy_yaml, "--out", tmp_path, "--json")
    assert done.stdout.count("\n") == 1
    told = json.loads(done.stdout)
    assert told["status"] == "done"
    assert [run["status"] for run in told["runs"]] == ["completed", "completed"]
    assert told["runs"][0]["findings"][0]["null_low"] == -0.5


def test_a_failed_run_exits_1_with_one_line_and_goes_on_with_the_next(
    toy_yaml: Path, tmp_path: Path
) -> None:
    failing = tmp_path / "failing.yaml"
    failing.write_text("study: toy\nmode: fail\n")
    done = command("run", failing, toy_yaml, "--out", tmp_path / "runs", "--json")
    assert done.exit_code == 1
    assert "error: ValueError: the toy broke" in done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "failed"
    assert [run["status"] for run in told["runs"]] == ["failed", "completed"]
    assert told["runs"][0]["error"]["kind"] == "ValueError"


def test_debug_shows_the_traceback(toy_yaml: Path, tmp_path: Path) -> None:
    done = command("run", toy_yaml, "--set", "mode=fail", "--out", tmp_path, "--debug")
    assert "Traceback (most recent call last)" in done.stderr


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (None, (), "there is no file"),
        ("- a\n- b\n", (), "expected keys and values"),
        ("study: toyy\n", (), "unknown study 'toyy'. Did you mean 'toy'?"),
        ("study: toy\nsizee: 3\n", (), "unknown key 'sizee'. Did you mean 'size'?"),
        ("study: toy\nsize: three\n", (), "key 'size'"),
        ("study: toy\n", ("--set", "size"), "expected key=value"),
        ("study: toy\nmode: bad_input\n", (), "reading toy.csv: it is empty."),
    ],
)
def test_bad_input_is_one_error_and_exit_2(
    tmp_path: Path, content: str | None, more: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_text(content)
    done = command("run", path, "--out", tmp_path / "runs", "--json", *more)
    assert done.exit_code == 2
    assert done.stderr.count("error:") == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["status"] != "done"


def test_one_bad_experiment_among_several_stops_all_before_the_first(
    toy_yaml: Path, tmp_path: Path
) -> None:
    done = command("run", toy_yaml, tmp_path / "none.yaml", "--out", tmp_path / "runs")
    assert done.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_unwritable_output_is_exit_2_and_leaves_what_is_there(
    toy_yaml: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("in the way")
    done = command("run", toy_yaml, "--out", tmp_path / "runs")
    assert done.exit_code == 2
    assert "--out" in done.stderr
    assert (tmp_path / "runs").read_text() == "in the way"


@pytest.mark.parametrize("arguments", [("show",), ("run",), ("nothing",), ("runs", "--wat")])
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert "Usage" in done.stderr


def test_a_dry_run_fills_in_the_config_and_makes_nothing(toy_yaml: Path, tmp_path: Path) -> None:
    done = command("run", toy_yaml, "--dry-run", "--out", tmp_path / "runs")
    assert done.exit_code == 0
    assert "batch_tokens: 16384" in done.stdout  # a default that the YAML does not have
    assert "would run study 'toy'" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_show_fits_a_screen_and_has_the_findings_in_full_as_json(finished: Path) -> None:
    shown = command("show", finished)
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) < 40
    assert shown.stdout.splitlines()[-1] == str(finished / "report.html")
    told = json.loads(command("show", finished, "--json").stdout)
    assert told["status"] == "completed"
    assert told["findings"][0]["null"] == "signs flipped at random, 100 draws"
    assert told["findings"][0]["cell"] == {"layer": 3}


def test_show_says_in_full_what_each_finding_claims(finished: Path) -> None:
    brief, full = (command("show", finished, *more).stdout for more in ((), ("--full",)))
    assert "SUPPORTED     squares_grow  2 [1.5, 2.5], null [-0.5, 0.5]" in brief
    assert "Squares grow by 2.0" not in brief
    assert "Squares grow by 2.0 [1.5, 2.5] units a row." in full


def test_a_reader_who_has_enough_is_no_error(finished: Path) -> None:
    program = f"{sys.executable} -m mechsafety show {finished} --full | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {program}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.startswith("toy ")
    assert done.stderr == ""


def test_runs_lists_and_filters(finished: Path) -> None:
    out = finished.parents[1]
    assert str(finished) in command("runs", "--out", out).stdout
    told = json.loads(command("runs", "--out", out, "--json").stdout)
    assert [run["folder"] for run in told["runs"]] == [str(finished)]
    none = command("runs", "--out", out, "--status", "failed", "--json")
    assert json.loads(none.stdout) == {"runs": []}


def test_verify_exits_1_and_names_what_changed(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert command("verify", copy).exit_code == 0
    (copy / "findings.json").chmod(0o644)
    (copy / "findings.json").write_text("[]")
    done = command("verify", copy)
    assert done.exit_code == 1
    assert "findings.json: differs" in done.stdout


def test_report_renders_again_outside_the_seal(finished: Path, tmp_path: Path) -> None:
    done = command("report", finished, "-o", tmp_path / "page.html")
    assert done.exit_code == 0, done.stderr
    assert "Squares grow" in (tmp_path / "page.html").read_text()
    done = command("report", finished)
    assert done.stdout.strip() == str(finished / "derived" / "report.html")
    assert command("verify", finished).exit_code == 0


def test_schema_describes_every_key() -> None:
    schema = json.loads(command("schema", "toy").stdout)
    assert schema["properties"]["size"]["description"] == "Rows of the table."
    assert schema["additionalProperties"] is False


def test_an_unknown_organism_is_bad_input() -> None:
    done = command("organisms", "build", "lta")
    assert done.exit_code == 2
    assert "Did you mean 'lat'?" in done.stderr


def test_no_workers_train_nothing() -> None:
    done = command("organisms", "build", "base", "--workers", "0")
    assert done.exit_code == 2
    assert "workers" in done.stderr


def test_organisms_are_listed_with_those_that_are_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path))
    done = command("organisms", "list", "--json")
    told = json.loads(done.stdout)["organisms"]
    assert {one["folder"] for one in told} == {None}
    assert "organism:lat@seed=0" in [one["name"] for one in told]


def test_published_activations_are_imported(tmp_path: Path) -> None:
    torch.save(torch.ones(5, 3), tmp_path / "harmful_layer4.pt")
    target = tmp_path / "lat.safetensors"
    done = command("import", tmp_path / "harmful_layer4.pt", "-o", target, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["tensors"] == {"harmful.layer4": [5, 3]}
    again = command("import", tmp_path / "harmful_layer4.pt", "-o", target)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_the_module_is_the_command() -> None:
    done = process("-m", "mechsafety", "--help")
    assert done.returncode == 0
    assert "Run experiments" in done.stdout
