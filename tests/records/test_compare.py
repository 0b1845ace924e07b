"""Two records are compared to the last bit, and the first place where they part is named."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.result import Result, SpecificationCurve, Table, Tolerance, Tolerances
from mechsafety.records.compare import ABSENT, Comparison, Difference, compare
from mechsafety.records.completions import purge
from mechsafety.records.reading import Run, open_run
from tests.records.made_records import (
    ENVIRONMENT,
    answer_line,
    finding,
    other_table,
    recorded,
    result,
    stage,
    table,
)

ELSEWHERE = ENVIRONMENT.model_copy(update={"threads": {"torch": 2}})
TOLERANT = Tolerances(
    metrics={"top2": Tolerance(absolute=0.01), "refusal_rate": Tolerance(relative=0.1)},
    tensors=1e-3,
    margins=0.5,
)


def next_after(number: float) -> float:
    return math.nextafter(number, math.inf)


def one_row(
    value: float | None = 0.25,
    interval: tuple[float, float] | None = (-1.0, 1.0),
    n: int = 11,
    unit: str = "share",
    metric: str = "top2",
    **dimensions: Any,
) -> Result:
    shares = Table("shares", "Shares; no null.")
    at = dimensions or {"layer": 2}
    shares.add("top2", 0.125, n=n, unit="share", interval=None, layer=1)
    shares.add(metric, value, n=n, unit=unit, interval=interval, **at)
    return result(tables=(shares,), tolerances=TOLERANT)


def one_tensor(tensor: Tensor) -> Result:
    return result(tensors={"first": torch.ones(2), "whole": tensor}, tolerances=TOLERANT)


def one_finding(**changes: object) -> Result:
    return result(findings=(finding(**changes),), tolerances=TOLERANT)


def compared(out: Path, before: Result, now: Result, environment: Any = ENVIRONMENT) -> Comparison:
    return compare(recorded(out, before), recorded(out, now, environment=environment))


def only(found: Comparison) -> Difference:
    """The one difference there is."""
    parts = (found.stages, found.rows, found.tensors, found.findings)
    (difference,) = [one for part in parts for one in part.differences]
    return difference


def test_equal_records_are_the_same(tmp_path: Path) -> None:
    stages, private = [stage("measure", "a", "b")], {"answers.jsonl": [answer_line("p1")]}
    before, now = (recorded(tmp_path, stages=stages, private=private) for _ in range(2))
    assert before.folder != now.folder
    for found in (compare(before, now), compare(before, before)):
        assert found.exact
        assert found.same
        assert found.environment == ()
        assert [p.n for p in (found.stages, found.rows, found.tensors, found.findings)] == [
            2,
            4,
            2,
            1,
        ]
        assert found.rows.first is None
        assert found.answers is not None
        assert found.answers.n == 1


# --- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "before", "now"),
    [
        ("value", one_row(0.25), one_row(next_after(0.25))),
        ("value", one_row(0.0), one_row(-0.0)),
        ("value", one_row(None), one_row(0.25)),
        ("ci_low", one_row(), one_row(interval=(next_after(-1.0), 1.0))),
        ("ci_high", one_row(), one_row(interval=(-1.0, next_after(1.0)))),
        ("unit", one_row(), one_row(unit="shares")),
    ],
)
def test_the_last_bit_of_one_value_of_one_row_is_found_and_named(
    tmp_path: Path, column: str, before: Result, now: Result
) -> None:
    found = compared(tmp_path, before, now)
    assert not found.same
    difference = only(found)
    assert found.rows.first == difference
    assert difference.where == "table 'shares', top2 at layer=2"
    assert difference.what == column
    assert not difference.allowed
    assert repr(difference.before) != repr(difference.now)


def test_both_values_of_the_first_row_that_differs_are_told(tmp_path: Path) -> None:
    found = compared(tmp_path, one_row(0.25, n=11), one_row(0.5, n=12))
    told = [(one.where, one.what, one.before, one.now) for one in found.rows.differences]
    # `n` of every row, and one value; in the order of the table.
    assert told == [
        ("table 'shares', top2 at layer=1", "n", 11, 12),
        ("table 'shares', top2 at layer=2", "value", 0.25, 0.5),
        ("table 'shares', top2 at layer=2", "n", 11, 12),
    ]
    assert found.rows.first == found.rows.differences[0]


@pytest.mark.parametrize(
    ("now", "allowed"),
    [
        (one_row(0.2599), True),
        (one_row(0.2601), False),
        (one_row(interval=(-1.0099, 1.0)), True),
        (one_row(interval=(-1.0101, 1.0)), False),
        (one_row(None), False),
        (one_row(interval=None), False),
        (one_row(n=12), False),
        (one_row(unit="rate"), False),
    ],
)
def test_elsewhere_a_number_may_differ_by_what_its_study_tolerates(
    tmp_path: Path, now: Result, allowed: bool
) -> None:
    assert not compared(tmp_path, one_row(), now).same  # here every bit counts
    found = compared(tmp_path, one_row(), now, ELSEWHERE)
    assert not found.exact
    assert found.rows.differences
    assert found.same == allowed


def test_a_metric_is_tolerated_whatever_answer_length_its_name_has(tmp_path: Path) -> None:
    before, now = (one_row(v, metric="refusal_rate@32tok") for v in (0.5, 0.54))
    assert compared(tmp_path, before, now, ELSEWHERE).same
    before, now = (one_row(v, metric="unheard_of") for v in (0.5, next_after(0.5)))
    assert not compared(tmp_path, before, now, ELSEWHERE).same


def test_the_tolerances_are_those_of_the_first_record(tmp_path: Path) -> None:
    strict = result(tables=one_row(0.251).tables, tolerances=Tolerances(tensors=1e-9))
    assert compared(tmp_path, one_row(), strict, ELSEWHERE).same
    assert not compared(tmp_path, strict, one_row(), ELSEWHERE).same
    # A record of before there were any is compared by those of the record that repeats it.
    old = result(tables=one_row(0.251).tables)
    assert old.tolerances == Tolerances()
    assert compared(tmp_path, old, one_row(), ELSEWHERE).same


def test_rows_and_tables_in_one_record_alone_are_never_allowed(tmp_path: Path) -> None:
    both, one = result(tolerances=TOLERANT), result(tables=(table(),), tolerances=TOLERANT)
    for environment in (ENVIRONMENT, ELSEWHERE):
        lost = compared(tmp_path, both, one, environment)
        assert not lost.same
        assert [(d.what, d.before, d.now) for d in lost.rows.differences] == [
            ("row", "there", ABSENT)
        ] * 2
        assert lost.rows.first is not None
        assert "table 'rates', refusal_rate@32tok at layer=4" in lost.rows.first.where
        added = compared(tmp_path, one, both, environment)
        assert [(d.before, d.now) for d in added.rows.differences] == [(ABSENT, "there")] * 2
        assert (lost.rows.n, added.rows.n) == (4, 4)


def test_a_row_is_known_by_its_dimensions_and_not_by_its_place(tmp_path: Path) -> None:
    tables = (table(), other_table())
    turned = (other_table(), Table("shares", table().caption, table().rows[::-1]))
    # Dimensions are then first used in another order, and their columns stand in another.
    assert compared(tmp_path, result(tables=tables), result(tables=turned)).same


def test_a_whole_number_is_one_dimension_whatever_stands_in_its_column(tmp_path: Path) -> None:
    def doses(*more: float) -> Result:
        rates = Table("rates", "Rates; Wilson intervals.")
        for dose in (1, 2, *more):
            rates.add("refusal_rate@32tok", 0.5, n=13, unit="rate", dose=dose)
        return result(tables=(rates,))

    found = compared(tmp_path, doses(0.5), doses())
    assert [one.where for one in found.rows.differences] == [
        "table 'rates', refusal_rate@32tok at dose=0.5"
    ]


def test_a_row_with_one_dimension_more_is_another_row(tmp_path: Path) -> None:
    found = compared(tmp_path, one_row(layer=2), one_row(layer=2, arm="lat"), ELSEWHERE)
    assert [(one.where, one.now) for one in found.rows.differences] == [
        ("table 'shares', top2 at layer=2", ABSENT),
        ("table 'shares', top2 at layer=2, arm=lat", "there"),
    ]
    assert not found.same


def test_rows_of_one_index_are_told_apart_by_their_order(tmp_path: Path) -> None:
    def draws(*values: float) -> Result:
        drawn = Table("draws", "Draws; no null.")
        for value in values:
            drawn.add("top2", value, n=1, unit="share", layer=1)
        return result(tables=(drawn,))

    found = compared(tmp_path, draws(0.1, 0.2, 0.3), draws(0.1, 0.2, 0.4))
    assert only(found).where == "table 'draws', top2 at layer=1 (row 3 of these)"
    assert found.rows.n == 3


# --- tensors -----------------------------------------------------------------------------------


def flipped(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(torch.uint8).view(-1)[0] ^= 1
    return changed


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]
)
def test_the_last_bit_of_one_tensor_is_found(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(1.0, 7.0).reshape(2, 3).to(dtype)
    found = compared(tmp_path, one_tensor(tensor), one_tensor(flipped(tensor)))
    assert only(found).where == "tensor 'whole'"
    assert only(found).what == "relative distance"
    assert not found.same


@pytest.mark.parametrize(
    ("before", "now", "allowed"),
    [
        (torch.ones(4), torch.ones(4) * 1.0009, True),
        (torch.ones(4), torch.ones(4) * 1.0011, False),
        (torch.zeros(4), -torch.zeros(4), True),
        (torch.zeros(4), torch.full((4,), 1e-20), False),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0001, math.nan]), True),
        (torch.tensor([1.0, math.nan]), torch.tensor([math.nan, 1.0]), False),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0]), False),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.inf]), False),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.0001, math.inf]), True),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.0, -math.inf]), False),
        # Labels and indices are not near one another.
        (torch.full((9999,), 1000.0), torch.tensor([1001.0] + [1000.0] * 9998), True),
        (torch.full((9999,), 1000), torch.tensor([1001] + [1000] * 9998), False),
    ],
)
def test_elsewhere_a_tensor_may_differ_by_a_share_of_its_norm(
    tmp_path: Path, before: Tensor, now: Tensor, allowed: bool
) -> None:
    assert not compared(tmp_path, one_tensor(before), one_tensor(now)).same
    found = compared(tmp_path, one_tensor(before), one_tensor(now), ELSEWHERE)
    assert found.tensors.differences
    assert found.same == allowed


def test_nan_where_nan_was_is_the_same(tmp_path: Path) -> None:
    missing = torch.tensor([1.0, math.nan])
    assert compared(tmp_path, one_tensor(missing), one_tensor(missing.clone())).same


@pytest.mark.parametrize(
    ("now", "before_is", "now_is"),
    [
        (torch.zeros(3, 2), "torch.float32 [2, 3]", "torch.float32 [3, 2]"),
        (torch.zeros(2, 3).double(), "torch.float32 [2, 3]", "torch.float64 [2, 3]"),
    ],
)
def test_another_shape_or_precision_is_never_allowed(
    tmp_path: Path, now: Tensor, before_is: str, now_is: str
) -> None:
    found = compared(tmp_path, one_tensor(torch.zeros(2, 3)), one_tensor(now), ELSEWHERE)
    assert (only(found).before, only(found).now) == (before_is, now_is)
    assert not found.same


def test_a_tensor_in_one_record_alone_is_never_allowed(tmp_path: Path) -> None:
    both, none = one_tensor(torch.ones(3)), result(tensors={}, tolerances=TOLERANT)
    lost = compared(tmp_path, both, none, ELSEWHERE)
    assert [(one.where, one.now) for one in lost.tensors.differences] == [
        ("tensor 'first'", ABSENT),
        ("tensor 'whole'", ABSENT),
    ]
    assert not lost.same
    assert not compared(tmp_path, none, both, ELSEWHERE).same


# --- findings ----------------------------------------------------------------------------------


def specified(supported: int) -> SpecificationCurve:
    return SpecificationCurve(supported=supported, total=9)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        # The margin is 0.1, and half of it is tolerated.
        ({"value": 0.549}, True),
        ({"value": 0.551}, False),
        ({"ci_low": 0.36}, True),
        ({"ci_low": 0.34}, False),
        ({"null_high": 0.149}, True),
        ({"null_high": 0.151}, False),
        ({"verdict": "inconclusive"}, False),
        ({"value": 0.501, "verdict": "contradicted"}, False),
        ({"n": 12}, False),
        ({"unit": "share (clusters)"}, False),
        ({"cell": {"layer": 3}}, False),
        # What is said of the numbers moves with them.
        ({"explanation": "It grows by 0.501."}, True),
        ({"null": "labels permuted, 100 draws"}, True),
        ({"notes": ("A note.",)}, True),
        ({"specification": specified(7)}, True),
    ],
)
def test_a_finding_may_move_by_a_share_of_its_margin_and_not_change_its_verdict(
    tmp_path: Path, changes: Mapping[str, Any], allowed: bool
) -> None:
    before = one_finding(specification=specified(8))
    now = one_finding(**{"specification": specified(8), **changes})
    here = compared(tmp_path, before, now)
    assert not here.same
    assert {one.what for one in here.findings.differences} == set(changes)
    assert {one.where for one in here.findings.differences} == {"finding 'grows'"}
    assert compared(tmp_path, before, now, ELSEWHERE).same == allowed


def test_a_finding_in_one_record_alone_is_never_allowed(tmp_path: Path) -> None:
    more = result(findings=(finding(), finding(id="shrinks")), tolerances=TOLERANT)
    for before, now, there in ((one_finding(), more, "there"), (more, one_finding(), ABSENT)):
        found = compared(tmp_path, before, now, ELSEWHERE)
        assert (only(found).where, only(found).now) == ("finding 'shrinks'", there)
        assert not found.same


# --- stages ------------------------------------------------------------------------------------


def staged(out: Path, *stages: Any, environment: Any = ENVIRONMENT) -> Run:
    return recorded(out, stages=stages, environment=environment)


def test_the_first_job_that_gave_something_else_is_named(tmp_path: Path) -> None:
    before = staged(tmp_path, stage("read", "a", "b", what="reading"), stage("measure", "c"))
    now = staged(tmp_path, stage("read", "a", "x", what="reading"), stage("measure", "y"))
    found = compare(before, now)
    assert not found.same
    assert (found.stages.n, len(found.stages.differences)) == (3, 2)
    first = found.stages.first
    assert first is not None
    assert (first.where, first.before, first.now) == ("stage 'read', job 2 (reading)", "b", "x")


def test_elsewhere_jobs_may_differ_and_may_not_be_missing(tmp_path: Path) -> None:
    before = staged(tmp_path, stage("measure", "a", "b"))
    changed = staged(tmp_path, stage("measure", "a", "x"), environment=ELSEWHERE)
    assert compare(before, changed).stages.differences
    assert compare(before, changed).same
    for other in (stage("measure", "a"), stage("measure", "a", "b", "c"), stage("other", "a")):
        found = compare(before, staged(tmp_path, other, environment=ELSEWHERE))
        assert not found.same
        assert found.stages.first is not None
        assert ABSENT in (found.stages.first.before, found.stages.first.now)


def test_a_stage_that_comes_again_is_a_stage_of_its_own(tmp_path: Path) -> None:
    before = staged(tmp_path, stage("seed", "a"), stage("seed", "b"))
    now = staged(tmp_path, stage("seed", "x"), stage("seed", "b"))
    found = compare(before, now)
    assert found.stages.n == 2
    assert only(found).where == "stage 'seed', job 1 (squares)"
    again = compare(before, staged(tmp_path, stage("seed", "a"), stage("seed", "x")))
    assert only(again).where == "stage 'seed', job 1 (squares) (time 2 of these)"


def test_a_record_without_jobs_says_nothing_about_them(tmp_path: Path) -> None:
    # As those of the first schema version.
    found = compare(staged(tmp_path), staged(tmp_path, stage("measure", "a")))
    assert found.same
    assert found.stages.n == 0


# --- environments and answers ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "exact"),
    [
        ({"threads": {"torch": 2}}, False),
        ({"packages": {"torch": "3"}}, False),
        ({"packages": {"torch": "2", "numpy": "1"}}, False),
        ({"code_sha256": "1" * 64}, False),
        ({"determinism": {"cudnn_benchmark": True}}, False),
        ({"hardware": {"cores": 2, "cuda:0": "a GPU"}}, False),
        ({"packages": {"torch": "2", "ruff": "1"}}, True),
        ({"hardware": {"cores": 64}}, True),
        ({"platform": "another kernel"}, True),
        ({"git": ENVIRONMENT.git.model_copy(update={"commit": "2" * 40})}, True),
    ],
)
def test_every_bit_counts_unless_something_that_decides_bits_differs(
    tmp_path: Path, update: Mapping[str, Any], exact: bool
) -> None:
    environment = ENVIRONMENT.model_copy(update=update)
    found = compared(tmp_path, one_row(), one_row(), environment)
    assert found.exact == exact
    assert found.environment != ()
    assert found.same


def measured_on(model: Mapping[str, str], prompts: str = "2" * 64) -> Result:
    provenance = {"prompts": {"made": prompts}, "models": {"lat": model}}
    return result(tables=one_row().tables, tolerances=TOLERANT, provenance=provenance)


def test_other_prompts_or_another_model_make_another_run_however_near_its_numbers(
    tmp_path: Path,
) -> None:
    before = measured_on({"weights": "3" * 64})
    for environment in (ENVIRONMENT, ELSEWHERE):
        assert compared(tmp_path, before, before, environment).same
        weights = compared(tmp_path, before, measured_on({"weights": "5" * 64}), environment)
        prompts = measured_on({"weights": "3" * 64}, "4" * 64)
        asked = compared(tmp_path, before, prompts, environment)
        assert "model revision" in [one.kind for one in weights.environment]
        assert "prompts" in [one.kind for one in asked.environment]
        assert not weights.same
        assert not asked.same
        assert weights.rows.same


def test_a_model_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    before, now = (measured_on({"id": f"/{at}/lat", "weights": "3" * 64}) for at in "ab")
    found = compared(tmp_path, before, now)
    assert [(one.kind, one.name) for one in found.environment] == [("other", "lat/id")]
    assert found.exact
    assert found.same


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"depth": 4}, False),
        ({"seed": 1}, False),
        ({"findings": []}, False),
        ({"runtime": {"workers": 3}}, True),
        ({"runtime": {"memory_gib": 9}}, True),
        ({"title": "Another"}, True),
        ({"wandb": {"mode": "disabled"}}, True),
        ({"completions": "local"}, True),
    ],
)
def test_records_of_other_settings_are_other_runs(
    tmp_path: Path, settings: dict[str, Any], same: bool
) -> None:
    before = recorded(tmp_path, one_row())
    for environment in (ENVIRONMENT, ELSEWHERE):
        found = compare(before, recorded(tmp_path, one_row(), environment=environment, **settings))
        assert found.rows.same
        assert found.same == same


def test_what_is_said_beside_the_numbers_counts_here_and_moves_elsewhere(tmp_path: Path) -> None:
    shares = one_row().tables[0]
    other = Table("shares", "Another caption.", shares.rows)
    for changes in ({"notes": ("Another.",)}, {"figures": ()}, {"tables": (other,)}):
        before, now = (
            result(**{"tables": (shares,), "tolerances": TOLERANT, **one}) for one in ({}, changes)
        )
        here = compared(tmp_path, before, now)
        assert [one.where for one in here.described.differences] == ["the manifest"]
        assert not here.same
        assert compared(tmp_path, before, now, ELSEWHERE).same


def answered(out: Path, *lines: Any, environment: Any = ENVIRONMENT) -> Run:
    return recorded(out, private={"answers.jsonl": lines}, environment=environment)


def test_answers_that_diverge_are_a_difference_here_and_not_elsewhere(tmp_path: Path) -> None:
    before = answered(tmp_path, answer_line("p1"), answer_line("p2"))
    lines = (answer_line("p1"), answer_line("p2", ids=[5, 8, 9], text="of course"))
    here, elsewhere = (
        compare(before, answered(tmp_path, *lines, environment=e)) for e in (ENVIRONMENT, ELSEWHERE)
    )
    for found in (here, elsewhere):
        assert found.answers is not None
        assert [one.token for one in found.answers.diverged] == [1]
    assert not here.same
    assert elsewhere.same


def test_an_answer_in_one_record_alone_is_a_difference_everywhere(tmp_path: Path) -> None:
    before = answered(tmp_path, answer_line("p1"), answer_line("p2"))
    for environment in (ENVIRONMENT, ELSEWHERE):
        found = compare(before, answered(tmp_path, answer_line("p1"), environment=environment))
        assert found.answers is not None
        assert found.answers.only_in_one == 1
        assert not found.same


def test_answers_purged_on_one_side_are_not_compared(tmp_path: Path) -> None:
    before, now = (answered(tmp_path, answer_line("p1")) for _ in range(2))
    assert compare(before, now).answers is not None
    purge(now)
    for found in (compare(before, now), compare(now, before)):
        assert found.answers is None
        assert found.same


def test_a_record_that_wrote_no_numbers_cannot_be_compared(tmp_path: Path) -> None:
    from mechsafety.core.errors import RecordError
    from mechsafety.records.store import RunWriter
    from tests.records.made_records import config

    writer = RunWriter.create(tmp_path, config(), ENVIRONMENT, ["mechsafety"])
    writer.close("failed", ValueError("early"))
    with pytest.raises(RecordError, match="is 'failed' and wrote none"):
        compare(recorded(tmp_path), open_run(writer.folder))
