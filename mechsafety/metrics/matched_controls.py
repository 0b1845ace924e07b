"""Controls that match what an intervention does: energy for ablation, norm for addition.

An isotropic random direction is no control for an ablation: activations have most of their
energy in few directions, so it removes almost nothing and the null cannot fail. Draw at
least 20 controls for scores and 5 for generation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import DegenerateDirectionError, SampleError
from mechsafety.linalg.moments import Moments
from mechsafety.linalg.subspace import Subspace, orthonormal_basis
from mechsafety.linalg.tempered import (
    Spectrum,
    spectrum_of_moment,
    spectrum_of_rows,
    tempered_basis,
)
from mechsafety.linalg.typed import linalg

FLOOR: Final = 1e-3
"""Energy given to directions outside the rows' span, as a share of the mean over all axes."""


def ablation_energy(
    harmless: Float[Tensor, "row d"] | Moments,
    bases: Float[Tensor, "draw k d"],
    centered: bool = False,
) -> Float[Tensor, " draw"]:
    r"""Mean squared length that ablating each orthonormal basis takes from an activation.

    $E \lVert B x \rVert^2$ for the zero form; with `centered`, $E \lVert B (x - \bar x)
    \rVert^2$, for the affine form whose target is the mean. In squared activation units,
    float64. Divide a control's by the direction's to report its energy ratio.

    Args:
        harmless: Activations at the site, or their streamed moments.
        bases: Orthonormal rows per draw.
        centered: Which form of ablation is being controlled.
    """
    if isinstance(harmless, Moments):
        moment = _moment(harmless, centered)
        wide = bases.to(moment)
        return ((wide @ moment) * wide).sum(dim=(1, 2))
    rows = _rows(harmless, centered)
    return torch.stack([(rows @ basis.T).square().sum() / len(rows) for basis in bases.to(rows)])


def draw_energy_matched(
    harmless: Float[Tensor, "row d"] | Moments,
    basis: Float[Tensor, "k d"],
    n_draws: int,
    generator: torch.Generator,
    centered: bool = False,
) -> Float[Tensor, "draw k d"]:
    r"""Random orthonormal bases whose ablation removes the energy that ablating `basis` removes.

    A draw from $N(0, \Sigma)$ is $\Sigma^{1/2} g$ with $g$ Gaussian; its energy is seldom the
    direction's (0.1 to 19 times it, on activations of Llama-2-7B). So each draw is tempered:
    $\mathrm{span}(\Sigma^{\beta/2} G)$, with $G$ of k Gaussian rows and $\beta$ solved for, per
    draw, such that $\mathrm{tr}(C \Sigma C^\top) = \mathrm{tr}(B \Sigma B^\top)$. β = 1 is the
    plain draw, 0 an isotropic one; the energy grows with β, from the weakest components to the
    strongest, so there is one solution. Σ here is $E[x x^\top]$ (or the covariance, with
    `centered`) plus `FLOOR` times its mean eigenvalue, which lets a draw leave the span of few
    rows. With k > 1 the *sum* over dimensions matches, not each.

    Check `ablation_energy` of the result, whose ratio is 1 but for rounding, and `overlap` with
    `basis`: where the direction is itself the strongest component, every control of equal energy
    is nearly that direction, and the table must show it.

    Holds one copy of the rows in float64 and, for rows, their thin SVD. In float64, returned in
    at least float32.

    Args:
        harmless: Activations at the site, or their streamed moments.
        basis: Orthonormal rows of the direction under test.
        n_draws: At least 20 for scores, 5 for generation.
        generator: Draws are made on the generator's device.
        centered: False for zero ablation, True for affine.

    Raises:
        DegenerateDirectionError: Ablating `basis` removes nothing, so neither does any control.
    """
    target = float(ablation_energy(harmless, basis[None], centered))
    spectrum = _spectrum(harmless, centered)
    k, d = basis.shape
    mean_energy = float(spectrum.values.sum()) / d
    if not target > 1e-12 * mean_energy:
        raise DegenerateDirectionError(
            f"draw_energy_matched: ablating the direction removes {target:.3g} of a mean "
            f"{mean_energy:.3g} per axis, that is nothing. Is the site read where harmless "
            "activations vary? At layer 0 template tokens do not."
        )
    draws = [
        tempered_basis(_gaussian(k, d, generator), spectrum, target, FLOOR * mean_energy)
        for _ in range(n_draws)
    ]
    return torch.stack(draws).to(torch.promote_types(basis.dtype, torch.float32))


def draw_from_covariance(
    harmless: Float[Tensor, "row d"] | Moments, k: int, n_draws: int, generator: torch.Generator
) -> Float[Tensor, "draw k d"]:
    r"""Orthonormal bases of k draws from $N(0, \Sigma)$, Σ the covariance of `harmless`.

    From rows as $(X - \bar x)^\top g / \sqrt n$, without a d × d matrix. Their energy is not
    the direction's: report `ablation_energy` beside them, or use `draw_energy_matched`.

    Raises:
        DegenerateDirectionError: The rows vary in fewer than k dimensions.
    """
    if isinstance(harmless, Moments):
        spectrum = _spectrum(harmless, centered=True)
        root = spectrum.values.sqrt()[:, None] * spectrum.vectors
    else:
        root = _rows(harmless, centered=True) / len(harmless) ** 0.5
    draws = [
        orthonormal_basis(_gaussian(k, len(root), generator).to(root) @ root)
        for _ in range(n_draws)
    ]
    return torch.stack(draws)


def draw_norm_matched(
    vector: Float[Tensor, " d"],
    n_draws: int,
    generator: torch.Generator,
    harmless: Float[Tensor, "row d"] | Moments | None = None,
) -> Float[Tensor, "draw d"]:
    """Random vectors with the norm of `vector`: controls for adding it.

    Args:
        vector: In activation units.
        n_draws: At least 20 for scores, 5 for generation.
        generator: Draws are made on the generator's device.
        harmless: Directions are drawn from the covariance of these; isotropic if not given.

    Raises:
        DegenerateDirectionError: The vector is zero, or `harmless` does not vary.
    """
    if harmless is None:
        directions = _gaussian(n_draws, len(vector), generator)
    else:
        directions = draw_from_covariance(harmless, 1, n_draws, generator)[:, 0]
    return match_norm(directions.to(vector.device, torch.float64), vector)


def match_norm(
    directions: Float[Tensor, "draw d"], vector: Float[Tensor, " d"]
) -> Float[Tensor, "draw d"]:
    """`directions` (of permuted labels, of another concept) at the norm of `vector`.

    Raises:
        DegenerateDirectionError: The vector or a direction is zero or not finite.
    """
    norms = linalg.vector_norm(directions.double(), dim=1)
    size = linalg.vector_norm(vector.double())
    if not bool(((norms > 0) & norms.isfinite()).all() & (size > 0) & size.isfinite()):
        raise DegenerateDirectionError(
            f"match_norm: norms {[f'{float(norm):.3g}' for norm in norms[:8]]} to be brought to "
            f"{float(size):.3g}; expected finite numbers above 0."
        )
    matched = directions.double() * (size / norms)[:, None]
    return matched.to(torch.promote_types(vector.dtype, torch.float32))


def label_permutations(
    n_rows: int, n_draws: int, generator: torch.Generator
) -> Int[Tensor, "draw row"]:
    """Orders of the pooled rows. Models that share prompts are compared under the *same* ones."""
    return torch.stack(
        [
            torch.randperm(n_rows, generator=generator, device=generator.device)
            for _ in range(n_draws)
        ]
    )


def permuted_label_subspaces(
    harmful: Float[Tensor, "n_harmful d"],
    harmless: Float[Tensor, "n_harmless d"],
    fit: Callable[[Tensor, Tensor], Subspace],
    permutations: Int[Tensor, "draw row"],
) -> tuple[Subspace, ...]:
    """What `fit` finds when each row's label is another row's.

    Labels move across pairs as well as within: swapping them only within pairs leaves every
    uncentered spectrum unchanged and is no null.

    Args:
        harmful: Activations at one site and position.
        harmless: As above.
        fit: A direction method's `fit`, such as `DifferenceInMeans().fit`.
        permutations: From `label_permutations(n_harmful + n_harmless, ...)`.

    Raises:
        SampleError: Permutations of another number of rows.
    """
    pooled = torch.cat([harmful, harmless])
    if permutations.shape[1] != len(pooled):
        raise SampleError(
            f"permuted_label_subspaces: permutations of {permutations.shape[1]} rows for "
            f"{len(harmful)} + {len(harmless)} activations. Draw them for the sum."
        )
    orders = permutations.to(pooled.device)
    return tuple(
        fit(pooled[order[: len(harmful)]], pooled[order[len(harmful) :]]) for order in orders
    )


@dataclass(frozen=True, slots=True)
class ControlTest:
    """Where an effect lies among its controls."""

    p_value: float
    """(1 + controls at least as extreme) / (1 + controls), doubled for two sides."""
    resolution: float
    """Smallest p-value that this number of controls can give; printed beside it."""
    null_low: float
    """2.5 % quantile of the controls."""
    null_high: float
    """97.5 % quantile of the controls."""
    n_draws: int
    """Controls."""


def control_test(
    observed: float,
    controls: Float[Tensor, " draw"],
    alternative: Literal["greater", "less", "two-sided"],
) -> ControlTest:
    """Rank test of one effect against the same effect of its controls.

    Source: Phipson & Smyth 2010, arXiv:1603.05766 (the observed effect counts as a draw).

    Raises:
        SampleError: No controls, or a number that is not finite.
    """
    null = controls.detach().double()
    if not len(null) or not math.isfinite(observed) or not bool(null.isfinite().all()):
        raise SampleError(
            f"control_test: an effect of {observed} against {len(null)} controls; expected finite "
            "numbers and at least one control."
        )
    above = (1 + int((null >= observed).sum())) / (1 + len(null))
    below = (1 + int((null <= observed).sum())) / (1 + len(null))
    sides = 2 if alternative == "two-sided" else 1
    p_value = {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}
    return ControlTest(
        p_value=p_value[alternative],
        resolution=min(1.0, sides / (1 + len(null))),
        null_low=float(null.quantile(0.025)),
        null_high=float(null.quantile(0.975)),
        n_draws=len(null),
    )


def _spectrum(harmless: Tensor | Moments, centered: bool) -> Spectrum:
    if isinstance(harmless, Moments):
        return spectrum_of_moment(_moment(harmless, centered))
    return spectrum_of_rows(_rows(harmless, centered))


def _moment(moments: Moments, centered: bool) -> Tensor:
    if centered:
        return moments.covariance * ((moments.n - 1) / moments.n)
    return moments.second_moment


def _rows(harmless: Tensor, centered: bool) -> Tensor:
    rows = harmless.double()
    return rows - rows.mean(dim=0) if centered else rows


def _gaussian(k: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.randn(k, d, generator=generator, device=generator.device, dtype=torch.float64)
