"""What of a record stays, and what begins anew, where a run goes on in its folder."""

from pathlib import Path
from typing import Any, Final

from mechsafety.core.errors import RecordError
from mechsafety.records.landing import land
from mechsafety.records.schema import Manifest, Session

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


def mend_events(path: Path) -> None:
    """Take away a last line that a kill cut short, so that the next begins on its own."""
    try:
        content = path.read_bytes() if path.exists() else b""
        # By a new file: the old one may be sealed and read-only.
        land(path, content[: content.rfind(b"\n") + 1])
    except OSError as error:
        raise RecordError(f"resuming {path.parent}: {error}.") from None
