"""Leading components of any deal are those of its own differences; overlap has a shared null."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import ActivationError, DegenerateDirectionError, SampleError
from mechsafety.metrics.deals import Plan, plan
from mechsafety.metrics.layer_overlaps import (
    LayerOverlaps,
    layer_overlaps,
    subspace_stack,
    top_subspaces,
)
from mechsafety.metrics.pairing import Pairing, difference_rows
from mechsafety.metrics.principal_angles import overlap
from mechsafety.metrics.spectral_intervals import jackknife_groups

N, N_DRAWS, K = 24, 30, 3
PAIRINGS: tuple[Pairing, ...] = ("list", "all")


@pytest.fixture
def deals(generator: torch.Generator) -> Plan:
    groups = jackknife_groups(N, N, 6, generator)
    return plan(N, N, True, groups, N_DRAWS + 5, 10, 2, generator)


def gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def compared(
    first: Tensor, second: Tensor, deals: Plan, pairing: Pairing = "list"
) -> LayerOverlaps:
    stacks = [subspace_stack(rows, deals, K, pairing, N_DRAWS) for rows in (first, second)]
    layers = [(i, i) for i in range(min(first.shape[1], second.shape[1]))]
    return layer_overlaps(stacks[0], stacks[1], layers)


# Fewer channels than differences, and more than rows.
@pytest.mark.parametrize("d", [11, 61])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_components_are_the_singular_vectors_of_the_differences_of_each_deal(
    generator: torch.Generator, deals: Plan, d: int, pairing: Pairing
) -> None:
    rows = gaussian(generator, 2 * N, 2, d) + 1e7
    rows[:N, :, 4] += 3
    near = rows - 1e7
    for some in (deals.whole, deals.left_out, deals.permuted.first(4)):
        found = top_subspaces(rows, some, K, pairing)
        assert found.shape == (len(some), 2, K, d)
        for deal in range(len(some)):
            x, y = some.members(deal)
            for layer in range(2):
                differences = difference_rows(near[x, layer], near[y, layer], pairing)
                Vh = torch.linalg.svd(differences, full_matrices=False).Vh[:K]
                # Component by component, whatever its side.
                sides = (Vh * found[deal, layer]).sum(1, keepdim=True).sign()
                torch.testing.assert_close(sides * found[deal, layer], Vh, atol=1e-10, rtol=0)


def test_pairs_stay_together_when_groups_leave_and_are_random_when_labels_are_permuted(
    deals: Plan,
) -> None:
    # Twins differ by their own channel alone: any other pairing has more channels in it.
    rows = 50 * torch.eye(N).double().repeat(2, 1)[:, None] + 0
    rows = torch.cat([rows, torch.zeros(2 * N, 1, 3).double()], dim=2)
    rows[:N, 0, -1] += torch.linspace(1, 2, N).double()
    rows[:N, 0, -2] += torch.linspace(2, 1, N).double()
    kept = top_subspaces(rows, deals.left_out, 2, "list")
    assert float(kept[..., :N].abs().max()) < 1e-6
    dealt = top_subspaces(rows, deals.permuted.first(5), 2, "list")
    assert float(dealt[..., :N].square().sum(-1).min()) > 0.9


def test_rotation_scale_and_names_of_the_classes_change_nothing(
    generator: torch.Generator, deals: Plan
) -> None:
    d = 15
    first, second = gaussian(generator, 2 * N, 2, d), gaussian(generator, 2 * N, 2, d)
    before = first.clone()
    found = compared(first, second, deals)
    assert torch.equal(first, before)
    Q, _ = torch.linalg.qr(gaussian(generator, d, d))
    turned = compared(first @ Q + 4, -7 * second @ Q, deals)
    for name in ("value", "replicates", "null", "angles", "angle_replicates", "angle_null"):
        torch.testing.assert_close(getattr(turned, name), getattr(found, name))
    assert 0.1 < float(found.value.min()) < float(found.value.max()) < 0.6


def test_a_model_with_itself_overlaps_wholly_and_turned_in_one_plane_by_that_angle(
    generator: torch.Generator, deals: Plan
) -> None:
    d = 9
    rows = gaussian(generator, 2 * N, 1, d)
    rows[:, 0, K:] *= 1e-3
    same = compared(rows, rows, deals)
    assert float(same.value) == pytest.approx(1)
    torch.testing.assert_close(same.angles, torch.zeros(1, K).double(), atol=1e-5, rtol=0)
    turn = torch.eye(d).double()
    angle = torch.tensor(torch.pi / 6)
    turn[0, 0] = turn[K, K] = angle.cos()
    turn[0, K], turn[K, 0] = angle.sin(), -angle.sin()
    found = compared(rows, rows @ turn, deals)
    expected = torch.tensor([[0.0, 0, 30]]).double()
    torch.testing.assert_close(found.angles, expected, atol=0.2, rtol=0)
    assert float(found.value) == pytest.approx((2 + 0.75) / 3, abs=0.01)
    assert found.jackknifed_angle(0, 2).interval().high < 31


def test_what_models_share_by_their_prompts_is_in_the_null_and_what_labels_add_is_not(
    generator: torch.Generator, deals: Plan
) -> None:
    d = 60
    common = gaussian(generator, 2 * N, 2, d)
    first, second = (common + 0.3 * gaussian(generator, 2 * N, 2, d) for _ in range(2))
    # Where prompts vary, permuted labels vary too; only a shift of the mean is the labels' own.
    for rows in (first, second):
        rows[:, 1] -= 0.7 * common[:, 1]
        rows[:N, 1, 7] += 5
    found = compared(first, second, deals)
    shared = found.null.mean(0)
    assert float(shared[0]) > 4 * K / d  # what random spans would have
    low, high = found.null[:, 0].min(), found.null[:, 0].max()
    assert float(low) <= float(found.value[0]) <= float(high)
    assert float(found.value[1]) > float(found.null[:, 1].max())
    assert float(found.excess[1]) > 0.1
    interval = found.jackknifed(1).interval()
    assert interval.low > float(shared[1])

    # With the class means in, permuted labels find the shift as well.
    kept = [
        top_subspaces(rows, deals.permuted.first(N_DRAWS), K, "list") for rows in (first, second)
    ]
    with_shift = [overlap(x[1], y[1]) for x, y in zip(*kept, strict=True)]
    assert max(with_shift) > float(found.value[1])

    unrelated = compared(gaussian(generator, 2 * N, 2, d), gaussian(generator, 2 * N, 2, d), deals)
    assert float(unrelated.null.mean()) == pytest.approx(K / d, rel=0.25)


def test_replicates_leave_the_same_rows_out_of_both(
    generator: torch.Generator, deals: Plan
) -> None:
    first, second = gaussian(generator, 2 * N, 3, 12), gaussian(generator, 2 * N, 2, 12)
    stacks = [subspace_stack(rows, deals, K, "list", N_DRAWS) for rows in (first, second)]
    found = layer_overlaps(stacks[0], stacks[1], [(2, 0), (1, 1), (2, 1)])
    assert found.null.shape == (N_DRAWS, 3)
    for cell, (i, j) in enumerate(found.layers):
        whole = (
            top_subspaces(first, deals.whole, K, "list"),
            top_subspaces(second, deals.whole, K, "list"),
        )
        assert float(found.value[cell]) == pytest.approx(overlap(whole[0][0, i], whole[1][0, j]))
        for group in range(deals.groups.n_groups):
            expected = overlap(stacks[0].left_out[group, i], stacks[1].left_out[group, j])
            assert float(found.replicates[group, cell]) == pytest.approx(expected)
    cell = found.jackknifed(0)
    assert cell.interval().low <= cell.value <= cell.interval().high
    torch.testing.assert_close(cell.left_out, torch.full((6,), 1 / 6).double())
    assert (found.jackknifed(0) - found.jackknifed(0)).standard_error == 0


def test_a_layer_that_is_the_same_for_every_prompt_is_nan(
    generator: torch.Generator, deals: Plan
) -> None:
    first, second = gaussian(generator, 2 * N, 2, 12), gaussian(generator, 2 * N, 2, 12)
    first[:, 0] = first[0, 0] / 3
    found = compared(first, second, deals)
    assert found.value.isnan().tolist() == [True, False]
    assert found.null.isnan().all(0).tolist() == [True, False]
    with pytest.raises(DegenerateDirectionError, match=r"at layers \(0, 0\)"):
        found.jackknifed(0)


def test_what_does_not_fit_is_refused(generator: torch.Generator, deals: Plan) -> None:
    rows = gaussian(generator, 2 * N, 2, 12)
    stack = subspace_stack(rows, deals, K, "list", N_DRAWS)
    with pytest.raises(ActivationError, match=r"widths 12 and 11"):
        layer_overlaps(stack, subspace_stack(rows[..., 1:], deals, K, "list", N_DRAWS), [(0, 0)])
    for other in (
        replace(stack, fingerprint="other"),
        subspace_stack(rows, deals, K, "list", N_DRAWS - 1),
    ):
        with pytest.raises(SampleError, match=r"other plans, or with 30 and"):
            layer_overlaps(stack, other, [(0, 0)])
    with pytest.raises(SampleError, match=r"no pair of layers"):
        layer_overlaps(stack, stack, [])
    with pytest.raises(SampleError, match=r"36 draws of a plan with 35"):
        subspace_stack(rows, deals, K, "list", N_DRAWS + 6)
    with pytest.raises(ActivationError, match=r"47 rows for deals of 48"):
        top_subspaces(rows[1:], deals.whole, K, "list")
    with pytest.raises(DegenerateDirectionError, match=r"index 0.*fewer than 13"):
        top_subspaces(rows, deals.whole, 13, "list")
    flat = rows.clone()
    flat[:, 1, 2:] = 0
    with pytest.raises(DegenerateDirectionError, match=r"index 1.*fewer than 3"):
        top_subspaces(flat, deals.whole, K, "all")
    flat[5, 0, 3] = torch.inf
    with pytest.raises(ActivationError, match=r"index 0 of the layers: row 5"):
        top_subspaces(flat, deals.whole, K, "all")
