"""The concept activation vector is the one minimum of its objective, and nothing else."""

# SciPy comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from mechsafety.core.errors import DegenerateDirectionError
from mechsafety.directions.difference_in_means import difference_in_means
from mechsafety.directions.scav import ConceptVector, Scav, scav

# Every size differs, so that swapped axes cannot pass by luck.
N_HARMFUL, N_HARMLESS, D_MODEL = 23, 17, 11
N_MANY = 400

Classes = tuple[Tensor, Tensor]


@pytest.fixture
def classes(generator: torch.Generator) -> Classes:
    """Two clouds that overlap."""
    shift = torch.randn(D_MODEL, generator=generator).double() / 2
    harmful = torch.randn(N_HARMFUL, D_MODEL, generator=generator).double() + shift
    return harmful, torch.randn(N_HARMLESS, D_MODEL, generator=generator).double() - shift


def gradient(found: ConceptVector, classes: Classes, c: float) -> Tensor:
    """Of the objective, in w and then in b, summed row by row."""
    whole = torch.cat([found.w, torch.zeros(1)])
    for side, rows in zip((1, -1), classes, strict=True):
        for row in rows.double():
            wrong = torch.sigmoid(-side * (row @ found.w + found.b))
            whole = whole - c * side * wrong * torch.cat([row, torch.ones(1)])
    return whole


def accuracy(found: ConceptVector, harmful: Tensor, harmless: Tensor) -> float:
    right = torch.cat([found.probability(harmful) > 0.5, found.probability(harmless) < 0.5])
    return float(right.double().mean())


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("width", [5, D_MODEL, 97])
def test_the_gradient_is_zero_at_the_optimum_for_more_rows_than_columns_and_fewer(
    width: int, c: float, generator: torch.Generator
) -> None:
    harmful = torch.randn(N_HARMFUL, width, generator=generator).double() + 0.3
    rows = harmful, torch.randn(N_HARMLESS, width, generator=generator).double()
    found = scav(*rows, c)
    nothing = ConceptVector(torch.zeros(width).double(), 0.0)
    assert gradient(nothing, rows, c).norm() > 0.01
    assert gradient(found, rows, c).norm() < 1e-6 * max(1, c)
    # The intercept is free, so its gradient says that the probabilities add up to the harmful.
    total = torch.cat([found.probability(side) for side in rows]).sum()
    assert float(total) == pytest.approx(N_HARMFUL)


def test_a_search_over_all_weights_ends_at_the_same_place(classes: Classes) -> None:
    c = 0.7
    rows = torch.cat(classes).numpy()
    sides = np.r_[np.ones(N_HARMFUL), -np.ones(N_HARMLESS)]

    def objective(at: np.ndarray) -> float:
        w, b = at[:-1], at[-1]
        return float(w @ w / 2 + c * np.log1p(np.exp(-sides * (rows @ w + b))).sum())

    searched = minimize(objective, np.zeros(D_MODEL + 1), method="BFGS", options={"gtol": 1e-7})
    found = scav(*classes, c)
    assert np.linalg.norm(searched.x) > 1
    np.testing.assert_allclose(found.w.numpy(), searched.x[:-1], atol=1e-5)
    assert found.b == pytest.approx(searched.x[-1], abs=1e-5)


def test_flipped_labels_flip_the_vector(classes: Classes) -> None:
    found, flipped = scav(*classes, 1.0), scav(classes[1], classes[0], 1.0)
    torch.testing.assert_close(flipped.w, -found.w)
    assert flipped.b == pytest.approx(-found.b)


def test_a_rotation_of_the_space_rotates_the_vector(
    classes: Classes, generator: torch.Generator
) -> None:
    Q, _ = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator).double())
    found, turned = scav(*classes, 1.0), scav(classes[0] @ Q, classes[1] @ Q, 1.0)
    assert (turned.w - found.w).norm() > 0.1
    torch.testing.assert_close(turned.w, found.w @ Q)
    assert turned.b == pytest.approx(found.b)


def test_larger_activations_are_a_larger_c(classes: Classes) -> None:
    size, c = 3.0, 0.2
    scaled = scav(size * classes[0], size * classes[1], c)
    same = scav(*classes, c * size**2)
    torch.testing.assert_close(scaled.w, same.w / size)
    assert scaled.b == pytest.approx(same.b)
    assert torch.cosine_similarity(scaled.w, scav(*classes, c).w, dim=0) < 0.999


def test_an_offset_that_all_rows_share_moves_the_intercept_alone(classes: Classes) -> None:
    offset = torch.zeros(D_MODEL).double()
    offset[3] = 1e6  # a massive channel that is always on
    found, moved = scav(*classes, 1.0), scav(classes[0] + offset, classes[1] + offset, 1.0)
    torch.testing.assert_close(moved.w, found.w, atol=1e-8, rtol=1e-8)
    assert moved.b == pytest.approx(found.b - float(found.w @ offset), rel=1e-9)


def test_the_hyperplane_of_a_probability_is_as_far_as_the_closed_form_says(
    classes: Classes,
) -> None:
    found, wanted = scav(*classes, 1.0), 1e-4
    size = found.w.norm()
    harmful = classes[0]
    assert found.probability(harmful).min() > 10 * wanted
    logit = math.log(wanted / (1 - wanted))
    far = (logit - found.b - harmful @ found.w) / size
    there = harmful + far[:, None] * found.w / size
    torch.testing.assert_close(
        found.probability(there), torch.full((N_HARMFUL,), wanted).double(), atol=1e-6, rtol=1e-6
    )
    # No other step of that length goes as far.
    aside = found.w + 0.3 * found.w.norm() * torch.eye(D_MODEL)[2]
    elsewhere = harmful + far[:, None] * aside / aside.norm()
    assert (found.probability(elsewhere) > wanted).all()


def test_a_planted_direction_is_found_where_noise_is_alike_and_noise_is_discounted(
    generator: torch.Generator,
) -> None:
    planted = torch.zeros(D_MODEL)
    planted[:2] = 1
    noise = torch.randn(2, N_MANY, D_MODEL, generator=generator)
    cosine = torch.cosine_similarity(
        scav(noise[0] + planted, noise[1], 1.0).w, planted.double(), dim=0
    )
    assert cosine > 0.95
    # Of two channels that differ alike between the classes, the steadier one tells more.
    noise[..., 0] *= 5
    rows = noise[0] + planted, noise[1]
    w, shift = scav(*rows, 1.0).w, difference_in_means(*rows)
    assert w[0] < w[1] / 5
    assert shift[0] > shift[1] / 2


def test_permuted_labels_classify_held_out_rows_no_better_than_chance(
    generator: torch.Generator,
) -> None:
    rows = torch.randn(2, N_MANY, D_MODEL, generator=generator)
    rows[0] += 0.8
    fit, held = rows[:, ::2], rows[:, 1::2]
    assert accuracy(scav(fit[0], fit[1], 1.0), held[0], held[1]) > 0.8
    pooled = fit.flatten(0, 1)
    found: list[float] = []
    for _ in range(20):
        order = torch.randperm(len(pooled), generator=generator)
        first, second = pooled[order].chunk(2)
        found.append(accuracy(scav(first, second, 1.0), held[0], held[1]))
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.08)


def test_the_fitted_vector_carries_harmless_rows_to_harmful_ones_along_itself(
    classes: Classes,
) -> None:
    found = Scav(c=0.5).fit(*classes)
    unit = found.basis[0]
    torch.testing.assert_close(unit, torch.nn.functional.normalize(scav(*classes, 0.5).w, dim=0))
    moved = classes[1] + found.vector
    assert float((classes[0].mean(0) - classes[1].mean(0)) @ unit) > 0.5
    torch.testing.assert_close(moved.mean(0) @ unit, classes[0].mean(0) @ unit)
    half = Scav().fit(classes[0].bfloat16(), classes[1].bfloat16())
    assert half.basis.dtype == half.scale.dtype == torch.float32


def test_a_feature_that_is_constant_has_no_classifier() -> None:
    constant = torch.full((N_HARMFUL, D_MODEL), 0.1)
    with pytest.raises(DegenerateDirectionError, match=r"same mean.*site is read after the prompt"):
        scav(constant, constant[:N_HARMLESS], 1.0)
    with pytest.raises(DegenerateDirectionError, match="23 harmful and 0 harmless"):
        Scav().fit(constant, constant[:0])


def test_a_search_without_end_is_refused_with_advice(classes: Classes) -> None:
    with pytest.raises(DegenerateDirectionError, match=r"40 activations with C = 1e\+300.*Lower C"):
        scav(*classes, 1e300)
