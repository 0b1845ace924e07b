"""The run's side of `core.context.Context`: what a study asks for is done, and recorded."""

import json
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mechsafety.core.config import StudyConfig
from mechsafety.core.errors import ChangedInputError, RecordError
from mechsafety.core.progress import progress, say
from mechsafety.core.seeding import derive_seed, named_generator
from mechsafety.effects.answers import Answers
from mechsafety.execution.environment import code_changed
from mechsafety.execution.memory import Peaks
from mechsafety.execution.packing import name_of, nodes, pack, unpack
from mechsafety.execution.stage_cache import Entry, StageCache, forget
from mechsafety.execution.workers import Workers
from mechsafety.records.schema import JobDone, ModelUsed, StageTiming
from mechsafety.records.store import RunWriter

if TYPE_CHECKING:
    import torch

Job = TypeVar("Job")
Done = TypeVar("Done")


def _packages(function: Callable[..., object]) -> set[str]:
    """Whose classes results hold: ours, and those of a study of another package."""
    return {"mechsafety", function.__module__.partition(".")[0]}


_ANSWERS: Final = name_of(Answers)


class RunContext:
    """Implements `core.context.Context` for one run. Use it in a `with` block."""

    def __init__(
        self,
        config: StudyConfig,
        writer: RunWriter,
        cache: StageCache | None = None,
        expected: Mapping[str, str] | None = None,
    ) -> None:
        """Open the run's side.

        Args:
            config: Of the run.
            writer: Of the run.
            cache: Where finished work is looked for and kept; None computes everything.
            expected: Hashes of the prompts that a replay must find; None takes what there is.
        """
        self._config = config
        self._writer = writer
        self._cache = cache
        self._expected = expected
        self._peaks = Peaks()
        self._workers = Workers(config.runtime.workers, config.runtime.threads, self._peaks.see)
        self._scratch: Path | None = None
        self._stack: list[str] = []
        self.seeds: dict[str, int] = {}
        self.models: dict[str, ModelUsed] = {}
        self.stages: list[StageTiming] = []
        self._told_of_code = False
        self._with_answers: set[str] = set()
        self._jobs: dict[str, list[JobDone]] = {}

    def __enter__(self) -> "RunContext":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._workers.close(at_once=error is not None)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def scratch(self) -> Path:
        """A private folder for files too large for memory; gone when the run ends."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="mechsafety-"))
        return self._scratch

    def generator(self, *names: str | int) -> "torch.Generator":
        """The generator of the stage `names`, derived from the run's seed."""
        seed = self._config.seed
        self.seeds["/".join(map(str, names))] = derive_seed(seed, *names)
        return named_generator(seed, *names)

    @contextmanager
    def stage(self, name: str) -> Generator[None, None, None]:
        """Time and weigh a stage, and put its start and end into the events."""
        self._stack.append(name)
        path = "/".join(self._stack)
        started, clock = self._writer.seconds, monotonic()
        self._peaks.begin()
        self._writer.event("stage_started", stage=path)
        try:
            yield
        except BaseException as error:
            self._peaks.end()
            seconds = round(monotonic() - clock, 4)
            self._writer.event(
                "stage_failed", stage=path, took=seconds, error=f"{type(error).__name__}: {error}"
            )
            raise
        else:
            peak = self._peaks.end()
            seconds = round(monotonic() - clock, 4)
            self.stages.append(
                StageTiming(
                    name=path,
                    started=round(started, 4),
                    seconds=seconds,
                    peak_gib=round(peak, 4),
                    jobs=tuple(self._jobs.pop(path, ())),
                )
            )
            self._writer.event("stage_ended", stage=path, took=seconds)
        finally:
            self._stack.pop()

    def event(self, kind: str, **details: Any) -> None:
        """Put one line into the run's events."""
        self._writer.event(kind, **details)

    def map(self, function: Callable[[Job], Done], jobs: Sequence[Job], what: str) -> list[Done]:
        """`[function(job) for job in jobs]`, in worker processes where the runtime has several.

        A job that was done before, of equal content and by equal code, is taken from the cache.
        """
        # A closure or a method would be found by its name and not by what it holds.
        pack(function, f"{what}: its function")
        packed = [pack(job, f"{what}, job {i + 1}") for i, job in enumerate(jobs)]
        keys = [self._cache.key(function, one) if self._cache else None for one in packed]
        done: dict[int, Done] = {}
        hashes: dict[int, str] = {}
        for place, key in enumerate(keys):
            if (entry := self._cached(key, function)) is not None:
                done[place], hashes[place] = entry.value, entry.sha256
                self._note_answers(key, entry.tree)
        missing = [place for place in range(len(jobs)) if place not in done]
        if done and missing:
            say(f"{what}: {len(done)} of {len(jobs)} were done before")
        todo = [jobs[place] for place in missing]
        for at, result in self._workers.completed(function, todo, what):
            place = missing[at]
            kept = self._keep(keys[place], function, result, what)
            done[place], hashes[place] = kept.value, kept.sha256
            self._writer.event("job_ended", what=what, job=place + 1, of=len(jobs), key=keys[place])
        path = "/".join(self._stack)
        self._jobs.setdefault(path, []).extend(
            JobDone(what=what, sha256=hashes[place], key=keys[place], cached=place not in missing)
            for place in range(len(jobs))
        )
        return [done[place] for place in range(len(jobs))]

    def _cached(self, key: str | None, function: Callable[..., object]) -> Entry | None:
        if self._cache is None or key is None:
            return None
        try:
            return self._cache.load(key, _packages(function))
        except RecordError as damaged:
            self.warn(f"{damaged} It is computed again.")
            return None

    def _keep(
        self, key: str | None, function: Callable[..., object], result: Any, what: str
    ) -> Entry:
        packed = pack(result, f"the result of {what}")
        if not all(one.is_contiguous() for one in packed.tensors):
            # As the cache would give it: sums over other strides differ in their last bits.
            whole = [one.contiguous() for one in packed.tensors]
            result = unpack(packed.tree, whole, _packages(function))
        if self._cache is not None and key is not None and not self._code_changed():
            self._note_answers(key, packed.tree)
            try:
                self._cache.store(key, packed)
            except RecordError as unwritten:
                self.warn(f"{unwritten} The run goes on, keeps no results, and cannot be resumed.")
                # The next result would fare alike.
                self._cache = None
        return Entry(result, packed.tree, packed.sha256)

    def _code_changed(self) -> bool:
        """Workers may have imported other code than the key names: nothing is kept then."""
        if not self._told_of_code and code_changed():
            self._told_of_code = True
            self.warn("The package's files changed while this run works. Nothing more is cached.")
        return self._told_of_code

    def _note_answers(self, key: str | None, tree: object) -> None:
        if key is not None and any(nodes(tree, _ANSWERS)):
            self._with_answers.add(key)

    def forget_answers(self) -> None:
        """Remove this run's results that hold answers from the cache, where none are to be kept.

        What organisms say is harmless, and stays for the next run.
        """
        organisms_only = all(model.organism for model in self.models.values())
        if self._config.completions == "none" and not organisms_only:
            forget(self._with_answers)

    def warn(self, message: str) -> None:
        """Say something that does not end the run, and keep it in the events."""
        self._writer.event("warning", message=message)
        say(f"warning: {message}")

    def used(self, what: str, hashes: Mapping[str, str]) -> None:
        """Say which inputs the study read, as soon as it has read them.

        Raises:
            ChangedInputError: This is a replay, and they are not those of the record.
        """
        self._writer.event("inputs", what=what, hashes=dict(hashes))
        if self._expected is None:
            return
        for name in sorted(self._expected.keys() | hashes.keys()):
            before, now = self._expected.get(name), hashes.get(name)
            if before != now:
                raise ChangedInputError(
                    f"replaying: the {what} '{name}' are not those of the record: their SHA-256 "
                    f"was {before or 'not there'} and is {now or 'not there'}. Put the files back "
                    "as they were, or run the experiment anew."
                )

    def progress(self, items: Iterable[Job], what: str) -> Iterable[Job]:
        """Iterate with a progress bar."""
        return progress(items, what, total=len(items) if isinstance(items, Sequence) else None)

    def model_folders(self, names: Sequence[str]) -> dict[str, str]:
        """Organisms' names become their folders, those missing built side by side first."""
        from mechsafety.organisms.building import build
        from mechsafety.organisms.recipes import Organism

        organisms = [name for name in dict.fromkeys(names) if Organism.is_name(name)]
        built: dict[str, Path] = {}
        if organisms:
            with self.stage("organisms"):
                # Two at a time even where the study works alone: organisms take little memory.
                built = build(organisms, workers=max(2, self._config.runtime.workers))
        folders = {name: str(built.get(name, name)) for name in names}
        for name, source in folders.items():
            self.models[name] = ModelUsed(source=source, organism=name in built)
            self._writer.event("model", name=name, source=source, organism=name in built)
        return folders

    def keep_completions(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep generated text as `private/<name>.jsonl` where the config says `local`.

        Under `completions: none` nothing is written, and the run cannot be judged again.
        """
        if self._config.completions == "local":
            self._keep_private(name, rows)

    def keep_token_ids(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep token ids as `private/<name>.jsonl` where the config says `full`."""
        if self._config.token_ids == "full":
            self._keep_private(name, rows)

    def _keep_private(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._writer.write_private(f"{name}.jsonl", lines.encode())
