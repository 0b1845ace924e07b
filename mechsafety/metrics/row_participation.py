"""How many rows carry a component: one bursty prompt, or all of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import DegenerateDirectionError
from mechsafety.metrics.pairing import Design


def row_participation(row_energies: Float[Tensor, " row"]) -> float:
    r"""The participation ratio of rows: $(\sum_i e_i)^2 / \sum_i e_i^2$, from 1 to n.

    With $e_i = u_{1i}^2$, the squared entries of the first left singular vector, it counts the
    rows that carry the first component. A spectrum that a few outlying prompts make has a small
    value; a shift that all prompts share has one near n.

    Source: of atoms in a vibration, Bell & Dean 1970, doi:10.1039/DF9705000055.

    Raises:
        DegenerateDirectionError: No row carries any energy.
    """
    wide = row_energies.double()
    squares = (wide**2).sum()
    if not bool(squares > 0):
        raise DegenerateDirectionError(
            f"row participation: none of the {len(row_energies)} rows carries any energy."
        )
    return float(torch.square(wide.sum()) / squares)


def row_energies(
    design: Design, energy: Float[Tensor, ""], left_vector: Float[Tensor, " n_out"]
) -> Float[Tensor, " row"]:
    """Energy of each row of the design along one component.

    Pairs: the squared entries of the left singular vector. Every pairing: each row's projection,
    measured from the mean of the other class (from its own, if centered), squared and over n of
    its class.

    Args:
        design: The rows behind the spectrum.
        energy: Eigenvalue of the component.
        left_vector: Its eigenvector in the Gram matrix of the design's differences.
    """
    if not design.every_pairing:
        return left_vector**2
    weights = design.backward(design.everything(), left_vector[None, :, None])[0]
    along = (design.gram @ weights).squeeze(1) / energy.sqrt()
    counts = design.side.sum(0)
    means = design.side.T @ along / counts
    reference = design.side @ (means if design.centered else means.flip(0))
    return (along - reference) ** 2 / (design.side @ counts)
