"""A stack is one fit repeated on every deal, carried whole, and zero where nothing is found."""

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import ActivationError, DegenerateDirectionError
from mechsafety.metrics.deals import Deals, Plan, mean_differences, plan, refit_each
from mechsafety.metrics.direction_stacks import DirectionStack, refitted
from mechsafety.metrics.spectral_intervals import jackknife_groups

N_HARMFUL, N_HARMLESS, N_LAYERS, D, D_OTHER = 9, 8, 3, 6, 7


@pytest.fixture
def deals(generator: torch.Generator) -> Plan:
    groups = jackknife_groups(N_HARMFUL, N_HARMLESS, 5, generator)
    return plan(N_HARMFUL, N_HARMLESS, False, groups, 11, 10, 2, generator)


@pytest.fixture
def rows(generator: torch.Generator) -> Tensor:
    return torch.randn(N_HARMFUL + N_HARMLESS, N_LAYERS, D, generator=generator) + 5


def parts(stack: DirectionStack) -> list[Tensor]:
    return [
        stack.whole[None],
        stack.left_out,
        stack.permuted_with_shift,
        *stack.halves,
        *stack.left_out_halves,
    ]


def dealt(deals: Plan) -> list[Deals]:
    return [
        deals.whole,
        deals.left_out,
        deals.permuted,
        *deals.halves,
        *deals.few_halves_left_out,
    ]


def test_a_stack_is_the_fit_on_every_deal(rows: Tensor, deals: Plan) -> None:
    stack = refitted(mean_differences, rows, deals)
    for found, each in zip(parts(stack), dealt(deals), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, mean_differences(rows, each).float())
    assert refitted(mean_differences, rows.double(), deals).whole.dtype == torch.float64


def test_selecting_and_carrying_are_what_fitting_to_such_rows_would_give(
    rows: Tensor, deals: Plan, generator: torch.Generator
) -> None:
    rows = rows.double()
    stack = refitted(mean_differences, rows, deals)
    chosen = refitted(mean_differences, rows[:, [2, 0]], deals)
    for found, expected in zip(parts(stack.select([2, 0])), parts(chosen), strict=True):
        assert torch.equal(found, expected)
    maps = torch.randn(N_LAYERS, D, D_OTHER, generator=generator, dtype=torch.float64)
    carried = refitted(mean_differences, torch.einsum("nld,lde->nle", rows, maps), deals)
    for found, expected in zip(parts(stack.through([*maps])), parts(carried), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_layer_of_one_vector_for_all_prompts_is_zero_and_not_fitted(
    rows: Tensor, deals: Plan
) -> None:
    rows[:, 1] = rows[0, 1] / 3

    def fit(x: Tensor, y: Tensor) -> Tensor:
        assert not bool((x == y[0]).all())
        return 7 * (x.mean(0) - y.mean(0))

    for stack in (
        refitted(mean_differences, rows, deals),
        refitted(lambda r, d: refit_each(fit, r, d), rows, deals),
        refitted(mean_differences, rows, deals).through([torch.eye(D)] * N_LAYERS),
    ):
        for found in parts(stack):
            assert not found[:, 1].any()
            assert found[:, [0, 2]].any(-1).all()
    everywhere = refitted(mean_differences, rows[:, [1]], deals)
    assert not any(bool(found.any()) for found in parts(everywhere))


def test_where_all_rows_agree_on_nothing_what_single_deals_find_is_noise(
    rows: Tensor, deals: Plan
) -> None:
    rows[:N_HARMFUL, 0] = torch.arange(N_HARMFUL)[:, None] - (N_HARMFUL - 1) / 2
    rows[N_HARMFUL:, 0] = 0
    assert mean_differences(rows, deals.left_out)[:, 0].any()
    stack = refitted(mean_differences, rows, deals)
    for found in parts(stack):
        assert not found[:, 0].any()
        assert found[:, 1].any(-1).all()


def test_a_direction_that_the_map_takes_to_nothing_is_none(rows: Tensor, deals: Plan) -> None:
    stack = refitted(mean_differences, rows, deals)
    unit = stack.whole[2].double() / stack.whole[2].double().norm()
    blind = torch.eye(D).double() - torch.outer(unit, unit)
    carried = stack.through([torch.eye(D), torch.eye(D), blind])
    assert not carried.whole[2].any()
    assert not carried.halves[0][:, 2].any()
    assert torch.equal(carried.whole[:2], stack.whole[:2])


def test_what_does_not_fit_is_refused(rows: Tensor, deals: Plan) -> None:
    stack = refitted(mean_differences, rows, deals)
    for maps in (
        [torch.eye(D)] * 2,
        [torch.eye(D + 1)] * 3,
        [torch.eye(D)[:, :n] for n in (2, 2, 3)],
    ):
        with pytest.raises(ActivationError, match=r"3 layers of 6 channels: maps of shapes"):
            stack.through(maps)
    with pytest.raises(ActivationError, match=r"not finite"):
        refitted(lambda r, d: mean_differences(r, d) + torch.nan, rows, deals)
    with pytest.raises(ActivationError, match=r"16 rows for deals of 17"):
        refitted(mean_differences, rows[1:], deals)

    def few(x: Tensor, y: Tensor) -> Tensor:
        if len(x) < N_HARMFUL:
            raise DegenerateDirectionError("too few")
        return x.mean(0) - y.mean(0)

    with pytest.raises(DegenerateDirectionError, match=r"indices \[0, 1, 2\] of the layers"):
        refitted(lambda r, d: refit_each(few, r, d), rows, deals)
