"""How many CPU threads a process computes with: stated, never left to chance."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def threads(count: int) -> Generator[None, None, None]:
    """Compute with `count` threads, here and in processes started meanwhile; undo on exit.

    The variables are set first, because OpenMP reads them once, when torch is imported.
    """
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict.fromkeys(VARIABLES, str(count)))
    import torch

    torch_before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(torch_before)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
