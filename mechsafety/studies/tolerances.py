"""What a replay on another machine may differ by: a study's metrics in families of one scale.

Sums in another order change float32 activations in their seventh digit. Most numbers keep five of
those; scores of nearly tied tokens, resampled ends and searches over near-ties keep fewer; and a
rate moves by whole prompts, where greedy text took another turn.
"""

from collections.abc import Mapping
from typing import Final

from mechsafety.core.result import Tolerance

EXACT: Final = Tolerance()
"""Counts, indices and words."""
SHARE: Final = Tolerance(absolute=1e-3)
"""Shares of energy, cosines, AUC, CKA, R²: numbers between 0 and 1 made of activations."""
SCORE: Final = Tolerance(absolute=0.02, relative=1e-3)
"""Log-odds, nats and distances in standard deviations."""
RATE: Final = Tolerance(absolute=0.05)
"""Shares of prompts, of draws or of choices: some of them lie on an edge."""
EXTENT: Final = Tolerance(relative=1e-3)
"""Ranks, sizes, angles in degrees, ratios: numbers of any scale."""

RATES: Final[Mapping[str, Tolerance]] = dict.fromkeys(
    (f"{verdict}_rate" for verdict in ("refusal", "compliance", "degenerate", "unparsed")),
    RATE,
)
"""What judged answers give in every study."""


def each(tolerance: Tolerance, *metrics: str) -> dict[str, Tolerance]:
    """The same tolerance for several metrics."""
    return dict.fromkeys(metrics, tolerance)
