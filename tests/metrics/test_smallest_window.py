"""The smallest window is the one that a search by hand finds, in every draw at once."""

import pytest
import torch

from mechsafety.core.errors import SampleError
from mechsafety.metrics.smallest_window import smallest_window

N_LAYERS = 7


def _additive(by_layer: torch.Tensor) -> torch.Tensor:
    """Effects of all windows where the effect of a window is the sum over its layers."""
    total = torch.cat([torch.zeros(*by_layer.shape[:-1], 1), by_layer.cumsum(-1)], dim=-1)
    effects = total[..., None, 1:] - total[..., :-1, None]
    n = by_layer.shape[-1]
    before = torch.arange(n)[None, :] < torch.arange(n)[:, None]
    return effects.masked_fill(before, torch.nan)


def test_a_planted_window_is_found_in_every_draw() -> None:
    by_layer = torch.zeros(2, 3, N_LAYERS)
    planted = {(0, 0): (0, 0), (0, 1): (2, 4), (0, 2): (6, 6), (1, 0): (0, 6), (1, 1): (3, 4)}
    for (i, j), (start, stop) in planted.items():
        by_layer[i, j, start : stop + 1] = 1 / (stop - start + 1)
    effects = _additive(by_layer)
    found = smallest_window(effects, by_layer.sum(-1))
    assert found.start.shape == (2, 3)
    for (i, j), window in planted.items():
        assert (int(found.start[i, j]), int(found.stop[i, j])) == window
    # The last draw has no effect at all, so no window keeps a share of it.
    assert (int(found.start[1, 2]), int(found.stop[1, 2])) == (-1, -1)


def test_all_draws_at_once_are_each_draw_searched_by_hand(generator: torch.Generator) -> None:
    by_layer = torch.randn(50, N_LAYERS, generator=generator)
    effects, full = _additive(by_layer), by_layer.sum(-1)
    found = smallest_window(effects, full, share=0.8)
    lengths = set[int]()
    for draw in range(50):
        expected = (-1, -1)
        windows = [(a, b) for a in range(N_LAYERS) for b in range(a, N_LAYERS)]
        windows.sort(key=lambda w: (w[1] - w[0], -float(effects[draw, w[0], w[1]])))
        if full[draw] > 0:
            enough = [w for w in windows if effects[draw, w[0], w[1]] >= 0.8 * full[draw]]
            expected = enough[0]
        assert (int(found.start[draw]), int(found.stop[draw])) == expected
        lengths.add(expected[1] - expected[0])
    assert len(lengths) > 3  # windows of many lengths were there to find


def test_ties_in_length_go_to_the_largest_effect_then_to_the_earliest() -> None:
    effects = _additive(torch.tensor([0.0, 0.91, 0.0, 0.95, 0.95, 0.0]))
    found = smallest_window(effects, torch.tensor(1.0))
    assert (int(found.start), int(found.stop)) == (3, 3)


def test_windows_that_were_not_measured_do_not_count() -> None:
    effects = _additive(torch.tensor([0.0, 1.0, 0.0]))
    effects[1, 1] = effects[0, 1] = torch.nan
    found = smallest_window(effects, torch.tensor(1.0))
    assert (int(found.start), int(found.stop)) == (1, 2)
    nothing = smallest_window(torch.full((3, 3), torch.nan), torch.tensor(1.0))
    assert int(nothing.start) == -1


def test_swapped_axes_and_bad_numbers_are_refused() -> None:
    effects = _additive(torch.tensor([0.0, 1.0, 0.0]))
    with pytest.raises(SampleError, match="are they swapped"):
        smallest_window(effects.mT, torch.tensor(1.0))
    with pytest.raises(SampleError, match="a share of 0"):
        smallest_window(effects, torch.tensor(1.0), share=0.0)
    with pytest.raises(SampleError, match="1 are not finite"):
        smallest_window(effects, torch.tensor(torch.nan))
