"""Independence is about what later layers do, which orthogonality does not decide."""

import pytest
import torch

from mechsafety.core.errors import DegenerateDirectionError, SampleError
from mechsafety.interventions.ablate import ablate
from mechsafety.metrics.representational_independence import representational_independence

N_LAYERS, N_PROMPTS, D = 10, 4, 9
U, V = torch.eye(D)[0], torch.eye(D)[1]


def _network(start: torch.Tensor, coupling: float, ablated: bool) -> torch.Tensor:
    """Residuals of layers that each write `coupling` times what they read along u along v."""
    x, layers = start, list[torch.Tensor]()
    for _ in range(N_LAYERS):
        x = ablate(x, U[None]) if ablated else x
        layers.append(x)
        x = x + coupling * (x @ U)[:, None] * V
    return torch.stack(layers)


def _start(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(N_PROMPTS, D, generator=generator) + 2 * U


def test_orthogonal_directions_are_dependent_where_layers_couple_them(
    generator: torch.Generator,
) -> None:
    assert float(U @ V) == 0
    start = _start(generator)
    coupled = _network(start, 0.5, False), _network(start, 0.5, True)
    assert representational_independence(*coupled, V) > 0.1
    # u is orthogonal to the third axis, and nothing writes there: only lengths change.
    apart = representational_independence(*coupled, torch.eye(D)[2])
    assert apart < representational_independence(*coupled, V) / 2


def test_nothing_changes_where_activations_have_nothing_along_u(
    generator: torch.Generator,
) -> None:
    start = ablate(_start(generator), U[None])
    clean, ablated = _network(start, 0.5, False), _network(start, 0.5, True)
    assert representational_independence(clean, ablated, V) == pytest.approx(0, abs=1e-12)


def test_the_value_worked_by_hand_over_the_first_layers() -> None:
    # Cosines with v go from 3/5 to 1 at layer 0, and from 1 to −1 in the layers after it.
    clean = V.expand(3, 2, D).clone()
    clean[0] = 4 * U + 3 * V
    ablated = -V.expand(3, 2, D).clone()
    ablated[0] = 3 * V
    assert representational_independence(clean, ablated, V, 0.5) == pytest.approx(0.16)
    assert representational_independence(clean, ablated, -7 * V, 1.0) == pytest.approx(8.16 / 3)


def test_what_has_no_angle_is_refused(generator: torch.Generator) -> None:
    clean = _network(_start(generator), 0.5, False)
    with pytest.raises(DegenerateDirectionError, match="has no length"):
        representational_independence(clean, clean, 0 * V)
    with pytest.raises(DegenerateDirectionError, match="empty once u is ablated"):
        representational_independence(clean, torch.zeros_like(clean), V)
    with pytest.raises(SampleError, match=r"0\.05 of 10 layers is 0"):
        representational_independence(clean, clean, V, 0.05)
