"""The answers that a run kept in `private/`: read, judged again, compared, and deleted."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from mechsafety.core.errors import RecordError
from mechsafety.records.landing import land_json
from mechsafety.records.locking import is_locked
from mechsafety.records.reading import Run
from mechsafety.records.schema import DERIVED, PRIVATE, own_folder

PURGED: Final = "purged.json"
_ANSWER: Final = ("text", "ids", "verdict", "thinking_open", "max_new_tokens", "cluster")
"""What a line says of an answer; all else in it says which answer it is."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer as it was kept."""

    file: str
    """Name of its file in `private/`."""
    at: tuple[tuple[str, Any], ...]
    """Which answer: arm, prompt set, prompt id, and what edited the model."""
    text: str
    verdict: str
    """As judged in the run."""
    ids: tuple[int, ...] | None
    """New token ids; None in records of before they were kept."""
    thinking_open: bool
    """Whether the prompt opened the thinking block that the answer begins in."""
    max_new_tokens: int | None
    """Answer length; None in records of before it was kept."""
    cluster: str | None
    """The prompt's cluster, which intervals keep whole; None in records of before it was kept."""


def completions(run: Run) -> list[Completion]:
    """Every answer that the run kept; empty where it kept none.

    Raises:
        RecordError: A file is damaged.
    """
    return [one for path in _files(run) for one in _read(path)]


def _files(run: Run) -> list[Path]:
    return sorted((run.folder / PRIVATE).glob("*.jsonl"))


def _read(path: Path) -> Iterator[Completion]:
    number = 0
    try:
        # By "\n" alone: `splitlines` parts lines at characters that answers may hold.
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], start=1):
            row = cast("dict[str, Any]", json.loads(line))
            if number == 1 and not row.keys() & {"text", "verdict"}:
                # Token ids of prompts lie in the same folder.
                return
            yield _completion(path.name, row)
        if lines[-1]:
            raise ValueError("the last line was cut short")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecordError(
            f"reading {path}, line {number}: it is damaged ({error!r}). `mechsafety verify` "
            "names every file that changed."
        ) from None


def _completion(file: str, row: Mapping[str, Any]) -> Completion:
    ids = row.get("ids")
    if not all(isinstance(row[name], str) for name in ("text", "verdict")):
        raise TypeError("its text or its verdict is no text")
    return Completion(
        file=file,
        at=tuple((name, _plain(value)) for name, value in row.items() if name not in _ANSWER),
        text=row["text"],
        verdict=row["verdict"],
        ids=None if ids is None else tuple(map(int, ids)),
        thinking_open=bool(row.get("thinking_open", False)),
        max_new_tokens=row.get("max_new_tokens"),
        cluster=row.get("cluster"),
    )


def _plain(value: Any) -> str | int | float | bool | None:
    # Answers are told apart by it, so that it must be hashable.
    return json.dumps(value) if isinstance(value, list | dict) else value


@dataclass(frozen=True, slots=True)
class Diverged:
    """One answer that is not the same in both records."""

    at: Mapping[str, Any]
    token: int | None
    """Index of the first new token that differs; None where none does, or ids were not kept."""
    before: str
    """Verdict."""
    now: str

    @property
    def flipped(self) -> bool:
        """Whether the verdict changed with it."""
        return self.before != self.now


@dataclass(frozen=True, slots=True)
class AnswersCompared:
    """The answers of two records, by what they answer."""

    n: int
    """Answers that both records have."""
    only_in_one: int
    diverged: tuple[Diverged, ...]

    @property
    def flips(self) -> tuple[Diverged, ...]:
        """Those whose verdict changed."""
        return tuple(one for one in self.diverged if one.flipped)

    @property
    def differ(self) -> bool:
        """Whether any answer is not the same, token by token."""
        return bool(self.diverged or self.only_in_one)


def compare_answers(before: Run, now: Run) -> AnswersCompared | None:
    """Compare kept answers token by token up to where they part, and verdicts.

    Greedy text of half precision changes with the batch: where answers part says more than that
    they do. None where one of the records was to keep no answers, or they were purged.
    """
    if not (_keeps_answers(before) and _keeps_answers(now)):
        return None
    old, new = (_told_apart(completions(run)) for run in (before, now))
    diverged = [
        Diverged(
            {"file": one.file, **dict(one.at)},
            _parting(one, new[key]),
            one.verdict,
            new[key].verdict,
        )
        for key, one in old.items()
        if key in new and _differ(one, new[key])
    ]
    return AnswersCompared(
        n=len(old.keys() & new.keys()),
        only_in_one=len(old.keys() ^ new.keys()),
        diverged=tuple(diverged),
    )


def _told_apart(kept: Iterable[Completion]) -> dict[tuple[object, ...], Completion]:
    """By what they answer; those that answer the same, by their order too."""
    seen: Counter[tuple[object, ...]] = Counter()
    found: dict[tuple[object, ...], Completion] = {}
    for one in kept:
        # Sorted: an answer is known by what is said of it, not by the order in which it is said.
        key = (one.file, tuple(sorted(one.at, key=repr)))
        seen[key] += 1
        found[(*key, seen[key])] = one
    return found


def _differ(before: Completion, now: Completion) -> bool:
    # Records of before ids were kept have texts alone.
    parted = _parting(before, now) is not None
    return parted or (before.text, before.verdict) != (now.text, now.verdict)


def _keeps_answers(run: Run) -> bool:
    # A run that was resumed after a purge has answers again.
    purged = (run.folder / DERIVED / PURGED).exists() and not _files(run)
    return run.manifest.config.get("completions") == "local" and not purged


def _parting(before: Completion, now: Completion) -> int | None:
    if before.ids is None or now.ids is None or before.ids == now.ids:
        return None
    pairs = zip(before.ids, now.ids, strict=False)
    shared = min(len(before.ids), len(now.ids))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shared)


def purge(run: Run) -> list[str]:
    """Delete all that the run kept in `private/`; names of the files.

    The record stays intact: `verify` says that they were purged. When and what goes into
    `derived/purged.json`.

    Raises:
        RecordError: The run is still being written, or the folder cannot be.
    """
    # Whatever it was when it was opened: another process may have resumed it since.
    if is_locked(run.folder):
        raise RecordError(f"purging {run.folder}: the run is still being written. Wait for it.")
    folder, derived = (own_folder(run.folder, name) for name in (PRIVATE, DERIVED))
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(run.folder).as_posix() for path in paths]
    try:
        derived.mkdir(exist_ok=True)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        said = {"time": when, "files": names}
        land_json(derived / PURGED, said)
        shutil.rmtree(folder)
    except OSError as error:
        raise RecordError(f"purging {run.folder}: {error}.") from error
    return names
