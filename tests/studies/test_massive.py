"""Massive channels of a model as a table: over every layer and position, in raw activations."""

import pytest
import torch

from mechsafety.studies.massive import massive_of, massive_table

N_ROWS, N_LAYERS, N_POSITIONS, D = 20, 3, 2, 11
CHANNEL = 4


@pytest.fixture
def rows(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(N_ROWS, N_LAYERS, N_POSITIONS, D, generator=generator)


@pytest.mark.parametrize("layer", range(N_LAYERS))
@pytest.mark.parametrize("position", range(N_POSITIONS))
def test_a_channel_that_bursts_anywhere_is_found_and_stands_in_the_table(
    rows: torch.Tensor, layer: int, position: int
) -> None:
    table = massive_table(200.0)
    assert massive_of("quiet", rows, 200.0, table).channels == ()
    rows[[3, 7], layer, position, CHANNEL] = -900.0
    found = massive_of("loud", rows, 200.0, table)
    assert found.channels == (CHANNEL,)
    by_arm = {
        arm: {one.metric: one for one in table if one.dimensions["arm"] == arm}
        for arm in ("quiet", "loud")
    }
    assert set(by_arm["quiet"]) == {"highest_elsewhere"}
    peak = by_arm["loud"]["peak"]
    assert peak.value == pytest.approx(found.peaks[CHANNEL])
    assert (peak.n, peak.dimensions["channel"], peak.dimensions["rows_affected"]) == (
        N_ROWS, CHANNEL, 2,
    )  # fmt: skip
    assert by_arm["loud"]["highest_elsewhere"].dimensions["channel"] != CHANNEL


def test_a_channel_that_is_large_on_every_prompt_is_not_massive(rows: torch.Tensor) -> None:
    rows[:, 1, 0, CHANNEL] = 900.0
    table = massive_table(200.0)
    assert massive_of("steady", rows, 200.0, table).channels == ()
    (one,) = table
    assert (one.metric, one.dimensions["channel"]) == ("highest_elsewhere", CHANNEL)
    assert one.value is not None
    assert one.value > 200


def test_the_threshold_is_that_of_the_caption(rows: torch.Tensor) -> None:
    rows[0, 1, 1, CHANNEL] = 100.0
    assert massive_of("a", rows, 50.0, massive_table(50.0)).channels == (CHANNEL,)
    assert massive_of("a", rows, 500.0, massive_table(500.0)).channels == ()
    assert "exceeds 50 times" in massive_table(50.0).caption
