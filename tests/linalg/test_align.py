"""Maps find what was planted, keep what they promise, and score nothing where nothing is shared."""

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import ActivationError, SampleError
from mechsafety.linalg.align import LinearMap, held_out_r2, procrustes, ridge

N, N_HELD, D_SOURCE, D_TARGET = 60, 25, 7, 11
PENALTIES = tuple(10.0**power for power in range(-6, 5))


def gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(generator: torch.Generator) -> Tensor:
    """Semi-orthogonal, [D_SOURCE, D_TARGET]."""
    Q, _ = torch.linalg.qr(gaussian(generator, D_TARGET, D_SOURCE))
    return Q.T


def split(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows[:N], rows[N:]


def spaces(generator: torch.Generator, matrix: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Rows of both spaces, held-out ones last, far from zero in both."""
    source = gaussian(generator, N + N_HELD, len(matrix)) * torch.arange(1.0, len(matrix) + 1)
    target = source @ matrix + noise * gaussian(generator, len(source), matrix.shape[1])
    return source + 50, target - 90


def fit_ridge(generator: torch.Generator, source: Tensor, target: Tensor) -> LinearMap:
    return ridge(source, target, PENALTIES, 5, generator)


def test_a_planted_rotation_is_recovered_and_is_semi_orthogonal(generator: torch.Generator) -> None:
    W = rotation(generator)
    source, target = spaces(generator, W, noise=0)
    fit, held = zip(split(source), split(target), strict=True)
    assert held_out_r2(procrustes(fit[0], fit[1].roll(1, 0)), *held) < 0.3  # rows do matter
    found = procrustes(*fit)
    torch.testing.assert_close(found.matrix, W)
    torch.testing.assert_close(found.matrix @ found.matrix.T, torch.eye(D_SOURCE).double())
    assert found.rank == D_SOURCE
    assert found.penalty is None
    assert held_out_r2(found, *held) == pytest.approx(1)
    vectors = gaussian(generator, 2, 3, D_SOURCE)
    torch.testing.assert_close(found.carry(vectors), vectors @ W)
    torch.testing.assert_close(found.apply(held[0]), held[1])
    back = procrustes(fit[1], fit[0])
    torch.testing.assert_close(back.matrix.T @ back.matrix, torch.eye(D_SOURCE).double())
    torch.testing.assert_close(back.matrix, W.T)


def test_one_factor_is_fitted_only_where_asked(generator: torch.Generator) -> None:
    W = rotation(generator)
    source, target = spaces(generator, 6 * W, noise=0.5)
    fit, held = zip(split(source), split(target), strict=True)
    plain, scaled = procrustes(*fit), procrustes(*fit, scaled=True)
    assert held_out_r2(plain, *held) < 0.5
    assert held_out_r2(scaled, *held) > 0.98
    factor = float(scaled.matrix.norm() / plain.matrix.norm())
    assert factor == pytest.approx(6, rel=0.02)
    torch.testing.assert_close(scaled.matrix, factor * plain.matrix)


def test_few_rows_of_a_wide_space_determine_only_what_they_span(
    generator: torch.Generator,
) -> None:
    n, wide, wider = 9, 300, 340
    Q, _ = torch.linalg.qr(gaussian(generator, wider, wide))
    source = gaussian(generator, n, wide) + 5
    target = source @ Q.T
    found = procrustes(source, target)
    assert found.rank == n - 1
    torch.testing.assert_close(found.apply(source), target)
    spanned = source[0] - source[4]
    torch.testing.assert_close(found.carry(spanned), spanned @ Q.T)
    outside = gaussian(generator, wide)
    assert float(found.carry(outside).norm() / outside.norm()) < 0.4
    projection = found.matrix @ found.matrix.T
    torch.testing.assert_close(projection @ projection, projection)
    assert float(projection.trace()) == pytest.approx(n - 1)


def test_the_ridge_is_the_normal_equations_at_its_penalty(generator: torch.Generator) -> None:
    source, target = spaces(generator, gaussian(generator, D_SOURCE, D_TARGET), noise=1)
    for n in (5, N):
        found = ridge(source[:n], target[:n], [0.03], 2, generator)
        X, Y = source[:n] - source[:n].mean(0), target[:n] - target[:n].mean(0)
        moment = X.T @ X
        weight = 0.03 * moment.trace() / min(n - 1, D_SOURCE)
        by_hand = torch.linalg.solve(moment + weight * torch.eye(D_SOURCE), X.T @ Y)
        torch.testing.assert_close(found.matrix, by_hand)
        assert found.rank == min(n - 1, D_SOURCE)
        assert found.penalty == 0.03


def test_the_ridge_beats_procrustes_where_the_map_is_no_rotation(
    generator: torch.Generator,
) -> None:
    stretch = torch.logspace(-2, 1, D_SOURCE, dtype=torch.float64)[:, None]
    source, target = spaces(generator, stretch * rotation(generator), noise=0.2)
    fit, held = zip(split(source), split(target), strict=True)
    rigid = max(held_out_r2(procrustes(*fit, scaled=scaled), *held) for scaled in (False, True))
    assert held_out_r2(fit_ridge(generator, *fit), *held) > max(rigid + 0.05, 0.95)


@pytest.mark.parametrize("method", ["procrustes", "ridge"])
def test_shuffled_rows_predict_nothing_held_out(generator: torch.Generator, method: str) -> None:
    W = rotation(generator)
    source, target = spaces(generator, W, noise=0.5)
    fit, held = zip(split(source), split(target), strict=True)
    order = torch.randperm(N, generator=generator)

    def fitted(target_rows: Tensor) -> LinearMap:
        if method == "ridge":
            return fit_ridge(generator, fit[0], target_rows)
        return procrustes(fit[0], target_rows)

    assert held_out_r2(fitted(fit[1]), *held) > 0.9
    assert held_out_r2(fitted(fit[1][order]), *held) <= 0


def test_a_map_that_ignores_its_input_scores_zero_about_the_fit_mean(
    generator: torch.Generator,
) -> None:
    source, target = spaces(generator, rotation(generator), noise=0.5)
    means = source[:N].mean(0), target[:N].mean(0)
    nothing = LinearMap(torch.zeros(D_SOURCE, D_TARGET).double(), *means, None, 0)
    assert held_out_r2(nothing, source[N:], target[N:]) == 0


def test_the_penalty_grows_with_the_noise_and_ignores_the_unit(generator: torch.Generator) -> None:
    W = rotation(generator)
    chosen = []
    for noise in (0.01, 10.0, 100.0):
        seeded = torch.Generator().manual_seed(3)
        source, target = spaces(seeded, W, noise)
        found = fit_ridge(seeded, source[:N], target[:N])
        chosen.append(found.penalty)
        same = torch.Generator().manual_seed(3)
        spaces(same, W, noise)
        other_unit = fit_ridge(same, 1000 * source[:N], target[:N])
        assert other_unit.penalty == found.penalty
        torch.testing.assert_close(1000 * other_unit.matrix, found.matrix)
    assert chosen == sorted(set(chosen))


def test_copies_of_a_prompt_stay_in_one_fold(generator: torch.Generator) -> None:
    n, wide = 12, 40
    source, target = gaussian(generator, n, wide), gaussian(generator, n, D_TARGET)
    twice = source.repeat(4, 1), target.repeat(4, 1)
    assert ridge(*twice, PENALTIES, 6, generator).penalty == min(PENALTIES)  # leaked
    names = [f"prompt {i}" for i in range(n)] * 4
    assert ridge(*twice, PENALTIES, 6, generator, names).penalty >= 10


def test_what_no_map_can_be_fitted_on_is_refused(generator: torch.Generator) -> None:
    source, target = spaces(generator, rotation(generator), noise=1)
    with pytest.raises(ActivationError, match=r"85 source and 84 target rows.*one list"):
        procrustes(source, target[1:])
    with pytest.raises(ActivationError, match=r"3 source and 3 target rows.*at least 4"):
        ridge(source[:3], target[:3], [1.0], 2, generator)
    with pytest.raises(ActivationError, match=r"same for every prompt"):
        procrustes(source, torch.ones(len(source), D_TARGET))
    with pytest.raises(ActivationError, match=r"no source direction goes with"):
        procrustes(torch.tensor([[1.0], [-1], [1], [-1]]), torch.tensor([[1.0], [1], [-1], [-1]]))
    with pytest.raises(ActivationError, match=r"not finite"):
        procrustes(source / 0, target)
    with pytest.raises(SampleError, match=r"penalties \[0.0\].*above 0"):
        ridge(source, target, [0.0], 2, generator)
    with pytest.raises(SampleError, match=r"6 folds of 5 rows or groups"):
        ridge(source[:5], target[:5], [1.0], 6, generator)
    with pytest.raises(ActivationError, match=r"from 7 to 11 channels: rows of 11 and 7"):
        held_out_r2(procrustes(source, target), target, source)
    fitted = procrustes(source, target)
    with pytest.raises(ActivationError, match=r"nothing varies"):
        held_out_r2(fitted, source[:2], fitted.target_mean.expand(2, -1))
