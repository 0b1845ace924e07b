"""Numbers for people: as many digits as their interval supports."""

import math
from collections.abc import Mapping
from typing import Final

NOT_MEASURED: Final = "not measured"


def number(value: float | None, decimals: int | None = None) -> str:
    """`value` to `decimals` places, or to three significant digits, with a real minus sign."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif value != 0 and not 1e-4 <= abs(value) < 1e7:
        text = f"{value:.2e}"
    elif abs(value) >= 100:
        text = f"{value:,.0f}"
    elif abs(value) >= 1e-3 or value == 0:
        text = f"{value:.3g}"
    else:
        text = f"{value:.6f}".rstrip("0")
    # A rounded −0.00 would claim a sign that its digits do not show.
    if not any(digit in text for digit in "123456789"):
        return text.lstrip("-")
    return text.replace("-", "−")


def decimals_for(low: float | None, high: float | None) -> int | None:
    """Places that show the first two digits of an interval's width; None where there is none.

    A width that is rounding beside its ends is none.
    """
    if low is None or high is None or not math.isfinite(high - low):
        return None
    if abs(high - low) <= 1e-6 * max(abs(low), abs(high)):
        return None
    return max(0, min(6, 1 - math.floor(math.log10(abs(high - low)))))


def interval(low: float | None, high: float | None, decimals: int | None = None) -> str:
    """`[low, high]`, or an empty string where there is no interval."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    places = decimals_for(low, high) if decimals is None else decimals
    return f"[{number(low, places)}, {number(high, places)}]"


def estimate(value: float | None, low: float | None, high: float | None) -> str:
    """`0.31 [0.24, 0.38]`: value and interval with the same number of places."""
    places = decimals_for(low, high)
    return f"{number(value, places)} {interval(low, high, places)}".rstrip()


def share(part: int, whole: int) -> str:
    """`41 of 48 (85 %)`; without a percentage where there is no whole."""
    return f"{part:,} of {whole:,}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def cell(values: Mapping[str, object]) -> str:
    """A primary cell in one line, such as `layer 2, position last`."""
    return ", ".join(f"{key.replace('_', ' ')} {label(value)}" for key, value in values.items())


def label(value: object) -> str:
    """A dimension's value as it is shown and compared: layer 2.0 of a float column is `2`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
