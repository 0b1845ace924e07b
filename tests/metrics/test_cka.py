"""CKA sees through rotations, not through stretching, and its bias is where it is said to be."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import ActivationError, SampleError
from mechsafety.metrics.activation_grams import ActivationGrams, Estimator, activation_grams
from mechsafety.metrics.cka import cka, jackknifed_cka, layer_cka, shuffled_layer_cka
from mechsafety.metrics.spectral_intervals import Groups, LeaveOut, jackknife_groups

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
    far = cka(first + 1e7, second, "unbiased")
    assert far == pytest.approx(cka(first, second, "unbiased"), abs=1e-7)


def left_out(generator: torch.Generator) -> tuple[Groups, LeaveOut]:
    """Groups of the prompts, and what leaving each out leaves."""
    groups = jackknife_groups(N, N, 5, generator)
    return groups, LeaveOut.of(groups, groups.harmful, torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("estimator", BOTH)
def test_replicates_leave_out_their_group_and_differences_are_paired(
    generator: torch.Generator, estimator: Estimator
) -> None:
    first, second = related(generator)
    groups, leave_out = left_out(generator)
    found = jackknifed_cka(first, second, estimator, leave_out)
    assert found.value == pytest.approx(cka(first, second, estimator))
    for group in range(groups.n_groups):
        keep = groups.harmful != group
        assert found.replicates[group] == pytest.approx(cka(first[keep], second[keep], estimator))
        assert float(found.left_out[group]) == pytest.approx(1 - float(keep.double().mean()))
    interval = found.interval()
    assert interval.low < found.value < interval.high <= 1
    assert (found.lowest, found.highest) == ({"biased": 0, "unbiased": -1}[estimator], 1)
    same = found - jackknifed_cka(first, 2 * second, estimator, leave_out)
    assert same.standard_error == pytest.approx(0, abs=1e-12)


def layered(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three layers of one model and two of another, on the same prompts."""
    drawn = [related(generator) for _ in range(3)]
    return torch.stack([x for x, _ in drawn], 1), torch.stack([y for _, y in drawn[:2]], 1)


def grams(
    first: Tensor,
    second: Tensor,
    estimator: Estimator = "unbiased",
    leave_out: LeaveOut | None = None,
) -> tuple[ActivationGrams, ActivationGrams]:
    return (
        activation_grams(first, estimator, leave_out),
        activation_grams(second, estimator, leave_out),
    )


@pytest.mark.parametrize("estimator", BOTH)
def test_every_cell_is_that_of_its_two_layers_alone(
    generator: torch.Generator, estimator: Estimator
) -> None:
    first, second = layered(generator)
    _, leave_out = left_out(generator)
    one, other = grams(first, second, estimator, leave_out)
    found = layer_cka(one, other)
    assert found.value.shape == (3, 2)
    assert float(found.value.diagonal().min()) > float(found.value[0, 1])  # something to find
    for i in range(3):
        for j in range(2):
            cell = found.jackknifed(i, j)
            alone = jackknifed_cka(first[:, i], second[:, j], estimator, leave_out)
            assert cell.value == pytest.approx(alone.value)
            torch.testing.assert_close(cell.replicates, alone.replicates)
            assert (cell.lowest, cell.fingerprint) == (alone.lowest, alone.fingerprint)
    back = layer_cka(other, one)  # the same matrices again, and nothing of the first use in them
    torch.testing.assert_close(back.value, found.value.T)
    torch.testing.assert_close(back.replicates, found.replicates.mT)


@pytest.mark.parametrize("estimator", BOTH)
def test_prompts_in_another_order_are_the_null_of_no_relation(
    generator: torch.Generator, estimator: Estimator
) -> None:
    first, second = layered(generator)
    one, other = grams(first, second, estimator, left_out(generator)[1])
    value = layer_cka(one, other).value
    null = shuffled_layer_cka(one, other, 400, torch.Generator().manual_seed(6))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(6))
    expected = layer_cka(*grams(first, second[order], estimator)).value
    torch.testing.assert_close(null[0], expected)
    assert float(value[1, 1]) > float(null[:, 1, 1].quantile(0.99))
    if estimator == "unbiased":
        torch.testing.assert_close(null.mean(0), torch.zeros(3, 2).double(), atol=0.02, rtol=0)
    else:
        assert float(null.mean()) > 0.2


def test_a_layer_where_nothing_varies_is_nan_and_the_others_are_untouched(
    generator: torch.Generator,
) -> None:
    first, second = layered(generator)
    whole = layer_cka(*grams(first, second)).value
    first[:, 1] = 100 * gaussian(generator, D_FIRST)
    assert bool((first[:, 1] != first[:, 1].mean(0)).any())  # the same, but not their mean
    found = layer_cka(*grams(first, second, leave_out=left_out(generator)[1]))
    assert found.value[1].isnan().all()
    torch.testing.assert_close(found.value[[0, 2]], whole[[0, 2]])
    with pytest.raises(ActivationError, match=r"the same for every prompt"):
        found.jackknifed(1, 0)
    with pytest.raises(SampleError, match=r"without groups to leave out"):
        layer_cka(*grams(first, second)).jackknifed(0, 0)
    with pytest.raises(SampleError, match=r"0 draws"):
        shuffled_layer_cka(*grams(first, second), 0, generator)


def test_a_layer_where_only_one_group_varies_has_no_replicate_without_it(
    generator: torch.Generator,
) -> None:
    first, second = layered(generator)
    groups, leave_out = left_out(generator)
    first[groups.harmful != 3, 1] = 100 * gaussian(generator, D_FIRST)
    found = layer_cka(*grams(first, second, leave_out=leave_out))
    without = found.replicates.isnan().all(-1)
    assert without.nonzero().tolist() == [[3, 1]]
    assert found.value.isfinite().all()
    with pytest.raises(ActivationError, match=r"the same for every prompt"):
        found.jackknifed(1, 0)


@pytest.mark.parametrize("estimator", BOTH)
def test_a_massive_prompt_costs_the_replicate_without_it_no_digits(
    generator: torch.Generator, estimator: Estimator
) -> None:
    first, second = layered(generator)
    groups, leave_out = left_out(generator)
    others = groups.harmful != 2
    expected = layer_cka(*grams(first[others], second[others], estimator)).value
    for rows in (first, second):
        rows[groups.harmful == 2, :, 3] += 1e6
    found = layer_cka(*grams(first, second, estimator, leave_out))
    assert float(found.value.min()) > 0.999  # it is all that the others see
    torch.testing.assert_close(found.replicates[2], expected, atol=1e-12, rtol=0)


def test_what_cannot_be_compared_is_refused(generator: torch.Generator) -> None:
    first, second = related(generator)
    with pytest.raises(ActivationError, match=r"13 prompts on one side and 12.*one list"):
        cka(first, second[1:], "unbiased")
    with pytest.raises(ActivationError, match=r"3 prompts; at least 4"):
        cka(first[:3], second[:3], "biased")
    with pytest.raises(ActivationError, match=r"the same for every prompt"):
        cka(first, torch.ones(N, D_SECOND), "unbiased")
    with pytest.raises(ActivationError, match=r"activations at index 0.*NaN or infinity"):
        cka(first, second / 0, "biased")
    groups = jackknife_groups(N - 1, N - 1, 5, generator)
    with pytest.raises(ActivationError, match=r"groups of 12 prompts for activations of 13"):
        jackknifed_cka(first, second, "biased", LeaveOut.of(groups, groups.harmful, first))


def test_matrices_of_other_samples_or_estimators_are_refused(generator: torch.Generator) -> None:
    first, second = layered(generator)
    groups, leave_out = left_out(generator)
    turned = LeaveOut.of(groups, groups.harmful.flip(0), first)
    one = activation_grams(first, "unbiased", leave_out)
    with pytest.raises(ActivationError, match=r"13 prompts on one side and 12.*one list"):
        layer_cka(*grams(first, second[1:]))
    with pytest.raises(SampleError, match=r"the unbiased estimator.*the biased one.*`estimator`"):
        layer_cka(one, activation_grams(second, "biased", leave_out))
    with pytest.raises(SampleError, match=r"5 groups.*0 of the other.*one LeaveOut"):
        layer_cka(one, activation_grams(second, "unbiased", None))
    with pytest.raises(SampleError, match=r"5 groups.*not the same ones"):
        shuffled_layer_cka(one, activation_grams(second, "unbiased", turned), 3, generator)
