"""Over training seeds: what replicates what, each pair of training runs once."""

from dataclasses import replace
from statistics import fmean

import pytest

from mechsafety.studies.comparing.geometry import Likeness
from mechsafety.studies.comparing.measured import Measured
from mechsafety.studies.comparing.seeds_table import seeds_table
from tests.studies.comparing.conftest import BETWEEN, MODELS
from tests.studies.similarity_runs import configured, rows

LAYER = 2
SAME = {"bases": "same", "via": "none", "channels": "all"}


def with_models(world: Measured, models: str, renamed: list[tuple[str, str, Likeness]]) -> Measured:
    """The same likenesses under other names."""
    config = configured(models, "maps.between=null")
    return replace(
        world,
        frame=replace(world.frame, config=config),
        likenesses=tuple(replace(one, first=x, second=y) for x, y, one in renamed),
    )


def likeness(world: Measured, *key: str) -> Likeness:
    (found,) = [
        one
        for one in world.likenesses
        if (one.first, one.second, one.via) == key and one.channels == "all"
    ]
    return found


def cosine(one: Likeness, first: int, second: int) -> float:
    return float(one.cosines.disattenuated[one.cells[first, second]])


def test_replications_come_together_in_whatever_order_their_models_stand(world: Measured) -> None:
    """`a` with `b`, and of the other seed `far_b` with `far`: SSFT stands first, then LAT."""
    found = seeds_table(world)
    there, back = likeness(world, "a", "b", "none"), likeness(world, "far_b", "far", "none")
    for i, j in ((LAYER, LAYER), (LAYER, 3)):
        cell = {"first": "lat", "second": "ssft", "first_layer": i, "second_layer": j}
        (row,) = rows(found, "cosine_disattenuated", **SAME, **cell)
        assert row.value == pytest.approx(fmean([cosine(there, j, i), cosine(back, i, j)]))
        assert (row.n, row.ci_low) == (2, None)
    assert abs(cosine(there, LAYER, 3) - cosine(there, 3, LAYER)) > 1e-3  # an order there was
    assert {row.metric for row in found} == {
        "cosine", "cosine_disjoint", "cosine_disattenuated",
    }  # fmt: skip


def test_what_one_seed_has_alone_is_no_mean(world: Measured) -> None:
    # `a` and `far` are SSFT of two seeds, which no other two models replicate.
    assert not rows(seeds_table(world), "cosine", first="ssft", second="ssft")
    assert not rows(seeds_table(world), "cosine", bases="other")
    unknown = MODELS.replace("seed: 1, ", "")
    frame = replace(world.frame, config=configured(unknown, BETWEEN))
    assert not list(seeds_table(replace(world, frame=frame)))


def test_a_size_or_a_training_of_its_own_is_no_replication(world: Measured) -> None:
    there, back = likeness(world, "a", "b", "none"), likeness(world, "far_b", "far", "none")
    given = [("s", "l", there), ("l1", "s1", back)]
    models = "{s: ssft, l: lat, s1: {model: 'ssft@seed=1%s'}, l1: {model: 'lat@seed=1%s'}}"
    assert rows(seeds_table(with_models(world, models % ("", ""), given)), "cosine", **SAME)
    for sizes in (("@size=wide", "@size=wide"), ("@size=deep", "@size=deep")):
        found = with_models(world, models % sizes, given)
        assert not list(seeds_table(found))
    other = (models % ("", "")).replace("lat@seed=1", "at@seed=1")
    assert not list(seeds_table(with_models(world, other, given)))


def test_both_ways_between_two_models_are_one_replication(world: Measured) -> None:
    """So that a pair that was carried one way only weighs as much."""
    there = replace(likeness(world, "a", "b", "none"), via="ridge")
    back, lost = (likeness(world, "a", name, "ridge") for name in ("far", "blind"))
    models = "{s0: ssft, s1: ssft@seed=1, s2: ssft@seed=2}"
    given = [("s0", "s1", there), ("s1", "s0", back), ("s1", "s2", there), ("s0", "s2", lost)]
    found = seeds_table(with_models(world, models, given))
    cell = {"first_layer": LAYER, "second_layer": LAYER, "via": "ridge", "bases": "other"}
    (row,) = rows(found, "cosine_disattenuated", first="ssft", second="ssft", **cell)
    once, again = cosine(there, LAYER, LAYER), cosine(back, LAYER, LAYER)
    assert again - once > 0.1
    # A map that lost what halves of the prompts agree on has no cosine, and is no replication.
    assert not bool(lost.cosines.has_interval("disattenuated")[lost.cells[LAYER, LAYER]])
    assert row.value == pytest.approx(fmean([fmean([once, again]), once]))
    assert row.n == 3
    assert row.unit.endswith("(training seeds)")


def test_carried_directions_of_other_trainings_keep_their_order(world: Measured) -> None:
    """What SSFT's direction is in LAT's space is another question than the reverse."""
    one = likeness(world, "a", "far", "ridge")
    models = "{s0: ssft, l1: lat@seed=1, s1: ssft@seed=1, l2: lat@seed=2}"
    given = [("s0", "l1", one), ("s1", "l2", one), ("l1", "s0", one)]
    found = seeds_table(with_models(world, models, given))
    cell = {"first_layer": LAYER, "second_layer": LAYER, "via": "ridge", "bases": "other"}
    (row,) = rows(found, "cosine", **cell)
    assert (row.dimensions["first"], row.dimensions["second"]) == ("ssft", "lat")
    assert row.n == 3


def test_channel_by_channel_models_of_other_bases_are_not_averaged(world: Measured) -> None:
    one = likeness(world, "a", "b", "none")
    models = "{s0: ssft, s1: ssft@seed=1, s2: ssft@seed=2}"
    given = [("s0", "s1", one), ("s1", "s2", one), ("s0", "s2", one)]
    assert not list(seeds_table(with_models(world, models, given)))
    # Through a map they are.
    mapped = [(x, y, replace(one, via="ridge")) for x, y, one in given]
    assert list(seeds_table(with_models(world, models, mapped)))


@pytest.mark.parametrize("n_seeds", [5, 6])
def test_with_six_seeds_and_no_fewer_the_mean_has_an_interval_that_holds_it(
    world: Measured, n_seeds: int
) -> None:
    one, other = likeness(world, "a", "b", "none"), likeness(world, "far_b", "far", "none")
    models = ", ".join(f"s{i}: ssft@seed={i}, l{i}: lat@seed={i}" for i in range(n_seeds))
    given = [
        ("s0", "l0", one), *((f"l{i}", f"s{i}", other) for i in range(1, n_seeds))
    ]  # fmt: skip
    found = rows(seeds_table(with_models(world, f"{{{models}}}", given)), "cosine", **SAME)
    assert found
    for row in found:
        assert row.n == n_seeds
        assert (row.ci_low is None) == (row.ci_high is None) == (n_seeds < 6)
        if row.ci_low is not None:
            assert row.value is not None
            assert row.ci_high is not None
            assert row.ci_low <= row.value <= row.ci_high
