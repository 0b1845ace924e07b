"""Nothing that a command does keeps its caller waiting, and nothing of it is left."""

import os
import sys
import time
from pathlib import Path

import pytest

from mechsafety.execution.time_box import run_in_time_box

STARTS_HELPERS = """
import os, subprocess, sys, time
for session in (False, True):
    helper = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, "
         "signal.SIG_IGN); open(f'ready-{SESSION}', 'w'); time.sleep(60)".replace(
             "{SESSION}", str(session))],
        start_new_session=session)
    print(helper.pid, flush=True)
while not (os.path.exists("ready-True") and os.path.exists("ready-False")):
    time.sleep(0.01)
"""


def boxed(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> int | None:
    monkeypatch.chdir(folder)
    command = [sys.executable, "-S", "-E", "-c", text]
    return run_in_time_box(command, seconds, folder / "log", os.environ)


def lives(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_in_time_gives_its_exit_code_and_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert boxed(text, tmp_path, monkeypatch, 30.0) == 3
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("then", ["", "time.sleep(60)"], ids=["ended", "hung"])
def test_helpers_that_ignore_signals_or_leave_the_session_end_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    start = time.monotonic()
    code = boxed(STARTS_HELPERS + then, tmp_path, monkeypatch, 2.0)
    assert time.monotonic() - start < 3.5
    assert code == (None if then else 0)
    helpers = [int(word) for word in (tmp_path / "log").read_text().split()]
    assert len(helpers) == 2
    assert (tmp_path / "ready-True").exists()  # there was something to end
    assert not any(lives(helper) for helper in helpers)


def test_a_command_that_ignores_sigterm_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    start = time.monotonic()
    assert boxed(text, tmp_path, monkeypatch, 0.5) is None
    assert time.monotonic() - start < 2
