"""Tiny random models whose biases are not the zeros that they are made with."""

import torch

from mechsafety.models.model import Model
from tests.models.families import tiny


def opened_with_biases(family: str, dtype: torch.dtype = torch.float32) -> Model:
    """A tiny model of the family in which a bias that is left out is seen."""
    generator = torch.Generator().manual_seed(7)
    hf = tiny(family)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("bias"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return Model(hf.to(dtype), None, None)  # pyright: ignore
