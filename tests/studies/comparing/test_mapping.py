"""Maps are fitted at each place once, and say how well they hold on prompts they have not seen."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mechsafety.linalg.typed import linalg
from mechsafety.studies.comparing.mapping import (
    FittedMap,
    MapJob,
    NeutralRows,
    Place,
    depth_match,
    fit_maps,
    places,
)
from mechsafety.studies.comparing.settings import MapSettings
from tests.studies.comparing.keeping import kept
from tests.studies.comparing.planted import drawn, isometry

N_FIT, N_LAYERS, D, WIDER = 60, 3, 5, 8
RIDGE = MapSettings(methods=("ridge",), shuffles=4, resamples=300, penalties=(1e-4, 1e-2, 1.0, 1e2))
BOTH = RIDGE.model_copy(update={"methods": ("procrustes", "ridge")})


def job(
    noise: float = 1.0,
    n_held_out: int = 41,
    settings: MapSettings = RIDGE,
    spread: Tensor | None = None,
) -> MapJob:
    """A model and a noisy copy of it in a wider space; `spread` scales the source's dimensions."""
    scale = torch.ones(D) if spread is None else spread
    turn = isometry(WIDER, 3, D)
    sides: list[NeutralRows] = []
    source = {n: drawn(n, N_LAYERS, D, seed=n) * scale for n in (N_FIT, n_held_out)}
    for wide in (False, True):
        rows = [
            x @ turn + noise * drawn(n, N_LAYERS, WIDER, seed=1 + n) if wide else x
            for n, x in source.items()
        ]
        sides.append(NeutralRows(*(one.float() for one in rows)))
    return MapJob(
        first="narrow",
        second="wide",
        source=sides[0],
        target=sides[1],
        places=(Place(1, 1, "depth"),),
        groups=tuple(map(str, range(N_FIT))),
        held_out_groups=tuple(map(str, range(n_held_out))),
        directions=(drawn(N_LAYERS, D, seed=7).float(), drawn(N_LAYERS, WIDER, seed=8).float()),
        settings=settings,
        seed=0,
    )


def only(job: MapJob) -> FittedMap:
    (found,) = fit_maps(job)
    return found


# --- which layers --------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_first", "n_second"), [(6, 9), (9, 6), (6, 32), (32, 6), (7, 7)])
def test_depth_is_matched_in_order_from_the_first_layer_to_the_last(
    n_first: int, n_second: int
) -> None:
    there = [depth_match(layer, n_first, n_second) for layer in range(n_first + 1)]
    assert (there[0], there[-1]) == (0, n_second)
    assert all(one <= other for one, other in pairwise(there))
    off = [abs(layer / n_first - j / n_second) for layer, j in enumerate(there)]
    assert max(off) <= 0.5 / n_second + 1e-12  # no other layer is nearer


@pytest.mark.parametrize(("n_first", "n_second"), [(6, 9), (6, 32), (7, 7)])
def test_from_a_model_into_one_as_deep_or_deeper_and_back_is_the_layer_itself(
    n_first: int, n_second: int
) -> None:
    for layer in range(n_first + 1):
        assert depth_match(depth_match(layer, n_first, n_second), n_second, n_first) == layer


def test_each_layer_goes_with_that_of_its_depth_and_with_the_most_alike() -> None:
    likeness = drawn(7, 10, seed=0)
    found = places(6, 9, (range(1, 7), range(2, 10)), likeness)
    best = {at.first: at.second for at in found if at.match == "best"}
    assert best == {i: 2 + int(likeness[i, 2:].argmax()) for i in range(1, 7)}
    depth = {at.first: at.second for at in found if at.match == "depth"}
    assert depth == {1: 2, 2: 3, 3: 4, 4: 6, 5: 8, 6: 9}
    assert depth != best
    assert len(set(found)) == len(found)


def test_of_layers_that_are_equally_alike_one_is_taken_and_one_that_is_no_number_never_is() -> None:
    likeness = torch.zeros(3, 4)
    likeness[1, 2:] = 0.5
    likeness[2] = torch.tensor([torch.nan, torch.nan, -0.3, -0.2])
    best = [at.second for at in places(2, 3, ([1, 2], range(4)), likeness) if at.match == "best"]
    assert best == [2, 3]


def test_a_layer_whose_depth_the_other_model_cannot_be_read_at_has_a_best_match_only() -> None:
    found = places(4, 4, ([1, 2], [2, 3]), torch.zeros(5, 5))
    assert [(at.first, at.match) for at in found] == [(1, "best"), (2, "depth"), (2, "best")]


# --- what is kept --------------------------------------------------------------------------------


def test_a_map_of_a_job_that_was_kept_and_read_again_carries_alike() -> None:
    given = job(settings=BOTH)
    vector = given.directions[0][1]
    for one, other in zip(fit_maps(given), kept(fit_maps(kept(given))), strict=True):
        assert one.place == other.place
        assert float(one.map.carry(vector).norm()) > 0.1
        assert torch.equal(one.map.carry(vector), other.map.carry(vector))


# --- what is fitted ------------------------------------------------------------------------------


def test_equal_places_are_fitted_once_and_each_keeps_the_name_of_its_match() -> None:
    asked = (Place(1, 1, "depth"), Place(1, 1, "best"), Place(2, 0, "transfer"))
    found = fit_maps(replace(job(settings=BOTH), places=asked))
    assert [(one.method, one.place) for one in found] == [
        (method, place) for place in asked for method in BOTH.methods
    ]
    assert found[0].map is found[2].map
    assert found[1].map is found[3].map
    assert found[1].map is not found[5].map
    assert (found[0].r2, found[0].interval) == (found[2].r2, found[2].interval)


def test_where_prompts_do_not_differ_there_is_no_map_and_the_others_are_untouched() -> None:
    given = replace(job(), places=(Place(0, 0, "depth"), Place(1, 1, "depth")))
    whole = fit_maps(given)
    for side in ("source", "target"):
        rows = getattr(given, side)
        constant = NeutralRows(rows.fit.clone(), rows.held_out.clone())
        constant.fit[:, 0] = constant.held_out[:, 0] = 2.5
        found = fit_maps(replace(given, **{side: constant}))
        assert [one.place.first for one in found] == [1]
        assert found[0].r2 == whole[1].r2


def test_a_map_is_that_of_its_layers_whatever_else_is_fitted() -> None:
    asked = (Place(2, 0, "depth"), Place(1, 1, "depth"))
    both, alone = fit_maps(replace(job(), places=asked)), only(job())
    assert torch.equal(both[1].map.matrix, alone.map.matrix)
    assert torch.equal(both[1].shuffled_r2, alone.shuffled_r2)
    # A model is read at its own layer: the others hold other prompts' worth.
    assert both[0].map.matrix.shape == (D, WIDER)
    assert abs(both[0].r2) < 0.3 < alone.r2


# --- how well it holds ---------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_the_interval_holds_its_estimate_and_shrinks_with_the_prompts(noise: float) -> None:
    few, many = (only(job(noise, n)) for n in (12, 300))
    widths = [one.interval[1] - one.interval[0] for one in (few, many)]
    for one in (few, many):
        assert one.interval[0] <= one.r2 <= one.interval[1]
    assert widths[1] < widths[0]
    assert noise == 0 or widths[1] < widths[0] / 2


def test_the_interval_is_of_groups_where_prompts_are_not_independent() -> None:
    given = job(1.0, 48)
    alone = only(given)
    grouped = only(replace(given, held_out_groups=tuple(str(i // 8) for i in range(48))))
    assert grouped.r2 == alone.r2
    assert grouped.interval != alone.interval


def test_maps_of_shuffled_prompts_predict_nothing_where_the_true_one_does() -> None:
    for one in fit_maps(job(0.3, settings=BOTH)):
        assert one.r2 > 0.8
        assert len(one.shuffled_r2) == len(one.shuffled_cosines) == RIDGE.shuffles
        assert float(one.shuffled_r2.max()) < 0.2
        assert float(one.shuffled_r2_along.max()) < one.r2_along
        assert float(one.shuffled_r2.std()) > 0  # each of another order


def test_what_is_predicted_is_the_mean_over_directions_weighed_by_what_varies_along_them() -> None:
    given = job(0.5)
    basis = linalg.qr(drawn(WIDER, WIDER, seed=4))[0].float()
    along: list[float] = []
    weights: list[float] = []
    whole = only(given)
    target = given.target.held_out[:, 1].double() - whole.map.target_mean
    for unit in basis:
        # Its length does not matter.
        directions = (given.directions[0], (6 * unit).expand(N_LAYERS, WIDER))
        along.append(only(replace(given, directions=directions)).r2_along)
        weights.append(float((target @ unit.double()).square().sum()))
    assert max(along) - min(along) > 0.05
    mean = sum(a * w for a, w in zip(along, weights, strict=True)) / sum(weights)
    assert mean == pytest.approx(whole.r2, abs=1e-4)


def test_spread_is_a_multiple_of_a_mean_dimensions_and_small_where_prompts_do_not_vary() -> None:
    given = job(0.1, spread=torch.tensor([1.0, 1, 1, 1, 0.01]))
    turn = isometry(WIDER, 3, D).float()

    def spread(unit: Tensor) -> float:
        directions = (given.directions[0], unit.expand(N_LAYERS, WIDER))
        return only(replace(given, directions=directions)).spread_along

    assert spread(turn[4]) < 0.05 < 0.8 < spread(turn[0])
    basis = linalg.qr(drawn(WIDER, WIDER, seed=4))[0].float()
    assert sum(spread(unit) for unit in basis) == pytest.approx(WIDER, abs=1e-3)


def test_without_a_direction_the_map_is_judged_and_nothing_along_it() -> None:
    given = job(0.3)
    whole = only(given)
    found = only(replace(given, directions=(given.directions[0], torch.zeros(N_LAYERS, WIDER))))
    assert (found.r2, found.interval) == (whole.r2, whole.interval)
    for number in (found.r2_along, found.spread_along):
        assert number != number
    assert bool(found.shuffled_r2_along.isnan().all() & found.shuffled_cosines.isnan().all())
    assert bool(whole.shuffled_cosines.isfinite().all())


def test_a_penalty_at_an_end_of_its_grid_is_said_and_one_inside_is_not() -> None:
    inside = only(job(1.0, settings=RIDGE.model_copy(update={"penalties": (1e-6, 0.3, 1e6)})))
    assert (inside.map.penalty, inside.grid_edge) == (0.3, False)
    for penalties, end in (((1e-6, 1e-5), 1e-5), ((1e5, 1e6), 1e5)):
        found = only(job(1.0, settings=RIDGE.model_copy(update={"penalties": penalties})))
        assert (found.map.penalty, found.grid_edge) == (end, True)
    (rotation,) = fit_maps(job(1.0, settings=RIDGE.model_copy(update={"methods": ("procrustes",)})))
    assert (rotation.map.penalty, rotation.grid_edge) == (None, False)
