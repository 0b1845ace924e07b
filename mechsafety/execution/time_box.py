"""A command in a box of time: what it has not done by then is given up, and all of it ends.

Ending one process is not enough. A command's helpers may ignore signals, outlive it, or start a
session of their own (as wandb's service does), and whatever is left goes on writing. So everything
the command starts carries a mark in its environment, by which it is found again.
"""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

_MARK: Final = "MECHSAFETY_TIME_BOX"
_ENDING: Final = 1.0
"""Longest wait for killed processes to be gone, in seconds."""


def run_in_time_box(
    command: Sequence[str], seconds: float, log: Path, variables: Mapping[str, str]
) -> int | None:
    """Run a command and end all that it started; its exit code, or None where time was up.

    Processes in sessions of their own are found on Linux alone; elsewhere they end by themselves.

    Args:
        command: Program and arguments.
        seconds: Until everything is killed.
        log: File that takes what is written to stdout and stderr.
        variables: The whole environment.

    Raises:
        OSError: The command cannot be started, or the log not be written.
    """
    mark = secrets.token_hex(16)
    with log.open("wb") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # A file, because nobody would read a pipe, and its reader waits for grandchildren.
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**variables, _MARK: mark},
            start_new_session=True,
        )
        try:
            return child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(child.pid)
            _end_marked(mark)
            child.wait()


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end_marked(mark: str) -> None:
    # What is killed may just have started another process, and takes a moment to end: look again
    # until there is none. One that waits for a dead disk ends when the disk does, not before.
    until = time.monotonic() + _ENDING
    while (found := list(_marked(mark))) and time.monotonic() < until:
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def _marked(mark: str) -> Iterator[int]:
    """Living processes whose environment, as they were started, has the mark."""
    entry = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # A zombie's environment is empty, so what was killed is not found again.
            variables = (folder / "environ").read_bytes()
        except OSError:  # ended meanwhile, or somebody else's
            continue
        if entry in variables.split(b"\0"):
            yield int(folder.name)
