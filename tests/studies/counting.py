"""What a study makes models do, counted and not timed, so that twice the work is seen anywhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.modeling_layers import GradientCheckpointingLayer

from mechsafety.execution.packing import pack


@dataclass
class Work:
    """Sums over all jobs."""

    passes: int = 0
    """Passes of a batch through one block; a forward pass is one for every layer."""
    tokens: int = 0
    """Tokens through one block, padding included."""
    bytes: int = 0
    """Held by the tensors of results."""


@contextmanager
def counted(work: Work) -> Iterator[None]:
    """Count what passes through the blocks of any model, Hugging Face's or a bridge's."""

    def count(module: nn.Module, given: tuple[Any, ...]) -> None:
        # What all architectures' decoder layers are.
        if isinstance(module, GradientCheckpointingLayer):
            hidden = next(one for one in given if isinstance(one, Tensor))
            work.passes += 1
            work.tokens += hidden.shape[0] * hidden.shape[1]

    handle = register_module_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


def held(result: object) -> int:
    """Bytes of the tensors in a result."""
    return sum(one.nbytes for one in pack(result, "a result").tensors)


def grown(work: Mapping[str, Work], known: Mapping[str, Work]) -> list[str]:
    """Where a study does over a tenth more than is known, or so much less that it should be."""
    assert work.keys() == known.keys()
    return [
        f"{what}: {name} were {before}, are {now}"
        for what, one in known.items()
        for name, before in vars(one).items()
        if not 0.7 * before <= (now := getattr(work[what], name)) <= 1.1 * before
    ]
