"""A subspace with an orthonormal, oriented basis: what every direction method returns."""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import DegenerateDirectionError, SubspaceError
from mechsafety.linalg.typed import linalg

ORTHONORMAL_TOLERANCE: Final = 1e-4
"""Largest entry of |B Bᵀ − I| that a stored float32 basis may show."""


@dataclass(frozen=True, slots=True)
class Subspace:
    """k directions of one space, strongest first, each with its size."""

    basis: Float[Tensor, "k d"]
    """Orthonormal rows; the positive side is the harmful (refusing) one."""
    scale: Float[Tensor, " k"]
    """Size along each row in activation units: |mean difference|, or singular value / √n."""

    def __post_init__(self) -> None:
        k, d = self.basis.shape
        if not 0 < k <= d or self.scale.shape != (k,):
            raise SubspaceError(
                f"making a Subspace: a basis of shape {tuple(self.basis.shape)} with a scale of "
                f"shape {tuple(self.scale.shape)}; expected k rows of width d ≥ k and k scales."
            )
        basis = self.basis.detach().double()
        off = (basis @ basis.T - torch.eye(k, dtype=basis.dtype, device=basis.device)).abs().max()
        # Written so that NaN fails it too.
        if not off <= ORTHONORMAL_TOLERANCE:
            raise SubspaceError(
                f"making a Subspace: the {k} rows are not orthonormal (B Bᵀ is off by "
                f"{off.item():.2g}). Pass them through `orthonormal_basis` first."
            )

    @staticmethod
    def of_vector(vector: Float[Tensor, " d"], size: float | None = None) -> "Subspace":
        """The one dimension of a vector, in at least float32.

        Args:
            vector: Its length counts only where no `size` is given.
            size: Along it, in activation units; without one the norm of `vector`, summed in
                float64.

        Raises:
            DegenerateDirectionError: The vector is zero or not finite.
        """
        basis = orthonormal_basis(vector[None])
        wide = vector.double()
        norm = wide.square().sum().sqrt() if size is None else wide.new_tensor(size)
        return Subspace(basis, norm.to(basis.dtype)[None])

    @property
    def k(self) -> int:
        """Number of dimensions."""
        return self.basis.shape[0]

    @property
    def d(self) -> int:
        """Width of the space it lies in."""
        return self.basis.shape[1]

    @property
    def vector(self) -> Float[Tensor, " d"]:
        """The one direction at its own size, in activation units.

        Raises:
            SubspaceError: More than one dimension, of which none is *the* direction.
        """
        if self.k != 1:
            raise SubspaceError(
                f"asking a Subspace of {self.k} dimensions for its one vector. Take a row of "
                "`basis` times its `scale`, or fit rank 1."
            )
        return self.scale[0] * self.basis[0]


def orthonormal_basis(rows: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    r"""Orthonormal rows whose first $i$ span what the first $i$ `rows` span, for every $i$.

    Row $i$ is `rows[i]` less its part in the earlier ones, and points to the same side as
    `rows[i]`. By Householder QR in float64, returned in at least float32.

    Raises:
        DegenerateDirectionError: A row is zero, not finite, or a combination of the others.
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)
    wide = rows.to(torch.float64)
    sizes = linalg.vector_norm(wide, dim=1)
    if len(rows) > rows.shape[1] or not torch.isfinite(sizes).all() or not sizes.all():
        raise DegenerateDirectionError(
            f"orthonormal_basis: {len(rows)} rows of width {rows.shape[1]} with norms "
            f"{[f'{float(size):.3g}' for size in sizes]}; expected at most as many rows as "
            "columns, all of them finite and not zero."
        )
    Q, R = linalg.qr((wide / sizes[:, None]).T)
    left = R.diagonal()
    # What a float32 row keeps of its own direction once rounding is taken out.
    if (left.abs() < 1e-6).any():
        row = int(left.abs().argmin())
        raise DegenerateDirectionError(
            f"orthonormal_basis: row {row} is a combination of the rows before it, so the "
            f"{len(rows)} rows span fewer than {len(rows)} dimensions. Ask for a lower rank."
        )
    return (Q * left.sign()).T.contiguous().to(dtype)
