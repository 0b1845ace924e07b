"""Replacement: one value in place of every activation (zero ablation and mean ablation)."""

import torch
from jaxtyping import Float
from torch import Tensor


def replace(
    activation: Float[Tensor, "*batch d"], value: Float[Tensor, " d"] | float
) -> Float[Tensor, "*batch d"]:
    r"""$v$ in place of every activation, whatever it was. A new tensor of the same dtype.

    Of a component's output, $v = 0$ is zero ablation, and $v = \bar z$, its mean over reference
    prompts, is mean ablation. Zero takes a component's constant part away too, which later
    layers may rely on, so that it can put a model far from anything it saw in training; the mean
    keeps that part and takes only what depends on the prompt.

    Source: arXiv:2211.00593 (mean ablation of heads).

    Args:
        activation: Vectors along the last axis, of any leading shape; only its shape matters.
        value: One vector for every position of every prompt, or one number for every coordinate.
    """
    if isinstance(value, Tensor):
        return value.to(activation).expand_as(activation).clone()
    return torch.full_like(activation, value)
