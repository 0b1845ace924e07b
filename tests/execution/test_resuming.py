"""A run that was killed goes on, and ends as if nothing had been."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import mechsafety.records.landing as landing
from mechsafety.core.errors import RecordError
from mechsafety.execution.purging import purge
from mechsafety.execution.runner import How, execute, plan_experiment, plan_of
from mechsafety.records import appearing
from mechsafety.records.compare import compare
from mechsafety.records.reading import Run, open_run
from mechsafety.records.store import RunWriter
from mechsafety.records.verify import verify
from tests.records.made_records import ENVIRONMENT, config, finding, result
from tests.studies.locality_runs import BRIEF, SMALL

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOCALITY = ROOT / "experiments" / "locality.yaml"
# Workers would import torch anew in each of dozens of attempts.
ONE = "runtime.workers=1"
# Answers of 4 tokens are no refusals yet, and nothing causal would be asked.
BRIEFLY = (*SMALL, *(one for one in BRIEF if not one.startswith("answers_max")), "base=null", ONE)
SEALED = ("metrics.parquet", "findings.json", "tensors.safetensors", "config.yaml")


def killed(
    experiment: Path, out: Path, overrides: Sequence[str], *options: object
) -> dict[str, Any]:
    sets = [part for one in overrides for part in ("--set", one)]
    script = [sys.executable, "-m", "tests.execution.killed_runs", str(experiment), str(out)]
    done = subprocess.run(
        [*script, *sets, *map(str, options)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "disabled"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def assert_equal_bit_for_bit(resumed: Run, whole: Run) -> None:
    for name in SEALED:
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert compare(whole, resumed).same
    assert verify(resumed).intact
    # A kill before a folder appears leaves one hidden beside it, which is nobody's run.
    assert not list(resumed.folder.rglob("*.part"))


@pytest.fixture(scope="module")
def small(organism_small: Any) -> tuple[str, ...]:
    return (*BRIEFLY, f"model={organism_small('ssft')}")


def test_a_study_killed_at_every_stage_boundary_ends_as_one_that_was_left_alone(
    small: tuple[str, ...], tmp_path: Path
) -> None:
    whole = execute(plan_experiment(LOCALITY, small), tmp_path / "whole", How(cached=False))
    reference = open_run(whole.folder)
    jobs = sum(len(stage.jobs) for stage in reference.manifest.stages)
    stages = len(reference.manifest.stages)
    assert jobs >= 10  # there is something to lose
    assert stages >= 7  # and to interrupt

    answer = killed(LOCALITY, tmp_path / "killed", small)
    (run,) = map(open_run, answer["folders"])
    # Twice a stage, and at the opening, the rendering and the closing.
    assert answer["kills"] == 2 * stages + 3
    assert len(run.manifest.sessions) == answer["kills"]
    assert answer["computed"] == [jobs]  # nothing that had finished was done again
    assert_equal_bit_for_bit(run, reference)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_killed_at_thirty_random_moments_ends_as_one_that_was_left_alone(
    small: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = execute(plan_experiment(LOCALITY, small), tmp_path / "whole", How(cached=False))
    reference = open_run(whole.folder)
    seconds = reference.manifest.seconds
    assert seconds is not None
    answer = killed(LOCALITY, tmp_path / "killed", small, "--random", 30, "--seconds", seconds / 2)
    with capsys.disabled():
        sys.stdout.write(f"\n{answer['kills']} kills in {len(answer['folders'])} runs\n")
    assert answer["kills"] >= 30
    for folder in answer["folders"]:
        assert_equal_bit_for_bit(open_run(folder), reference)


def test_the_same_command_finds_what_a_killed_run_had_finished(
    toy_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHSAFETY_STAGES", str(tmp_path / "stages"))
    first = open_run(execute(plan_experiment(toy_yaml, ["mode=fail"]), tmp_path / "a").folder)
    assert sum(event["kind"] == "job_ended" for event in first.events()) == 6
    again = open_run(execute(plan_experiment(toy_yaml), tmp_path / "b").folder)
    assert again.status == "completed"
    assert all(job.cached for stage in again.manifest.stages for job in stage.jobs)
    assert not [event for event in again.events() if event["kind"] == "job_ended"]


def test_a_failed_run_goes_on_in_its_folder_and_says_what_it_went_through(
    toy_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_experiment(toy_yaml)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["mechsafety.studies.toy"], "square", None)
        failed = open_run(execute(plan, tmp_path).folder)
    assert failed.status == "failed"
    assert verify(failed).intact  # it was sealed as it was

    outcome = execute(plan_of(failed), tmp_path, How(["again"], resume=failed))
    run = open_run(outcome.folder)
    assert (run.folder, run.status) == (failed.folder, "completed")
    (before,) = run.manifest.sessions
    assert (before.status, run.manifest.command_line) == ("failed", ("again",))
    assert before.error is not None
    assert [event["kind"] for event in run.events()].count("resumed") == 1
    assert verify(run).intact


def test_an_event_cut_short_by_a_kill_does_not_swallow_the_next(
    toy_yaml: Path, tmp_path: Path
) -> None:
    failed = open_run(execute(plan_experiment(toy_yaml, ["mode=fail"]), tmp_path).folder)
    path = failed.folder / "events.jsonl"
    path.chmod(0o644)
    with path.open("a") as file:
        file.write('{"time": "2026-')
    outcome = execute(plan_of(failed), tmp_path, How(resume=failed))
    kinds = [event["kind"] for event in open_run(outcome.folder).events()]
    assert "resumed" in kinds
    assert kinds[-1] == "closed"


def test_a_completed_record_is_not_resumed(toy_yaml: Path, tmp_path: Path) -> None:
    run = open_run(execute(plan_experiment(toy_yaml), tmp_path).folder)
    sealed = (run.folder / "manifest.json").read_bytes()
    with pytest.raises(RecordError, match=r"it completed.*mechsafety replay"):
        execute(plan_of(run), tmp_path, How(resume=run))
    assert (run.folder / "manifest.json").read_bytes() == sealed


def test_a_record_that_another_process_completed_meanwhile_is_not_resumed(
    toy_yaml: Path, tmp_path: Path
) -> None:
    stale = open_run(execute(plan_experiment(toy_yaml, ["mode=fail"]), tmp_path).folder)
    done = open_run(execute(plan_experiment(toy_yaml), tmp_path / "other").folder)
    shutil.copy(done.folder / "manifest.json", stale.folder / "copy.json")
    (stale.folder / "copy.json").rename(stale.folder / "manifest.json")
    assert stale.manifest.status == "failed"  # as it was when it was opened
    with pytest.raises(RecordError, match="it completed"):
        RunWriter.resume(stale, ENVIRONMENT, ["late"])


def test_a_replay_is_not_resumed_because_nothing_in_it_may_be_remembered(
    toy_yaml: Path, tmp_path: Path
) -> None:
    parent = open_run(execute(plan_experiment(toy_yaml), tmp_path).folder)
    writer = RunWriter.create(
        tmp_path, plan_of(parent).config, ENVIRONMENT, ["replay"], replay_of=parent
    )
    writer.close("interrupted")
    with pytest.raises(RecordError, match=r"it is a replay of .* Replay that record again"):
        RunWriter.resume(open_run(writer.folder), ENVIRONMENT, ["resume"])


def test_what_an_earlier_attempt_left_is_not_sealed_as_the_next_ones(
    toy_yaml: Path, tmp_path: Path
) -> None:
    plan = plan_experiment(toy_yaml)
    grows = finding(id="squares_grow", claim="Squares grow.", margin=1.0)
    writer = RunWriter.create(tmp_path, plan.config, ENVIRONMENT, ["first"])
    writer.write_result(result(findings=(grows,)))
    writer.write_private("answers.jsonl", b"{}\n")
    (writer.folder / ".metrics.parquet.deadbeef.part").write_bytes(b"half")
    writer.close("failed")
    assert open_run(writer.folder).findings

    again = RunWriter.resume(open_run(writer.folder), ENVIRONMENT, ["second"])
    again.close("failed")
    run = open_run(again.folder)
    assert run.findings == ()
    assert run.tensor_names() == ()
    assert set(run.manifest.files) == {"config.yaml", "events.jsonl"}
    assert run.manifest.private == {}
    assert verify(run).intact


def test_two_processes_do_not_resume_one_run(toy_yaml: Path, tmp_path: Path) -> None:
    failed = open_run(execute(plan_experiment(toy_yaml, ["mode=fail"]), tmp_path).folder)
    holder = RunWriter.resume(failed, ENVIRONMENT, ["first"])
    with pytest.raises(RecordError, match="another process holds its lock"):
        RunWriter.resume(failed, ENVIRONMENT, ["second"])
    holder.close("failed")


def test_a_full_disk_is_one_clear_error_and_can_be_resumed(
    toy_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = open_run(execute(plan_experiment(toy_yaml), tmp_path).folder)
    plain = os.fsync

    def full(handle: int) -> None:
        if "metrics" in Path(f"/proc/self/fd/{handle}").readlink().name:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    plan = plan_experiment(toy_yaml)
    with monkeypatch.context() as patch:
        patch.setattr(landing.os, "fsync", full)
        outcome = execute(plan, tmp_path)
    assert isinstance(outcome.error, RecordError)
    assert "No space left on device" in str(outcome.error)
    assert "What was recorded before is intact" in str(outcome.error)
    stopped = open_run(outcome.folder)
    assert stopped.status == "failed"
    assert not (stopped.folder / "metrics.parquet").exists()
    assert not list(tmp_path.rglob("*.part"))
    assert verify(earlier).intact

    again = execute(plan_of(stopped), tmp_path, How(resume=stopped))
    assert compare(earlier, open_run(again.folder)).same


def test_a_cache_that_cannot_be_written_is_a_warning_and_costs_no_run(
    toy_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MECHSAFETY_STAGES", str(tmp_path / "file" / "below"))
    run = open_run(execute(plan_experiment(toy_yaml), tmp_path / "runs").folder)
    assert run.status == "completed"
    warned = [event["message"] for event in run.events() if event["kind"] == "warning"]
    assert len(warned) == 1
    assert "cannot be resumed" in warned[0]


def test_a_folder_appears_together_with_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    plain = appearing.land_json

    def land_json(path: Path, value: object) -> None:
        plain(path, value)
        seen.append([p.name for p in tmp_path.glob("made/*") if not p.name.startswith(".")])

    monkeypatch.setattr(appearing, "land_json", land_json)
    writer = RunWriter.create(tmp_path, config(), ENVIRONMENT, ["test"])
    assert seen == [[]]  # the manifest was whole, and there was no such run yet
    old, young = (tmp_path / "made" / f".{name}.part" for name in ("old", "young"))
    for left in (old, young):
        left.mkdir()
    os.utime(old, (0, 0))
    RunWriter.create(tmp_path, config(), ENVIRONMENT, ["test"]).close("failed")
    assert (old.exists(), young.exists()) == (False, True)
    assert (writer.folder / "manifest.json").exists()
    writer.write_result(result())
    writer.close("completed")


def test_answers_that_are_not_to_be_kept_do_not_stay_in_the_cache(
    small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = tmp_path / "stages"
    monkeypatch.setenv("MECHSAFETY_STAGES", str(stages))

    def answers() -> list[Path]:
        return [path for path in stages.rglob("*") if b"sorry , i can not" in _bytes(path)]

    kept = execute(plan_experiment(LOCALITY, [*small, "completions=local"]), tmp_path / "kept")
    assert answers()  # of a model that mechsafety was told nothing about
    assert stat.S_IMODE(stages.stat().st_mode) == 0o700
    n_results = len(list(stages.rglob("*.safetensors")))
    purge(open_run(kept.folder))
    assert answers() == []
    assert verify(open_run(kept.folder)).intact

    execute(plan_experiment(LOCALITY, small), tmp_path / "not kept")
    assert answers() == []
    # What holds none stays for the next run.
    assert 0 < len(list(stages.rglob("*.safetensors"))) < n_results


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
