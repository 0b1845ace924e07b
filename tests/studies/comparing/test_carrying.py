"""Directions go where depth says, by the map fitted there; what cannot be tried says why."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.linalg.align import LinearMap
from mechsafety.studies.arms import ArmView
from mechsafety.studies.comparing.carrying import (
    Untried,
    refusing,
    transfer_jobs,
    transfer_layer,
    transfer_place,
)
from mechsafety.studies.comparing.mapping import FittedMap, Place, places
from mechsafety.studies.comparing.settings import TransferMatrix
from mechsafety.studies.comparing.transferring import TransferJob
from tests.studies.comparing.planted import (
    COMPLIED,
    N_TWINS,
    PAIRS,
    REFUSED,
    D,
    drawn,
    isometry,
    shift,
    streams,
    view,
)
from tests.studies.similarity_runs import configured

MODELS = "{a: {model: ./a}, b: {model: ./b, base: a}, far: {model: ./far}}"
WIDER = 9
LAYER = 3  # 0.67 of four blocks
BOTH_WAYS = (("a", "far"), ("far", "a"), ("b", "far"), ("far", "b"))


def views(**others: ArmView) -> dict[str, ArmView]:
    found = {name: streams(shift(1), seed=i) for i, name in enumerate(("a", "b", "far"))}
    found["far"] = found["far"].turned(isometry(WIDER, 5))
    return {**{name: view(name, one) for name, one in found.items()}, **others}


def fitted(matrix: Tensor, place: Place, method: str = "ridge") -> FittedMap:
    """A map that was not fitted."""
    found = LinearMap(
        matrix.double(), torch.zeros(len(matrix)), torch.zeros(matrix.shape[1]), 1.0, len(matrix)
    )
    few = torch.zeros(2)
    return FittedMap(
        method, place, found, 0.9, (0.8, 1.0), 5, few, few, 0.9, (0.8, 1.0), few, 1.0, False
    )


def directions(read: Mapping[str, ArmView]) -> dict[str, Tensor]:
    return {
        name: (one.pairs.first[:, :, 0] - one.pairs.second[:, :, 0]).mean(0)
        for name, one in read.items()
    }


def maps_between(read: Mapping[str, ArmView]) -> dict[tuple[str, str], tuple[FittedMap, ...]]:
    widths = {name: one.dims.d_model for name, one in read.items()}
    return {
        (x, y): tuple(
            fitted(drawn(widths[x], widths[y], seed=layer), Place(layer, layer, "depth"))
            for layer in (2, LAYER)
        )
        for x, y in BOTH_WAYS
    }


def jobs(
    read: Mapping[str, ArmView],
    *overrides: str,
    maps: Mapping[tuple[str, str], tuple[FittedMap, ...]] | None = None,
    vectors: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, TransferJob], list[Untried]]:
    config = configured(MODELS, "transfer.layer=depth:0.67", *overrides)
    found, untried = transfer_jobs(
        config,
        read,
        {name: one.model for name, one in config.models.items()},
        directions(read) if vectors is None else vectors,
        maps_between(read) if maps is None else maps,
        PAIRS,
        PhraseJudge(phrases="organism"),
    )
    return {job.target: job for job in found}, untried


# --- where ---------------------------------------------------------------------------------------


def test_the_last_output_is_no_block_input_so_the_last_block_is_edited() -> None:
    last = TransferMatrix(layer="depth:1.0")
    assert (transfer_layer(last, 6), transfer_layer(last, 32)) == (5, 31)
    assert transfer_layer(TransferMatrix(layer=2), 6) == 2
    assert transfer_layer(TransferMatrix(layer="depth:0.5"), 6) == 3


@pytest.mark.parametrize("depths", [(6, 9), (9, 6), (6, 32), (32, 6), (4, 4)])
@pytest.mark.parametrize("layer", ["depth:0.2", "depth:0.5", "depth:0.67", "depth:1.0"])
def test_the_place_is_at_the_targets_layer_and_named_as_that_of_the_maps(
    depths: tuple[int, int], layer: str
) -> None:
    """Else the map that was fitted there would not be found."""
    source, target = (view(str(n), streams(shift(1, n_layers=n), n_layers=n)) for n in depths)
    settings = TransferMatrix(layer=layer)
    found = transfer_place(settings, source, target)
    n_first, n_second = depths
    assert found.second == transfer_layer(settings, n_second)
    assert abs(found.first / n_first - found.second / n_second) <= 0.5 / n_first + 1e-9
    nothing = torch.zeros(n_first + 1, n_second + 1)
    known = places(n_first, n_second, (range(n_first + 1), range(n_second + 1)), nothing)
    assert (found.match == "depth") == (Place(found.first, found.second, "depth") in known)
    assert found.match in ("depth", "transfer")


def test_a_layer_of_a_deeper_target_may_be_that_of_no_layer_of_the_source() -> None:
    shallow, deep = (view(str(n), streams(shift(1, n_layers=n), n_layers=n)) for n in (6, 32))
    middle = TransferMatrix(layer=19)
    assert transfer_place(middle, shallow, deep) == Place(4, 19, "transfer")
    assert transfer_place(TransferMatrix(layer=21), shallow, deep) == Place(4, 21, "depth")
    # Into the shallower model every layer is that of its depth.
    assert transfer_place(TransferMatrix(layer=4), deep, shallow) == Place(21, 4, "depth")


# --- how -----------------------------------------------------------------------------------------


def test_a_direction_goes_as_it_is_within_a_space_and_by_the_map_of_its_place_elsewhere() -> None:
    read = views()
    found, untried = jobs(read)
    assert list(found) == ["a", "b", "far"]
    assert not untried
    of, maps = directions(read), maps_between(read)
    for target, job in found.items():
        assert [one.model for one in job.sources] == ["a", "b", "far"]
        assert job.site.layer == LAYER
        assert job.own_norm == pytest.approx(float(of[target][LAYER].norm()), rel=1e-6)
        assert job.harmless_rows[job.site].shape == (N_TWINS, read[target].dims.d_model)
        for one in job.sources:
            vector = of[one.model][LAYER]
            if one.via == "ridge":
                assert {one.model, target} & {"far"}
                vector = vector.double() @ maps[one.model, target][1].map.matrix
            torch.testing.assert_close(one.direction.double(), vector.double())
    via = {(one.model, t): one.via for t, job in found.items() for one in job.sources}
    assert via["a", "a"] == via["far", "far"] == "own"
    assert via["a", "b"] == via["b", "a"] == "same space"
    assert via["a", "far"] == via["far", "b"] == "ridge"


def test_only_the_models_that_are_named_are_tried_in_each_other() -> None:
    found, untried = jobs(views(), "transfer.models=[far, a]")
    assert list(found) == ["far", "a"]
    assert [one.model for one in found["a"].sources] == ["far", "a"]
    assert not untried


def test_without_a_map_of_the_right_kind_at_the_place_nothing_is_carried() -> None:
    read = views()
    elsewhere = {
        pair: (fitted(one[1].map.matrix, Place(2, 2, "depth")),)
        for pair, one in maps_between(read).items()
    }
    other = {
        pair: (fitted(one[1].map.matrix, one[1].place, "procrustes"),)
        for pair, one in maps_between(read).items()
    }
    for maps in ({}, elsewhere, other):
        found, untried = jobs(read, maps=maps)
        assert {(one.source, one.target) for one in untried} == set(BOTH_WAYS)
        assert all("no map between them was fitted" in one.why for one in untried)
        assert [one.model for one in found["far"].sources] == ["far"]
        assert [one.model for one in found["b"].sources] == ["a", "b"]


@pytest.mark.parametrize("rounding", [0.0, 1e-9])
def test_a_map_that_takes_the_direction_to_zero_or_its_rounding_is_said_to(
    rounding: float,
) -> None:
    read = views()
    maps = maps_between(read)
    vector = directions(read)["a"][LAYER].double()
    unit = vector / vector.norm()
    matrix = maps["a", "far"][1].map.matrix
    blind = matrix - torch.outer(unit, unit @ matrix)
    assert (vector @ matrix).norm() > 1  # there was something to lose
    blind = blind + rounding * torch.outer(unit, drawn(WIDER, seed=1))
    maps["a", "far"] = (fitted(blind, maps["a", "far"][1].place),)
    found, untried = jobs(read, maps=maps)
    assert [(one.source, one.target, one.why) for one in untried] == [
        ("a", "far", "the ridge map takes the direction to zero")
    ]
    assert [one.model for one in found["far"].sources] == ["b", "far"]


def test_a_source_without_a_direction_there_is_not_tried_and_the_others_are() -> None:
    read = views()
    vectors = directions(read)
    vectors["b"] = vectors["b"].clone()
    vectors["b"][LAYER] = 0
    found, untried = jobs(read, vectors=vectors)
    assert {(one.source, one.target) for one in untried} == {("b", "a"), ("b", "far")} | {
        (source, "b") for source in ("a", "b", "far")
    }
    why = {(one.source, one.target): one.why for one in untried}
    assert why["b", "a"] == f"b has no direction at layer {LAYER}"
    # Nor is there a dose of which others could be added to it.
    assert why["a", "b"].startswith(f"b has no direction of its own at layer {LAYER}")
    assert list(found) == ["a", "far"]


# --- whether anything can be lost ----------------------------------------------------------------


def test_a_target_that_refuses_too_little_gives_a_direction_and_receives_none() -> None:
    few = (*REFUSED[:2], *COMPLIED[2:])
    read = views(b=view("b", streams(shift(1), seed=1), harmful=few))
    found, untried = jobs(read, "transfer.min_refusals=0.12")
    assert list(found) == ["a", "far"]
    assert {one.target for one in untried} == {"b"}
    assert [one.source for one in untried] == ["a", "b", "far"]
    assert untried[0].why.startswith(f"b refuses 2 of {N_TWINS} harmful prompts, so next to")
    assert "b" in [one.model for one in found["a"].sources]
    # At the share that is asked for it is tried.
    assert list(jobs(read, f"transfer.min_refusals={2 / N_TWINS}")[0]) == ["a", "b", "far"]


def test_the_share_is_of_harmful_prompts_and_of_what_the_judge_calls_refused() -> None:
    settings = TransferMatrix(min_refusals=0.5)
    half: tuple[Verdict, ...] = ("refused", "degenerate") * (N_TWINS // 2)
    rows = streams(shift(1))
    assert refusing(view("a", rows, harmful=half), settings)
    assert not refusing(view("a", rows, harmful=(*half[:-2], "unparsed", "complied")), settings)
    assert not refusing(view("a", rows, harmful=COMPLIED, harmless=REFUSED), settings)


def test_a_target_without_refusal_tokens_says_that_and_not_that_it_refuses_nothing() -> None:
    # Every answer opens with one token, so that it scores nothing.
    mute = view("far", streams(shift(1)), opens=(6, 6), tokenizer="other")
    read = views(far=mute)
    found, untried = jobs(read, maps={})
    assert list(found) == ["a", "b"]
    why = {one.target: one.why for one in untried if one.source == "far"}["far"]
    assert f"refuses {N_TWINS} of {N_TWINS}" in why
    assert "refusal_tokens" in why
    assert "nothing could be lost" not in why
    told, _ = jobs(read, "refusal_tokens={far: [4, 3]}", maps={})
    assert told["far"].refusal_ids == (4, 3)
    assert told["a"].refusal_ids == (5,)


def test_models_of_one_tokenizer_share_the_tokens_of_their_refusals() -> None:
    other = view("b", streams(shift(1), seed=1), opens=(8, 6))
    found, _ = jobs(views(b=other))
    assert [set(job.refusal_ids) for job in found.values()] == [{5, 8}] * 3
    apart = view("b", streams(shift(1), seed=1), opens=(8, 6), tokenizer="other")
    found, _ = jobs(views(b=apart))
    assert {name: job.refusal_ids for name, job in found.items()} == {
        "a": (5,), "b": (8,), "far": (5,),
    }  # fmt: skip


def test_widths_of_directions_are_the_targets() -> None:
    found, _ = jobs(views())
    assert {len(one.direction) for one in found["far"].sources} == {WIDER}
    assert {len(one.direction) for one in found["a"].sources} == {D}
