# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# Reason: huggingface_hub is partly untyped.
"""What a model's files hold, known before it is opened."""

import hashlib
import json
from pathlib import Path
from typing import Final

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from mechsafety.models.spec import ModelSpec

_WEIGHTS: Final = (".safetensors", ".bin")
_known: dict[Path, tuple[tuple[tuple[str, int, int], ...], str]] = {}


def content_hash(spec: ModelSpec) -> str | None:
    """SHA-256 over all files of the model and its adapter; None where they are not all here yet.

    A hub model is looked up at its revision in the local cache of the Hub's client. Remembered
    while no file of the folder changes size or time.
    """
    asked = [(spec.id, spec.revision, "config.json")]
    if spec.adapter is not None:
        asked.append((spec.adapter, spec.adapter_revision, "adapter_config.json"))
    digest = hashlib.sha256()
    try:
        for name, revision, file in asked:
            local = Path(name).expanduser()
            folder = local if local.is_dir() else _snapshot(name, revision, file)
            if folder is None:
                return None
            # The commit of a hub model too: of the files that are asked for, some may come later.
            commit = "" if folder is local else folder.name
            digest.update(f"{commit}\n{_folder_hash(folder)}\n".encode())
    except (OSError, ValueError, LookupError, TypeError):
        # A file went, is damaged, or not for us to read: opening the model says so.
        return None
    return digest.hexdigest()


def _snapshot(name: str, revision: str | None, file: str) -> Path | None:
    """Where the Hub's client keeps the files of this revision, if the weights are among them."""
    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        # Such as a path that is not there.
        return None
    if not isinstance(cached, str):
        return None
    folder = Path(cached).parent
    return folder if _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    """Whether there are weights, and of sharded ones every shard that one index names."""
    found = {path.name for path in folder.iterdir() if path.is_file()}
    indices = [name for name in found if name.endswith(".index.json")]
    if not indices:
        return any(name.endswith(_WEIGHTS) for name in found)
    read = (json.loads((folder / name).read_text(encoding="utf-8")) for name in indices)
    return any(found.issuperset(dict(index["weight_map"]).values()) for index in read)


def _folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [path.stat() for path in files]
    state = tuple(
        (path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns)
        for path, stat in zip(files, stats, strict=True)
    )
    known = _known.get(folder)
    if known is not None and known[0] == state:
        return known[1]
    digest = hashlib.sha256()
    for path, (name, _, _) in zip(files, state, strict=True):
        with path.open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    _known[folder] = (state, digest.hexdigest())
    return _known[folder][1]
