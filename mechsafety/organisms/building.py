"""Organisms by name: found in the cache, or trained side by side in processes of their own."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, cast

from tqdm import tqdm

import mechsafety
from mechsafety.core.errors import ModelError, WorkerError
from mechsafety.core.progress import say
from mechsafety.data.synthetic_language import Preset
from mechsafety.organisms.cache import base_of, cache_root, folder_of, recipe_hash
from mechsafety.organisms.recipes import DEFAULT_ARMS, Adversarial, Organism, recipe
from mechsafety.organisms.worker import Job

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def build(
    names: Sequence[str | Organism] = DEFAULT_ARMS,
    seed: int | None = None,
    preset: Preset | None = None,
    workers: int = 2,
    cache: Path | None = None,
) -> dict[str, Path]:
    """The folder of each named organism; what is missing is trained and measured first.

    Bases come first, arms side by side, one process with one thread each; a base that must be
    waited for takes the threads of all workers, which changes no bit of it (tested).

    Args:
        names: Arms, or names such as `organism:lat@seed=1`; several seeds and sizes may mix.
        seed: Replaces the seed of every name.
        preset: Replaces the preset of every name.
        workers: Processes at a time.
        cache: Where organisms lie; `cache_root()` where None.

    Raises:
        ConfigError: A name that is no organism.
        ModelError: The cache cannot be written.
        WorkerError: A training process failed; its last words are in the message.
    """
    given: dict[str, object] = {
        key: value for key, value in (("seed", seed), ("preset", preset)) if value is not None
    }
    asked: dict[str, Organism] = {}
    for name in names:
        organism = Organism.parse(name) if isinstance(name, str) else name
        asked[str(name)] = organism.model_copy(update=given)
    root = cache or cache_root()
    missing: dict[str, Organism] = {}
    for organism in asked.values():
        # Where an arm is there, nobody needs its base.
        for needed in () if _is_built(organism, root) else (base_of(organism), organism):
            if not _is_built(needed, root):
                missing[str(needed)] = needed
    if missing:
        _make_root(root)
        say(
            f"building {len(missing)} organisms in {root / 'organisms'}: "
            + ", ".join(name.removeprefix("organism:") for name in missing)
        )
        _Builders(root, workers).run(list(missing.values()))
    return {name: folder_of(organism, root) for name, organism in asked.items()}


def resolve(name: str, workers: int = 2) -> Path:
    """The folder of one organism, built if missing.

    Raises:
        ConfigError: Not an organism's name.
    """
    return build([name], workers=workers)[name]


def _make_root(root: Path) -> None:
    try:
        (root / "organisms").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"building organisms: the cache {root} cannot be written ({error}). Set "
            "MECHSAFETY_CACHE to a folder that can."
        ) from error


def _is_built(organism: Organism, root: Path) -> bool:
    return folder_of(organism, root).is_dir()


def _cost(organism: Organism) -> int:
    """Relative time to train, so that the longest start first."""
    settings = recipe(organism)
    if settings.stage == "base":
        return 100
    objective = settings.objective
    if isinstance(objective, Adversarial):
        return 10 - objective.ball.layer
    return {"ssft": 1, "noise": 2, "dpo": 9}[objective.objective]


@dataclass
class _Running:
    name: str
    process: "subprocess.Popen[str]"
    bar: "tqdm[Any]"
    last_words: list[str] = field(default_factory=list[str])


class _Builders:
    """Worker processes, fed as bases land, and their progress."""

    def __init__(self, root: Path, workers: int) -> None:
        self._root = root
        self._workers = max(1, workers)
        self._running: dict[str, _Running] = {}
        self._messages: SimpleQueue[tuple[str, str | None]] = SimpleQueue()

    def run(self, missing: Sequence[Organism]) -> None:
        todo = sorted(missing, key=_cost, reverse=True)
        try:
            while todo or self._running:
                todo = self._start_ready(todo)
                self._listen()
        finally:
            for running in self._running.values():
                running.process.terminate()
            for running in self._running.values():
                running.process.wait()
                running.bar.close()

    def _start_ready(self, todo: list[Organism]) -> list[Organism]:
        """Start what can start; return the rest."""
        unbuilt = {*map(str, todo), *self._running}
        ready = [o for o in todo if o.arm == "base" or str(base_of(o)) not in unbuilt]
        free = self._workers - len(self._running)
        chosen = ready[:free]
        # Alone, and nothing else could start: idle cores may as well help.
        alone = len(chosen) == 1 and not self._running
        for organism in chosen:
            self._start(organism, threads=self._workers if alone else 1)
        return [organism for organism in todo if organism not in chosen]

    def _start(self, organism: Organism, threads: int) -> None:
        job = Job(
            organism=organism,
            recipe=recipe(organism),
            recipe_hash=recipe_hash(organism),
            folder=folder_of(organism, self._root),
            base=None if organism.arm == "base" else folder_of(base_of(organism), self._root),
            threads=threads,
        )
        home = str(Path(mechsafety.__file__).parents[1])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        count = dict.fromkeys(_THREAD_VARIABLES, str(threads))
        process = subprocess.Popen(
            [sys.executable, "-m", "mechsafety.organisms.worker", job.model_dump_json()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **count, "PYTHONPATH": path},
        )
        quiet = not sys.stderr.isatty()
        bar = tqdm(desc=str(organism).removeprefix("organism:"), disable=quiet, leave=False)
        running = _Running(str(organism), process, bar)
        self._running[running.name] = running
        for read in (self._read_reports, self._read_log):
            threading.Thread(target=read, args=(running,), daemon=True).start()

    def _read_reports(self, running: _Running) -> None:
        assert running.process.stdout is not None
        for line in running.process.stdout:
            self._messages.put((running.name, line))
        self._messages.put((running.name, None))

    def _read_log(self, running: _Running) -> None:
        assert running.process.stderr is not None
        for line in running.process.stderr:
            running.last_words = [*running.last_words[-30:], line]

    def _listen(self) -> None:
        """Take messages until a process has ended."""
        while True:
            name, line = self._messages.get()
            running = self._running[name]
            if line is None:
                code = running.process.wait()
                running.bar.close()
                del self._running[name]
                if code != 0:
                    words = "".join(running.last_words).strip() or f"exit code {code}"
                    raise WorkerError(f"building {name}: the process failed.\n{words}")
                return
            message = cast("dict[str, Any]", json.loads(line))
            if "error" in message:
                running.last_words.append(str(message["error"]))
            else:
                bar = running.bar
                bar.total = message["total"]
                bar.set_description(message["what"])
                bar.update(message["done"] - bar.n)
