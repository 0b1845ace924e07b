"""A record run again in a fresh process is the same bit for bit, or says where it is not."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mechsafety.cli import app
from mechsafety.execution.runner import execute, plan_experiment
from mechsafety.records.compare import compare
from mechsafety.records.reading import Run, open_run
from tests.execution.test_resuming import BRIEFLY, LOCALITY

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def command(*arguments: object, **variables: str) -> Result:
    """The command line in this process; what it starts afresh finds the toy studies too."""
    path = f"{HERE / 'toy_site'}{os.pathsep}{ROOT}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": path, "WANDB_MODE": "disabled", **variables}.items():
            patch.setenv(name, value)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


def replayed(run: Run, expected: int, **variables: str) -> Mapping[str, Any]:
    done = command("replay", run.folder, "--json", **variables)
    assert done.exit_code == expected, done.output
    return json.loads(done.stdout.strip().rpartition("\n")[2])


@pytest.fixture(scope="module")
def study(organism_small: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A real study of a model whose folder tests may change, with prompts from files."""
    folder = tmp_path_factory.mktemp("replayed")
    shutil.copytree(organism_small("ssft"), folder / "model")
    from mechsafety.organisms.prompts import twins

    sides = twins(32, 0, "fit", preset="small").sets
    for side, name in zip(sides, ("harmful", "harmless"), strict=True):
        lines = [json.dumps({"instruction": one.instruction, "group": one.group}) for one in side]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    files = f"harmful: {folder}/harmful.jsonl, harmless: {folder}/harmless.jsonl"
    plan = plan_experiment(
        LOCALITY,
        [
            *(one for one in BRIEFLY if not one.startswith("prompts.")),
            f"prompts={{source: files, {files}, group: group}}",
            f"model={folder}/model",
            "judge={kind: phrases, phrases: organism}",
            "completions=local",
            "token_ids=full",
        ],
    )
    outcome = execute(plan, folder / "runs")
    assert outcome.error is None
    return open_run(outcome.folder), folder


def test_a_study_is_found_again_bit_for_bit(study: tuple[Run, Path]) -> None:
    run, _ = study
    assert sum(len(stage.jobs) for stage in run.manifest.stages) >= 10  # there is much to compare
    answer = replayed(run, 0)
    assert answer["same"]
    assert answer["compared"]["exact"]
    for part in ("stages", "rows", "tensors", "findings"):
        assert answer["compared"][part]["n"] > 0
        assert answer["compared"][part]["differences"] == []
    assert answer["compared"]["answers"]["n"] > 30
    assert answer["compared"]["answers"]["diverged"] == []
    again = open_run(answer["replay"])
    assert again.manifest.replay_of is not None
    assert again.manifest.replay_of.seal == run.manifest.seal
    there = again.folder / again.manifest.replay_of.folder
    assert there.resolve() == run.folder.resolve()
    # What it found was computed, not remembered.
    assert not any(job.cached for stage in again.manifest.stages for job in stage.jobs)


def test_changed_weights_are_different_and_named_with_the_first_stage_and_row(
    study: tuple[Run, Path],
) -> None:
    from safetensors.torch import load_file, save_file

    run, folder = study
    weights = folder / "model" / "model.safetensors"
    kept = weights.read_bytes()
    tensors = load_file(weights)
    tensors["model.layers.2.mlp.down_proj.weight"] *= 1.5
    save_file(tensors, weights, {"format": "pt"})
    try:
        answer = replayed(run, 1)
    finally:
        weights.write_bytes(kept)
    compared = answer["compared"]
    # The prompt's own tokens do not pass through the model, so the first rows are equal.
    assert compared["stages"]["differences"][0]["where"].startswith("stage 'reading', job 1")
    first = compared["rows"]["differences"][0]
    assert first["before"] != first["now"]
    (changed,) = [one for one in compared["environment"] if one["name"] == "model/weights"]
    assert changed["kind"] == "model revision"


def test_changed_prompts_cannot_be_replayed_and_the_hash_is_named(
    study: tuple[Run, Path],
) -> None:
    run, folder = study
    path = folder / "harmful.jsonl"
    kept = path.read_text()
    path.write_text(kept.replace("how", "why", 1))
    try:
        done = command("replay", run.folder)
    finally:
        path.write_text(kept)
    assert done.exit_code == 2
    (name,) = [one for one in run.manifest.provenance["prompts"] if f"'{one}'" in done.stderr]
    assert run.manifest.provenance["prompts"][name] in done.stderr


def test_a_missing_model_cannot_be_replayed(study: tuple[Run, Path]) -> None:
    run, folder = study
    (folder / "model").rename(folder / "elsewhere")
    try:
        done = command("replay", run.folder)
    finally:
        (folder / "elsewhere").rename(folder / "model")
    assert done.exit_code == 2
    assert str(folder / "model") in done.stderr


def test_a_study_that_changed_its_mind_is_different(toy_yaml: Path, tmp_path: Path) -> None:
    run = open_run(execute(plan_experiment(toy_yaml), tmp_path).folder)
    answer = replayed(run, 1, TOY_SHIFT="0.5")
    first = answer["compared"]["rows"]["differences"][0]
    assert first["where"] == "table 'squares', square at layer=0, arm=toy"
    assert first["now"] == first["before"] + 0.5


def test_a_record_that_was_changed_is_no_measure_of_another(toy_yaml: Path, tmp_path: Path) -> None:
    run = open_run(execute(plan_experiment(toy_yaml), tmp_path).folder)
    path = run.folder / "manifest.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"margins": 0.0', '"margins": 9.0'))
    done = command("replay", run.folder)
    assert done.exit_code == 2
    assert "it is not what was sealed" in done.stderr
    assert len(list(tmp_path.glob("toy/*"))) == 1  # and nothing was computed for it


def test_a_replay_that_fails_is_different_and_says_why(toy_yaml: Path, tmp_path: Path) -> None:
    run = open_run(execute(plan_experiment(toy_yaml), tmp_path).folder)
    done = command("replay", run.folder, TOY_SHIFT="nonsense")
    assert done.exit_code == 1
    assert "the replay failed, as its record did not: could not convert" in done.stdout


def test_a_run_that_did_not_complete_is_resumed_and_not_replayed(
    toy_yaml: Path, tmp_path: Path
) -> None:
    run = open_run(execute(plan_experiment(toy_yaml, ["mode=fail"]), tmp_path).folder)
    done = command("replay", run.folder)
    assert done.exit_code == 2
    assert "mechsafety run --resume" in done.stderr


def test_other_threads_are_told_and_judged_by_tolerance(toy_yaml: Path, tmp_path: Path) -> None:
    runs = [
        open_run(execute(plan_experiment(toy_yaml, [f"runtime.threads={n}"]), tmp_path).folder)
        for n in (1, 2)
    ]
    found = compare(*runs)
    assert not found.exact
    assert found.environment[0].kind == "threads"
    assert found.same


def test_the_words_of_a_replay_fit_a_screen(toy_yaml: Path, tmp_path: Path) -> None:
    run = open_run(execute(plan_experiment(toy_yaml), tmp_path).folder)
    lines = command("replay", run.folder, TOY_SHIFT="0.5").stdout.splitlines()
    assert lines[0] == "DIFFERENT"
    assert any("first: table 'squares', square at layer=0" in line for line in lines)
    assert Path(lines[-1]).is_dir()
    assert len(lines) < 40
