"""Massive channels: few coordinates of the residual stream with huge values on few prompts.

Such channels make a spectrum look concentrated whatever the prompts say, so every spectrum stands
beside its controls without them. The known case: channels 1415 and 2533 of the latently
adversarially trained Llama-2-7B of arXiv:2504.18872, on about a fifth of the prompts.

Source: the term is that of Sun et al. 2024, arXiv:2402.17762.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechsafety.core.errors import ActivationError
from mechsafety.metrics.spectrum import refuse_non_finite

Control = Literal["all", "channels_out", "pairs_out", "both_out", "placebo_out"]
CONTROLS: Final[tuple[Control, ...]] = get_args(Control)

CONTROL_WORDS: Final[dict[Control, str]] = {
    "all": "every channel and pair",
    "channels_out": "massive channels out",
    "pairs_out": "affected pairs out",
    "both_out": "massive channels and affected pairs out",
    "placebo_out": "as many ordinary high-energy channels out",
}


@dataclass(frozen=True)
class MassiveChannels:
    """What the rule found in one arm."""

    channels: tuple[int, ...]
    """Massive channels, in order."""
    peaks: Mapping[int, float]
    """Largest |x_c| / median|x| of each, over prompts and layers."""
    bursts: Mapping[int, float]
    """Largest ratio of its maximum to its own median, over layers where it passes the threshold."""
    highest_elsewhere: float
    """Largest |x_c| / median|x| of any other channel."""
    highest_elsewhere_channel: int
    """Which channel that is."""
    peak_of_row: Float[Tensor, "row channel"]
    """|x_c| / median|x| of each row on `channels`, the largest over layers."""
    threshold: float
    """Ratio above which a row counts as affected."""

    def affected(self) -> Bool[Tensor, " row"]:
        """Rows on which any massive channel passes the threshold at any layer."""
        return (self.peak_of_row > self.threshold).any(dim=1)


def find_massive_channels(
    activations: Mapping[int, Float[Tensor, "row channel"]],
    threshold: float = 200.0,
    burst: float = 10.0,
) -> MassiveChannels:
    r"""Channels that are huge and bursty at some layer.

    Channel c is massive if at one layer both hold, over the raw rows of both classes together:
    $\max_\text{row} |x_c| > \text{threshold} \cdot m$, where m is the median of |x| over *all* rows
    and channels of that layer; and $\max_\text{row} |x_c| > \text{burst} \cdot
    \operatorname{median}_\text{row} |x_c|$, its own median. The second condition leaves out
    channels that are large on every prompt: they cancel in differences.

    Judge raw activations, never differences, and remove the union over arms from every arm. The
    median is over the whole layer because one row's own median would fall with the prompt: taken
    row by row, two steady channels of ordinary Llama-2-7B pass 200 at layer 1. On the study's
    three arms the rule gives 921 and 570 for the two massive channels; elsewhere at most 102 from
    layer 2 on, and 177 at layer 1 (channel 2298, equally large on every prompt).

    Args:
        activations: Layer → rows of both classes, the same rows in the same order at each layer.
        threshold: Size, as a multiple of the layer's median |x|.
        burst: Size, as a multiple of the channel's own median over rows.

    Raises:
        ActivationError: No layers, layers of different shapes, or rows that are not finite.
    """
    if not activations:
        raise ActivationError("massive channels: no layers were given; there is nothing to judge.")
    shapes = {tuple(rows.shape) for rows in activations.values()}
    if len(shapes) > 1:
        raise ActivationError(
            f"massive channels: layers have rows of different shapes {sorted(shapes)}. Give the "
            "same prompts and channels at every layer."
        )
    n_channels = next(iter(shapes))[1]
    peak = torch.zeros(n_channels, dtype=torch.float64)
    bursts = torch.zeros(n_channels, dtype=torch.float64)
    ratios: list[Tensor] = []
    for layer, rows in activations.items():
        refuse_non_finite(rows, f"massive channels at layer {layer}")
        # The float32 keeps float16 files exact and halves the memory of float64.
        size = rows.float().abs()
        scale = size.median()
        if not bool(scale > 0):
            raise ActivationError(
                f"massive channels: more than half of the activations of layer {layer} are zero, "
                "so nothing can be measured against their median."
            )
        ratio = size / scale
        highest = ratio.max(dim=0).values.double().cpu()
        own = ratio.median(dim=0).values.double().cpu()
        bursty = highest > burst * own
        passed = (highest > threshold) & bursty
        bursts = torch.where(passed, torch.maximum(bursts, highest / own.clamp(min=1e-12)), bursts)
        peak = torch.maximum(peak, highest)
        ratios.append(ratio)
    massive = bursts > 0
    channels = tuple(int(c) for c in massive.nonzero().squeeze(1))
    elsewhere = torch.where(massive, torch.zeros_like(peak), peak)
    columns = torch.stack([ratio[:, list(channels)].double().cpu() for ratio in ratios])
    return MassiveChannels(
        channels=channels,
        peaks={c: float(peak[c]) for c in channels},
        bursts={c: float(bursts[c]) for c in channels},
        highest_elsewhere=float(elsewhere.max()),
        highest_elsewhere_channel=int(elsewhere.argmax()),
        peak_of_row=columns.amax(dim=0),
        threshold=threshold,
    )


def ordinary_channels(
    arms: Sequence[Float[Tensor, "row channel"]], massive: Iterable[int], count: int
) -> tuple[int, ...]:
    """The `count` channels with most energy about their mean that are not massive: the placebo.

    Energy is averaged over the arms, each arm's summing to one, so that one placebo serves all.
    It is taken about the mean over both classes, because a channel that is large and the same on
    every prompt cancels in differences and would make a placebo that does nothing.

    Raises:
        ActivationError: No arm was given, or an arm does not vary.
    """
    shares: list[Tensor] = []
    for rows in arms:
        energy = rows.double().var(dim=0, correction=0).cpu()
        if not bool(energy.sum() > 0):
            raise ActivationError("placebo channels: an arm has the same activation in every row.")
        shares.append(energy / energy.sum())
    if not shares:
        raise ActivationError("placebo channels: no arm was given.")
    mean = torch.stack(shares).mean(dim=0)
    mean[list(massive)] = -1
    return tuple(sorted(int(c) for c in mean.topk(count).indices)) if count else ()


def without_channels(
    rows: Float[Tensor, "*row channel"], channels: Iterable[int]
) -> Float[Tensor, "*row n_left"]:
    """A copy of the rows with these coordinates taken out."""
    left = torch.ones(rows.shape[-1], dtype=torch.bool, device=rows.device)
    left[list(channels)] = False
    return rows[..., left]


def controlled(
    rows: Float[Tensor, "row channel"],
    control: Control,
    massive: Iterable[int],
    placebo: Iterable[int],
    keep: Bool[Tensor, " row"],
) -> Float[Tensor, "n_left n_channels"]:
    """The rows of one class under one of the controls; the same arguments serve every arm.

    Args:
        rows: Raw activations of one class.
        control: Which control.
        massive: Massive channels, the union over arms.
        placebo: As many ordinary channels (`ordinary_channels`).
        keep: Rows that are affected in no arm (`kept_rows`).
    """
    if control in ("pairs_out", "both_out"):
        rows = rows[keep.to(rows.device)]
    if control in ("channels_out", "both_out"):
        rows = without_channels(rows, massive)
    if control == "placebo_out":
        rows = without_channels(rows, placebo)
    return rows


def kept_rows(
    affected_by_arm: Sequence[Bool[Tensor, " row"]], n_harmful: int, paired: bool
) -> tuple[Bool[Tensor, " n_harmful"], Bool[Tensor, " n_harmless"]]:
    """Rows of each class that no arm marks as affected, the same in every arm.

    Args:
        affected_by_arm: One mark a row for each arm: harmful rows first, then harmless ones.
        n_harmful: How many rows are harmful.
        paired: Whether row i of the classes is a pair that goes out as one; the classes are then
            cut to their common length.
    """
    affected = torch.stack(list(affected_by_arm)).any(dim=0)
    harmful, harmless = ~affected[:n_harmful], ~affected[n_harmful:]
    if not paired:
        return harmful, harmless
    common = min(len(harmful), len(harmless))
    both = harmful[:common] & harmless[:common]
    return both, both.clone()
