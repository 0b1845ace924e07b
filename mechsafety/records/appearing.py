"""A run folder appears under its name together with its manifest, or not at all."""

import errno
import secrets
import shutil
import time
from itertools import count
from pathlib import Path
from typing import Final

from mechsafety.core.errors import RecordError
from mechsafety.records.landing import land_json
from mechsafety.records.schema import MANIFEST, Manifest

_STALE_SECONDS: Final = 60 * 60


def hidden_folder(parent: Path, name: str) -> Path:
    """Where a folder is made before it appears; a kill leaves it hidden, and nobody's run.

    What kills left there an hour ago or longer is removed.
    """
    making = parent / f".{name}.{secrets.token_hex(4)}.part"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(".*.part"):
            # A folder is made and appears within a second; nobody works in an old one.
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        making.mkdir()
    except OSError as error:
        raise unwritable(parent, error) from None
    return making


def appear(making: Path, parent: Path, name: str, manifest: Manifest) -> tuple[Path, Manifest]:
    """Give the folder the first name that no other run has. A rename never replaces a run."""
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        named = manifest.model_copy(update={"run": folder.name})
        land_json(making / MANIFEST, named.model_dump(mode="json"))
        try:
            making.rename(folder)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                continue
            raise unwritable(parent, error) from None
        return folder, named
    raise AssertionError("count() ended")


def unwritable(parent: Path, error: OSError) -> RecordError:
    """Why no run folder can be made."""
    return RecordError(
        f"making a run folder in {parent}: {error.strerror or error}. Choose a folder that "
        "can be written with --out."
    )
