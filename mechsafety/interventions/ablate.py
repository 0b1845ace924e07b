"""Ablation: take a subspace out of an activation (zero), or set it to a given level (affine).

The two differ where harmless activations lie far out along the subspace: the zero form then
moves harmless prompts too, and the loss of behavior looks like robustness (evidence.md 11).
"""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import SubspaceError
from mechsafety.linalg.typed import linalg

INDEPENDENT: Final = 1e-4
"""Least share of a row's square outside the earlier rows at which float32 still resolves it."""


def ablate(
    activation: Float[Tensor, "*batch d"], basis: Float[Tensor, "k d"]
) -> Float[Tensor, "*batch d"]:
    r"""The part of each activation that is orthogonal to every row of `basis`.

    $x - B^\top (B B^\top)^{-1} B x$, which is $x - \hat r \hat r^\top x$ for one row. Length
    and sign of the rows do not matter, nor whether they are orthogonal; only their span does.
    Computed in at least float32 and cast last. A new tensor; differentiable in both arguments.

    Source: arXiv:2406.11717, "Directional ablation".

    Args:
        activation: Vectors along the last axis, of any leading shape.
        basis: Rows of a `Subspace`; moved to the activation's device.

    Raises:
        SubspaceError: A row is zero or not finite, or the rows are not independent.
    """
    wide, rows, dual = _operands(activation, basis)
    return (wide - (wide @ rows.T) @ dual).to(activation.dtype)


def ablate_each(
    activation: Float[Tensor, "batch pos d"], directions: Float[Tensor, "batch d"]
) -> Float[Tensor, "batch pos d"]:
    r"""As `ablate`, with a direction of its own for every prompt of a batch.

    $x_b - \hat r_b \hat r_b^\top x_b$: so that several candidates share one forward pass.

    Args:
        activation: Of one padded batch.
        directions: One per row, of any length but zero; moved to the activation's device.

    Raises:
        SubspaceError: A direction is zero or not finite.
    """
    wide = activation.to(torch.promote_types(activation.dtype, torch.float32))
    rows = directions.to(wide.dtype)
    norms = linalg.vector_norm(rows, dim=1)
    if not bool(((norms > 0) & norms.isfinite()).all()):
        raise SubspaceError(
            f"ablate: {int((~((norms > 0) & norms.isfinite())).sum())} of {len(norms)} directions "
            "are zero or not finite, so there is nothing to project out. Leave them out."
        )
    units = (rows / norms[:, None]).to(wide.device)
    projections = torch.bmm(wide, units[:, :, None])
    return torch.baddbmm(wide, projections, units[:, None, :], alpha=-1).to(activation.dtype)


def ablate_affine(
    activation: Float[Tensor, "*batch d"],
    basis: Float[Tensor, "k d"],
    target: Float[Tensor, "*#batch k"],
) -> Float[Tensor, "*batch d"]:
    r"""The nearest activation whose products with the rows of `basis` are `target`.

    $x - B^\top (B B^\top)^{-1} (B x - t)$, so that $B x' = t$ exactly and all that is
    orthogonal to $B$ stays. With $t = 0$ it is `ablate`; adding $\alpha \lVert r \rVert$ to $t$
    is affine concept editing with dose $\alpha$. Precision and tensors as in `ablate`.

    Source: Marshall et al. 2024, arXiv:2411.09003 (α = 0).

    Args:
        activation: Vectors along the last axis, of any leading shape.
        basis: Rows of a `Subspace`; moved to the activation's device.
        target: What each row's product becomes: usually the mean of `basis @ x` over harmless
            prompts of this model at this site. One for all, or one per activation (such as
            the projections of randomly drawn harmless prompts).

    Raises:
        SubspaceError: A row is zero or not finite, or the rows are not independent.
    """
    wide, rows, dual = _operands(activation, basis)
    return (wide - (wide @ rows.T - target.to(wide)) @ dual).to(activation.dtype)


def _operands(activation: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The activation and B in the working precision, and the dual basis (B Bᵀ)⁻¹ B."""
    wide = activation.to(torch.promote_types(activation.dtype, torch.float32))
    rows = basis.to(wide.dtype)
    # Made and checked where the basis lives: a check on an accelerator would wait for it.
    dual = _dual(rows)
    return wide, rows.to(wide.device), dual.to(wide.device)


def _dual(rows: Tensor) -> Tensor:
    gram = rows @ rows.T
    if len(rows) == 1:
        if not 0 < gram.item() < math.inf:
            raise SubspaceError(
                f"ablate: the direction has squared norm {gram.item():.3g}, so there is no side "
                "to project out. Fit it where the two classes differ."
            )
        return rows / gram
    factor, _ = linalg.cholesky_ex(gram)
    # Share of a row that is not in the rows before it; NaN where the factor does not exist.
    left = (factor.diagonal().square() / gram.diagonal()).min().item()
    if not left > INDEPENDENT:
        raise SubspaceError(
            f"ablate: the {len(rows)} rows of the basis are zero, not finite, or nearly dependent "
            f"(a row keeps {left:.2g} of its square outside the others). Pass them through "
            "`orthonormal_basis`, which names the row."
        )
    return torch.cholesky_solve(rows, factor)
