"""Ctrl-C, SIGTERM and SIGKILL end a run, and its record can be read."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mechsafety.records.reading import open_run
from mechsafety.records.verify import verify

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def started(toy_yaml: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    """A run that sleeps in its study, and has said so."""
    child = subprocess.Popen(
        [
            *(sys.executable, str(HERE / "toy_command.py"), "run", str(toy_yaml), "--fresh"),
            *("--out", str(out), "--set", "mode=sleep", *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "sleeping\n"
    return child


def the_run(out: Path) -> Path:
    (folder,) = (out / "toy").iterdir()
    return folder


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_an_interrupted_run_closes_its_record(
    toy_yaml: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    child = started(toy_yaml, tmp_path)
    assert open_run(the_run(tmp_path)).status == "running"
    child.send_signal(number)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == code
    assert "Traceback" not in errors
    run = open_run(the_run(tmp_path))
    assert run.manifest.status == "interrupted"  # written by itself, not inferred
    assert [stage.name for stage in run.manifest.stages] == ["measure/draw", "measure"]
    assert verify(run).intact


def test_ctrl_c_ends_workers_in_the_middle_of_their_jobs(toy_yaml: Path, tmp_path: Path) -> None:
    more = ("--set", "mode=sleep_in_workers", "--set", "runtime.workers=2")
    child = started(toy_yaml, tmp_path, *more)
    os.killpg(child.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert open_run(the_run(tmp_path)).manifest.status == "interrupted"
    wait_until_gone(child.pid)


def test_a_killed_run_with_workers_is_readable_and_leaves_no_process(
    toy_yaml: Path, tmp_path: Path
) -> None:
    child = started(toy_yaml, tmp_path, "--set", "runtime.workers=2")
    members = in_group(child.pid)
    assert len(members) > 1  # workers were running
    child.send_signal(signal.SIGKILL)
    child.wait()
    run = open_run(the_run(tmp_path))
    assert run.status == "interrupted"
    assert run.events()[-1]["kind"] == "stage_ended"
    wait_until_gone(child.pid)


def wait_until_gone(group: int) -> None:
    """Workers end just after the run that started them."""
    deadline = time.monotonic() + 20
    while in_group(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert in_group(group) == []


def in_group(group: int) -> list[int]:
    """Live processes of a process group."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found
