"""Runs an experiment, kills it, and goes on with it, until it completes; started by tests.

Modules are imported once; every attempt is a forked child that gets SIGKILL, as from a machine that
stops. Says as JSON how often it killed, and where the completed run lies.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mechsafety.studies
from mechsafety.execution import runner
from mechsafety.execution.runner import How, Plan, execute, plan_experiment, plan_of
from mechsafety.records.listing import list_runs
from mechsafety.records.metrics_table import from_parquet
from mechsafety.records.reading import Run, open_run
from mechsafety.records.store import RunWriter

HERE = Path(__file__).parent
BOUNDARIES = ("opened", "resumed", "stage_started", "stage_ended", "rendering", "closed")


def attempt(plan: Plan, out: Path, resumed: Run | None, arm: Callable[[], None]) -> bool:
    """Run or resume in a child that `arm` gets ready to be killed; whether it completed."""
    child = os.fork()
    if child == 0:
        try:
            arm()
            how = How(["killed_runs"], mirrored=lambda _: None, resume=resumed)
            outcome = execute(plan, out, how)
            os._exit(0 if outcome.status == "completed" else 3)
        finally:
            os._exit(4)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"an attempt ended with exit code {os.WEXITSTATUS(status)}")
    return not os.WIFSIGNALED(status)


def at_boundary(number: int) -> Callable[[], None]:
    """Die right after the boundary of this number is in the events."""

    def arm() -> None:
        plain, seen = RunWriter.event, [0]

        def event(self: RunWriter, kind: str, **details: Any) -> None:
            plain(self, kind, **details)
            seen[0] += kind in BOUNDARIES
            if kind in BOUNDARIES and seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        RunWriter.event = event  # type: ignore[method-assign]

    return arm


def after(seconds: float) -> Callable[[], None]:
    """Die after so many seconds, wherever the run is then."""

    def arm() -> None:
        if os.fork() == 0:
            time.sleep(seconds)
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(0)

    return arm


def check_readable(out: Path) -> None:
    """Every folder under a final name opens, and every file in it is whole."""
    for listed in list_runs(out):
        run = open_run(listed.folder)
        assert run.status in ("interrupted", "completed"), run.status
        assert run.manifest.config
        run.events()
        if (run.folder / "metrics.parquet").exists():
            from_parquet(run.folder / "metrics.parquet")
        for name in run.tensor_names():
            run.tensor(name)
        if (run.folder / "findings.json").exists():
            assert run.findings


def the_run(out: Path) -> Run | None:
    """The only run there is, if it got as far as a folder of its own."""
    found = list_runs(out)
    assert len(found) <= 1, [one.folder for one in found]
    return open_run(found[0].folder) if found else None


def finish(plan: Plan, out: Path, arm: Callable[[int], Callable[[], None]]) -> tuple[Run, int]:
    """Run, and resume after every kill, until it completes; the run, and how often it died."""
    for kills in range(1000):
        resumed = the_run(out)
        completed = attempt(plan if resumed is None else plan_of(resumed), out, resumed, arm(kills))
        check_readable(out)
        if completed:
            run = the_run(out)
            assert run is not None
            return run, kills
    raise SystemExit("killed a thousand times, and nothing gained")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("experiment", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--random", type=int, default=0, help="kills at random moments, in all")
    parser.add_argument("--seconds", type=float, default=1.0, help="longest life of a random one")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    mechsafety.studies.__path__.append(str(HERE / "toy_studies"))
    plan = plan_experiment(chosen.experiment, chosen.overrides)
    # Found once: asking git and every package takes longer than most attempts.
    surroundings = runner.environment()
    runner.environment = lambda: surroundings
    moments = random.Random(0)
    runs: list[Run] = []
    kills = 0
    while not runs or kills < chosen.random:
        out = chosen.out / str(len(runs))
        # Each of its own, so that there is something to do in every run.
        os.environ["MECHSAFETY_STAGES"] = str(out / "stages")
        left = chosen.random - kills

        def at_random(number: int, left: int = left) -> Callable[[], None]:
            alive = moments.uniform(0.01, chosen.seconds)
            return after(alive) if number < left else at_boundary(sys.maxsize)

        run, more = finish(
            plan, out / "runs", at_random if chosen.random else lambda n: at_boundary(n + 1)
        )
        runs, kills = [*runs, run], kills + more
    computed = [sum(e["kind"] == "job_ended" for e in run.events()) for run in runs]
    folders = [str(run.folder) for run in runs]
    answer = {"folders": folders, "kills": kills, "computed": computed}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
