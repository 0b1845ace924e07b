"""What is held of a model serves every sample of its prompts, in the memory that is stated."""

import dataclasses

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import ActivationError
from mechsafety.metrics.activation_grams import Estimator, activation_grams
from mechsafety.metrics.spectral_intervals import LeaveOut, jackknife_groups

N, N_LAYERS, D = 17, 3, 8


def drawn(generator: torch.Generator) -> Tensor:
    return torch.randn(N, N_LAYERS, D, generator=generator) + 5


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_norms_without_a_group_are_those_of_the_other_prompts_alone(
    generator: torch.Generator, estimator: Estimator
) -> None:
    rows = drawn(generator)
    groups = jackknife_groups(N, N, 6, generator)
    leave_out = LeaveOut.of(groups, groups.harmful, rows)
    found = activation_grams(rows, estimator, leave_out)
    torch.testing.assert_close(found.norms[0], activation_grams(rows, estimator, None).norms[0])
    assert float((found.norms[1:] / found.norms[0] - 1).abs().min()) > 1e-3
    for group in range(groups.n_groups):
        alone = activation_grams(rows[groups.harmful != group], estimator, None)
        torch.testing.assert_close(found.norms[1 + group], alone.norms[0])


def test_the_biased_norm_is_that_of_the_covariance(generator: torch.Generator) -> None:
    rows = drawn(generator)
    centered = rows.double() - rows.double().mean(0)
    covariances = torch.einsum("pic,pid->icd", centered, centered)
    found = activation_grams(rows, "biased", None).norms[0]
    torch.testing.assert_close(found, covariances.square().sum((1, 2)).sqrt())


def test_groups_may_overlap_and_spare_prompts(generator: torch.Generator) -> None:
    rows = drawn(generator)
    kept = torch.ones(2, N)
    kept[0, 2:7] = kept[1, 5:9] = 0
    found = activation_grams(rows, "unbiased", LeaveOut(kept, "overlapping"))
    for group in range(2):
        alone = activation_grams(rows[kept[group] > 0], "unbiased", None)
        torch.testing.assert_close(found.norms[1 + group], alone.norms[0])


def test_what_rounding_leaves_of_equal_prompts_is_no_matrix(generator: torch.Generator) -> None:
    rows = drawn(generator)
    kept = torch.ones(1, N)
    kept[0, 5:] = 0  # most prompts, whose median is far from the others
    rows[:5] = 100 * torch.randn(N_LAYERS, D, generator=generator)
    norms = activation_grams(rows, "unbiased", LeaveOut(kept, "most")).norms
    assert norms[0].isfinite().all()
    assert norms[1].isnan().all()


def test_what_is_held_grows_with_groups_by_their_row_sums_only(generator: torch.Generator) -> None:
    rows = torch.randn(120, 33, 4, generator=generator)
    groups = jackknife_groups(120, 120, 20, generator)
    found = activation_grams(rows, "unbiased", LeaveOut.of(groups, groups.harmful, rows))
    values = (getattr(found, field.name) for field in dataclasses.fields(found))
    held = sum(value.nbytes for value in values if isinstance(value, Tensor))
    stated = 4 * 120**2 * (33 + 2) + 8 * 120 * 33 * 21
    assert held == pytest.approx(stated, rel=0.03)


def test_too_few_prompts_without_a_group_are_refused(generator: torch.Generator) -> None:
    rows = drawn(generator)
    kept = torch.ones(2, N)
    kept[1, 3:] = 0
    with pytest.raises(ActivationError, match=r"3 prompts of 17 without a group; at least 4"):
        activation_grams(rows, "unbiased", LeaveOut(kept, "few"))
    with pytest.raises(ActivationError, match=r"groups of 16 prompts for activations of 17"):
        activation_grams(rows, "unbiased", LeaveOut(torch.ones(2, N - 1), "other"))
