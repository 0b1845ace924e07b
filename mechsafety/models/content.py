# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# Reason: huggingface_hub is partly untyped.
"""What a model's files hold, known before it is opened."""

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from mechsafety.models.spec import ModelSpec

_known: dict[Path, tuple[tuple[tuple[str, int, int], ...], str]] = {}


def content_hash(spec: ModelSpec) -> str | None:
    """SHA-256 over all files of the model and its adapter; None where they are not all here yet.

    A hub model is looked up at its revision in the local cache of the Hub's client. Remembered
    while no file of the folder changes size or time.
    """
    parts = [_folder_hash(folder) for folder in _folders(spec) if folder is not None]
    if len(parts) != len(_folders(spec)):
        return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _folders(spec: ModelSpec) -> list[Path | None]:
    found = [_folder(spec.id, spec.revision, "config.json")]
    if spec.adapter is not None:
        found.append(_folder(spec.adapter, spec.adapter_revision, "adapter_config.json"))
    return found


def _folder(name: str, revision: str | None, file: str) -> Path | None:
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    # The client refuses names that no hub id can have, such as a path that is not there.
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    cached = try_to_load_from_cache(name, file, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


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
