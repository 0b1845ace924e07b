"""One color per arm in every figure, told apart by color-blind readers and on paper.

Numbers, such as layers, are colored along one scale instead, so that they read as an order.

Source: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/, and Paul Tol's technical note
SRON/EPS/TN/09-002 (key:tol2021), darkened where a hue had less than 3:1 contrast with white.
"""

from collections.abc import Iterable, Sequence
from typing import Final

ARMS: Final[dict[str, str]] = {
    "base": "#5f6873",
    "ssft": "#0072b2",
    "at": "#b97f00",
    "lat": "#d1490f",
    "lat_strong": "#882255",
    "noise": "#00876a",
    "lat_layer4": "#b0589a",
    "dpo": "#442200",
}
"""The organisms' arms; an arm of another name takes the next of `_MORE`."""

PLAIN: Final = "#29507a"
"""Where nothing is told apart by color."""

_MORE: Final = ("#3a2f9e", "#4b8ec8", "#7d7d1c", "#c2649b", "#2f8f83", "#8a5a2b", "#262b33")
_OTHER: Final = (PLAIN, "#a8500c", "#3f7d3a", "#7a4fa3", "#9b7a08", "#99354f", "#4a5560")


_ORDERED: Final = ("#15295e", "#6a2c91", "#b5367a", "#d9593f", "#c98500")
"""Ends and turns of the scale for numbers: ever lighter, so that it is an order in gray too."""


def in_order(numbers: Sequence[str]) -> dict[str, str]:
    """A color for each of several sizes, evenly along one scale from dark to light.

    By rank rather than by value: doses of 0.25, 0.5 and 8 are told apart as well as layers.
    """
    step = (len(_ORDERED) - 1) / max(1, len(numbers) - 1)
    return {number: _between(i * step) for i, number in enumerate(numbers)}


def _between(place: float) -> str:
    """The color at `place` along the scale, which counts its stops."""
    first = min(int(place), len(_ORDERED) - 2)
    ends = zip(*(bytes.fromhex(stop[1:]) for stop in _ORDERED[first : first + 2]), strict=True)
    return "#" + bytes(round(a + (b - a) * (place - first)) for a, b in ends).hex()


def colors(dimension: str, values: Iterable[str]) -> dict[str, str]:
    """A color for each value of a dimension; those of `arm` are the same in every figure."""
    if dimension != "arm":
        return {value: _OTHER[i % len(_OTHER)] for i, value in enumerate(values)}
    found = dict(ARMS)
    unknown = 0
    for value in values:
        if value not in found:
            found[value] = _MORE[unknown % len(_MORE)]
            unknown += 1
    return found
