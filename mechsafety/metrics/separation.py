"""How well a direction tells two classes apart on rows that it was not fitted to.

Separation is not safety: beside a cell stand the lexical baseline (`metrics/lexical.py`) and the
base model's map. A search over cells is held against `permuted_auc` under a max-statistic band
(`metrics/max_statistic.py`).
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import SampleError
from mechsafety.metrics.auc import auc
from mechsafety.metrics.matched_controls import label_permutations
from mechsafety.metrics.spectrum import refuse_non_finite

ROUNDING: Final = 1e-6
"""A shift this small beside the activations' root mean squared norm is rounding of float32."""


@dataclass(frozen=True, slots=True)
class Separation:
    """Two classes along one direction."""

    auc: float
    """Chance that a harmful row scores above a harmless one, ties counting half."""
    d_prime: float
    """Difference of the class means in pooled standard deviations."""


def separation(
    harmful_scores: Float[Tensor, " n_harmful"], harmless_scores: Float[Tensor, " n_harmless"]
) -> Separation:
    r"""AUC and $d' = (\bar s_1 - \bar s_0) / \sqrt{(v_1 + v_0) / 2}$, variances unbiased.

    d' is 0 where the scores are all equal, and infinite where the classes differ and neither
    varies. For normal scores of equal variance, $\mathrm{AUC} = \Phi(d' / \sqrt 2)$; the AUC
    alone is free of that assumption and of outliers. In float64.

    Source: d' by Tanner & Swets 1954, doi:10.1037/h0058700.

    Args:
        harmful_scores: Held-out projections, one per prompt: scores of the rows that the
            direction was fitted to separate even where nothing does.
        harmless_scores: As above.

    Raises:
        SampleError: Fewer than two scores in a class, or one that is not a number.
    """
    d_prime = d_prime_by_row(harmful_scores, harmless_scores)
    return Separation(auc=auc(harmful_scores, harmless_scores), d_prime=float(d_prime))


def d_prime_by_row(
    harmful_scores: Float[Tensor, "*cell n_harmful"],
    harmless_scores: Float[Tensor, "*cell n_harmless"],
) -> Float[Tensor, "*cell"]:
    """The d' of `separation` for each row of scores.

    Raises:
        SampleError: Fewer than two scores in a class.
    """
    counts = harmful_scores.shape[-1], harmless_scores.shape[-1]
    if min(counts) < 2:
        raise SampleError(
            f"d_prime: {counts[0]} harmful and {counts[1]} harmless scores; expected at least two "
            "of each, since one score shows no spread."
        )
    # From one score on, so that equal scores have means that differ by exactly nothing.
    origin = harmless_scores[..., :1].double()
    harmful, harmless = harmful_scores.double() - origin, harmless_scores.double() - origin
    shift = harmful.mean(-1) - harmless.mean(-1)
    spread = ((harmful.var(-1) + harmless.var(-1)) / 2).sqrt()
    return torch.where(shift == 0, shift, shift / spread)


def auc_by_row(
    harmful_scores: Float[Tensor, "*cell n_harmful"],
    harmless_scores: Float[Tensor, "*cell n_harmless"],
) -> Float[Tensor, "*cell"]:
    """`metrics.auc.auc` of each row of scores, by counting in the sorted harmless scores.

    Raises:
        SampleError: A class without scores, or a score that is not a number.
    """
    counts = harmful_scores.shape[-1], harmless_scores.shape[-1]
    if not min(counts):
        raise SampleError(
            f"auc: {counts[0]} harmful and {counts[1]} harmless scores; expected both. Without "
            "one class there is nothing to rank against."
        )
    harmful = harmful_scores.detach().double().contiguous()
    harmless = harmless_scores.detach().double().sort(dim=-1).values
    if bool(harmful.isnan().any() | harmless.isnan().any()):
        raise SampleError("auc: a score is not a number, and NaN has no rank. Find its prompt.")
    below = torch.searchsorted(harmless, harmful)
    up_to = torch.searchsorted(harmless, harmful, right=True)
    return (below + up_to).sum(-1).double() / (2 * counts[0] * counts[1])


def held_out_scores(
    fit_harmful: Float[Tensor, "n_fit_harmful cell d"],
    fit_harmless: Float[Tensor, "n_fit_harmless cell d"],
    held_harmful: Float[Tensor, "n_held_harmful cell d"],
    held_harmless: Float[Tensor, "n_held_harmless cell d"],
) -> tuple[Float[Tensor, "cell n_held_harmful"], Float[Tensor, "cell n_held_harmless"]]:
    r"""Held-out projections on the mean difference of the fit rows, cell by cell.

    $\hat r^\top (x - \bar x)$ with $\bar x$ the mean of all fit rows of the cell: in activation
    units, float64. Rows that are equal score the same to the last bit. Where the classes do not
    differ (layer 0 at template tokens) every score is 0, so the AUC is 0.5 and d' is 0. The
    observed side of `permuted_auc`, by the same arithmetic.

    Args:
        fit_harmful: The direction comes from these.
        fit_harmless: As above.
        held_harmful: Other prompts, at the same cells.
        held_harmless: As above.

    Raises:
        SampleError: A class without rows.
        ActivationError: A row that is not finite.
    """
    _check(fit_harmful, fit_harmless, held_harmful, held_harmless)
    weights = _weights(torch.arange(len(fit_harmful) + len(fit_harmless))[None], len(fit_harmful))
    pooled = torch.stack(
        [
            _scores(fit_harmful, fit_harmless, held_harmful, held_harmless, cell, weights)[0]
            for cell in range(fit_harmful.shape[1])
        ]
    )
    return pooled[:, : len(held_harmful)], pooled[:, len(held_harmful) :]


def permuted_auc(
    fit_harmful: Float[Tensor, "n_fit_harmful cell d"],
    fit_harmless: Float[Tensor, "n_fit_harmless cell d"],
    held_harmful: Float[Tensor, "n_held_harmful cell d"],
    held_harmless: Float[Tensor, "n_held_harmless cell d"],
    paired: bool,
    n_draws: int,
    generator: torch.Generator,
) -> Float[Tensor, "draw cell"]:
    """Held-out AUC of the mean difference when labels say nothing, refitted for each draw.

    Labels are permuted in the fit rows and, separately, in the held-out rows; every cell of a
    draw sees the same relabeling, so the maximum over cells of a draw is a draw of the maximum.
    The AUC of `held_out_scores` is exchangeable with these where labels carry nothing.

    Holds, for one cell at a time, about `8 · (n_fit² + n_draws · (2 n_fit + 6 n_held))` bytes and
    its rows: with more draws than fit rows, directions are never formed, only products of rows.

    Args:
        fit_harmful: As for `held_out_scores`.
        fit_harmless: As above.
        held_harmful: As above.
        held_harmless: As above.
        paired: Labels flip within each pair (row i of both classes) rather than move over all
            rows. Content twins are pairs; two independent lists are not.
        n_draws: At least 1 / (1 − level) − 1 for a band at that level: 19 for 95 %.
        generator: Draws the relabelings.

    Raises:
        SampleError: A class without rows, or pairs with unequal classes.
        ActivationError: A row that is not finite.
    """
    _check(fit_harmful, fit_harmless, held_harmful, held_harmless)
    n_fit, n_held = len(fit_harmful), len(held_harmful)
    fit_order = _relabelings(n_fit, len(fit_harmless), paired, n_draws, generator)
    held_order = _relabelings(n_held, len(held_harmless), paired, n_draws, generator)
    weights, order = _weights(fit_order, n_fit), held_order.to(fit_harmful.device)
    null: list[Tensor] = []
    for cell in range(fit_harmful.shape[1]):
        scores = _scores(fit_harmful, fit_harmless, held_harmful, held_harmless, cell, weights)
        relabeled = scores.gather(1, order)
        null.append(auc_by_row(relabeled[:, :n_held], relabeled[:, n_held:]))
    return torch.stack(null, dim=1)


def _scores(
    fit_harmful: Float[Tensor, "n_fit_harmful cell d"],
    fit_harmless: Float[Tensor, "n_fit_harmless cell d"],
    held_harmful: Float[Tensor, "n_held_harmful cell d"],
    held_harmless: Float[Tensor, "n_held_harmless cell d"],
    cell: int,
    weights: Float[Tensor, "draw n_fit"],
) -> Float[Tensor, "draw n_held"]:
    """Projections of all held-out rows of one cell on the unit direction of each draw."""
    fit = torch.cat([fit_harmful[:, cell], fit_harmless[:, cell]]).double()
    held = torch.cat([held_harmful[:, cell], held_harmless[:, cell]]).double()
    floor = ROUNDING**2 * fit.square().sum(1).mean()
    # The weights sum to nothing, so the mean only adds rounding to directions.
    held, fit = held - fit.mean(0), fit - fit.mean(0)
    weights = weights.to(fit)
    if len(weights) < len(fit):
        directions = weights @ fit
        squares, scores = directions.square().sum(1, keepdim=True), directions @ held.T
    else:
        # Many directions are dearer than the products of rows that they are made of.
        squares = ((weights @ (fit @ fit.T)) * weights).sum(1, keepdim=True)
        scores = weights @ (fit @ held.T)
    scores = scores / squares.clamp_min(0).sqrt()
    scores = torch.where(squares > floor, scores, torch.zeros_like(scores))
    # A matrix product may round equal rows differently by their place, which would break ties.
    grid = scores.abs().amax(1, keepdim=True) * 2.0**-30
    return torch.where(grid > 0, (scores / grid).round() * grid, scores)


def _weights(order: Int[Tensor, "draw row"], n_harmful: int) -> Float[Tensor, "draw row"]:
    """What each pooled row counts in the difference of the means, if `order` deals the labels."""
    n_harmless = order.shape[1] - n_harmful
    by_place = torch.full(order.shape, -1 / n_harmless, dtype=torch.float64, device=order.device)
    by_place[:, :n_harmful] = 1 / n_harmful
    return torch.empty_like(by_place).scatter_(1, order, by_place)


def _relabelings(
    n_harmful: int, n_harmless: int, paired: bool, n_draws: int, generator: torch.Generator
) -> Int[Tensor, "draw row"]:
    """Orders of the pooled rows, of which the first `n_harmful` are called harmful."""
    if not paired:
        return label_permutations(n_harmful + n_harmless, n_draws, generator)
    if n_harmful != n_harmless:
        raise SampleError(
            f"permuted_auc: {n_harmful} harmful and {n_harmless} harmless rows are no pairs; "
            "expected row i of both classes to be one. For independent lists say paired=False."
        )
    device = generator.device
    flip = torch.randint(2, (n_draws, n_harmful), generator=generator, device=device)
    row = torch.arange(n_harmful, device=device)
    return torch.cat([row + n_harmful * flip, row + n_harmful * (1 - flip)], dim=1)


def _check(
    fit_harmful: Tensor, fit_harmless: Tensor, held_harmful: Tensor, held_harmless: Tensor
) -> None:
    rows = {
        "harmful fit": fit_harmful,
        "harmless fit": fit_harmless,
        "harmful held-out": held_harmful,
        "harmless held-out": held_harmless,
    }
    for name, activations in rows.items():
        if not len(activations):
            raise SampleError(
                f"separation: no {name} rows; expected at least one of each class in both splits. "
                "Check the split's fractions and the filters before it."
            )
        refuse_non_finite(activations.flatten(1), f"separation, {name} rows")
