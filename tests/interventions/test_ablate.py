"""Ablation is a projection: onto a complement (zero), or onto a level set (affine)."""

import pytest
import torch

from mechsafety.core.errors import SubspaceError
from mechsafety.interventions.ablate import ablate, ablate_affine, ablate_each
from mechsafety.linalg.subspace import orthonormal_basis

BATCH, POS, D = 3, 5, 11


def _case(generator: torch.Generator, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    activation = torch.randn(BATCH, POS, D, generator=generator) + 1
    return activation, orthonormal_basis(torch.randn(k, D, generator=generator))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_nothing_is_left_along_the_basis_and_all_else_stays(
    generator: torch.Generator, k: int
) -> None:
    activation, basis = _case(generator, k)
    assert (activation @ basis.T).abs().mean() > 0.3  # there was something to remove
    ablated = ablate(activation, basis)
    torch.testing.assert_close(ablated @ basis.T, torch.zeros(BATCH, POS, k), atol=1e-5, rtol=0)
    removed = activation - ablated
    torch.testing.assert_close(removed @ basis.T @ basis, removed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 3])
def test_ablating_twice_is_ablating_once(generator: torch.Generator, k: int) -> None:
    activation, basis = _case(generator, k)
    once = ablate(activation, basis)
    torch.testing.assert_close(ablate(once, basis), once, atol=2e-6, rtol=0)


def test_sign_length_and_choice_of_basis_do_not_matter(generator: torch.Generator) -> None:
    activation, basis = _case(generator, 2)
    ablated = ablate(activation, basis)
    mixed = torch.tensor([[-3.0, 0.5], [40.0, 25.0]]) @ basis  # the same span, not orthogonal
    torch.testing.assert_close(ablate(activation, mixed), ablated, atol=1e-5, rtol=0)
    one = ablate(activation, basis[:1])
    for factor in (-1.0, 1e-6, 2e5):
        torch.testing.assert_close(ablate(activation, factor * basis[:1]), one, atol=1e-5, rtol=0)


def test_a_power_of_two_changes_no_bit(generator: torch.Generator) -> None:
    activation, basis = _case(generator, 1)
    assert torch.equal(ablate(activation, -4 * basis), ablate(activation, basis))


def test_the_axes_are_worked_by_hand() -> None:
    activation = torch.tensor([[1.0, 2.0, 3.0]])
    assert ablate(activation, torch.tensor([[0.0, 5.0, 0.0]])).tolist() == [[1.0, 0.0, 3.0]]
    both = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -2.0]])
    assert ablate(activation, both).tolist() == [[0.0, 2.0, 0.0]]
    target = torch.tensor([7.0, -8.0])
    assert ablate_affine(activation, both, target).tolist() == [[7.0, 2.0, 4.0]]


@pytest.mark.parametrize("k", [1, 2])
def test_affine_sets_the_projections_and_leaves_the_complement(
    generator: torch.Generator, k: int
) -> None:
    activation, basis = _case(generator, k)
    basis = basis * torch.tensor([2.0, -0.5])[:k, None]  # products of any basis are set
    target = torch.randn(k, generator=generator)
    edited = ablate_affine(activation, basis, target)
    assert not torch.allclose(activation @ basis.T, target.expand(BATCH, POS, k), atol=0.1)
    torch.testing.assert_close(edited @ basis.T, target.expand(BATCH, POS, k), atol=1e-5, rtol=0)
    torch.testing.assert_close(ablate(edited, basis), ablate(activation, basis), atol=1e-5, rtol=0)
    torch.testing.assert_close(ablate_affine(edited, basis, target), edited, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 2])
def test_affine_with_target_zero_is_the_zero_form_bit_for_bit(
    generator: torch.Generator, k: int
) -> None:
    activation, basis = _case(generator, k)
    assert torch.equal(ablate_affine(activation, basis, torch.zeros(k)), ablate(activation, basis))


def test_affine_at_the_mean_keeps_the_mean(generator: torch.Generator) -> None:
    activation, basis = _case(generator, 2)
    mean = activation.mean(dim=(0, 1))
    edited = ablate_affine(activation, basis, basis @ mean)
    torch.testing.assert_close(edited.mean(dim=(0, 1)), mean, atol=1e-5, rtol=0)
    assert (ablate(activation, basis).mean(dim=(0, 1)) - mean).norm() > 0.3  # zero moves it


def test_each_row_can_have_its_own_target(generator: torch.Generator) -> None:
    activation, basis = _case(generator, 2)
    target = torch.randn(BATCH, 1, 2, generator=generator)
    edited = ablate_affine(activation, basis, target)
    torch.testing.assert_close(edited @ basis.T, target.expand(BATCH, POS, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 2])
def test_the_argument_is_not_written_to(generator: torch.Generator, k: int) -> None:
    activation, basis = _case(generator, k)
    before = activation.clone()
    ablated = ablate(activation, basis)
    assert torch.equal(activation, before)
    assert ablated.untyped_storage().data_ptr() != activation.untyped_storage().data_ptr()


def test_half_precision_is_computed_in_float32_and_cast_last(generator: torch.Generator) -> None:
    activation, basis = _case(generator, 1)
    half = (activation + 30).bfloat16()
    exact = ablate(half.double(), basis.double())
    ablated = ablate(half, basis)
    assert ablated.dtype == torch.bfloat16
    assert torch.equal(ablated, exact.bfloat16())
    unit = basis.bfloat16()
    naive = half - (half @ unit.T) @ unit
    assert (naive.double() - exact).norm() > 1.2 * (ablated.double() - exact).norm()


def test_gradients_flow_through_activation_basis_and_target(generator: torch.Generator) -> None:
    activation, basis = _case(generator, 2)
    inputs = [
        tensor.double().requires_grad_() for tensor in (activation[:1, :2], basis, torch.ones(2))
    ]
    assert torch.autograd.gradcheck(ablate_affine, inputs)


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (torch.zeros(1, D), "squared norm 0"),
        (torch.full((1, D), torch.nan), "squared norm nan"),
        (torch.ones(2, D), "nearly dependent"),
        (torch.zeros(2, D), "are zero"),
    ],
)
def test_a_basis_without_its_dimensions_is_refused(
    generator: torch.Generator, basis: torch.Tensor, message: str
) -> None:
    activation, _ = _case(generator, 1)
    with pytest.raises(SubspaceError, match=message):
        ablate(activation, basis)


def test_a_direction_for_each_row_is_each_rows_own_ablation(generator: torch.Generator) -> None:
    activation = torch.randn(3, 5, D, generator=generator)
    directions = torch.randn(3, D, generator=generator) * torch.tensor([1.0, 40.0, 0.02])[:, None]
    found = ablate_each(activation, directions)
    assert (found - activation).abs().max() > 0.1
    for row in range(3):
        expected = ablate(activation[row], directions[row : row + 1])
        assert torch.allclose(found[row], expected, atol=1e-5)
        # Another row's direction is left where it was.
        other = directions[(row + 1) % 3]
        assert (found[row] @ other).abs().max() > 1e-3
    with pytest.raises(SubspaceError, match="1 of 2 directions"):
        ablate_each(activation[:2], torch.stack([directions[0], torch.zeros(D)]))
