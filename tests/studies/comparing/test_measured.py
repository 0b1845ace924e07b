"""A place of two models is found whichever comes first, except through a map, which has a way."""

from dataclasses import replace

import torch

from mechsafety.studies.comparing.geometry import geometry_of
from mechsafety.studies.comparing.mapping import Place
from mechsafety.studies.comparing.measured import Measured
from tests.studies.comparing.keeping import kept

PLACES = (Place(1, 3, "best"), Place(2, 2, "depth"))


def test_within_a_space_a_place_is_that_of_the_pair_as_it_is_asked_for(world: Measured) -> None:
    ahead = list(world.compared(("a", "b"), *PLACES))
    turned = [Place(at.second, at.first, at.match) for at in PLACES]
    back = list(world.compared(("b", "a"), *turned))
    assert [(one.first, one.second, at) for one, at, _ in ahead] == [
        ("a", "b", (1, 3)), ("a", "b", (2, 2)),
    ]  # fmt: skip
    assert [place for _, _, place in ahead] == list(PLACES)
    assert [place for _, _, place in back] == turned
    for (one, cell, _), (other, there, _) in zip(ahead, back, strict=True):
        assert one is other
        assert cell == there
    asked = list(world.compared(("b", "a"), PLACES[0]))
    assert [cell for _, cell, _ in asked] == [(3, 1)]


def test_with_itself_a_model_is_compared_once(world: Measured) -> None:
    found = list(world.compared(("a", "a"), *PLACES))
    assert [(one.second, cell) for one, cell, _ in found] == [("a", (1, 3)), ("a", (2, 2))]


def test_through_maps_one_way_is_not_the_other(world: Measured) -> None:
    at = Place(2, 2, "depth")
    for pair in (("a", "far"), ("far", "a")):
        found = list(world.compared(pair, at))
        assert {(one.first, one.second) for one, _, _ in found} == {pair}
        assert [one.via for one, _, _ in found] == ["procrustes", "ridge"]
    first, second = ("a", "far"), ("far", "a")
    one_way = replace(
        world,
        likenesses=tuple(one for one in world.likenesses if (one.first, one.second) != second),
    )
    assert list(one_way.compared(first, at))
    assert not list(one_way.compared(second, at))


def test_a_place_at_which_nothing_was_compared_is_left_out(world: Measured) -> None:
    assert len(list(world.compared(("a", "far"), Place(1, 3, "transfer"), PLACES[1]))) == 2
    assert not list(world.compared(("b", "blind"), *PLACES))


def test_geometry_that_was_kept_and_read_again_is_the_same(world: Measured) -> None:
    found = geometry_of(world.frame.job)
    seen, same = (Measured.of(world.frame, one) for one in (found, kept(found)))
    assert same.places == seen.places
    assert [one.cells for one in same.likenesses] == [one.cells for one in seen.likenesses]
    for one, other in zip(same.likenesses, seen.likenesses, strict=True):
        torch.testing.assert_close(
            one.cosines.raw, other.cosines.raw, atol=0, rtol=0, equal_nan=True
        )
    assert (seen.maps, seen.transfers) == ({}, None)
