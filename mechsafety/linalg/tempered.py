"""Random subspaces that hold a given energy of a second moment."""

# SciPy comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from scipy.optimize import root_scalar
from torch import Tensor

from mechsafety.linalg.subspace import orthonormal_basis
from mechsafety.linalg.typed import linalg

MAX_TEMPER: Final = 64.0
"""Largest exponent tried; there a draw is the strongest components themselves."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A second moment by its eigenvectors, without the directions in which it is zero."""

    values: Float[Tensor, " component"]
    """Eigenvalues above 0, in squared units of the rows, float64."""
    vectors: Float[Tensor, "component d"]
    """Orthonormal eigenvectors."""


def spectrum_of_rows(rows: Float[Tensor, "row d"]) -> Spectrum:
    """Of the mean of x xᵀ over rows. With fewer rows than columns no d × d matrix is formed."""
    wide = rows.double()
    if len(rows) > rows.shape[1]:
        return spectrum_of_moment(wide.T @ wide / len(rows))
    _, S, Vh = linalg.svd(wide / len(rows) ** 0.5, full_matrices=False)
    return _without_zeros(S.square(), Vh)


def spectrum_of_moment(moment: Float[Tensor, "d d"]) -> Spectrum:
    """Of a symmetric positive matrix."""
    values, vectors = linalg.eigh(moment.double())
    return _without_zeros(values, vectors.T)


def tempered_basis(
    g: Float[Tensor, "k d"], spectrum: Spectrum, energy: float, floor: float
) -> Float[Tensor, "k d"]:
    r"""Orthonormal rows that span $G (\Sigma + \epsilon I)^{\beta/2}$, β chosen for the energy.

    The energy of C is $\mathrm{tr}(C \Sigma C^\top)$. It does not fall as β grows: its
    derivative is $\sum_{ab} P_{ab}^2 (\sigma_a - \sigma_b) \log((\sigma_a + \epsilon) / (\sigma_b +
    \epsilon)) / 2 \ge 0$ with P the projector in the eigenbasis. So β is a root, found by
    Brent's method. An energy out of reach of |β| ≤ `MAX_TEMPER` gives the nearest one.

    Source: Brent's method, doi:10.1093/comjnl/14.4.422.

    Args:
        g: Gaussian rows.
        spectrum: Of Σ.
        energy: Above 0, and at most the sum of the k largest eigenvalues.
        floor: ε, above 0: what the directions outside the spectrum weigh.
    """
    g = g.to(spectrum.vectors)
    inside = g @ spectrum.vectors.T
    axes, values, coords = spectrum.vectors, spectrum.values, inside
    n_outside = min(len(g), g.shape[1] - len(values))
    if n_outside:
        # Of the space outside, which holds no energy, only the draw's own directions matter.
        outside, _ = linalg.qr((g - inside @ spectrum.vectors)[:n_outside].T)
        axes = torch.cat([axes, outside.T])
        values = torch.cat([values, values.new_zeros(n_outside)])
        coords = torch.cat([inside, g @ outside], dim=1)
    log_weights = torch.log(values + floor) / 2

    def excess(temper: float) -> float:
        found = (_tempered(coords, log_weights, temper).square() * values).sum()
        # Far below the span's energies only rounding is left, and log 0 is no number.
        return math.log(max(float(found), energy * 1e-12) / energy)

    low, high = -1.0, 1.0
    while excess(low) > 0 and low > -MAX_TEMPER:
        low *= 2
    while excess(high) < 0 and high < MAX_TEMPER:
        high *= 2
    if excess(low) > 0:
        temper = low
    elif excess(high) < 0:
        temper = high
    else:
        temper = float(root_scalar(excess, bracket=(low, high), xtol=1e-12).root)
    return orthonormal_basis(_tempered(coords, log_weights, temper) @ axes)


def _tempered(coords: Tensor, log_weights: Tensor, temper: float) -> Tensor:
    """Orthonormal rows that span the rows of `coords` times exp(temper · log_weights)."""
    span = abs(temper) * float(log_weights.max() - log_weights.min())
    # In steps, orthonormalized between: one large step would make all rows the same.
    steps = max(1, math.ceil(span / math.log(1e6)))
    scale = torch.exp(temper / steps * (log_weights - log_weights.mean()))
    for _ in range(steps):
        Q, _ = linalg.qr((coords * scale).T)
        coords = Q.T
    return coords


def _without_zeros(values: Tensor, vectors: Tensor) -> Spectrum:
    kept = values > values.max() * 1e-12
    return Spectrum(values[kept], vectors[kept])
