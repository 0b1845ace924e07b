"""The most memory that this process held, since it was last asked to forget."""

import re
import sys
from pathlib import Path
from typing import Any, Final

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Begin anew: the peak is what is held now. Where the system cannot, it stays."""
    if _CLEAR.exists():
        # 5 resets the peak of the resident set alone (proc(5)).
        _CLEAR.write_text("5")
    if (cuda := _cuda()) is not None:
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)


def peak_gib() -> float:
    """Resident memory of this process at its highest, and of its CUDA devices, in GiB."""
    held = 0.0
    if _STATUS.exists():
        match = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        held = int(match[1]) / 2**20 if match else 0.0
    if (cuda := _cuda()) is not None:
        held += sum(cuda.max_memory_allocated(d) for d in range(cuda.device_count())) / 2**30
    return held


class Peaks:
    """Peaks of nested stages: what an inner one holds, the outer one holds too."""

    def __init__(self) -> None:
        self._open: list[float] = []

    def begin(self) -> None:
        """A stage begins, inside those that are open."""
        self.see(peak_gib())
        forget_peak()
        self._open.append(0.0)

    def see(self, gib: float) -> None:
        """Something in the innermost stage held so much, in this process or in a worker."""
        if self._open:
            self._open[-1] = max(self._open[-1], gib)

    def end(self) -> float:
        """The innermost stage ends; its peak in GiB."""
        self.see(peak_gib())
        peak = self._open.pop()
        self.see(peak)
        return peak


def _cuda() -> Any:
    """torch.cuda where it is in use; asking does not import torch or start a device."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda
