"""Difference-in-means direction.

Source: Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single
Direction", arXiv:2406.11717.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import DegenerateDirectionError
from mechsafety.linalg.subspace import Subspace


def difference_in_means(
    harmful: Float[Tensor, "n_harmful d_model"],
    harmless: Float[Tensor, "n_harmless d_model"],
) -> Float[Tensor, " d_model"]:
    r"""The shift from the mean harmless activation to the mean harmful one.

    $r = \bar{x}_\text{harmful} - \bar{x}_\text{harmless}$, in the units of the
    activations; its norm is the size of the shift, so normalize only where a
    unit vector is what the maths asks for, never here. Accumulated in float64,
    returned in at least float32.

    Source: arXiv:2406.11717, "Extracting a refusal direction".

    Args:
        harmful: One activation per prompt, at one site and one token position.
        harmless: As above. The two sets need not be the same size.

    Raises:
        DegenerateDirectionError: No rows, or the two means are equal or not finite.
    """
    if not len(harmful) or not len(harmless):
        raise DegenerateDirectionError(
            f"difference_in_means: {len(harmful)} harmful and {len(harmless)} harmless "
            "activations; both need at least one. Check the prompt files and filters."
        )
    # Half-precision sums lose the difference when both means are far from zero.
    shift = harmful.double().mean(dim=0) - harmless.double().mean(dim=0)
    if not torch.isfinite(shift).all():
        raise DegenerateDirectionError(
            f"difference_in_means: of {len(harmful)} harmful and {len(harmless)} harmless "
            "activations some are not finite. Find the prompt that gave them."
        )
    if not torch.any(shift):
        raise DegenerateDirectionError(
            f"difference_in_means: the {len(harmful)} harmful and {len(harmless)} harmless "
            "activations have the same mean, so there is no direction between them. "
            "Check that the two prompt sets differ and that the site is read after the prompt."
        )
    return shift.to(torch.promote_types(harmful.dtype, torch.float32))


class DifferenceInMeans(FrozenConfig):
    """Settings for `difference_in_means`, as written in an experiment's YAML."""

    method: Literal["difference_in_means"] = "difference_in_means"
    """How directions are fitted."""

    def fit(
        self,
        harmful: Float[Tensor, "n_harmful d_model"],
        harmless: Float[Tensor, "n_harmless d_model"],
    ) -> Subspace:
        """One dimension whose scale is the norm of the mean difference."""
        return Subspace.of_vector(difference_in_means(harmful, harmless))
