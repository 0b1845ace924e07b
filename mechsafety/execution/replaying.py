"""Running the config of a record again in a fresh process, and comparing the two records."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mechsafety.core.errors import InputError, RecordError, WorkerError
from mechsafety.execution.threads import VARIABLES
from mechsafety.records.compare import Comparison, compare
from mechsafety.records.reading import Run, open_run
from mechsafety.records.verify import verify


class CannotReplayError(InputError):
    """A record that cannot be run again here: its model, prompts or study are not here."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A record and its replay."""

    folder: Path
    """Of the replay, itself a record."""
    comparison: Comparison | None
    """None where the replay failed, which the record that it replays did not."""
    error: str | None
    """What ended a replay that failed."""

    @property
    def same(self) -> bool:
        """Whether the record was found again."""
        return self.comparison is not None and self.comparison.same


def replay(run: Run, out: Path | None = None) -> Replayed:
    """Run a record's config again in a fresh process, with nothing from the cache, and compare.

    Args:
        run: A completed record.
        out: Folder of the run folders; None: the one that holds the record.

    Raises:
        CannotReplayError: A model or file is missing, prompts changed, or the config no longer
            fits its study; the message says which.
        RecordError: The run did not complete.
    """
    if run.status != "completed":
        raise RecordError(
            f"replaying {run.folder}: it is '{run.status}', so there is nothing whole to compare "
            "with. `mechsafety run --resume` goes on with it."
        )
    if problems := verify(run).problems:
        raise CannotReplayError(
            f"replaying {run.folder}: it is not what was sealed, so it cannot be the measure of "
            f"another run: {problems[0]} (`mechsafety verify` names all)."
        )
    into = run.folder.resolve().parent.parent if out is None else out
    answer = _in_fresh_process(run, into)
    if answer.get("cannot"):
        raise CannotReplayError(answer["cannot"])
    folder = Path(answer["folder"])
    if answer["status"] == "interrupted":
        raise KeyboardInterrupt
    if answer["status"] != "completed":
        return Replayed(folder, None, answer["error"])
    return Replayed(folder, compare(run, open_run(folder)), None)


def _in_fresh_process(run: Run, out: Path) -> dict[str, Any]:
    threads = str(run.manifest.config.get("runtime", {}).get("threads", 1))
    child = subprocess.Popen(
        [sys.executable, "-m", "mechsafety.execution.replaying", str(run.folder), str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        # Read once, when torch is imported.
        env={**os.environ, **dict.fromkeys(VARIABLES, threads)},
    )
    try:
        said, _ = child.communicate()
    except KeyboardInterrupt:
        # The terminal told the child too; it closes its record before it ends.
        child.wait()
        raise
    try:
        return cast("dict[str, Any]", json.loads(said.strip().rpartition("\n")[2]))
    except ValueError:
        raise WorkerError(
            f"replaying {run.folder}: its process ended with exit code {child.returncode} and "
            "without a word; what it recorded is the newest folder in " + str(out)
        ) from None


def _replay_here(folder: Path, out: Path) -> dict[str, Any]:
    """In the fresh process: run the record's config, and say how it went."""
    from mechsafety.execution.runner import How, execute, plan_of

    run = open_run(folder)
    how = How(("mechsafety", "replay", str(folder)), cached=False, replay_of=run)
    try:
        outcome = execute(plan_of(run), out, how)
    except InputError as error:
        return {"cannot": str(error)}
    answer = {"folder": str(outcome.folder), "status": outcome.status}
    if isinstance(outcome.error, InputError):
        return {**answer, "cannot": str(outcome.error)}
    return {**answer, "error": None if outcome.error is None else str(outcome.error)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_replay_here(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
