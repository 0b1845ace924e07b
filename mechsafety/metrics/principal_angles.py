"""Angles between subspaces."""

# SciPy comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch
from jaxtyping import Float
from scipy.linalg import subspace_angles
from torch import Tensor

from mechsafety.linalg.subspace import orthonormal_basis


def principal_angles(
    first: Float[Tensor, "n_first d"], second: Float[Tensor, "n_second d"]
) -> Float[Tensor, " k"]:
    """Angles between two spans in radians, smallest first, as many as the smaller has rows.

    From 0 to π/2, so the sides of the rows do not matter. SciPy takes small angles from sines
    and large ones from cosines; the cosine alone would lose half the digits of an angle near 0.
    Two random spans are nearly orthogonal in a wide space: compare with a null of permuted labels,
    not with 90 degrees.

    Sources: Björck & Golub 1973, doi:10.1090/S0025-5718-1973-0348991-3; as in Knyazev & Argentati
    2002, doi:10.1137/S1064827500377332.

    Args:
        first: Independent rows; they need not be orthonormal.
        second: As above, of the same width.

    Raises:
        DegenerateDirectionError: Rows that are zero, not finite or dependent.
    """
    a, b = orthonormal_basis(first.double()), orthonormal_basis(second.double())
    angles = subspace_angles(a.T.cpu().numpy(), b.T.cpu().numpy())
    return torch.from_numpy(angles.copy()).flip(0)


def overlap(first: Float[Tensor, "n_first d"], second: Float[Tensor, "n_second d"]) -> float:
    r"""Mean squared cosine of the principal angles, $\lVert A B^\top \rVert_F^2 / k$, in [0, 1].

    Two random spans of `k ≤ m` dimensions have the expected overlap `m / d`.

    Raises:
        DegenerateDirectionError: Rows that are zero, not finite or dependent.
    """
    a, b = orthonormal_basis(first.double()), orthonormal_basis(second.double())
    return float((a @ b.T).square().sum()) / min(len(a), len(b))
