"""Words, units and places that the tables of the study share."""

from typing import Final

from mechsafety.core.result import Dimension
from mechsafety.core.sites import ResidualSite

SCORE: Final = "log-odds of a refusal token"
SCORE_UNIT: Final = f"{SCORE} (prompts)"
EFFECT: Final = f"change in {SCORE}"
EFFECT_UNIT: Final = f"{EFFECT} (prompts)"
POINTWISE: Final = "Intervals are 95 %, pointwise, and conditional on the directions."


def place(site: ResidualSite) -> dict[str, Dimension]:
    """The dimensions of a place: the last output is layer `n_layers` of `resid_pre`."""
    if site.stream == "resid_post":
        return {"stream": "resid_pre", "layer": site.layer + 1}
    return {"stream": site.stream, "layer": site.layer}
