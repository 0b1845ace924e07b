"""Where organisms lie, and what makes two of them the same: recipe, seed, base, code and torch."""

import ast
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import mechsafety
from mechsafety.core.config import config_hash
from mechsafety.core.errors import ModelError
from mechsafety.organisms.recipes import Organism, recipe

# Files that decide an organism's weights or its card. Recipes enter by value.
_CODE: Final = (
    "core/seeding.py",
    "linalg/balls.py",
    "data/synthetic_language.py",
    "data/synthetic_requests.py",
    "models/tails.py",
    "training/*.py",
    "organisms/behavior.py",
    "organisms/card.py",
    "organisms/corpora.py",
    "organisms/making.py",
    "organisms/prompts.py",
    "organisms/tokenizer.py",
)


def cache_root() -> Path:
    """`$MECHSAFETY_CACHE`, else `$XDG_CACHE_HOME/mechsafety`, else `~/.cache/mechsafety`."""
    if chosen := os.environ.get("MECHSAFETY_CACHE"):
        return Path(chosen).expanduser()
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen).expanduser() / "mechsafety"
    return Path.home() / ".cache" / "mechsafety"


@lru_cache
def code_version() -> str:
    """SHA-256 of the code that decides an organism, without its comments and docstrings."""
    package = Path(mechsafety.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(found for pattern in _CODE for found in package.glob(pattern)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        digest.update(str(path.relative_to(package)).encode())
        digest.update(ast.dump(_without_docstrings(tree)).encode())
    return digest.hexdigest()


def recipe_hash(organism: Organism) -> str:
    """What the organism's folder is found by; that of its base enters an arm's."""
    base = None if organism.arm == "base" else recipe_hash(base_of(organism))
    parts = [
        organism.model_dump(),
        config_hash(recipe(organism)),
        base,
        code_version(),
        version("torch"),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def base_of(organism: Organism) -> Organism:
    """The base model that an arm starts from: of its seed, preset and size."""
    return organism.model_copy(update={"arm": "base"})


def folder_of(organism: Organism, cache: Path | None = None) -> Path:
    """Where the organism lies once it is built."""
    # A size other than the default one has the default preset.
    kind = organism.preset if organism.size == "default" else organism.size
    name = f"{organism.arm}-s{organism.seed}-{kind}-{recipe_hash(organism)[:12]}"
    return (cache or cache_root()) / "organisms" / name


@contextmanager
def landing(folder: Path) -> Generator[Path | None]:
    """An empty folder that becomes `folder` if the block ends well; None where it is there already.

    One process at a time: another that wants the same folder waits, and then finds it. What a
    killed process left behind is removed by the next.

    Raises:
        ModelError: The cache cannot be written.
    """
    locks = folder.parent / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = (locks / f"{folder.name}.lock").open("w")
    except OSError as error:
        raise ModelError(
            f"building into {folder}: the cache cannot be written ({error}). Set MECHSAFETY_CACHE "
            "to a folder that can."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            yield None
            return
        for stale in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(stale)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield part
            part.chmod(0o755)
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_string(part)]
    return tree


def _is_string(part: ast.stmt) -> bool:
    return (
        isinstance(part, ast.Expr)
        and isinstance(part.value, ast.Constant)
        and isinstance(part.value.value, str)
    )
