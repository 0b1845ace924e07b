"""Deals of rows: what is in which class, what is left out, and that models can share them."""

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import ActivationError, DegenerateDirectionError, SampleError
from mechsafety.metrics.deals import (
    Deals,
    as_labeled,
    halved,
    leaving_out,
    mean_differences,
    permuted,
    plan,
    refit_each,
    varying_layers,
)
from mechsafety.metrics.halving import half_marks
from mechsafety.metrics.spectral_intervals import Groups, jackknife_groups

N_HARMFUL, N_HARMLESS, N_LAYERS, D = 11, 7, 3, 5
N = N_HARMFUL + N_HARMLESS


def members(deals: Deals, deal: int) -> tuple[list[int], list[int]]:
    positive, negative = deals.members(deal)
    return [int(i) for i in positive], [int(i) for i in negative]


def activations(generator: torch.Generator) -> Tensor:
    return torch.randn(N, N_LAYERS, D, generator=generator, dtype=torch.float64) + 20


def test_every_deal_is_the_difference_of_the_means_of_its_members(
    generator: torch.Generator,
) -> None:
    rows = activations(generator)
    groups = jackknife_groups(N_HARMFUL, N_HARMLESS, 4, generator)
    a, b = halved(*half_marks(N_HARMFUL, N_HARMLESS, False, 6, generator))
    shuffled = permuted(N_HARMFUL, N_HARMLESS, 11, generator)
    for deals in (as_labeled(N_HARMFUL, N_HARMLESS), leaving_out(groups), shuffled, a, b):
        found = mean_differences(rows, deals)
        assert found.shape == (len(deals), N_LAYERS, D)
        for deal in range(len(deals)):
            x, y = deals.members(deal)
            torch.testing.assert_close(found[deal], rows[x].mean(0) - rows[y].mean(0))


def test_leaving_out_a_group_leaves_its_rows_out_and_keeps_the_labels_of_the_others(
    generator: torch.Generator,
) -> None:
    groups = jackknife_groups(N_HARMFUL, N_HARMLESS, 4, generator)
    found = leaving_out(groups)
    assert len(found) == groups.n_groups
    for group in range(groups.n_groups):
        x, y = members(found, group)
        assert x == [i for i in range(N_HARMFUL) if int(groups.harmful[i]) != group]
        assert y == [N_HARMFUL + i for i in range(N_HARMLESS) if int(groups.harmless[i]) != group]


def test_permuted_deals_keep_the_sizes_and_cross_the_pairs(generator: torch.Generator) -> None:
    found = permuted(N_HARMFUL, N_HARMLESS, 400, generator)
    together = torch.zeros(N, N)
    for deal in range(len(found)):
        x, y = found.members(deal)
        assert (len(x), len(y)) == (N_HARMFUL, N_HARMLESS)
        assert sorted([*x.tolist(), *y.tolist()]) == list(range(N))
        together[x[:N_HARMLESS], y] += 1
    # Random pairs: any row is the partner of any other about as often.
    partners = (together + together.T)[~torch.eye(N, dtype=torch.bool)]
    expected = 2 * 400 * N_HARMLESS / (N * (N - 1))
    assert (partners - expected).abs().max() < 5 * expected**0.5
    again = permuted(N_HARMFUL, N_HARMLESS, 3, torch.Generator().manual_seed(3))
    same = permuted(N_HARMFUL, N_HARMLESS, 3, torch.Generator().manual_seed(3))
    assert torch.equal(again.weights, same.weights)


@pytest.mark.parametrize("paired", [False, True])
def test_halves_are_disjoint_cover_all_rows_and_keep_pairs(
    generator: torch.Generator, paired: bool
) -> None:
    n_harmless = N_HARMFUL if paired else N_HARMLESS
    a, b = halved(*half_marks(N_HARMFUL, n_harmless, paired, 8, generator))
    assert len(a) == len(b) == 8
    for split in range(8):
        (x, y), (z, w) = members(a, split), members(b, split)
        assert sorted(x + z) == list(range(N_HARMFUL))
        assert sorted(y + w) == list(range(N_HARMFUL, N_HARMFUL + n_harmless))
        assert (len(x), len(y)) == (N_HARMFUL // 2, n_harmless // 2)
        if paired:
            assert [i + N_HARMFUL for i in x] == y
    assert len({tuple(members(a, split)[0]) for split in range(8)}) > 4


KINDS = [*"aaaaaaaaabbbbccccccddeeeeefff"]
"""Clusters of other sizes: 29 rows, the largest of 9."""


def clusters_of(deals: Deals, deal: int, names: list[str]) -> set[str]:
    return {names[i] for side in members(deals, deal) for i in side}


def test_a_plan_leaves_clusters_out_of_halves_that_hold_others(
    generator: torch.Generator,
) -> None:
    for names in (KINDS, [*"aaaaaaaaaabbccdd"]):
        n = len(names)
        groups = jackknife_groups(n, n, 20, generator, names)
        found = plan(n, n, True, groups, 5, 7, 7, generator, names)
        for whole, few in zip(found.halves, found.few_halves_left_out, strict=True):
            for split in range(7):
                kinds = clusters_of(whole, split, names * 2)
                kept = [
                    clusters_of(few, group * 7 + split, names * 2)
                    for group in range(groups.n_groups)
                ]
                assert max(len(kinds - one) for one in kept) == 1
                assert sum(len(kinds - one) for one in kept) == len(kinds)
    # Without clusters the draws are those of prompts one by one.
    own = [torch.Generator().manual_seed(5) for _ in range(2)]
    groups = jackknife_groups(n, n, 20, generator)
    one, same = (plan(n, n, True, groups, 5, 7, 2, each, None, None) for each in own)
    assert one.fingerprint == same.fingerprint != found.fingerprint


def test_a_group_that_holds_all_that_a_half_has_of_a_class_is_refused(
    generator: torch.Generator,
) -> None:
    # Two clusters of one group are all that some half of 5 has.
    names = [*"aabbccddee"]
    pooled = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    with pytest.raises(SampleError, match=r"must not hold all that a half has of a class"):
        plan(10, 10, True, Groups(pooled, pooled, 4), 5, 60, 60, generator, names)


def test_replicates_of_halves_are_the_first_splits_without_the_group(
    generator: torch.Generator,
) -> None:
    groups = jackknife_groups(N_HARMFUL, N_HARMLESS, 4, generator)
    found = plan(N_HARMFUL, N_HARMLESS, False, groups, 5, 7, 2, generator)
    assert found.n_few_splits == 2
    group_of_row = torch.cat([groups.harmful, groups.harmless])
    for whole, few in zip(found.halves, found.few_halves_left_out, strict=True):
        assert len(few) == groups.n_groups * 2
        for group in range(groups.n_groups):
            for split in range(2):
                kept = [
                    [i for i in side if int(group_of_row[i]) != group]
                    for side in members(whole, split)
                ]
                assert list(members(few, group * 2 + split)) == kept


def test_plans_of_one_seed_are_one_plan_and_others_are_told_apart(
    generator: torch.Generator,
) -> None:
    groups = jackknife_groups(N_HARMFUL, N_HARMLESS, 4, generator)

    def fingerprint(seed: int) -> str:
        own = torch.Generator().manual_seed(seed)
        return plan(N_HARMFUL, N_HARMLESS, False, groups, 5, 7, 2, own).fingerprint

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)


def test_a_common_shift_costs_no_digits_and_rounding_is_no_direction(
    generator: torch.Generator,
) -> None:
    rows = activations(generator)
    deals = permuted(N_HARMFUL, N_HARMLESS, 4, generator)
    far = mean_differences(rows + 1e8, deals)
    torch.testing.assert_close(far, mean_differences(rows, deals), atol=1e-6, rtol=0)
    # The same for every prompt, but their mean is not exact.
    rows[:, 1] = rows[0, 1] / 3
    assert float((rows[:, 1] - rows[:, 1].mean(0)).abs().max()) > 0
    assert varying_layers(rows) == [0, 2]
    found = mean_differences(rows, deals)
    assert not found[:, 1].any()
    assert found[:, [0, 2]].any(-1).all()


def test_refitting_row_by_row_gives_what_weights_give(generator: torch.Generator) -> None:
    rows = activations(generator).float()
    deals = permuted(N_HARMFUL, N_HARMLESS, 4, generator)

    def fit(x: Tensor, y: Tensor) -> Tensor:
        if bool((x == y[0]).all()):
            raise DegenerateDirectionError("nothing")
        return x.double().mean(0) - y.double().mean(0)

    rows[:, 2] = 3
    found = refit_each(fit, rows, deals)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), mean_differences(rows, deals), atol=1e-5, rtol=0)
    assert not found[:, 2].any()


def test_what_cannot_be_dealt_is_refused(generator: torch.Generator) -> None:
    groups = jackknife_groups(N_HARMFUL, N_HARMLESS, 4, generator)
    with pytest.raises(SampleError, match=r"groups of 11 \+ 7 rows for deals of 17"):
        as_labeled(N_HARMFUL, N_HARMLESS - 1).leaving_out(groups)
    alone = Groups(torch.tensor([0, 0, 0, 0, 1]), torch.tensor([2, 2, 3, 1, 0]), 4)
    lonely = as_labeled(5, 5).first(1)
    assert len(lonely.leaving_out(alone)) == 4
    with pytest.raises(SampleError, match=r"has no rows left"):
        leaving_out(Groups(torch.zeros(5).long(), torch.tensor([2, 2, 3, 1, 0]), 4))
    for draws, splits, few in ((1, 5, 2), (5, 0, 0), (5, 3, 4)):
        with pytest.raises(SampleError, match=rf"{draws} draws, {splits} splits and {few}"):
            plan(N_HARMFUL, N_HARMLESS, False, groups, draws, splits, few, generator)
    rows = activations(generator)
    with pytest.raises(ActivationError, match=r"17 rows for deals of 18"):
        mean_differences(rows[1:], as_labeled(N_HARMFUL, N_HARMLESS))
    rows[4, 1, 2] = torch.nan
    for refit in (mean_differences, lambda r, d: refit_each(lambda x, y: x[0] - y[0], r, d)):
        with pytest.raises(ActivationError, match=r"index 1 of the layers: row 4 of 18"):
            refit(rows, as_labeled(N_HARMFUL, N_HARMLESS))
