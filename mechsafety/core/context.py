"""What a study may ask of the run that executes it. `execution/` provides it; tests fake it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch

Job = TypeVar("Job")
Done = TypeVar("Done")


@runtime_checkable
class Context(Protocol):
    """A study's view of its run: randomness, stages, parallel work and models' folders."""

    @property
    def scratch(self) -> Path:
        """A private folder for files too large for memory; gone when the run ends."""
        ...

    def generator(self, *names: str | int) -> "torch.Generator":
        """The generator of the stage `names`, derived from the run's seed."""
        ...

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage and put its start and end into the events."""
        ...

    def event(self, kind: str, **details: Any) -> None:
        """Put one line into the run's events."""
        ...

    def map(self, function: Callable[[Job], Done], jobs: Sequence[Job], what: str) -> list[Done]:
        """`[function(job) for job in jobs]`, in worker processes where the runtime has several.

        `function` must be importable, a function of its job alone, and `jobs` and results be made
        of dataclasses, settings, sequences, mappings, tensors, text and numbers. So a job that
        was done before need not be done again; and no result depends on the number of workers.
        """
        ...

    def used(self, what: str, hashes: Mapping[str, str]) -> None:
        """Say which inputs were read (`prompts`: name → SHA-256), as soon as they are.

        Raises:
            ChangedInputError: This is a replay, and they are not those of its record.
        """
        ...

    def progress(self, items: Iterable[Job], what: str) -> Iterable[Job]:
        """Iterate with a progress bar."""
        ...

    def model_folders(self, names: Sequence[str]) -> dict[str, str]:
        """Organisms' names become their folders, those missing built side by side first.

        All else (folders, hub ids) stays as it is.
        """
        ...

    def keep_completions(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep generated text in the run's private folder, where the config says `local`."""
        ...

    def keep_token_ids(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep token ids in the run's private folder, where the config says `full`."""
        ...
