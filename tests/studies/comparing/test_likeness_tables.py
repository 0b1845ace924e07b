"""A row where there is a number, with its null, and none where there is none."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from mechsafety.core.result import Row, Table
from mechsafety.records.checking import check_tables
from mechsafety.studies.comparing.likeness_tables import (
    METRICS,
    add_null,
    best_match_table,
    cka_table,
    cosines_table,
    subspaces_table,
)
from mechsafety.studies.comparing.map_tables import maps_table, matches_table
from mechsafety.studies.comparing.measured import Measured
from tests.studies.comparing.planted import Streams, isometry, measured, shift, streams
from tests.studies.similarity_runs import configured, rows

LAYER = 2
TABLES: tuple[Callable[[Measured], Table], ...] = (
    cosines_table, best_match_table, subspaces_table, cka_table, maps_table, matches_table,
)  # fmt: skip


def row(table: Table, metric: str, **where: object) -> Row:
    (found,) = rows(table, metric, **where)
    return found


def between(first: str, second: str, i: int = LAYER, j: int = LAYER) -> dict[str, object]:
    return {"first": first, "second": second, "first_layer": i, "second_layer": j}


@pytest.fixture(scope="module")
def cosines(world: Measured) -> Table:
    return cosines_table(world)


def test_the_record_accepts_every_table(world: Measured) -> None:
    found = [table(world) for table in TABLES]
    check_tables(found)
    assert all(len(one.rows) for one in found)


def test_a_cell_has_its_cosines_what_is_above_the_null_and_the_ceiling(
    world: Measured, cosines: Table
) -> None:
    (one,) = [x for x in world.likenesses if (x.first, x.second, x.via) == ("a", "b", "none")]
    at = {**between("a", "b", LAYER, 3), "via": "none", "channels": "all"}
    for statistic, metric in METRICS.items():
        number = one.cosines.jackknifed(statistic, LAYER, 3)
        found = row(cosines, metric, **at)
        assert (found.value, found.ci_low, found.ci_high) == (number.value, *number.interval())
        assert found.n == 36
    null = one.cosines.null[:, LAYER, 3]
    assert row(cosines, "excess", **at).value == pytest.approx(
        float(one.cosines.raw[LAYER, 3] - null.mean())
    )
    ceiling = one.cosines.reliability_first[LAYER] * one.cosines.reliability_second[3]
    assert row(cosines, "ceiling", **at).value == pytest.approx(math.sqrt(ceiling))
    drawn = row(cosines, "cosine_permuted_residuals", **at)
    assert (drawn.value, drawn.n) == (pytest.approx(float(null.mean())), len(null))
    printed = row(cosines, "cosine_permuted_labels", **at)
    assert printed.value == pytest.approx(float(one.cosines.null_with_shift[:, LAYER, 3].mean()))
    assert row(cosines, "cosine_independent_labels", **at).value not in (drawn.value, printed.value)


def test_a_model_with_itself_has_a_ceiling_on_the_diagonal_and_cosines_off_it(
    cosines: Table,
) -> None:
    metrics = {one.metric for one in cosines if one.dimensions.items() >= between("a", "a").items()}
    assert metrics == {"cosine_disjoint"}
    off = {
        one.metric
        for one in cosines
        if one.dimensions.items() >= between("a", "a", LAYER, 3).items()
    }
    assert {"cosine", "excess", "cosine_permuted_residuals", "ceiling"} <= off


def test_random_vectors_are_a_line_of_each_models_width(world: Measured, cosines: Table) -> None:
    for name, view in world.frame.views.items():
        d = view.dims.d_model
        found = row(cosines, "cosine_random_vectors", first=name, second=name)
        drawn = torch.randn(4000, d, generator=torch.Generator().manual_seed(d))
        share = (drawn[:, 0] / drawn.norm(dim=1)).abs() < found.ci_high
        assert (found.n, found.ci_low) == (d, -(found.ci_high or 0))
        assert 0.93 < float(share.float().mean()) < 0.98


def test_a_direction_that_halves_do_not_agree_on_has_no_cosine_without_noise(
    cosines: Table,
) -> None:
    at = {**between("a", "blind"), "via": "ridge"}
    assert rows(cosines, "cosine", **at)
    assert not rows(cosines, "cosine_disattenuated", **at)
    assert not rows(cosines, "ceiling", **at)
    seen = {**between("a", "far"), "via": "ridge"}
    assert rows(cosines, "cosine_disattenuated", **seen)


def test_shares_of_choices_add_up_to_one_and_every_two_models_are_there(world: Measured) -> None:
    found = best_match_table(world)
    pairs = {(one.dimensions["first"], one.dimensions["second"]) for one in found}
    assert pairs == {("a", "b"), ("far_b", "far")}
    for layer in (1, 2, 3, 4):
        where = {"first": "a", "second": "b", "first_layer": layer}
        shares = rows(found, "chosen", **where)
        assert sum(one.value or 0 for one in shares) == pytest.approx(1)
        assert {one.dimensions["second_layer"] for one in shares} == {0, 1, 2, 3, 4}
        assert row(found, "best_cosine", **where).ci_low is not None
        assert row(found, "best_cosine_permuted_residuals", **where).n == 40
    assert not rows(found, "chosen", first_layer=0)


def test_spans_have_an_overlap_and_as_many_angles_as_components(world: Measured) -> None:
    found = subspaces_table(world)
    for i in (1, 2, 3, 4):
        at = between("a", "b", i, i)
        overlap = row(found, "overlap", **at)
        angles = [row(found, f"angle_{k}", **at).value or 0 for k in (1, 2)]
        cosines = [math.cos(math.radians(angle)) ** 2 for angle in angles]
        assert overlap.value == pytest.approx(sum(cosines) / 2)
        assert angles == sorted(angles)
        for metric in ("overlap", "angle_1", "angle_2"):
            assert row(found, f"{metric}_permuted_residuals", **at).n == 20


def test_a_null_is_its_mean_and_the_range_of_most_of_its_draws() -> None:
    table = Table("x", "x")
    add_null(table, "drawn", torch.arange(41.0) / 10, "cosine", {"first": "a"})
    (one,) = table
    assert (one.value, one.n) == (pytest.approx(2.0), 41)
    assert (one.ci_low, one.ci_high) == (pytest.approx(0.1), pytest.approx(3.9))
    assert one.dimensions == {"first": "a"}


def test_cka_stands_beside_shuffled_prompts_for_every_two_models_and_both_prompt_sets(
    world: Measured,
) -> None:
    found = cka_table(world)
    for prompts in ("neutral", "harmful and harmless"):
        at = {**between("a", "far"), "prompts": prompts}
        one, null = row(found, "cka", **at), row(found, "cka_shuffled_prompts", **at)
        assert one.value == pytest.approx(1, abs=1e-6)
        assert null.ci_high is not None
        assert null.ci_high < 0.7
        assert null.n == 19
    pairs = {(one.dimensions["first"], one.dimensions["second"]) for one in found}
    assert pairs == set(combinations(("a", "b", "far_b", "far", "blind"), 2))


def test_a_match_has_its_layer_its_activations_and_the_cosine_through_each_map(
    world: Measured, cosines: Table
) -> None:
    found = matches_table(world)
    for pair in (("a", "far"), ("far", "a")):
        at = {"first": pair[0], "second": pair[1], "match": "best", "first_layer": 3}
        assert row(found, "second_layer", **at).value == 3
        assert row(found, "cka", **at).value == pytest.approx(1, abs=1e-6)
        for via in ("procrustes", "ridge"):
            there = row(cosines, "cosine", **between(*pair, 3, 3), via=via)
            assert row(found, "cosine", **at, via=via).value == there.value
    # The same two models, whichever is asked about.
    alike = cka_table(world)
    for x, y in (("a", "b"), ("b", "a")):
        where = {"first": x, "second": y, "match": "best", "first_layer": LAYER}
        best = int(row(found, "second_layer", **where).value or 0)
        assert best != LAYER
        layers = (LAYER, best) if x == "a" else (best, LAYER)
        there = row(alike, "cka", **between("a", "b", *layers), prompts="neutral")
        assert row(found, "cka", **where).value == there.value


MATCHED = ("cosine", "cosine_permuted_residuals", "excess", "cosine_disattenuated")


@pytest.mark.parametrize("match", ["depth", "best"])
def test_models_of_one_space_are_matched_by_direction_whichever_comes_first(
    world: Measured, cosines: Table, match: str
) -> None:
    found = matches_table(world)
    places = {(x, y): world.places[x, y] for x, y in (("a", "b"), ("b", "a"))}
    (there,) = [one.second for one in places["b", "a"] if (one.first, one.match) == (LAYER, match)]
    for metric in MATCHED:
        at = {"match": match, "via": "none", "first_layer": LAYER}
        back = row(found, metric, first="b", second="a", **at)
        held = row(cosines, metric, **between("a", "b", there, LAYER), via="none", channels="all")
        assert (back.value, back.ci_low, back.n) == (held.value, held.ci_low, held.n)
    # A map has a way: none was fitted from `b`.
    assert not rows(found, "cosine", first="b", via="ridge")
    # Of another width.
    assert not rows(found, "cosine", first="a", second="far", via="none")


# --- layers without a direction ------------------------------------------------------------------


def undirected(layer: int) -> Streams:
    """Twins that are equal at one layer, at which neutral prompts differ."""
    harm = shift(1)
    found = streams(harm, noise=0.0)
    found.harmless[:, layer] = found.harmful[:, layer]
    return found


def test_where_classes_are_equal_there_are_activations_and_maps_and_no_directions() -> None:
    """As at the last word of twins before the first block."""
    one = undirected(LAYER)
    config = configured("{a: ./a, copy: ./copy}", "maps.between=null")
    found = measured(config, {"a": one, "copy": one.turned(isometry(9, 3))})
    tables = {table(found).name: table(found) for table in TABLES}
    check_tables(tables.values())
    there, elsewhere = between("a", "copy"), between("a", "copy", 3, 3)
    assert row(tables["cka"], "cka", **there, prompts="neutral").value == pytest.approx(1, abs=1e-6)
    for metric, direction in (
        ("r2", False),
        ("r2_shuffled", False),
        ("rank", False),
        ("r2_along_direction", True),
        ("r2_along_direction_shuffled", True),
        ("spread_along_direction", True),
        ("carried_cosine_shuffled", True),
    ):
        assert rows(tables["maps"], metric, **elsewhere)
        assert bool(rows(tables["maps"], metric, **there)) != direction
    assert rows(tables["cosines"], "cosine", **elsewhere)
    assert not rows(tables["cosines"], "cosine", **there)
    assert not rows(tables["matches"], "cosine", first="a", first_layer=LAYER)


def test_what_a_map_has_no_penalty_for_has_no_row_of_it(world: Measured) -> None:
    found = maps_table(world)
    assert rows(found, "penalty", via="ridge")
    assert not rows(found, "penalty", via="procrustes")
    edges = {one.dimensions["grid_edge"] for one in rows(found, "penalty")}
    assert edges <= {True, False}
    told = replace(
        world,
        maps={
            pair: tuple(replace(one, grid_edge=True) for one in maps)
            for pair, maps in world.maps.items()
        },
    )
    assert {one.dimensions["grid_edge"] for one in rows(maps_table(told), "penalty")} == {True}
