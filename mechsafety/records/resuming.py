"""What of a record stays, and what begins anew, where a run goes on in its folder."""

from pathlib import Path
from typing import Any, Final

from mechsafety.core.errors import RecordError
from mechsafety.records.landing import land
from mechsafety.records.schema import (
    CITATIONS,
    EVENTS,
    FINDINGS,
    METRICS,
    PRIVATE,
    REPORT,
    TENSORS,
    Manifest,
    Session,
    own_folder,
)

UNWRITTEN: Final[dict[str, Any]] = {
    name: Manifest.model_fields[name].get_default(call_default_factory=True)
    for name in (
        "closed",
        "seconds",
        "seeds",
        "models",
        "provenance",
        "sources",
        "tolerances",
        "tables",
        "figures",
        "notes",
        "stages",
        "files",
        "private",
        "error",
        "seal",
    )
}
"""What a manifest says of work, as it is before any."""


def session_of(before: Manifest) -> Session:
    """An attempt that did not complete, as the next one remembers it."""
    return Session(
        opened=before.opened,
        status="interrupted" if before.status == "running" else before.status,
        command_line=before.command_line,
        code_sha256=before.environment.code_sha256,
        seconds=before.seconds,
        error=None if before.error is None else before.error.message,
    )


def refuse_to_resume(folder: Path, before: Manifest) -> None:
    """Whether a run may go on.

    Raises:
        RecordError: It completed; or it is a replay, which is worth something only if nothing in
            it was remembered.
    """
    if before.status == "completed":
        raise RecordError(
            f"resuming {folder}: it completed, and a completed record never changes. "
            "`mechsafety replay` runs it again beside it."
        )
    if before.replay_of is not None:
        raise RecordError(
            f"resuming {folder}: it is a replay of {before.replay_of.run}, and takes nothing from "
            "what was computed before. Replay that record again."
        )


def clear_attempt(folder: Path) -> None:
    """Take away what an earlier attempt left: none of it is of the one that begins.

    Events stay, without a last line that a kill cut short.

    Raises:
        RecordError: The folder cannot be written.
    """
    events = folder / EVENTS
    try:
        content = events.read_bytes() if events.exists() else b""
        # By a new file: the old one may be sealed and read-only.
        land(events, content[: content.rfind(b"\n") + 1])
        for name in (METRICS, FINDINGS, TENSORS, REPORT, CITATIONS):
            (folder / name).unlink(missing_ok=True)
        for part in folder.rglob(".*.part"):
            part.unlink(missing_ok=True)
        private = own_folder(folder, PRIVATE)
        for path in private.glob("*"):
            path.unlink()
    except OSError as error:
        raise RecordError(f"resuming {folder}: {error}.") from None
