"""Independent jobs side by side, in processes that start afresh and compute with few threads.

Jobs and results cross as plain bytes. torch's own way of passing tensors between processes
hands over file descriptors, which go stale when a worker ends before its result is read.
"""

import importlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TypeVar, cast

from mechsafety.core.errors import MechsafetyError, WorkerError
from mechsafety.core.progress import progress
from mechsafety.execution.memory import forget_peak, peak_gib

Job = TypeVar("Job")
Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a job raised, as text: an exception object may not survive pickling."""

    module: str
    qualname: str
    message: str
    traceback: str


class Workers:
    """A pool that starts with its first job and lasts until `close`, so models load once."""

    def __init__(
        self, count: int, threads: int, seen: Callable[[float], None] = lambda _: None
    ) -> None:
        """Plan a pool of `count` processes of `threads` threads.

        Args:
            count: Processes; 1 works in this one.
            threads: Of each.
            seen: Told the peak memory of every job that a worker did, in GiB.
        """
        self._seen = seen
        self._count = count
        self._threads = threads
        self._pool: ProcessPoolExecutor | None = None
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(at_once=error is not None)

    def map(self, function: Callable[[Job], Done], jobs: Sequence[Job], what: str) -> list[Done]:
        """`[function(job) for job in jobs]`, in the order of `jobs`; raises as `completed` does."""
        results = dict(self.completed(function, jobs, what))
        return [results[place] for place in range(len(jobs))]

    def completed(
        self, function: Callable[[Job], Done], jobs: Sequence[Job], what: str
    ) -> Generator[tuple[int, Done]]:
        """(place, `function(jobs[place])`) of every job, each as soon as it is done.

        Raises:
            MechsafetyError: The first error of our family that a job raised, as that class.
            WorkerError: Another exception in a job, or a worker that died.
        """
        if self._count == 1 or len(jobs) < 2:
            for place, job in enumerate(progress(jobs, what, total=len(jobs))):
                yield place, function(job)
            return
        places = {future: place for place, future in enumerate(self._submit(function, jobs))}
        try:
            for future in progress(as_completed(places), what, total=len(jobs)):
                answer, peak = pickle.loads(future.result())
                self._seen(peak)
                if isinstance(answer, _Raised):
                    raise _rebuilt(answer, f"{what}, job {places[future] + 1} of {len(jobs)}")
                yield places[future], cast("Done", answer)
        except BrokenProcessPool as error:
            raise WorkerError(
                f"{what}: a worker process died, most likely for want of memory. Lower "
                f"runtime.workers (it is {self._count}) or runtime.memory_gib."
            ) from error
        finally:
            for future in places:
                future.cancel()

    def _submit(
        self, function: Callable[[Job], Done], jobs: Sequence[Job]
    ) -> list["Future[bytes]"]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._count,
                # A forked child would inherit torch's threads and the run's lock half-alive.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._threads,),
            )
        before = set(multiprocessing.active_children())
        # A worker starts with Ctrl-C held back, until it has said that it will ignore it.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [self._pool.submit(_work, pickle.dumps((function, job))) for job in jobs]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        self._processes += [p for p in multiprocessing.active_children() if p not in before]
        return futures

    def close(self, at_once: bool = False) -> None:
        """End the workers; `at_once` without waiting for their jobs."""
        if self._pool is None:
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        if at_once:
            for process in self._processes:
                process.terminate()
        self._pool.shutdown(wait=True)
        self._pool = None
        self._processes = []


def _start_worker(threads: int) -> None:
    """Set up a fresh process, whose environment already names the threads."""
    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent killed outright cannot end its workers, so they watch it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(packed: bytes) -> bytes:
    """Run one job; its result, or what it raises as text, and the memory that it took."""
    forget_peak()
    try:
        function, job = pickle.loads(packed)
        return pickle.dumps((function(job), peak_gib()))
    except BaseException as error:
        raised = _Raised(
            module=type(error).__module__,
            qualname=type(error).__qualname__,
            message=str(error),
            traceback=traceback.format_exc(),
        )
        return pickle.dumps((raised, peak_gib()))


class _InWorkerError(Exception):
    """The traceback of a job, as the cause of the error that its parent raises."""


def _rebuilt(raised: _Raised, where: str) -> Exception:
    """The error of a job as one that the parent can raise: of the same class if it is ours."""
    cause = _InWorkerError(f"{where}\n{raised.traceback}")
    kind: object = importlib.import_module(raised.module)
    for name in raised.qualname.split("."):
        kind = getattr(kind, name, None)
    if isinstance(kind, type) and issubclass(kind, MechsafetyError):
        # Not called: a subclass's own arguments are not the message that it was left with.
        error = kind.__new__(kind, raised.message)
        error.args = (raised.message,)
    else:
        error = WorkerError(f"{where}: {raised.qualname}: {raised.message}")
    error.__cause__ = cause
    return error
