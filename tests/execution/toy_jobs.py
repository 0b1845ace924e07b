"""Jobs for worker processes, which import them by name."""

import os
import signal
import time

import torch

from mechsafety.core.errors import MissingExtraError, PromptError


def square(number: int) -> float:
    return float(number) ** 2


def draw(seed: int) -> torch.Tensor:
    """Enough arithmetic that another number of threads would change its last bits."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(257, 513, generator=generator)
    return (rows @ rows.T / 100).softmax(-1).sum(0)


def transposed(rows: torch.Tensor) -> torch.Tensor:
    return rows.T


def n_threads(_: int) -> tuple[int, str | None]:
    return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


def process(_: int) -> int:
    return os.getpid()


def fail_on_two(number: int) -> int:
    if number == 2:
        raise PromptError("reading two.csv: it is empty.")
    return number


def fail_with_own_arguments(number: int) -> int:
    if number == 1:
        raise MissingExtraError("training adapters", "train")
    return number


def divide(number: int) -> float:
    return 1 / number


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep(number: int) -> int:
    print("sleeping", flush=True)
    time.sleep(60)
    return number
