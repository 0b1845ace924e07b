"""The smallest window of layers that keeps a share of an effect: how local the effect is."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import SampleError


@dataclass(frozen=True, slots=True)
class SmallestWindow:
    """One window per draw, both ends inclusive; −1 where there is none."""

    start: Int[Tensor, "*draw"]
    """First layer."""
    stop: Int[Tensor, "*draw"]
    """Last layer; the window has stop − start + 1 of them."""


def smallest_window(
    effects: Float[Tensor, "*draw n_start n_stop"], full: Float[Tensor, "*draw"], share: float = 0.9
) -> SmallestWindow:
    """The shortest window whose effect is at least `share` of the full one.

    Among windows of that length the one with the largest effect, then the earliest. None where
    the full effect is not above 0, or no window reaches the share. The minimum over many noisy
    windows is short by luck: repeat it inside a bootstrap over prompts (`draw`), and report it
    only where the effect itself clears its control.

    Holds a few times the size of `effects`, in float64.

    Args:
        effects: Effect of editing layers start to stop, both inclusive; NaN where start > stop
            and for windows that were not measured.
        full: Effect of editing everywhere, in the same unit and with the same sign: positive is
            what the edit is for.
        share: Of the full effect, in (0, 1].

    Raises:
        SampleError: A share outside (0, 1], a full effect that is not finite, an effect that is
            infinite, or one where start > stop (the axes are swapped).
    """
    n_start, n_stop = effects.shape[-2:]
    if not 0 < share <= 1 or not bool(full.isfinite().all()) or bool(effects.isinf().any()):
        raise SampleError(
            f"smallest_window: a share of {share} of full effects of which "
            f"{int((~full.isfinite()).sum())} are not finite, with "
            f"{int(effects.isinf().sum())} infinite windows; expected a share in (0, 1] and "
            "finite effects. Find the prompts that gave the others."
        )
    length = torch.arange(n_stop)[None, :] - torch.arange(n_start)[:, None]
    length = length.to(effects.device)
    wide = effects.detach().double()
    if not bool(wide[..., length < 0].isnan().all()):
        raise SampleError(
            "smallest_window: some windows stop before they start and have an effect; expected "
            "NaN there. The axes are start first, then stop: are they swapped?"
        )
    total = full.detach().double()[..., None, None]
    # NaN compares as False, so windows that were not measured never reach the share.
    enough = (wide >= share * total) & (total > 0)
    by_length = torch.where(enough, length, n_stop)
    shortest = by_length.amin((-2, -1), keepdim=True)
    candidates = torch.where(enough & (length == shortest), wide, -torch.inf).flatten(-2)
    best = candidates.argmax(-1)
    found = enough.flatten(-2).any(-1)
    none = torch.full_like(best, -1)
    return SmallestWindow(
        start=torch.where(found, best // n_stop, none), stop=torch.where(found, best % n_stop, none)
    )
