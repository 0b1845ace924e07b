# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# safetensors comes without complete types.
"""Results of finished work by the content of what went into it, so that nothing is done twice.

A run that was killed finds there what it had finished; so does another run that asks the same.
An entry is one file that appears by rename: two runs never see half of one another's.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mechsafety.core.errors import RecordError
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
from mechsafety.records.schema import Environment

_RUNTIME: Final = "mechsafety.core.config:Runtime"
_PACKAGES: Final = (
    "torch",
    "transformers",
    "transformer-lens",
    "tokenizers",
    "numpy",
    "scipy",
    "peft",
    "accelerate",
    "bitsandbytes",
)
"""Distributions whose version may change the last bit of a result."""


def fingerprint(environment: Environment) -> str:
    """SHA-256 of the code and of all in the environment that may change a result."""
    hardware = {k: v for k, v in environment.hardware.items() if k not in ("cores", "memory_gib")}
    parts = {
        "code": environment.code_sha256,
        "python": environment.python,
        "packages": {name: environment.packages.get(name) for name in _PACKAGES},
        "hardware": hardware,
        "threads": environment.threads,
        "determinism": environment.determinism,
    }
    return hashlib.sha256(tree_text(pack(parts, "the environment").tree).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """One result as it was found."""

    value: Any
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
        self._fingerprint = fingerprint
        self._root = root or stages_root()

    def key(self, function: Callable[..., object], job: Packed) -> str | None:
        """What `function(job)` is found by; None where a model of the job is not here yet.

        Name of the function, the job in full, the content of every model's files that it names,
        and the fingerprint. The number of workers is left out: no result depends on it.
        """
        models = [content_hash(ModelSpec.model_validate(v)) for v in _specs(job.tree)]
        if None in models:
            return None
        parts = (
            self._fingerprint,
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
        if not path.exists():
            return None
        try:
            tree, tensors, stated = _read(path)
            if packed_hash(tree, tensors) != stated:
                raise RecordError("its content does not have the hash that it states")
            value = unpack(tree, tensors, set(packages))
        except (OSError, SafetensorError, RecordError, ValueError, KeyError) as error:
            path.unlink(missing_ok=True)
            raise RecordError(f"reading the cached result {path}: {error}.") from None
        # The time of last use, by which `prune` goes.
        os.utime(path)
        return Entry(value, stated)

    def store(self, key: str, packed: Packed) -> None:
        """Keep a result.

        Raises:
            RecordError: It cannot be written; nothing is left of it.
        """
        path = self._path(key)
        beside = path.with_name(f".{key}.{secrets.token_hex(4)}.part")
        metadata = {"tree": tree_text(packed.tree), "sha256": packed.sha256}
        tensors = {str(i): t.contiguous().clone() for i, t in enumerate(packed.tensors)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, metadata)
            beside.replace(path)
        except (OSError, SafetensorError) as error:
            raise RecordError(f"keeping a result in {path}: {error}.") from error
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / f"{key}.safetensors"


def prune(root: Path | None = None) -> int:
    """Remove the entries that were not used for longest until the rest fits; how many went.

    All may take `$MECHSAFETY_CACHE_GIB` GiB, 20 where that is not set.
    """
    limit_bytes = float(os.environ.get("MECHSAFETY_CACHE_GIB", "20")) * 2**30
    entries: list[tuple[float, int, Path]] = []
    for path in (root or stages_root()).glob("*/*.safetensors"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            # Another run removed it meanwhile.
            continue
        entries.append((stat.st_mtime, stat.st_size, path))
    total, removed = sum(size for _, size, _ in entries), 0
    for _, size, path in sorted(entries):
        if total <= limit_bytes:
            break
        path.unlink(missing_ok=True)
        total, removed = total - size, removed + 1
    return removed


def _read(path: Path) -> tuple[object, list[Tensor], str]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = [file.get_tensor(str(i)) for i in range(len(list(file.keys())))]
    return json.loads(metadata["tree"]), tensors, str(metadata["sha256"])


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
