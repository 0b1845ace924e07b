"""Listing run folders, hundreds at a time."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, cast, get_args

from mechsafety.core.errors import RecordError, did_you_mean
from mechsafety.records.reading import live_status, read_json
from mechsafety.records.schema import MANIFEST, Status

LISTED: Final = (*get_args(Status), "damaged")
"""Statuses that a listing can show."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of a listing, read without checking the whole manifest."""

    folder: Path
    study: str
    status: str
    """As `Run.status`, or `damaged` where the manifest cannot be read."""
    opened: str
    """UTC, ISO 8601; empty where damaged."""
    seconds: float | None
    models: tuple[str, ...]
    """Names of the models that the run asked for."""
    config_sha256: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs a listing shows; None shows all."""

    study: str | None = None
    status: str | None = None
    """One of `LISTED`."""
    model: str | None = None
    """Part of a model's name as the config has it; case does not count."""
    since: str | None = None
    """First day, as `2026-11-21`."""
    until: str | None = None
    """Last day."""

    def check(self) -> None:
        """Refuse what no run can be.

        Raises:
            RecordError: No such status, or no day; the message says what is expected.
        """
        if self.status is not None and self.status not in LISTED:
            raise RecordError(
                f"listing runs: no run is '{self.status}'. {did_you_mean(self.status, LISTED)}"
            )
        for day in (self.since, self.until):
            if day is not None and not _is_day(day):
                raise RecordError(f"listing runs: '{day}' is no day. Write it as 2026-11-21.")

    def shows(self, run: RunSummary) -> bool:
        """Whether the run is among those asked for."""
        # Of a damaged run nobody knows the day.
        day, part = run.opened[:10], (self.model or "").lower()
        return (
            self.study in (None, run.study)
            and self.status in (None, run.status)
            and any(part in name.lower() for name in (*run.models, ""))
            and (self.since is None or day >= self.since)
            and (self.until is None or "" < day <= self.until)
        )


def list_runs(root: Path, wanted: Filter | None = None) -> list[RunSummary]:
    """Runs below `root`, newest first.

    Hundreds take well under a second: manifests are read as plain JSON. A folder without a
    manifest is no run (it was killed before there was anything to record).

    Raises:
        RecordError: There is no such status or day.
    """
    wanted = wanted or Filter()
    wanted.check()
    # Hidden ones were killed before they appeared: nothing is recorded in them.
    paths = (p for p in root.glob(f"*/*/{MANIFEST}") if _appeared(p))
    runs = [run for path in paths if wanted.shows(run := _summary(path))]
    return sorted(runs, key=lambda run: (run.opened, run.folder.name), reverse=True)


def _appeared(path: Path) -> bool:
    return not path.parent.name.startswith(".")


def _is_day(text: str) -> bool:
    try:
        # Other ways to write a day are not in the order of their text.
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _summary(path: Path) -> RunSummary:
    folder = path.parent
    try:
        raw = cast("dict[str, Any]", read_json(path))
        run = RunSummary(
            folder=folder,
            study=raw["study"],
            status=live_status(folder, raw["status"]),
            opened=raw["opened"],
            seconds=raw["seconds"],
            models=tuple(raw["models"]),
            config_sha256=raw["config_sha256"],
        )
    except (RecordError, LookupError, TypeError, RecursionError):
        run = None
    if run is not None and _is_sound(run):
        return run
    # One damaged folder must not hide the others; its status says what is the matter.
    return RunSummary(folder, folder.parent.name, "damaged", "", None, (), "")


def _is_sound(run: RunSummary) -> bool:
    """Whether each part is of its kind: the manifest was read unchecked."""
    words = cast("list[object]", [run.study, run.opened, run.config_sha256, *run.models])
    return (
        all(isinstance(word, str) for word in words)
        and run.status in LISTED
        and isinstance(cast("object", run.seconds), int | float | None)
    )
