"""How many components a spectrum has: five measures that agree only on flat spectra.

All take the energies of the components (squared singular values, or eigenvalues of a second
moment) and equal k for k equal energies. With n rows in d ≫ n dimensions every one of them is
at most n and biased, so compare them at equal n and against a null.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ConfigError, DegenerateDirectionError


def effective_rank(energies: Float[Tensor, " component"]) -> float:
    r"""Roy and Vetterli's effective rank, from *singular values*.

    $\exp(-\sum_i q_i \ln q_i)$ with $q_i = \sigma_i / \sum_j \sigma_j$, $\sigma_i$ the root of
    energy i. `energy_effective_rank` puts the energies in its place and is smaller.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality",
    key:roy2007.

    Raises:
        DegenerateDirectionError: The energies sum to zero.
    """
    return _exponential_of_entropy(_checked(energies).sqrt())


def energy_effective_rank(energies: Float[Tensor, " component"]) -> float:
    r"""The entropy variant on energies: $\exp(-\sum p_i \ln p_i)$, $p_i = \lambda_i/\sum\lambda$.

    Raises:
        DegenerateDirectionError: The energies sum to zero.
    """
    return _exponential_of_entropy(_checked(energies))


def participation_ratio(energies: Float[Tensor, " component"]) -> float:
    r"""$(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2$.

    Raises:
        DegenerateDirectionError: The energies sum to zero.
    """
    checked = _checked(energies)
    return float(checked.sum() ** 2 / (checked**2).sum())


def stable_rank(energies: Float[Tensor, " component"]) -> float:
    r"""$\sum_i \sigma_i^2 / \sigma_1^2$, the inverse of the first component's share.

    Raises:
        DegenerateDirectionError: The energies sum to zero.
    """
    checked = _checked(energies)
    return float(checked.sum() / checked.max())


def threshold_rank(energies: Float[Tensor, " component"], threshold: float) -> int:
    r"""The fewest components that hold at least `threshold` of the energy.

    Source: "effective dimension" of arXiv:2502.09674.

    Raises:
        ConfigError: `threshold` is not in (0, 1].
        DegenerateDirectionError: The energies sum to zero.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold rank: expected a share in (0, 1], and got {threshold}.")
    checked = _checked(energies).sort(descending=True).values
    held = checked.cumsum(0) / checked.sum()
    # Rounding can leave the last cumulative share just below 1.
    return int((held < threshold - 1e-12).sum()) + 1


def _exponential_of_entropy(weights: Float[Tensor, " component"]) -> float:
    shares = weights / weights.sum()
    # x ln x tends to 0 with x, and xlogy says so.
    return math.exp(-float(torch.xlogy(shares, shares).sum()))


def _checked(energies: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
    """Float64, with the negative rounding errors of an eigenvalue solver set to zero."""
    checked = energies.double().clamp(min=0)
    if not bool(checked.sum() > 0):
        raise DegenerateDirectionError(
            f"rank of a spectrum: the {len(energies)} energies sum to zero, so there is nothing "
            "to spread over components. Check that the two prompt sets differ."
        )
    return checked
