"""CKA sees through rotations, not through stretching, and its bias is where it is said to be."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import ActivationError
from mechsafety.metrics.cka import Estimator, cka, jackknifed_cka
from mechsafety.metrics.spectral_intervals import LeaveOut, jackknife_groups

N, D_FIRST, D_SECOND = 13, 9, 6
BOTH: tuple[Estimator, ...] = ("biased", "unbiased")


def gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def related(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    first = gaussian(generator, N, D_FIRST)
    mix = gaussian(generator, D_FIRST, D_SECOND)
    return first + 3, first @ mix + gaussian(generator, N, D_SECOND)


@pytest.mark.parametrize("estimator", BOTH)
def test_rotation_shift_and_one_scale_change_nothing_and_stretching_does(
    generator: torch.Generator, estimator: Estimator
) -> None:
    first, second = related(generator)
    value = cka(first, second, estimator)
    assert 0.1 < value < 0.95  # there is room to change in
    Q, _ = torch.linalg.qr(gaussian(generator, D_SECOND, D_SECOND))
    assert cka(first, 7 * second @ Q - 40, estimator) == pytest.approx(value)
    assert cka(second, first, estimator) == pytest.approx(value)
    stretched = second * torch.tensor([30.0, 1, 1, 1, 1, 1]).double()
    assert abs(cka(first, stretched, estimator) - value) > 0.05
    assert cka(first, first, estimator) == pytest.approx(1)


def test_the_biased_form_is_the_ratio_of_frobenius_norms(generator: torch.Generator) -> None:
    first, second = related(generator)
    X, Y = first - first.mean(0), second - second.mean(0)
    norms = (X.T @ X).norm() * (Y.T @ Y).norm()
    assert cka(first, second, "biased") == pytest.approx(float((X.T @ Y).norm() ** 2 / norms))


def hsic(first: Tensor, second: Tensor) -> float:
    """Mean of K_ij (L_ij + L_qr − 2 L_iq) over four different prompts, one term at a time."""
    K, L = (first @ first.T).tolist(), (second @ second.T).tolist()
    terms = [
        K[i][j] * (L[i][j] + L[q][r] - 2 * L[i][q])
        for i, j, q, r in permutations(range(len(first)), 4)
    ]
    return sum(terms) / len(terms)


def test_the_unbiased_form_is_the_sum_over_all_fours_of_different_prompts(
    generator: torch.Generator,
) -> None:
    first, second = gaussian(generator, 7, D_FIRST) + 3, gaussian(generator, 7, D_SECOND)
    expected = hsic(first, second) / (hsic(first, first) * hsic(second, second)) ** 0.5
    assert cka(first, second, "unbiased") == pytest.approx(expected)
    assert abs(cka(first, second, "biased") - expected) > 0.05


def test_unrelated_activations_of_few_prompts_look_alike_only_to_the_biased_form(
    generator: torch.Generator,
) -> None:
    drawn = [(gaussian(generator, 10, 400), gaussian(generator, 10, 300)) for _ in range(30)]
    means = {name: sum(cka(x, y, name) for x, y in drawn) / len(drawn) for name in BOTH}
    assert means["biased"] > 0.9
    assert means["unbiased"] == pytest.approx(0, abs=0.1)


def test_half_precision_with_a_large_mean_loses_no_digits(generator: torch.Generator) -> None:
    first, second = related(generator)
    half = (first + 500).half()
    assert cka(half, second, "unbiased") == pytest.approx(cka(half.double(), second, "unbiased"))


@pytest.mark.parametrize("estimator", BOTH)
def test_replicates_leave_out_their_group_and_differences_are_paired(
    generator: torch.Generator, estimator: Estimator
) -> None:
    first, second = related(generator)
    groups = jackknife_groups(N, N, 5, generator)
    leave_out = LeaveOut.of(groups, groups.harmful, first)
    found = jackknifed_cka(first, second, estimator, leave_out)
    assert found.value == pytest.approx(cka(first, second, estimator))
    for group in range(groups.n_groups):
        keep = groups.harmful != group
        assert found.replicates[group] == pytest.approx(cka(first[keep], second[keep], estimator))
    interval = found.interval()
    assert interval.low < found.value < interval.high <= 1
    same = found - jackknifed_cka(first, 2 * second, estimator, leave_out)
    assert same.standard_error == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_compared_is_refused(generator: torch.Generator) -> None:
    first, second = related(generator)
    with pytest.raises(ActivationError, match=r"13 prompts on one side and 12.*one list"):
        cka(first, second[1:], "unbiased")
    with pytest.raises(ActivationError, match=r"3 prompts; at least 4"):
        cka(first[:3], second[:3], "biased")
    with pytest.raises(ActivationError, match=r"the same for every prompt"):
        cka(first, torch.ones(N, D_SECOND), "unbiased")
    with pytest.raises(ActivationError, match=r"second activations.*NaN or infinity"):
        cka(first, second / 0, "biased")
    groups = jackknife_groups(N - 1, N - 1, 5, generator)
    with pytest.raises(ActivationError, match=r"groups of 12 prompts for activations of 13"):
        jackknifed_cka(first, second, "biased", LeaveOut.of(groups, groups.harmful, first))
