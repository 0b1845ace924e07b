"""A number that went through a map is worth what the map sees of the direction."""

from dataclasses import replace

import pytest
import torch

from mechsafety.studies.comparing.map_notes import map_notes, map_of, sees_direction
from mechsafety.studies.comparing.mapping import FittedMap, fit_maps
from mechsafety.studies.comparing.measured import Measured
from tests.studies.comparing.planted import isometry
from tests.studies.comparing.test_mapping import BOTH, N_LAYERS, WIDER, D, job

UNSEEN = 4
"""The source's dimension along which neutral prompts hardly vary."""


def along(dimension: int) -> tuple[FittedMap, ...]:
    """Maps of a model and its noisy, turned copy, asked about one of its dimensions."""
    spread = torch.ones(D)
    spread[UNSEEN] = 0.01
    given = job(0.3, 200, BOTH, spread)
    unit = isometry(WIDER, 3, D)[dimension].float()
    return fit_maps(replace(given, directions=(given.directions[0], unit.expand(N_LAYERS, WIDER))))


def test_a_map_sees_a_direction_along_which_its_prompts_vary_and_no_other() -> None:
    for seen, unseen in zip(along(0), along(UNSEEN), strict=True):
        # It is the same map, and as good.
        assert torch.equal(seen.map.matrix, unseen.map.matrix)
        assert seen.r2 == unseen.r2 > 0.5
        assert sees_direction(seen)
        assert not sees_direction(unseen)
        assert unseen.spread_along < 0.3 < 1 < seen.spread_along


def test_a_map_that_shuffled_prompts_match_sees_nothing() -> None:
    (one, _) = along(0)
    chance = one.shuffled_r2_along.clone()
    chance[1] = one.r2_along
    assert not sees_direction(replace(one, shuffled_r2_along=chance))
    # Nor does one that is better than they are and yet may predict nothing.
    low = replace(one, shuffled_r2_along=torch.full_like(chance, -1.0))
    assert sees_direction(low)
    assert not sees_direction(replace(low, interval_along=(-0.01, 0.9)))
    assert not sees_direction(replace(one, r2_along=torch.nan, interval_along=(torch.nan,) * 2))


def test_a_note_holds_the_maps_numbers_and_warns_where_they_are_worth_nothing() -> None:
    one, other = along(0)[1], along(UNSEEN)[1]
    (note,) = map_notes(one)
    low, high = one.interval
    assert f"ridge map predicts {one.r2:.2f} [{low:.2f}, {high:.2f}]" in note
    assert f"{one.r2_along:.2f}" in note
    assert "does not see" not in note
    assert "does not see the direction" in map_notes(other)[0]
    assert ("end of the grid" in note) == one.grid_edge
    assert "end of the grid" in map_notes(replace(one, grid_edge=True))[0]
    assert "end of the grid" not in map_notes(replace(one, grid_edge=False))[0]


@pytest.mark.parametrize("method", ["procrustes", "ridge"])
def test_the_map_of_a_choice_is_that_of_its_method_layer_and_match(
    world: Measured, method: str
) -> None:
    for one in world.maps["a", "far"]:
        if one.method != method:
            continue
        choice = {"via": method, "layer": str(one.place.first), "match": one.place.match}
        assert map_of(("a", "far"), {**choice, "channels": "all"}, world) is one
    choice = {"via": method, "layer": "2", "match": "depth"}
    back = map_of(("far", "a"), choice, world)
    assert back is not None
    assert back.map.n_source == 9  # the other way is another map
    assert map_of(("a", "b"), {**choice, "via": "none"}, world) is None
    assert map_of(("a", "far"), {**choice, "layer": "0"}, world) is None
