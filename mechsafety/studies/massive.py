"""The massive channels of models, as a table that every study shows alike."""

from typing import Final

from jaxtyping import Float
from torch import Tensor

from mechsafety.core.result import Table
from mechsafety.metrics.massive_channels import MassiveChannels, find_massive_channels

_CAPTION: Final = (
    "Channels whose largest value over prompts, layers and positions exceeds {:g} times the "
    "median |x| of its place, and which are bursty; judged on raw activations of both classes. "
    "The union over arms is taken out of every arm in the controls."
)


def massive_table(threshold: float) -> Table:
    """The table, still without rows."""
    return Table("massive_channels", _CAPTION.format(threshold))


def massive_of(
    arm: str, rows: Float[Tensor, "row layer position channel"], threshold: float, table: Table
) -> MassiveChannels:
    """The massive channels of one model, which go into the table as well."""
    # A template token at layer 0 is one vector for every prompt: nothing there can burst.
    read = {
        layer * rows.shape[2] + p: rows[:, layer, p]
        for layer in range(rows.shape[1])
        for p in range(rows.shape[2])
    }
    found = find_massive_channels(read, threshold)
    affected = int(found.affected().sum())
    peaks = [("peak", channel, peak, affected) for channel, peak in found.peaks.items()]
    elsewhere = found.highest_elsewhere_channel, found.highest_elsewhere, 0
    for metric, channel, peak, n_affected in [*peaks, ("highest_elsewhere", *elsewhere)]:
        table.add(
            metric,
            peak,
            n=len(rows),
            unit="max |x| / median |x|",
            arm=arm,
            channel=channel,
            rows_affected=n_affected,
        )
    return found
