"""Directions, subspaces and activations of every two models, under deals that all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, combinations_with_replacement

import pytest
import torch

from mechsafety.directions.difference_in_means import DifferenceInMeans
from mechsafety.metrics.deals import refit_each
from mechsafety.studies.comparing.frame import Frame
from mechsafety.studies.comparing.geometry import (
    Likeness,
    activation_likenesses,
    all_overlaps,
    all_places,
    fitter,
    same_channels,
    stacks,
    through_maps,
)
from mechsafety.studies.comparing.mapping import Place
from mechsafety.studies.comparing.measured import Measured
from tests.studies.comparing.planted import (
    N_HELD_OUT,
    N_TWINS,
    Streams,
    frame_of,
    isometry,
    shift,
    streams,
)
from tests.studies.similarity_runs import configured

MASSIVE = 2
NAMES = ("a", "b", "far_b", "far", "blind")


def frame(models: str, read: Mapping[str, Streams]) -> Frame:
    return frame_of(configured(models, "maps.between=null"), read)


def of(likenesses: Sequence[Likeness], *key: str) -> Likeness:
    (found,) = [one for one in likenesses if (one.first, one.second, one.via, one.channels) == key]
    return found


# --- directions ----------------------------------------------------------------------------------


def test_the_mean_difference_is_what_fitting_it_to_every_deal_gives(world: Measured) -> None:
    rows, plan = world.frame.job.rows["a"][:, 1:], world.frame.job.plan
    for deals in (plan.left_out, plan.halves[0]):
        at_once = fitter(DifferenceInMeans())(rows, deals)
        one_by_one = refit_each(lambda x, y: DifferenceInMeans().fit(x, y).vector, rows, deals)
        torch.testing.assert_close(at_once, one_by_one.double(), atol=1e-5, rtol=1e-5)


def test_labels_are_permuted_alike_in_all_models(world: Measured) -> None:
    """So that a model, and its copy in a space of as many channels, is its own null."""
    own = of(world.likenesses, "a", "a", "none", "all").cosines
    inner = own.null[:, 1:, 1:].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inner, torch.ones_like(inner))
    carried = of(world.likenesses, "a", "far", "procrustes", "all").cosines
    there = carried.null.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(there, torch.ones_like(there), atol=1e-4, rtol=0)
    apart = of(world.likenesses, "a", "b", "none", "all").cosines
    assert float(apart.null[:, 2, 2].mean()) < 0.9


def test_every_two_models_of_one_width_are_compared_once_and_each_with_itself(
    world: Measured,
) -> None:
    found = [(one.first, one.second) for one in world.likenesses if one.via == "none"]
    width = {name: one.dims.d_model for name, one in world.frame.views.items()}
    assert found == [
        (x, y) for x, y in combinations_with_replacement(NAMES, 2) if width[x] == width[y]
    ]
    assert ("a", "far") not in found
    for one in world.likenesses:
        if one.via == "none":
            assert set(one.cells) == {(i, j) for i in range(5) for j in range(5)}


def test_a_stack_and_its_copy_in_turned_channels_have_equal_cosines(world: Measured) -> None:
    here = of(world.likenesses, "a", "b", "none", "all").cosines
    there = of(world.likenesses, "far_b", "far", "none", "all").cosines
    inner = slice(1, None)
    torch.testing.assert_close(
        here.disattenuated[inner, inner], there.disattenuated[inner, inner].T, atol=1e-4, rtol=0
    )
    assert bool(here.raw[0].isnan().all() & here.raw[:, 0].isnan().all())


def test_through_maps_each_cell_is_the_carried_direction_at_its_place(world: Measured) -> None:
    for method in ("procrustes", "ridge"):
        one = of(world.likenesses, "a", "far", method, "all")
        fitted = [each for each in world.maps["a", "far"] if each.method == method]
        assert set(one.cells) == {(each.place.first, each.place.second) for each in fitted}
        for each in fitted:
            i, j = each.place.first, each.place.second
            carried = each.map.carry(world.stacks["a"].whole[i])
            expected = torch.nn.functional.cosine_similarity(
                carried, world.stacks["far"].whole[j].double(), dim=0
            )
            at = one.cells[i, j]
            assert float(one.cosines.raw[at]) == pytest.approx(float(expected), abs=1e-5)
            # Halves within a model are those of its own layer.
            within = torch.nn.functional.cosine_similarity(
                *(half[:, j].double() for half in world.stacks["far"].halves), dim=-1
            )
            torch.testing.assert_close(one.within[1][:, at[1]], within)


def test_a_map_and_places_of_other_layers_are_kept_apart(world: Measured) -> None:
    """Two places of one layer of the first model are two cells."""
    maps = {("a", "far"): world.maps["a", "far"]}
    (ridge,) = [one for one in maps["a", "far"] if one.method == "ridge"][:1]
    moved = replace(ridge, place=Place(ridge.place.first, 3, "transfer"))
    extra = {("a", "far"): (*maps["a", "far"], moved)}
    found = [one for one in through_maps(world.frame, world.stacks, extra) if one.via == "ridge"]
    assert {at for at in found[0].cells if at[0] == 1} == {(1, 1), (1, 3)}
    cosines = [float(found[0].cosines.raw[found[0].cells[at]]) for at in ((1, 1), (1, 3))]
    assert cosines[0] > 0.999 > cosines[1]


# --- massive channels ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bursting() -> Frame:
    """A channel of `b` is huge on one harmful prompt; `a` shares its space, `c` does not."""
    harm = shift(1, size=6.0)
    read = {name: streams(harm, seed=i) for i, name in enumerate(("a", "b", "c"))}
    read["b"].harmful[3, 2:, MASSIVE] = 5000.0
    return frame("{a: {model: ./a}, b: {model: ./b, base: a}, c: {model: ./c}}", read)


def test_channels_that_are_massive_in_one_model_leave_all_of_its_space(bursting: Frame) -> None:
    job = bursting.job
    assert job.massive == {"a": (MASSIVE,), "c": ()}
    assert job.channels_out(("a", "a")) == (MASSIVE,)
    assert job.channels_out(("c", "c")) == ()
    # Between spaces, those of either.
    assert job.channels_out(("a", "c")) == job.channels_out(("c", "b")) == (MASSIVE,)
    peaks = {row.dimensions["arm"]: row for row in bursting.massive_table if row.metric == "peak"}
    assert set(peaks) == {"b"}
    assert peaks["b"].dimensions["channel"] == MASSIVE
    assert peaks["b"].n == 2 * N_TWINS


def test_without_its_massive_channels_a_model_is_as_like_as_without_their_bursts(
    bursting: Frame,
) -> None:
    found = same_channels(bursting.job, stacks(bursting.job))
    assert {(one.first, one.second, one.channels) for one in found} == {
        (*pair, channels)
        for pair in combinations_with_replacement("abc", 2)
        for channels in (("all", "channels_out") if pair != ("c", "c") else ("all",))
    }
    with_burst, without = (
        float(of(found, "a", "b", "none", channels).cosines.raw[3, 3])
        for channels in ("all", "channels_out")
    )
    assert with_burst < 0.5 < 0.9 < without
    kept = [channel for channel in range(7) if channel != MASSIVE]
    rows = bursting.job.rows
    shifts = [(rows[name][:N_TWINS] - rows[name][N_TWINS:]).mean(0)[3, kept] for name in "ab"]
    expected = torch.nn.functional.cosine_similarity(*shifts, dim=0)
    assert without == pytest.approx(float(expected), abs=1e-5)


# --- activations ---------------------------------------------------------------------------------


def test_activations_of_a_copy_are_alike_at_equal_layers_whatever_its_width(
    world: Measured,
) -> None:
    for one in world.activations:
        assert one.layers == ((1, 2, 3, 4), (1, 2, 3, 4))
        assert one.channels == "all"
        assert one.n == (N_HELD_OUT if one.prompts == "neutral" else 2 * N_TWINS)
        if (one.first, one.second) == ("a", "far"):
            same = one.cka.value.diagonal()
            torch.testing.assert_close(same, torch.ones_like(same), atol=1e-4, rtol=0)
            assert float(one.null.diagonal(dim1=1, dim2=2).max()) < 0.9
    assert len(world.activations) == 2 * len(list(combinations(NAMES, 2)))


def test_massive_channels_leave_activations_each_by_its_own_space(bursting: Frame) -> None:
    found = activation_likenesses(bursting.job)
    assert {(one.first, one.second) for one in found if one.channels == "channels_out"} == {
        ("a", "b"), ("a", "c"), ("b", "c"),
    }  # fmt: skip
    harm = "harmful and harmless"
    one, other = (
        float(each.cka.value[2, 2])
        for each in found
        if (each.first, each.second, each.prompts) == ("a", "b", harm)
    )
    assert one < 0.2 < 0.8 < other


# --- places and subspaces ------------------------------------------------------------------------


def test_places_of_two_models_are_found_from_either(world: Measured) -> None:
    assert set(world.places) == {(x, y) for x in NAMES for y in NAMES if x != y}
    copy = [at for at in world.places["far", "a"] if at.match == "best"]
    assert copy == [Place(i, i, "best") for i in (1, 2, 3, 4)]
    for pair, found in world.places.items():
        back = {(at.second, at.first) for at in world.places[pair[::-1]] if at.match == "depth"}
        assert {(at.first, at.second) for at in found if at.match == "depth"} == back


def test_the_best_match_is_chosen_on_the_prompts_that_maps_are_fitted_on() -> None:
    """Held-out prompts, harmful and harmless ones may say otherwise and are not asked."""
    harm = shift(1, size=6.0)
    a = streams(harm, noise=0.1)
    over = a.at_layers([0, 4, 3, 2, 1])
    read = {"a": a, "b": replace(a, fit=over.fit).turned(isometry(9, 3))}
    found = all_places(frame("{a: ./a, b: ./b}", read).job)
    for pair in (("a", "b"), ("b", "a")):
        best = {at.first: at.second for at in found[pair] if at.match == "best"}
        assert best == {1: 4, 2: 3, 3: 2, 4: 1}


def test_models_of_unequal_depth_are_compared_at_equal_depth() -> None:
    """The deeper one has each layer of the other twice."""
    harm = shift(1, size=6.0)
    a = streams(harm, noise=0.1)
    deep = a.at_layers([0, 1, 1, 2, 2, 3, 3, 4, 4])
    short = frame("{a: ./a, deep: ./deep}", {"a": a, "deep": deep}).job
    found = all_places(short)
    assert [(at.first, at.second) for at in found["a", "deep"] if at.match == "depth"] == [
        (1, 2), (2, 4), (3, 6), (4, 8),
    ]  # fmt: skip
    best = {at.first: at.second for at in found["a", "deep"] if at.match == "best"}
    assert all(best[i] in (2 * i - 1, 2 * i) for i in best)
    overlaps = all_overlaps(short, found)
    assert overlaps["a", "deep"].layers == ((1, 2), (2, 4), (3, 6), (4, 8))
    torch.testing.assert_close(
        overlaps["a", "deep"].value, torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_spans_are_compared_at_layers_of_equal_depth_of_models_of_one_width(
    world: Measured,
) -> None:
    assert set(world.overlaps) == {("a", "b"), ("far_b", "far")}
    for one in world.overlaps.values():
        assert one.layers == ((1, 1), (2, 2), (3, 3), (4, 4))
        assert one.angles.shape == (4, world.frame.config.geometry.subspace_rank)
    ahead, back = world.overlaps.values()
    torch.testing.assert_close(ahead.value, back.value, atol=1e-4, rtol=0)
