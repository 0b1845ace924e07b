"""Held-out separation is measured as `auc` does, and its null knows what a search can find."""

import math
from collections.abc import Callable

import pytest
import torch

from mechsafety.core.errors import ActivationError, SampleError
from mechsafety.metrics.auc import auc
from mechsafety.metrics.separation import (
    auc_by_row,
    d_prime_by_row,
    held_out_scores,
    permuted_auc,
    separation,
)

N_FIT, N_HELD, N_CELLS, D, N_DRAWS = 20, 17, 5, 13, 60

Splits = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _splits(
    generator: torch.Generator, shifts: list[float], n_held_harmless: int = N_HELD
) -> Splits:
    """Fit and held-out rows of both classes, whose means differ by `shifts` in each cell."""
    shift = torch.tensor(shifts)[:, None] * torch.eye(D)[0]

    def rows(n: int) -> torch.Tensor:
        return torch.randn(n, len(shifts), D, generator=generator) + 3

    return rows(N_FIT) + shift, rows(N_FIT), rows(N_HELD) + shift, rows(n_held_harmless)


def test_normal_scores_have_the_auc_that_their_d_prime_says(generator: torch.Generator) -> None:
    harmful = 1.3 + torch.randn(40_000, generator=generator)
    found = separation(harmful, torch.randn(30_000, generator=generator))
    assert found.d_prime == pytest.approx(1.3, abs=0.03)
    normal_cdf = 0.5 * (1 + math.erf(found.d_prime / 2))
    assert found.auc == pytest.approx(normal_cdf, abs=0.005)


def test_d_prime_worked_by_hand() -> None:
    # Means 4 and 1; variances 4 and 1, unbiased.
    found = separation(torch.tensor([2.0, 4.0, 6.0]), torch.tensor([0.0, 1.0, 2.0]))
    assert found.d_prime == pytest.approx(3 / 2.5**0.5)
    assert found.auc == pytest.approx((0.5 + 2 + 6) / 9)
    assert separation(torch.zeros(3), torch.zeros(2)).d_prime == 0
    same = torch.full((7,), 0.1, dtype=torch.float64)
    assert float(same.mean()) != float(same[:3].mean())  # rounding alone is a difference
    assert separation(same[:3], same).d_prime == 0
    assert separation(torch.ones(3), torch.zeros(2)).d_prime == math.inf


def test_the_auc_of_rows_is_the_auc_of_each_ties_included(generator: torch.Generator) -> None:
    harmful = torch.randint(6, (3, 4, 11), generator=generator).float()
    harmless = torch.randint(5, (3, 4, 7), generator=generator).float()
    found = auc_by_row(harmful, harmless)
    assert found.std() > 0.05  # there is something to tell apart
    for i in range(3):
        for j in range(4):
            assert float(found[i, j]) == pytest.approx(auc(harmful[i, j], harmless[i, j]))
            assert float(d_prime_by_row(harmful, harmless)[i, j]) == pytest.approx(
                separation(harmful[i, j], harmless[i, j]).d_prime
            )
    assert float(auc_by_row(torch.tensor([2.0, torch.inf]), torch.tensor([1.0]))) == 1


def test_held_out_scores_are_projections_on_the_unit_mean_difference(
    generator: torch.Generator,
) -> None:
    fit_harmful, fit_harmless, held_harmful, held_harmless = _splits(generator, [0.0, 2.0, 5.0], 9)
    harmful, harmless = held_out_scores(fit_harmful, fit_harmless, held_harmful, held_harmless)
    assert harmful.shape == (3, N_HELD)
    assert harmless.shape == (3, 9)
    for cell in range(3):
        direction = (fit_harmful - fit_harmless)[:, cell].double().mean(0)
        center = torch.cat([fit_harmful, fit_harmless])[:, cell].double().mean(0)
        expected = (held_harmful[:, cell].double() - center) @ direction / direction.norm()
        torch.testing.assert_close(harmful[cell], expected, atol=1e-7, rtol=0)
    assert auc_by_row(harmful, harmless)[2] > 0.99


def test_the_null_covers_what_no_shift_gives_and_not_what_a_shift_gives(
    generator: torch.Generator,
) -> None:
    splits = _splits(generator, [0.0, 0.0, 3.0, 0.0, 0.0])
    observed = auc_by_row(*held_out_scores(*splits))
    for paired in (True, False):
        null = permuted_auc(*splits, paired=paired, n_draws=N_DRAWS, generator=generator)
        assert null.shape == (N_DRAWS, N_CELLS)
        assert float(null.mean()) == pytest.approx(0.5, abs=0.03)
        # The spread of a Mann-Whitney statistic, in every cell, shifted or not.
        sd = ((2 * N_HELD + 1) / (12 * N_HELD**2)) ** 0.5
        torch.testing.assert_close(null.std(0), torch.full((5,), sd).double(), atol=0, rtol=0.35)
        assert observed[2] > null.amax()
        assert (observed[[0, 1, 3, 4]] < null.amax()).all()


@pytest.mark.parametrize("paired", [True, False])
def test_a_draw_relabels_every_cell_alike_and_refits_its_direction(
    generator: torch.Generator, paired: bool
) -> None:
    splits = _splits(generator, [1.0, 4.0])
    twice = tuple(torch.cat([rows, rows], dim=1) for rows in splits)
    null = permuted_auc(*twice, paired, N_DRAWS, generator)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(null[:, :2], null[:, 2:], atol=0, rtol=0)
    assert not torch.equal(null[:, 0], null[:, 1])
    # Against the definition, written out: refit on each relabeling, read on the relabeled rows.
    seed = torch.Generator().manual_seed(5)
    found = permuted_auc(*splits, paired, 3, seed)
    for n, expected in enumerate(_by_definition(splits, paired, 3, seed.manual_seed(5))):
        torch.testing.assert_close(found[n], expected)


def _by_definition(
    splits: Splits, paired: bool, n_draws: int, generator: torch.Generator
) -> list[torch.Tensor]:
    def orders(n: int) -> torch.Tensor:
        if not paired:
            return torch.stack([torch.randperm(2 * n, generator=generator) for _ in range(n_draws)])
        flip = torch.randint(2, (n_draws, n), generator=generator)
        first = torch.arange(n) + n * flip
        return torch.cat([first, (first + n) % (2 * n)], dim=1)

    fit, held = torch.cat(splits[:2]).double(), torch.cat(splits[2:]).double()
    nulls: list[torch.Tensor] = []
    for fit_order, held_order in zip(orders(N_FIT), orders(N_HELD), strict=True):
        dealt, read = fit[fit_order], held[held_order]
        direction = dealt[:N_FIT].mean(0) - dealt[N_FIT:].mean(0)
        scores = (read * direction).sum(2)
        aucs = [auc(scores[:N_HELD, c], scores[N_HELD:, c]) for c in range(fit.shape[1])]
        nulls.append(torch.tensor(aucs, dtype=torch.float64))
    return nulls


def _constant(n: int) -> torch.Tensor:
    return torch.linspace(-0.3, 1, D).expand(n, 1, D)


def _jittered(n: int) -> torch.Tensor:
    """Equal but for the rounding of another batch: the classes are collected apart."""
    return _constant(n) * (1 + 1e-7 * (n == N_FIT))


@pytest.mark.parametrize("same", [_constant, _jittered])
def test_a_cell_where_the_classes_do_not_differ_has_an_auc_of_one_half(
    generator: torch.Generator, same: Callable[[int], torch.Tensor]
) -> None:
    splits = same(N_FIT), same(N_FIT + 2), same(N_HELD), same(N_HELD + 1)
    harmful, harmless = held_out_scores(*splits)
    assert not harmful.any()
    assert separation(harmful[0], harmless[0]).auc == 0.5
    assert separation(harmful[0], harmless[0]).d_prime == 0
    assert (permuted_auc(*splits, False, N_DRAWS, generator) == 0.5).all()


def test_rows_that_are_equal_tie_whatever_their_place(generator: torch.Generator) -> None:
    # Layer 0 after the embedding: as many distinct rows as distinct tokens, in both classes.
    words = torch.randn(3, 1, 301, generator=generator)
    fit = words[torch.arange(41) % 3], words[torch.arange(23) % 2]
    held = words[torch.arange(63) % 3], words[torch.arange(36) % 3]
    harmful, harmless = held_out_scores(*fit, *held)
    assert len(torch.cat([harmful, harmless], dim=1).unique()) == 3
    assert separation(harmful[0], harmless[0]).auc == 0.5


def test_what_cannot_be_separated_is_refused(generator: torch.Generator) -> None:
    splits = _splits(generator, [0.0, 1.0], n_held_harmless=9)
    with pytest.raises(SampleError, match="17 harmful and 9 harmless rows are no pairs"):
        permuted_auc(*splits, True, 2, generator)
    with pytest.raises(SampleError, match="no harmless held-out rows"):
        held_out_scores(*splits[:3], splits[3][:0])
    broken = splits[0].clone()
    broken[4, 1, 2] = torch.nan
    with pytest.raises(ActivationError, match="harmful fit rows: row 4"):
        permuted_auc(broken, *splits[1:], False, 2, generator)
    with pytest.raises(SampleError, match="shows no spread"):
        separation(torch.ones(1), torch.ones(5))
    with pytest.raises(SampleError, match="nothing to rank against"):
        auc_by_row(torch.ones(2, 0), torch.ones(2, 3))
    with pytest.raises(SampleError, match="NaN has no rank"):
        auc_by_row(torch.tensor([torch.nan]), torch.ones(3))
