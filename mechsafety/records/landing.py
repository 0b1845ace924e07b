"""Files that land whole: written beside their place, flushed to disk, then renamed into it."""

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

from mechsafety.core.errors import RecordError


def land(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that no reader and no crash ever sees half of it.

    Raises:
        RecordError: The folder cannot be written or the disk is full; what stood at `path`
            before still does.
    """
    # Hidden and random: a leftover of a killed run is never mistaken for a file of the record.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RecordError(
            f"writing {path}: {error.strerror or error}. What was recorded before is intact; "
            "free space or choose another folder with --out."
        ) from error
    finally:
        # What cannot be removed is hidden, and swept when the run is resumed.
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def land_json(path: Path, value: object) -> None:
    """As `land`, with a JSON value that holds no NaN."""
    land(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
