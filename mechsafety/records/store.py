# pyright: reportUnknownMemberType=false
# PyYAML comes without complete types.
"""Writing a run folder: opened before work starts, closed with a status.

A completed record never changes; one that did not complete can be resumed in its folder.
"""

import json
import os
import shutil
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import yaml

from mechsafety.core.config import StudyConfig, config_hash
from mechsafety.core.errors import RecordError, SelfCheckError
from mechsafety.core.result import Result
from mechsafety.records.appearing import appear, hidden_folder
from mechsafety.records.checking import check_findings, check_tables, label_exploratory
from mechsafety.records.landing import land, land_json, sha256_of
from mechsafety.records.locking import RunLock
from mechsafety.records.metrics_table import entries_of, to_parquet
from mechsafety.records.reading import Run, open_run
from mechsafety.records.resuming import UNWRITTEN, clear_attempt, refuse_to_resume, session_of
from mechsafety.records.schema import (
    CITATIONS,
    CONFIG,
    DERIVED,
    EVENTS,
    FINDINGS,
    LOCK,
    MANIFEST,
    METRICS,
    PRIVATE,
    REPORT,
    TENSORS,
    Environment,
    Failure,
    FileEntry,
    Manifest,
    ModelUsed,
    Parent,
    StageTiming,
    check_inside,
    declared_findings,
    declared_hash,
    manifest_seal,
)

if TYPE_CHECKING:
    from torch import Tensor


class RunWriter:
    """The one writer of a run folder. `create` opens it; `close` seals it."""

    def __init__(self, folder: Path, lock: RunLock, manifest: Manifest) -> None:
        self.folder = folder
        self._lock = lock
        self._manifest = manifest
        self._opened = monotonic()
        self._closed = False
        self._events = (folder / EVENTS).open("a", encoding="utf-8")

    @classmethod
    def create(
        cls,
        out: Path,
        config: StudyConfig,
        environment: Environment,
        command_line: Sequence[str],
        experiment: Path | None = None,
        replay_of: Run | None = None,
    ) -> "RunWriter":
        """Make `out/<study>/<UTC>-<hash8>/` and record in it all that is known before the work.

        The folder appears under its name together with its manifest.

        Raises:
            RecordError: `out` cannot be written.
        """
        now = datetime.now(UTC)
        declared = declared_findings(config)
        digest = config_hash(config)
        parent, name = out / config.study, f"{now:%Y%m%dT%H%M%SZ}-{digest[:8]}"
        making = hidden_folder(parent, name)
        lock = RunLock(making)
        try:
            manifest = Manifest(
                run=name,
                study=config.study,
                status="running",
                opened=now.isoformat(timespec="seconds"),
                command_line=tuple(command_line),
                replay_of=None if replay_of is None else _parent(replay_of, parent / name),
                experiment=None if experiment is None else str(experiment),
                config=config.model_dump(mode="json"),
                config_sha256=digest,
                declared=declared,
                declared_sha256=declared_hash(declared),
                seed=config.seed,
                environment=environment,
            )
            text = yaml.safe_dump(manifest.config, sort_keys=False, allow_unicode=True)
            land(making / CONFIG, text.encode())
            folder, manifest = appear(making, parent, name, manifest)
            writer = cls(folder, lock, manifest)
            writer.event("opened", run=folder.name)
        except BaseException:
            lock.release()
            shutil.rmtree(making, ignore_errors=True)
            raise
        return writer

    @classmethod
    def resume(cls, run: Run, environment: Environment, command_line: Sequence[str]) -> "RunWriter":
        """Go on in the folder of a run that did not complete.

        Raises:
            RecordError: It completed, is a replay, another process is writing it, or it cannot be
                written.
        """
        lock = RunLock(run.folder)
        try:
            # Read again under the lock: another process may have gone on meanwhile.
            before = open_run(run.folder).manifest
            refuse_to_resume(run.folder, before)
            manifest = before.model_copy(
                update={
                    **UNWRITTEN,
                    "status": "running",
                    "opened": datetime.now(UTC).isoformat(timespec="seconds"),
                    "command_line": tuple(command_line),
                    "environment": environment,
                    "sessions": (*before.sessions, session_of(before)),
                }
            )
            land_json(run.folder / MANIFEST, manifest.model_dump(mode="json"))
            clear_attempt(run.folder)
            writer = cls(run.folder, lock, manifest)
            writer.event("resumed", session=len(manifest.sessions) + 1)
        except BaseException:
            lock.release()
            raise
        return writer

    @property
    def manifest(self) -> Manifest:
        """As it stands now; on disk it is the one of the opening until the run closes."""
        return self._manifest

    def event(self, kind: str, **details: Any) -> None:
        """Append one line to `events.jsonl`, flushed, so that a killed run tells how far it came.

        Raises:
            RecordError: The line cannot be written, or the run is closed.
        """
        self._check_open("an event")
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 4),
            "kind": kind,
            **details,
        }
        try:
            self._events.write(json.dumps(line, default=str) + "\n")
            self._events.flush()
        except OSError as error:
            raise RecordError(
                f"writing {self.folder / EVENTS}: {error.strerror or error}. What was recorded "
                "before is intact."
            ) from error

    @property
    def seconds(self) -> float:
        """Since the run was opened."""
        return monotonic() - self._opened

    def write_private(self, name: str, content: bytes) -> Path:
        """Put a file into `private/`: its owner's alone, outside the seal, the report and wandb.

        Raises:
            RecordError: It cannot be written, or its name leads elsewhere.
        """
        self._check_open("a private file")
        folder = self.folder / PRIVATE
        try:
            check_inside(name)
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
        except (ValueError, OSError) as error:
            raise RecordError(f"writing a private file of {self.folder}: {error}.") from None
        land(folder / name, content)
        # Copies of the folder may lose its mode, and these keep theirs.
        (folder / name).chmod(0o600)
        return folder / name

    def write_result(self, result: Result) -> None:
        """Check the result against itself and put its files into the folder.

        Tables and tensors land before the findings are checked: a finding at fault must not
        cost the numbers that would show why.

        Raises:
            SelfCheckError: The result contradicts itself, or a finding lacks n, interval or null.
        """
        self._check_open("a result")
        provenance = _plain_json(result.provenance)
        check_tables(result.tables)
        land(self.folder / METRICS, to_parquet(result.tables))
        land(self.folder / TENSORS, _safetensors(result.tensors))
        self._manifest = self._manifest.model_copy(
            update={
                "tables": entries_of(result.tables),
                "figures": tuple(result.figures),
                "notes": tuple(result.notes),
                "provenance": provenance,
                "tolerances": result.tolerances,
            }
        )
        check_findings(result.findings, self._manifest.declared)
        findings = label_exploratory(result.findings, self._manifest.declared)
        land_json(self.folder / FINDINGS, [finding.model_dump(mode="json") for finding in findings])

    def note_use(
        self,
        *,
        seeds: Mapping[str, int],
        models: Mapping[str, ModelUsed],
        stages: Sequence[StageTiming],
        sources: Mapping[str, tuple[str, ...]],
    ) -> None:
        """Keep for the manifest what the run used: derived seeds, models, stages, methods."""
        self._manifest = self._manifest.model_copy(
            update={
                "seeds": dict(seeds),
                "models": dict(models),
                "stages": tuple(stages),
                "sources": dict(sources),
            }
        )

    def write_report(self, html: str) -> Path:
        """Put the rendered page into the folder."""
        self._check_open("a report")
        path = self.folder / REPORT
        land(path, html.encode())
        return path

    def write_citations(self, bibtex: str) -> None:
        """Put the BibTeX entries of the methods used into the folder."""
        self._check_open("citations")
        land(self.folder / CITATIONS, bibtex.encode())

    def close(
        self,
        status: Literal["completed", "failed", "interrupted"],
        error: BaseException | None = None,
    ) -> Manifest:
        """Write the status, the hashes of all files and the seal, and free the lock.

        Raises:
            RecordError: The manifest cannot be written; the folder then reads `interrupted`.
        """
        failure = None
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            failure = Failure(kind=type(error).__name__, message=str(error), traceback=trace)
        try:
            self.event("closed", status=status, **({"error": failure.kind} if failure else {}))
            self._events.close()
            closing = self._manifest.model_copy(
                update={
                    "status": status,
                    "closed": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(self.seconds, 3),
                    "files": {
                        name: _entry(self.folder / name) for name in sealed_files(self.folder)
                    },
                    "private": {
                        name: _entry(self.folder / name) for name in private_files(self.folder)
                    },
                    "error": failure,
                }
            )
            seal = manifest_seal(closing.model_dump(mode="json"))
            self._manifest = closing.model_copy(update={"seal": seal})
            land_json(self.folder / MANIFEST, self._manifest.model_dump(mode="json"))
            for name in (*self._manifest.files, MANIFEST):
                (self.folder / name).chmod(0o444)
        finally:
            self._closed = True
            self._lock.release()
            # On a full disk closing would try once more to write what `event` could not.
            with suppress(OSError):
                self._events.close()
        return self._manifest

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise RecordError(
                f"writing {what} into {self.folder}: the run is closed, and a closed record never "
                "changes. Start a new run."
            )


def sealed_files(folder: Path) -> list[str]:
    """Files of a run folder that its seal covers: all but the manifest, `derived`, `private`."""
    return [
        name
        for name in _files(folder)
        if name not in (MANIFEST, LOCK) and name.split("/")[0] not in (DERIVED, PRIVATE)
    ]


def private_files(folder: Path) -> list[str]:
    """Files under `private/`."""
    return [name for name in _files(folder) if name.startswith(f"{PRIVATE}/")]


def _files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)


def _parent(run: Run, folder: Path) -> Parent:
    where = os.path.relpath(run.folder.resolve(), folder.resolve())
    return Parent(run=run.manifest.run, folder=where, seal=run.manifest.seal)


def _plain_json(value: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SelfCheckError(
            f"recording the provenance: {error}. It holds names, numbers and hashes only."
        ) from None


def _safetensors(tensors: Mapping[str, "Tensor"]) -> bytes:
    if not tensors:
        # An empty file of the format, without importing torch for it.
        from safetensors import serialize

        return serialize({})
    from safetensors.torch import save

    # Views share storage, which the format refuses; `clone` also drops the unused rest of it.
    return save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
