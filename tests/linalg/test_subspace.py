"""A Subspace has orthonormal rows, and `orthonormal_basis` makes them without losing sides."""

import pytest
import torch

from mechsafety.core.errors import DegenerateDirectionError, SubspaceError
from mechsafety.linalg.subspace import Subspace, orthonormal_basis

K, D = 3, 8


def test_the_basis_spans_the_rows_one_by_one_and_keeps_their_sides(
    generator: torch.Generator,
) -> None:
    rows = torch.randn(K, D, generator=generator, dtype=torch.float64)
    rows = rows * torch.tensor([1e-6, 1.0, 1e5])[:, None]
    basis = orthonormal_basis(rows)
    torch.testing.assert_close(basis @ basis.T, torch.eye(K, dtype=torch.float64))
    products = rows @ basis.T
    scale = rows.norm(dim=1)[:, None]
    # Row i lies in the first i of the basis, and on the positive side of the i-th.
    assert ((products / scale).triu(1).abs() < 1e-12).all()
    assert (products.diagonal() > 0).all()


def test_one_row_is_only_brought_to_unit_length(generator: torch.Generator) -> None:
    row = torch.randn(1, D, generator=generator)
    torch.testing.assert_close(orthonormal_basis(row), row / row.norm())
    torch.testing.assert_close(orthonormal_basis(-row), -row / row.norm())


def test_half_precision_rows_give_a_float32_basis(generator: torch.Generator) -> None:
    rows = torch.randn(K, D, generator=generator).bfloat16()
    basis = orthonormal_basis(rows)
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis @ basis.T, torch.eye(K), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bad", ["dependent", "zero", "nan", "too many"])
def test_rows_that_span_too_little_are_refused(generator: torch.Generator, bad: str) -> None:
    rows = torch.randn(K if bad != "too many" else D + 1, D, generator=generator)
    if bad == "dependent":
        rows[2] = 2 * rows[0] - rows[1]
    if bad == "zero":
        rows[1] = 0
    if bad == "nan":
        rows[1, 3] = torch.nan
    with pytest.raises(DegenerateDirectionError, match=r"orthonormal_basis: .*rows? "):
        orthonormal_basis(rows)


def test_a_subspace_of_one_dimension_has_a_vector_in_activation_units() -> None:
    subspace = Subspace(basis=torch.eye(D)[2:3], scale=torch.tensor([2.5]))
    assert subspace.vector.tolist() == [0, 0, 2.5, 0, 0, 0, 0, 0]
    assert (subspace.k, subspace.d) == (1, D)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_subspace_of_a_vector_is_that_vector_or_its_direction_at_another_size(
    generator: torch.Generator, dtype: torch.dtype
) -> None:
    vector = (3 * torch.randn(D, generator=generator)).to(dtype)
    assert float(vector.norm()) > 2
    wide = vector.to(torch.promote_types(dtype, torch.float32))
    torch.testing.assert_close(Subspace.of_vector(vector).vector, wide)
    found = Subspace.of_vector(vector, 0.1)
    torch.testing.assert_close(found.vector, 0.1 * wide / wide.norm())
    assert float(found.scale) == float(torch.tensor(0.1, dtype=wide.dtype))
    with pytest.raises(DegenerateDirectionError, match=r"norms \['0'\]"):
        Subspace.of_vector(0 * vector, 0.1)


def test_a_subspace_of_more_dimensions_has_no_one_vector() -> None:
    subspace = Subspace(basis=torch.eye(D)[:K], scale=torch.ones(K))
    with pytest.raises(SubspaceError, match=f"{K} dimensions for its one vector"):
        _ = subspace.vector


@pytest.mark.parametrize(
    "basis", [2 * torch.eye(D)[:1], torch.ones(2, D) / D**0.5, torch.full((1, D), torch.nan)]
)
def test_rows_that_are_not_orthonormal_are_no_subspace(basis: torch.Tensor) -> None:
    with pytest.raises(SubspaceError, match="not orthonormal"):
        Subspace(basis=basis, scale=torch.ones(len(basis)))
