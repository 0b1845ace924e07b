# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pandas and safetensors come without complete types.
"""Reading run folders, finished or not; nothing here imports torch until a tensor is asked for."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from mechsafety.core.errors import RecordError, did_you_mean
from mechsafety.core.result import Finding
from mechsafety.records.locking import is_locked
from mechsafety.records.metrics_table import from_parquet
from mechsafety.records.schema import (
    EVENTS,
    FINDINGS,
    MANIFEST,
    METRICS,
    REPORT,
    TENSORS,
    Manifest,
    Status,
    parse_manifest,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


@dataclass(frozen=True)
class Run:
    """One run folder. Parts that a killed or failed run never wrote are empty or None."""

    folder: Path
    manifest: Manifest

    @property
    def status(self) -> Status:
        """The manifest's, or `interrupted` where it says `running` and nobody holds the lock."""
        return live_status(self.folder, self.manifest.status)

    def raw_manifest(self) -> dict[str, Any]:
        """`manifest.json` as it stands in the file, of whatever version."""
        return cast("dict[str, Any]", read_json(self.folder / MANIFEST))

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """The findings; empty where the run did not come so far."""
        if not self._was_written(FINDINGS):
            return ()
        raw = read_json(self.folder / FINDINGS)
        try:
            return tuple(Finding.model_validate(item) for item in cast("list[object]", raw))
        except (ValidationError, TypeError) as error:
            raise RecordError(f"reading {self.folder / FINDINGS}: {error}") from None

    def _was_written(self, name: str) -> bool:
        if (self.folder / name).exists():
            return True
        if self.status == "completed":
            # A part that was lost must not read as a part that never was.
            raise RecordError(
                f"reading {self.folder / name}: the run completed and the file is gone. "
                "`mechsafety verify` names every file that changed."
            )
        return False

    def metrics(self, table: str | None = None) -> "pd.DataFrame":
        """One row a number: table, metric, value, ci_low, ci_high, n, unit, dimensions.

        Args:
            table: Only this table, without the columns that it does not use.

        Raises:
            RecordError: The run has no metrics, or no such table; the message lists them.
        """
        if not self._was_written(METRICS):
            raise RecordError(
                f"reading the metrics of {self.folder}: the run is '{self.status}' and wrote none."
            )
        frame = from_parquet(self.folder / METRICS)
        if table is None:
            return frame
        entries = {entry.name: entry for entry in self.manifest.tables}
        if table not in entries:
            raise RecordError(
                f"reading the metrics of {self.folder}: it has no table '{table}'. "
                + did_you_mean(table, entries)
            )
        unused = set(frame.columns[7:]) - set(entries[table].dimensions)
        return frame.loc[frame["table"] == table].drop(columns=list(unused)).reset_index(drop=True)

    def tensor_names(self) -> tuple[str, ...]:
        """Names in `tensors.safetensors`, in order; read from its header alone."""
        path = self.folder / TENSORS
        if not self._was_written(TENSORS):
            return ()
        from safetensors import SafetensorError, safe_open

        try:
            # numpy, because the header is the same and torch takes seconds to import.
            with safe_open(path, framework="numpy") as file:
                return tuple(sorted(file.keys()))
        except SafetensorError as error:
            raise RecordError(f"reading {path}: it is damaged ({error}).") from None

    def tensor(self, name: str) -> "Tensor":
        """One tensor, on the CPU.

        Raises:
            RecordError: No such tensor, or a damaged file.
        """
        if name not in self.tensor_names():
            raise RecordError(
                f"reading tensors of {self.folder}: there is no '{name}'. "
                + did_you_mean(name, self.tensor_names())
            )
        from safetensors import safe_open

        with safe_open(self.folder / TENSORS, framework="pt") as file:
            return file.get_tensor(name)

    def events(self) -> list[dict[str, Any]]:
        """Lines of `events.jsonl`; a last line that a kill cut short is left out."""
        path = self.folder / EVENTS
        if not path.exists():
            return []
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
            # A whole line ends with a newline, so what follows the last one was cut short.
            return [dict(json.loads(line)) for line in lines[:-1]]
        except (ValueError, TypeError, RecursionError) as error:
            raise RecordError(f"reading {path}: it is damaged ({error}).") from None

    @property
    def report(self) -> Path | None:
        """The page that was rendered with the run, if it came so far."""
        path = self.folder / REPORT
        return path if path.exists() else None


def open_run(path: Path | str) -> Run:
    """The run in a folder; the path of a file in the folder serves too.

    Raises:
        RecordError: No run there, or its manifest is damaged or of a newer version.
    """
    folder = Path(path)
    if folder.is_file():
        folder = folder.parent
    if not (folder / MANIFEST).is_file():
        raise RecordError(
            f"opening the run {path}: there is no {MANIFEST} in {folder}. Give a run folder such "
            "as runs/<study>/<time>-<hash>; `mechsafety runs` lists them."
        )
    raw = read_json(folder / MANIFEST)
    return Run(folder, parse_manifest(raw, str(folder / MANIFEST)))


def live_status(folder: Path, written: Status) -> Status:
    """The status that a manifest states, or `interrupted` where its writer is no more."""
    return "interrupted" if written == "running" and not is_locked(folder) else written


def read_json(path: Path) -> object:
    """A JSON file of a record.

    Raises:
        RecordError: Missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(
            f"reading {path}: it is damaged ({error}). `mechsafety verify` names every file that "
            "changed."
        ) from None
