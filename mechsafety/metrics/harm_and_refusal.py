"""The 2 × 2 that difference in means cannot see: harmful or harmless × refused or complied.

A harmful prompt that is refused differs from a harmless one that is answered in two ways at once.
With the off-diagonal (harmful prompts that a wrapper gets answered, harmless ones that are
refused) the two come apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ActivationError, SampleError
from mechsafety.metrics.separation import ROUNDING
from mechsafety.metrics.spectrum import refuse_non_finite

Cell = tuple[bool, bool]
"""(harmful, refused)."""

CELLS: Final[tuple[Cell, ...]] = ((True, True), (True, False), (False, True), (False, False))


@dataclass(frozen=True, slots=True)
class HarmAndRefusal:
    """Two directions in the place of one. Cosines are None where a direction is missing or zero."""

    harmfulness: Float[Tensor, " d_model"] | None
    """Harmful − harmless at the same behavior, in activation units, float64."""
    refusal: Float[Tensor, " d_model"] | None
    """Refused − complied at the same harm, in activation units, float64."""
    naive: Float[Tensor, " d_model"] | None
    """Harmful and refused − harmless and complied: what difference in means finds."""
    cosine: float | None
    """Between harmfulness and refusal."""
    corrected_cosine: float | None
    """The same without what sampling noise adds; beyond ±1 where noise is most of a direction."""
    naive_harmfulness_cosine: float | None
    """Between naive and harmfulness."""
    naive_refusal_cosine: float | None
    """Between naive and refusal."""
    harmfulness_from: tuple[str, ...]
    """Behaviors that harmfulness is the mean over: refused, complied, both or none."""
    refusal_from: tuple[str, ...]
    """Harm levels that refusal is the mean over: harmful, harmless, both or none."""
    counts: Mapping[Cell, int]
    """Rows of all four cells, by (harmful, refused)."""


def split(cells: Mapping[Cell, Float[Tensor, "_ d_model"]], min_rows: int) -> HarmAndRefusal:
    r"""Harmfulness and refusal from the means of the four cells.

    With $m_{ab}$ the mean at harm a and behavior b, harmfulness is the mean over b of
    $m_{1b} - m_{0b}$ and refusal the mean over a of $m_{a1} - m_{a0}$. Harmfulness + refusal =
    naive wherever all four cells are used or one is missing. Cell sizes do not matter to what
    is estimated, as they do to a difference in means over all harmful and all harmless rows; they
    do to noise: both directions share the four means, and a small off-diagonal pulls the cosine
    below 0. `corrected_cosine` takes out $\sum_c u_c w_c \mathrm{tr}(\Sigma_c) / n_c$ (u and w:
    what cell c counts in the two) and the like from both squared lengths. It takes rows to be
    independent; wrapped versions of one prompt are not quite. In float64.

    A wrapper that changes the behavior also changes the text, and is in the contrast with it:
    wrap both harm levels alike, or say which contrast rests on wrapped prompts.

    Args:
        cells: Activations at one site and position, by (harmful, refused). A missing cell has no
            rows.
        min_rows: A cell with fewer is not used, nor the contrast that needs it.

    Raises:
        SampleError: `min_rows` below 1, or no cell at all.
        ActivationError: Cells of different width, or a row that is not finite.
    """
    if min_rows < 1 or not cells:
        raise SampleError(
            f"harm and refusal: {len(cells)} cells with at least {min_rows} rows each; expected "
            "at least one cell and one row. The cells are keyed (harmful, refused)."
        )
    widths = {cell: rows.shape[1] for cell, rows in cells.items()}
    if len(set(widths.values())) > 1:
        raise ActivationError(
            f"harm and refusal: widths {widths} by (harmful, refused); expected activations of "
            "one site of one model."
        )
    for cell, rows in cells.items():
        refuse_non_finite(rows, f"harm and refusal, cell (harmful, refused) = {cell}")
    counts: dict[Cell, int] = {cell: len(cells[cell]) if cell in cells else 0 for cell in CELLS}
    used: dict[Cell, Tensor] = {
        cell: cells[cell].double() for cell in CELLS if counts[cell] >= min_rows
    }
    behaviors = [b for b in (True, False) if (True, b) in used and (False, b) in used]
    harms = [a for a in (True, False) if (a, True) in used and (a, False) in used]
    by_harm = _contrast([((True, b), (False, b)) for b in behaviors])
    by_refusal = _contrast([((a, True), (a, False)) for a in harms])
    diagonal = ((True, True), (False, False))
    by_diagonal = _contrast([diagonal] if all(cell in used for cell in diagonal) else [])

    harmfulness, refusal = _direction(used, by_harm), _direction(used, by_refusal)
    naive = _direction(used, by_diagonal)
    return HarmAndRefusal(
        harmfulness=harmfulness,
        refusal=refusal,
        naive=naive,
        cosine=_cosine(harmfulness, refusal),
        corrected_cosine=_corrected(harmfulness, refusal, used, by_harm, by_refusal),
        naive_harmfulness_cosine=_cosine(naive, harmfulness),
        naive_refusal_cosine=_cosine(naive, refusal),
        harmfulness_from=tuple("refused" if b else "complied" for b in behaviors),
        refusal_from=tuple("harmful" if a else "harmless" for a in harms),
        counts=counts,
    )


def _contrast(differences: list[tuple[Cell, Cell]]) -> dict[Cell, float]:
    """What each cell's mean counts in the mean of these differences; empty if there are none."""
    weights: dict[Cell, float] = {}
    for plus, minus in differences:
        weights[plus] = weights.get(plus, 0.0) + 1 / len(differences)
        weights[minus] = weights.get(minus, 0.0) - 1 / len(differences)
    return weights


def _direction(used: Mapping[Cell, Tensor], weights: Mapping[Cell, float]) -> Tensor | None:
    if not weights:
        return None
    # From a common origin, so that cells that do not differ give exactly zero, or nearly.
    rows = torch.cat([used[cell] for cell in weights])
    origin = rows.mean(0)
    parts = [weight * (used[cell] - origin).mean(0) for cell, weight in weights.items()]
    total = torch.stack(parts).sum(0)
    floor = ROUNDING * rows.square().sum(1).mean().sqrt()
    return total if bool(total.square().sum().sqrt() > floor) else torch.zeros_like(total)


def _cosine(first: Tensor | None, second: Tensor | None) -> float | None:
    if first is None or second is None or not bool(first.any() & second.any()):
        return None
    return float(first @ second / (first.square().sum() * second.square().sum()).sqrt())


def _corrected(
    first: Tensor | None,
    second: Tensor | None,
    used: Mapping[Cell, Tensor],
    by_first: Mapping[Cell, float],
    by_second: Mapping[Cell, float],
) -> float | None:
    """The cosine of what the means estimate, None where noise is all there is or is unknown."""
    involved = {*by_first, *by_second}
    if first is None or second is None or any(len(used[cell]) < 2 for cell in involved):
        return None
    noise = {cell: float(used[cell].var(0).sum()) / len(used[cell]) for cell in involved}

    def beyond_noise(a: Tensor, u: Mapping[Cell, float], b: Tensor, w: Mapping[Cell, float]):
        shared = sum(u[cell] * w[cell] * noise[cell] for cell in u if cell in w)
        return float(a @ b) - shared

    squares = (
        beyond_noise(first, by_first, first, by_first),
        beyond_noise(second, by_second, second, by_second),
    )
    if min(squares) <= 0:
        return None
    product = beyond_noise(first, by_first, second, by_second)
    return product / (squares[0] * squares[1]) ** 0.5
