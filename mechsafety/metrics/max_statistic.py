"""Bands for searches over cells: how far the most extreme of all cells goes by chance.

Among 160 cells without any effect, 8 lie outside their own 95 % interval. A band from the most
extreme cell of each draw keeps the chance of *any* cell lying outside, whatever the correlation
between cells, if a draw is one relabeling (or one control) carried through all of them.

Source: single-step maxT, Westfall & Young 1993, "Resampling-Based Multiple Testing",
key:westfall1993.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import SampleError

Alternative = Literal["greater", "less", "two-sided"]


@dataclass(frozen=True, slots=True)
class Band:
    """Where all cells of a map without effects lie together."""

    low: float
    """Lower edge in the unit of the values; −∞ where only large values count."""
    high: float
    """Upper edge in the unit of the values; ∞ where only small values count."""
    n_draws: int
    """Draws of the null."""
    resolution: float
    """Smallest error that this many draws can keep; above 1 − level, draws were too few."""
    error: float
    """Chance, at most, that any cell lies outside where no cell has an effect."""


def max_statistic_band(
    null: Float[Tensor, "draw cell"], alternative: Alternative, level: float = 0.95
) -> Band:
    r"""Order statistics of each draw's most extreme cell.

    `greater`: the k-th smallest of the maxima over cells, $k = \lceil \ell (n + 1) \rceil$, which
    a map without effects exceeds with a chance of at most $(n + 1 - k) / (n + 1) \le 1 - \ell$.
    `less`: the same of the minima. `two-sided`: both, each with half the error. With fewer than
    $1 / (1 - \ell) - 1$ draws (19 for 95 %; 39 two-sided) the edge is the most extreme draw of
    all, and `error` says which level that keeps.

    Valid if a draw is exchangeable with the observed map under the null: the same relabeling in
    every cell. Cells that vary more set the edge for all, so scale each (by its null's standard
    deviation, pooled with the observed map) where their nulls differ; AUCs need none.

    Args:
        null: One map per draw.
        alternative: Which side counts, chosen before looking.
        level: Chance aimed at that no cell of a null map lies outside.

    Raises:
        SampleError: No draws or cells, a number that is not finite, or a level outside (0, 1).
    """
    draws = _finite_null(null, "max_statistic_band")
    if not 0 < level < 1:
        raise SampleError(
            f"max_statistic_band: a level of {level}; expected one between 0 and 1, such as 0.95."
        )
    n, sides = len(draws), 2 if alternative == "two-sided" else 1
    k = min(max(math.ceil((1 - (1 - level) / sides) * (n + 1)), 1), n)
    maxima, minima = draws.amax(1).sort().values, draws.amin(1).sort().values
    return Band(
        low=-math.inf if alternative == "greater" else float(minima[n - k]),
        high=math.inf if alternative == "less" else float(maxima[k - 1]),
        n_draws=n,
        resolution=min(1.0, sides / (n + 1)),
        error=min(1.0, sides * (n + 1 - k) / (n + 1)),
    )


def first_beyond(values: Float[Tensor, " cell"], band: Band) -> int | None:
    """Index of the first cell outside the band, in the order given; None if there is none.

    An onset: the first cell *shown* to differ. Cells before it may differ too little to show.

    Raises:
        SampleError: A value that is not a number.
    """
    if bool(values.isnan().any()):
        raise SampleError(
            f"first_beyond: cell {int(values.isnan().nonzero()[0])} of {len(values)} is not a "
            "number, so neither inside nor outside. Leave such cells out of map and null alike."
        )
    outside = ((values.double() < band.low) | (values.double() > band.high)).nonzero()
    return int(outside[0]) if len(outside) else None


def adjusted_p(
    observed: Float[Tensor, " cell"],
    null: Float[Tensor, "draw cell"],
    alternative: Alternative,
) -> Float[Tensor, " cell"]:
    """p-value of each cell against the most extreme cell of each draw.

    (1 + draws whose extreme is at least as extreme) / (1 + draws), doubled for two sides. The
    chance that any cell of a null map has one of at most α is at most α.

    Source: Phipson & Smyth 2010, arXiv:1603.05766 (the observed map counts as a draw).

    Raises:
        SampleError: As `max_statistic_band`, or an observed value that is not finite.
    """
    draws = _finite_null(null, "adjusted_p")
    wide = observed.detach().double()
    if not bool(wide.isfinite().all()):
        raise SampleError(
            f"adjusted_p: cell {int((~wide.isfinite()).nonzero()[0])} of {len(wide)} is not "
            "finite. Leave such cells out of map and null alike."
        )
    maxima, minima = draws.amax(1, keepdim=True), draws.amin(1, keepdim=True)
    above = (1 + (maxima >= wide).sum(0)).double() / (1 + len(draws))
    below = (1 + (minima <= wide).sum(0)).double() / (1 + len(draws))
    if alternative == "two-sided":
        return (2 * torch.minimum(above, below)).clamp_max(1)
    return above if alternative == "greater" else below


def _finite_null(null: Tensor, what: str) -> Tensor:
    draws = null.detach().double()
    if not draws.numel() or not bool(draws.isfinite().all()):
        raise SampleError(
            f"{what}: a null of {null.shape[0]} draws over {null.shape[1]} cells; expected at "
            "least one of each and finite numbers. Leave cells without a value out of map and "
            "null alike."
        )
    return draws
