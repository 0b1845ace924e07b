"""Replacement leaves nothing of what an activation was, and nothing else changes."""

import pytest
import torch

from mechsafety.interventions.replace import replace

BATCH, POS, D = 3, 5, 11


def test_every_activation_becomes_the_value_and_the_argument_stays(
    generator: torch.Generator,
) -> None:
    activation = torch.randn(BATCH, POS, D, generator=generator)
    value = torch.randn(D, generator=generator)
    before = activation.clone()
    assert activation.std(dim=(0, 1)).min() > 0.1  # the activations did differ
    replaced = replace(activation, value)
    assert torch.equal(replaced, value.repeat(BATCH, POS, 1))
    assert torch.equal(activation, before)
    assert torch.equal(replace(replaced, value), replaced)


def test_the_mean_leaves_the_mean(generator: torch.Generator) -> None:
    activation = 2 + torch.randn(BATCH, POS, D, generator=generator)
    replaced = replace(activation, activation.mean(dim=(0, 1)))
    torch.testing.assert_close(replaced.mean(dim=(0, 1)), activation.mean(dim=(0, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_as_a_number_is_zero_as_a_vector_in_the_activations_dtype(
    generator: torch.Generator, dtype: torch.dtype
) -> None:
    activation = torch.randn(BATCH, POS, D, generator=generator).to(dtype)
    zero = replace(activation, 0.0)
    assert zero.dtype == dtype
    assert zero.shape == activation.shape
    assert not zero.any()
    assert torch.equal(zero, replace(activation, torch.zeros(D, dtype=torch.float64)))


def test_the_result_is_memory_of_its_own(generator: torch.Generator) -> None:
    value = torch.randn(D, generator=generator)
    kept = value.clone()
    replaced = replace(torch.zeros(BATCH, D), value)
    replaced[0] += 1
    assert torch.equal(value, kept)
    assert torch.equal(replaced[1], kept)
