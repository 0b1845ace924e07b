"""Claims about likeness: their numbers are those of the cosines, and what is missing is said."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from mechsafety.core.result import Finding
from mechsafety.studies.comparing.findings import finding
from mechsafety.studies.comparing.geometry import Likeness
from mechsafety.studies.comparing.measured import Measured
from tests.studies.comparing.conftest import ANGLE, BETWEEN, MODELS
from tests.studies.comparing.planted import measured, shift, streams
from tests.studies.similarity_runs import configured

LAYER = 2


def claimed(
    seen: Measured,
    cell: str,
    margin: float = 0.1,
    scope: str = "checkpoint",
    models: str = MODELS,
) -> Finding:
    """The finding of one claim."""
    between = BETWEEN if models == MODELS else "maps.between=null"
    claim = f"findings=[{{id: x, claim: x., scope: {scope}, margin: {margin}, cell: {cell}}}]"
    return finding(configured(models, between, claim).findings[0], seen)


def at(test: str, first: str, second: str, layer: int | str = LAYER, rest: str = "") -> str:
    return f"{{test: {test}, first: {first}, second: {second}, layer: {layer}{rest}}}"


def likeness(seen: Measured, first: str, second: str, via: str = "none") -> Likeness:
    (found,) = [
        one
        for one in seen.likenesses
        if (one.first, one.second, one.via, one.channels) == (first, second, via, "all")
    ]
    return found


def choices(found: Finding) -> list[str]:
    assert found.specification is not None
    return [label for label, _ in found.specification.values]


def numbers(found: Finding) -> tuple[float | None, ...]:
    return found.value, found.ci_low, found.ci_high, found.null_low, found.null_high


# --- numbers -------------------------------------------------------------------------------------


def test_the_angle_is_the_one_that_was_planted_and_its_interval_that_of_the_cosine(
    world: Measured,
) -> None:
    found = claimed(world, at("angle", "a", "b"), margin=10)
    number = likeness(world, "a", "b").cosines.jackknifed("disattenuated", LAYER, LAYER)
    low, high = number.interval()
    assert found.value == pytest.approx(ANGLE, abs=6)
    assert numbers(found)[:3] == pytest.approx(
        [math.degrees(math.acos(cosine)) for cosine in (number.value, high, low)]
    )
    assert found.verdict == "supported"
    # Angles between halves of one model lie on both sides of their mean.
    assert found.null_low is not None
    assert found.null_high is not None
    assert -ANGLE < found.null_low < 0 < found.null_high < ANGLE


def test_an_angle_that_noise_alone_makes_is_not_supported(world: Measured) -> None:
    found = claimed(world, at("angle", "a", "far"), margin=10)
    assert found.value == pytest.approx(0, abs=0.01)
    assert found.verdict == "equivalent"
    assert found.ci_low == 0 <= found.value
    assert found.ci_high is not None
    assert found.ci_high < 0.01


def test_what_is_missing_from_the_ceiling_is_one_less_the_cosine_without_noise(
    world: Measured,
) -> None:
    found = claimed(world, at("below_ceiling", "a", "b"))
    number = likeness(world, "a", "b").cosines.jackknifed("disattenuated", LAYER, LAYER)
    low, high = number.interval()
    assert numbers(found)[:3] == pytest.approx([1 - number.value, 1 - high, 1 - low])
    assert found.null_low is not None
    assert found.null_high is not None
    assert found.null_low < 0 < found.null_high < number.value
    assert found.verdict == "supported"
    assert claimed(world, at("below_ceiling", "a", "far")).verdict == "equivalent"


def test_likeness_above_its_null_is_supported_and_of_directions_at_right_angles_is_not() -> None:
    harm = shift(1, size=6.0)
    other = shift(2, size=6.0)
    other -= (other * harm).sum(1, keepdim=True) * harm / 36
    models = "{a: {model: ./a}, near: {model: ./near, base: a}, aside: {model: ./aside, base: a}}"
    given = {
        "a": streams(harm, shared=0.4, noise=1.0),
        "near": streams(harm, shared=0.4, noise=1.0, seed=1),
        "aside": streams(other, shared=0.4, noise=1.0, seed=2),
    }
    found = measured(configured(models, "maps.between=null"), given)
    near, aside = (
        claimed(found, at("likeness", "a", name), models=models) for name in ("near", "aside")
    )
    assert near.verdict == "supported"
    assert aside.verdict != "supported"
    raw = likeness(found, "a", "near").cosines.jackknifed("raw", LAYER, LAYER)
    low, high = raw.interval()
    assert near.value is not None
    assert near.ci_low is not None
    assert near.ci_high is not None
    # What is taken from the cosine is taken from its interval.
    assert near.ci_high - near.ci_low == pytest.approx(high - low)
    assert near.value - near.ci_low == pytest.approx(raw.value - low)
    assert near.null_low is not None
    assert near.null_high is not None
    assert near.null_low < 0 < near.null_high


@pytest.mark.parametrize("test", ["likeness", "angle", "below_ceiling"])
def test_models_of_one_space_may_stand_in_either_order(world: Measured, test: str) -> None:
    one, other = (claimed(world, at(test, *pair)) for pair in (("a", "b"), ("b", "a")))
    assert numbers(one) == numbers(other)
    assert one.value is not None


def test_a_map_goes_one_way(world: Measured) -> None:
    there, back = (claimed(world, at("likeness", *pair)) for pair in (("a", "far"), ("far", "a")))
    assert "a with far" in there.explanation
    assert "far with a" in back.explanation


# --- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "near"), [(1, (1, 2)), (2, (1, 2, 3)), (4, (3, 4))])
@pytest.mark.parametrize(("second", "via"), [("b", ("none",)), ("far", ("procrustes", "ridge"))])
def test_every_legal_choice_counts_once(
    world: Measured, layer: int, near: tuple[int, ...], second: str, via: tuple[str, ...]
) -> None:
    found = claimed(world, at("angle", "a", second, layer))
    places = world.places["a", second]
    depth = {(one.first, one.second) for one in places if one.match == "depth"}
    # The layer of equal depth that is the best match as well is one way to analyze, not two.
    expected = {
        f"channels=all, layer={one.first}, match={one.match}, via={how}"
        for one, how in product(places, via)
        if one.first in near
        and one.match in ("depth", "best")
        and (one.match == "depth" or (one.first, one.second) not in depth)
    }
    assert len(choices(found)) == len(expected)
    assert set(choices(found)) == expected


def test_the_primary_choice_is_that_of_the_claim(world: Measured) -> None:
    """With the map of `transfer`, unless the claim names another."""
    cell = at("likeness", "a", "far", "depth:0.5", ", match: best")
    found = claimed(world, cell)
    assert {key: found.cell[key] for key in ("layer", "match", "via", "channels")} == {
        "layer": "2", "match": "best", "via": "ridge", "channels": "all",
    }  # fmt: skip
    named = claimed(world, at("likeness", "a", "far", LAYER, ", via: procrustes"))
    assert (named.cell["via"], named.cell["match"]) == ("procrustes", "depth")
    assert "carried by procrustes" in named.explanation
    assert "The procrustes map predicts" in " ".join(named.notes)


def test_the_best_match_is_that_of_the_claims_first_model_whichever_stands_first(
    world: Measured,
) -> None:
    cosines = likeness(world, "a", "b").cosines
    for pair in (("a", "b"), ("b", "a")):
        best = {one.first: one.second for one in world.places[pair] if one.match == "best"}
        assert best[LAYER] != LAYER
        found = claimed(world, at("below_ceiling", *pair, LAYER, ", match: best"))
        cell = (LAYER, best[LAYER]) if pair[0] == "a" else (best[LAYER], LAYER)
        number = cosines.jackknifed("disattenuated", *cell)
        assert found.value == pytest.approx(1 - number.value)


# --- what cannot be said -------------------------------------------------------------------------


def test_a_claim_that_could_not_be_measured_says_why(world: Measured) -> None:
    missing = {
        at("likeness", "a", "far_b"): r"share no space, and no map between them was fitted",
        at("likeness", "a", "b", 0): r"At layer 0 of a one of a and b has no direction",
        "{test: transfer, first: a, second: b}": r"compares geometry alone",
        "{test: layers_match, first: a, second: far}": r"matched by `cka` only",
    }
    for cell, why in missing.items():
        found = claimed(world, cell)
        assert (found.value, found.n, found.verdict) == (None, 0, "inconclusive")
        assert why in found.explanation
        assert found.specification is None
    frame = replace(world.frame, config=configured(MODELS, "maps.methods=[]", "transfer=null"))
    found = claimed(replace(world, frame=frame, maps={}), at("likeness", "a", "far"))
    assert "`maps.methods` is empty" in found.explanation


def test_an_angle_through_a_map_that_is_blind_has_no_verdict(world: Measured) -> None:
    cell = at("below_ceiling", "a", "far")
    assert claimed(world, cell).verdict == "equivalent"
    blind = {
        pair: tuple(replace(one, r2_along=-0.1) for one in maps)
        for pair, maps in world.maps.items()
    }
    found = claimed(replace(world, maps=blind), cell)
    assert found.value == claimed(world, cell).value
    assert found.verdict == "inconclusive"
    assert "It does not see the direction" in " ".join(found.notes)
    # Within a space no map is asked.
    assert claimed(replace(world, maps=blind), at("angle", "a", "b"), 10).verdict == "supported"


def test_of_replications_one_that_is_missing_leaves_the_claim_unmeasured(world: Measured) -> None:
    cell = at("angle", "a", "b", LAYER, ", replicates: [[a, far_b]]")
    found = claimed(world, cell, scope="method")
    assert found.value is None
    assert "a and far_b share no space" in found.explanation


def test_a_mean_over_seeds_counts_them_and_is_that_of_the_replications(world: Measured) -> None:
    rest = ", replicates: [[far, far_b]]"
    found = claimed(world, at("angle", "a", "b", LAYER, rest), 10, "method")
    alone = [claimed(world, at("angle", *pair)).value for pair in (("a", "b"), ("far", "far_b"))]
    assert None not in alone
    assert found.value == pytest.approx(sum(one or 0 for one in alone) / 2)
    assert (found.n, found.verdict) == (2, "inconclusive")
    assert "2 of 2 training seeds positive" in found.explanation
    # `b` has the seed of `a`: what is compared twice with one run is no second run.
    again = claimed(world, at("angle", "a", "b", LAYER, ", replicates: [[b, a]]"), 10, "method")
    assert again.n == 1


def test_pairs_of_unknown_seeds_count_once_each(world: Measured) -> None:
    models = MODELS.replace("seed: 0, ", "").replace("seed: 1, ", "")
    unknown = replace(world, frame=replace(world.frame, config=configured(models, BETWEEN)))
    rest = ", replicates: [[far, far_b]]"
    found = claimed(unknown, at("angle", "a", "b", LAYER, rest), 10, "method")
    assert found.n == 2
    assert "of 2 training seeds" in found.explanation


def test_a_claim_of_one_checkpoint_is_about_its_own_pair(world: Measured) -> None:
    rest = ", replicates: [[far, far_b]]"
    found = claimed(world, at("angle", "a", "b", LAYER, rest), 10)
    assert numbers(found) == numbers(claimed(world, at("angle", "a", "b"), 10))


# --- which layers match --------------------------------------------------------------------------


UPSIDE_DOWN = "{a: {model: ./a}, same: {model: ./same, base: a}, over: {model: ./over, base: a}}"


@pytest.fixture(scope="module")
def upside_down() -> Measured:
    """A model, one like it, and that one with its layers in the other order."""
    harm = shift(1, size=6.0)
    given = {
        "a": streams(harm, shared=0.8, noise=0.3),
        "same": streams(harm, shared=0.8, noise=0.3, seed=1),
    }
    given["over"] = given["same"].at_layers([0, 4, 3, 2, 1])
    return measured(configured(UPSIDE_DOWN, "maps.between=null"), given)


@pytest.mark.parametrize("by", ["cosine", "cka"])
def test_layers_match_by_depth_and_those_of_a_model_built_upside_down_do_not(
    upside_down: Measured, by: str
) -> None:
    def matched(first: str, second: str) -> Finding:
        cell = f"{{test: layers_match, first: {first}, second: {second}, by: {by}}}"
        return claimed(upside_down, cell, 0.05, models=UPSIDE_DOWN)

    same, over = matched("a", "same"), matched("a", "over")
    assert same.value is not None
    assert over.value is not None
    assert same.value > 0.1 > 0 > over.value
    assert same.ci_low is not None
    assert same.ci_low > 0
    assert over.verdict != "supported"
    # Either way round, and by both measures for the curve.
    assert numbers(matched("same", "a")) == pytest.approx(numbers(same))
    assert {label.split(",")[0] for label in choices(same)} == {"by=cka", "by=cosine"}
    best = {
        one.first: one.second
        for one in upside_down.places["a", "over"]
        if one.match == "best" and one.first > 0
    }
    assert best == {1: 4, 2: 3, 3: 2, 4: 1}


def test_what_matches_is_said_of_the_prompts_that_it_is_measured_on(world: Measured) -> None:
    found = claimed(world, "{test: layers_match, first: a, second: far, by: cka}", 0.05)
    assert found.cell["prompts"] == "neutral"
    assert set(choices(found)) == {
        f"by=cka, channels=all, prompts={prompts}"
        for prompts in ("neutral", "harmful and harmless")
    }
    assert found.n == len(world.frame.neutral.held_out)
    assert found.verdict == "supported"


# --- notes ---------------------------------------------------------------------------------------


def test_every_finding_says_in_what_the_models_differ(world: Measured) -> None:
    views = dict(world.frame.views)
    views["far"] = replace(views["far"], identity={"dtype": "bfloat16"})
    other = replace(world, frame=replace(world.frame, views=views))
    for cell in (at("angle", "a", "b"), at("likeness", "a", "far_b")):
        assert not [note for note in claimed(world, cell).notes if "differ in" in note]
        (note,) = [note for note in claimed(other, cell).notes if "differ in" in note]
        assert "dtype" in note
        assert "far bfloat16" in note
    own = configured(MODELS, BETWEEN, "templates=own")
    told = replace(world, frame=replace(world.frame, config=own))
    assert claimed(told, at("angle", "a", "b")).notes[0].endswith("its own chat template.")


def test_the_null_of_halves_is_of_both_models_at_their_layers(world: Measured) -> None:
    one = likeness(world, "a", "b")
    halves = [within[:, LAYER] / within[:, LAYER].mean() for within in one.within]
    assert not torch.equal(*halves)
    found = claimed(world, at("below_ceiling", "a", "b"))
    ends = (1 - torch.cat(halves).double()).quantile(torch.tensor([0.025, 0.975]).double())
    assert (found.null_low, found.null_high) == pytest.approx(tuple(map(float, ends)))
