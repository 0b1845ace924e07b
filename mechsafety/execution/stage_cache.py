# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# safetensors comes without complete types.
"""Results of finished work by the content of what went into it, so that nothing is done twice.

A run that was killed finds there what it had finished; so does another run that asks the same.
An entry is one file that appears by rename: two runs never see half of one another's.
"""

import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from mechsafety.core.errors import ConfigError, RecordError
from mechsafety.execution.packing import (
    Packed,
    name_of,
    nodes,
    pack,
    packed_hash,
    tree_text,
    unpack,
)
from mechsafety.models.content import content_hash
from mechsafety.models.spec import ModelSpec
from mechsafety.organisms.cache import cache_root
from mechsafety.records.environments import decides_bits
from mechsafety.records.landing import sha256_of
from mechsafety.records.schema import Environment

_RUNTIME: Final = "mechsafety.core.config:Runtime"
_OURS: Final = "mechsafety"
_TREE: Final = "tree"
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_GIB: Final = "MECHSAFETY_CACHE_GIB"
_STALE_SECONDS: Final = 24 * 60 * 60


def fingerprint(environment: Environment) -> str:
    """SHA-256 of the code and of all in the environment that may change a result."""
    hardware = {k: v for k, v in environment.hardware.items() if k not in ("cores", "memory_gib")}
    parts = {
        "code": environment.code_sha256,
        "python": environment.python,
        "packages": {n: v for n, v in sorted(environment.packages.items()) if decides_bits(n)},
        "hardware": hardware,
        "threads": environment.threads,
        "determinism": environment.determinism,
    }
    return hashlib.sha256(tree_text(pack(parts, "the environment").tree).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """One result as it was found."""

    value: Any
    tree: object
    """As packed."""
    sha256: str
    """Of the packed value."""


def stages_root() -> Path:
    """`$MECHSAFETY_STAGES`, such as a fast local disk, else `stages/` of the cache."""
    if chosen := os.environ.get("MECHSAFETY_STAGES"):
        return Path(chosen).expanduser()
    return cache_root() / "stages"


class StageCache:
    """Entries of one version of the code on one kind of machine."""

    def __init__(self, fingerprint: str, root: Path | None = None) -> None:
        # Told before the work, not after it.
        limit_bytes()
        self._fingerprint = fingerprint
        self._root = root or stages_root()

    def key(self, function: Callable[..., object], job: Packed) -> str | None:
        """What `function(job)` is found by; None where a model of the job is not here yet.

        Name of the function, the job in full, the content of every model's files that it names,
        the fingerprint, and the code of the function's package where that is not ours. The number
        of workers is left out: no result depends on it.
        """
        models = [content_hash(ModelSpec.model_validate(v)) for v in _specs(job.tree)]
        code = _foreign_code(function.__module__.partition(".")[0])
        if code is None or None in models:
            return None
        parts = (
            self._fingerprint,
            code,
            name_of(function),
            packed_hash(_without_workers(job.tree), job.tensors),
            *map(str, models),
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def load(self, key: str, packages: Iterable[str]) -> Entry | None:
        """The entry, or None where there is none.

        Raises:
            RecordError: It is damaged. It is gone then, so that the work can be done again.
        """
        path = self._path(key)
        try:
            tree, tensors, stated = _read(path)
            if packed_hash(tree, tensors) != stated:
                raise RecordError("its content does not have the hash that it states")
            value = unpack(tree, tensors, set(packages))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, SafetensorError, RecordError, ValueError, LookupError, TypeError) as error:
            # Where it cannot be removed, the next result replaces it.
            with suppress(OSError):
                path.unlink()
            raise RecordError(f"reading the cached result {path}: {error}.") from None
        # The time of last use, by which `prune` goes; another run may have pruned it meanwhile.
        with suppress(OSError):
            os.utime(path)
        return Entry(value, tree, stated)

    def store(self, key: str, packed: Packed) -> None:
        """Keep a result.

        Raises:
            RecordError: It cannot be written; nothing is left of it.
        """
        path = self._path(key)
        beside = path.with_name(f".{key}.{secrets.token_hex(4)}.part")
        tensors = {str(i): t.contiguous().clone() for i, t in enumerate(packed.tensors)}
        # As a tensor, because the format has room for 100 MB of metadata.
        tree = bytearray(tree_text(packed.tree).encode())
        tensors[_TREE] = torch.frombuffer(tree, dtype=torch.uint8)
        try:
            # Its owner's alone: results hold activations and answers.
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            save_file(tensors, beside, {"sha256": packed.sha256})
            beside.replace(path)
        except (OSError, SafetensorError) as error:
            raise RecordError(f"keeping a result in {path}: {error}.") from error
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return _path(self._root, key)


def limit_bytes() -> float:
    """What finished work may take on disk: `$MECHSAFETY_CACHE_GIB` GiB, 20 where that is not set.

    Raises:
        ConfigError: It is no number of GiB.
    """
    text = os.environ.get(_GIB) or "20"
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    # So written that NaN is refused too.
    if not gib >= 0:
        raise ConfigError(
            f"reading the environment: {_GIB} is {text!r}. Expected how many GiB finished work "
            "may take on disk, such as 20 or 0.5; 0 keeps none."
        )
    return gib * 2**30


def _path(root: Path, key: str) -> Path:
    return root / key[:2] / f"{key}.safetensors"


def forget(keys: Iterable[object], root: Path | None = None) -> None:
    """Remove entries, such as those that hold answers which are not to be kept.

    What is no key is passed over: records name keys, and one from elsewhere may name any file.

    Raises:
        RecordError: One cannot be removed.
    """
    for key in keys:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            continue
        path = _path(root or stages_root(), key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"removing the cached result {path}: {error}.") from None


def prune(root: Path | None = None) -> int:
    """Remove the entries that were not used for longest until the rest fits; how many went.

    With them goes what killed runs left half-written a day ago or longer.

    Raises:
        ConfigError: As `limit_bytes`.
    """
    root, limit = root or stages_root(), limit_bytes()
    for path, stat in _files(root, "*/.*.part"):
        if time.time() - stat.st_mtime > _STALE_SECONDS:
            with suppress(OSError):
                path.unlink()
    entries = [(s.st_mtime, s.st_size, path) for path, s in _files(root, "*/*.safetensors")]
    total, removed = sum(size for _, size, _ in entries), 0
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        total -= size
        # Another run may have removed it first.
        with suppress(OSError):
            path.unlink()
            removed += 1
    return removed


def _files(root: Path, pattern: str) -> list[tuple[Path, os.stat_result]]:
    """Files that are still there when they are looked at: other runs prune too."""
    found: list[tuple[Path, os.stat_result]] = []
    for path in root.glob(pattern):
        with suppress(OSError):
            found.append((path, path.stat()))
    return found


def _read(path: Path) -> tuple[object, list[Tensor], str]:
    # Opened once: safetensors' own reader opens a file twice, and another run's may come between.
    content = path.read_bytes()
    found = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = bytes(cast("Any", found.pop(_TREE).numpy()))
    tensors = [found[str(i)] for i in range(len(found))]
    return json.loads(text), tensors, header["__metadata__"]["sha256"]


@lru_cache
def _foreign_code(package: str) -> str | None:
    """SHA-256 of a package's own source, which the fingerprint lacks; None where it has no file."""
    if package == _OURS:
        return ""
    module = sys.modules[package]
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    if not folders:
        if getattr(module, "__file__", None) is None:
            return None
        files = [Path(str(module.__file__))]
    return hashlib.sha256("\n".join(map(sha256_of, files)).encode()).hexdigest()


def _specs(tree: object) -> list[Mapping[str, Any]]:
    found = nodes(tree, name_of(ModelSpec))
    # One hash a model, however often the job names it.
    return list({tree_text(fields): fields for fields in found}.values())


def _without_workers(tree: object) -> object:
    if isinstance(tree, list):
        return [_without_workers(one) for one in cast("list[object]", tree)]
    if not isinstance(tree, dict):
        return tree
    node = {name: _without_workers(one) for name, one in cast("dict[str, object]", tree).items()}
    if node.get("c") == _RUNTIME:
        cast("dict[str, object]", node["v"]).pop("workers", None)
    return node
