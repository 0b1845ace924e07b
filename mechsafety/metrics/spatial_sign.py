"""The spatial-sign spectrum: every difference scaled to unit norm, so that none outweighs others.

Source: spatial-sign covariance, Visuri, Koivunen and Oja 2000, "Sign and rank covariance matrices",
key:visuri2000.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import DegenerateDirectionError
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.pairing import Design


def spatial_sign(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    """Each row over its norm, in float64.

    Raises:
        DegenerateDirectionError: A row is zero, and so has no direction.
    """
    wide = rows.double()
    norms = linalg.vector_norm(wide, dim=1)
    _refuse_zero_rows(norms)
    return wide / norms[:, None]


def spatial_sign_gram(gram: Float[Tensor, "row row"]) -> Float[Tensor, "row row"]:
    """The Gram matrix of the rows at unit norm, from that of the rows.

    Raises:
        DegenerateDirectionError: A row is zero.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    _refuse_zero_rows(norms)
    return gram / norms[:, None] / norms[None, :]


def every_pairing_sign_gram(
    gram: Float[Tensor, "n_both n_both"], members: Float[Tensor, "draw n_both"], n_harmful: int
) -> Float[Tensor, "draw n_both n_both"]:
    r"""A matrix with the spectrum of the unit differences, averaged over every pairing.

    $\sum_{ij} w_{ij} (x_i - y_j)(x_i - y_j)^T = R^T L R$ with $w_{ij} = \|x_i - y_j\|^{-2}$ and L
    the Laplacian of the bipartite graph with these weights; $R^T L R$ and $F^T L F$ have the same
    eigenvalues where $F F^T$ is the Gram matrix of the rows R. Never forms the n² differences.

    Args:
        gram: Inner products of all rows, harmful first; of class-centered rows for a centered
            spectrum.
        members: Ones for the rows that take part, one subset a draw.
        n_harmful: How many rows are harmful.

    Raises:
        DegenerateDirectionError: A harmful row equals a harmless one.
    """
    norms = gram.diagonal()
    distances = norms[:n_harmful, None] + norms[None, n_harmful:]
    distances = distances - 2 * gram[:n_harmful, n_harmful:]
    _refuse_zero_rows(distances.clamp(min=0).flatten())
    weight = members[:, :n_harmful, None] * members[:, None, n_harmful:] / distances
    laplacian = torch.diag_embed(torch.cat([weight.sum(2), weight.sum(1)], dim=1))
    laplacian[:, :n_harmful, n_harmful:] = -weight
    laplacian[:, n_harmful:, :n_harmful] = -weight.mT
    values, vectors = linalg.eigh(gram)
    factor = vectors * values.clamp(min=0).sqrt()
    return factor.T @ laplacian @ factor


def sign_grams(design: Design, members: Float[Tensor, "draw row"]) -> Float[Tensor, "draw row row"]:
    """A matrix with the spatial-sign spectrum of each subset of the design's rows.

    A centered design has its mean difference taken out over *all* rows before the norms are
    taken, so that the subsets of a jackknife share their signs.

    Raises:
        DegenerateDirectionError: A difference is zero.
    """
    if not design.every_pairing:
        signs = spatial_sign_gram(design.differences_gram(design.everything())[0])
        return signs * members[:, :, None] * members[:, None, :]
    gram = design.gram
    if design.centered:
        to_mean = design.side @ (design.side / design.side.sum(0)).T
        gram = gram - to_mean @ gram - gram @ to_mean + to_mean @ gram @ to_mean
    return every_pairing_sign_gram(gram, members, int(design.side[:, 0].sum()))


def _refuse_zero_rows(norms: Float[Tensor, " row"]) -> None:
    zero = int((norms <= 0).sum())
    if zero:
        raise DegenerateDirectionError(
            f"spatial signs: {zero} of {len(norms)} differences are zero and have no direction. "
            "Leave out pairs whose two prompts are the same."
        )
