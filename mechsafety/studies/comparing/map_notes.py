"""What a number is worth that went through a map."""

from collections.abc import Mapping

from mechsafety.studies.claims import span
from mechsafety.studies.comparing.mapping import FittedMap
from mechsafety.studies.comparing.measured import Measured
from mechsafety.studies.comparing.settings import Pair
from mechsafety.studies.intervals import ends


def map_of(pair: Pair, primary: Mapping[str, str], measured: Measured) -> FittedMap | None:
    """The map that a choice of analysis went through; None within one space."""
    for one in measured.maps.get(pair, ()):
        at = {"via": one.method, "layer": str(one.place.first), "match": one.place.match}
        if all(primary[key] == value for key, value in at.items()):
            return one
    return None


def sees_direction(one: FittedMap) -> bool:
    """Whether the map predicts neutral prompts along the target's direction better than chance."""
    return one.interval_along[0] > 0 and one.r2_along > float(one.shuffled_r2_along.max())


def map_notes(one: FittedMap) -> tuple[str, ...]:
    """How well the map holds, beside every number that went through it."""
    low, high = one.interval
    edge = " Its penalty is at an end of the grid." if one.grid_edge else ""
    blind = (
        ""
        if sees_direction(one)
        else " It does not see the direction, so that an angle through it has no verdict: give "
        "neutral prompts that vary along it, such as look-alikes."
    )
    return (
        f"The {one.method} map predicts {one.r2:.2f} [{low:.2f}, {high:.2f}] of held-out neutral "
        f"activations (shuffled prompts: {span(ends(one.shuffled_r2))}), and {one.r2_along:.2f} of "
        f"them along the target's direction (shuffled: {span(ends(one.shuffled_r2_along))}), where "
        f"they vary {one.spread_along:.2g} times as much as along a mean dimension; carried by "
        "maps "
        f"of shuffled prompts the cosine is {span(ends(one.shuffled_cosines))}.{edge}{blind}",
    )
