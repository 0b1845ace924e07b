"""An edit of some tokens only."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechsafety.core.errors import PositionError
from mechsafety.interventions.intervention import Intervention


def at_tokens(
    activation: Float[Tensor, "batch pos d"],
    tokens: Bool[Tensor, "n_rows n_pos"],
    edit: Intervention,
) -> Float[Tensor, "batch pos d"]:
    """The edited activation where `tokens` is true, and the activation elsewhere. A new tensor.

    Args:
        activation: Of one padded batch.
        tokens: Which columns of each row of that batch are edited.
        edit: Applied to the whole batch; its result is kept at those tokens.

    Raises:
        PositionError: The mask is of another batch, or the step of a generation.
    """
    if activation.shape[:2] != tokens.shape:
        raise PositionError(
            f"editing some tokens: the activation has {tuple(activation.shape[:2])} rows and "
            f"columns and the mask {tuple(tokens.shape)}. Make the mask from the batch that runs; "
            "in generation each step has one column, so edit all tokens there."
        )
    there = tokens.to(activation.device)[..., None]
    return torch.where(there, edit(activation), activation)
