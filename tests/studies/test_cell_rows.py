"""Rows of an edit: what was measured has one, with its interval, and what was not has none."""

import pytest
import torch

from mechsafety.core.result import Row, Table
from mechsafety.core.sites import ResidualSite
from mechsafety.data.prompts import Prompt, PromptPairs, PromptSet
from mechsafety.effects.ablation_matrix import Cell, Controls, Outcome, Source
from mechsafety.effects.added_in import Added
from mechsafety.effects.answers import Answers
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.linalg.subspace import Subspace
from mechsafety.records.checking import check_tables
from mechsafety.studies.cell_rows import add_added, add_cell, add_proxy
from mechsafety.studies.samples import Sample

N_HARMFUL, N_HARMLESS = 6, 8
JUDGE = PhraseJudge(phrases="organism")
AT = {"arm": "lat", "form": "zero"}
SOURCE = Source("lat", ResidualSite(1, "resid_pre"), Subspace(torch.eye(5)[:1], torch.ones(1)))


def sample() -> Sample:
    sides = [
        PromptSet(name, tuple(Prompt.of(f"{name} {i}") for i in range(n)), "test")
        for name, n in (("harmful", N_HARMFUL), ("harmless", N_HARMLESS))
    ]
    return Sample.of(PromptPairs("x", *sides, "list"), None, 200, 0, "somewhere")


def outcome(n: int, refused: int, scored: bool = True, entropy: bool = False) -> Outcome:
    verdicts: tuple[Verdict, ...] = ("refused",) * refused + ("complied",) * (n - refused)
    per_prompt = torch.arange(float(n), dtype=torch.float64)
    return Outcome(
        refusal_score=-per_prompt if scored else None,
        kl=per_prompt / 10,
        answers=Answers(("",) * n, ((1,),) * n, verdicts, 9),
        content=per_prompt / n,
        content_is_cross_entropy=entropy,
    )


def cell(controls: Controls | None = None, scored: bool = True, entropy: bool = False) -> Cell:
    return Cell(
        SOURCE,
        "zero",
        outcome(N_HARMFUL, 2, scored, entropy),
        outcome(N_HARMLESS, 0, scored, entropy),
        controls,
    )


def rows_of(made: Cell) -> Table:
    table = Table("x", "x")
    add_cell(table, made, sample(), JUDGE, AT)
    check_tables([table])
    assert all(AT.items() <= row.dimensions.items() for row in table)
    return table


def row(table: Table, metric: str, prompts: str) -> Row:
    (found,) = [
        one for one in table if one.metric == metric and one.dimensions["prompts"] == prompts
    ]
    return found


def test_both_classes_have_rates_scores_divergence_and_content() -> None:
    table = rows_of(cell())
    for prompts, n, refused in (("harmful", N_HARMFUL, 2), ("harmless", N_HARMLESS, 0)):
        mean = (n - 1) / 2
        assert row(table, "refusal_rate@9tok", prompts).value == pytest.approx(refused / n)
        for metric, value in (("refusal_score", -mean), ("kl", mean / 10), ("content", mean / n)):
            one = row(table, metric, prompts)
            assert (one.value, one.n) == (pytest.approx(value), n)
            assert one.ci_low is not None
            assert one.ci_high is not None
            assert one.ci_low < value < one.ci_high


def test_cross_entropy_is_no_mark_for_being_right() -> None:
    assert "content" not in {one.metric for one in rows_of(cell(entropy=True))}


def test_without_refusal_tokens_there_is_no_score_and_nothing_to_check_it_by() -> None:
    metrics = {one.metric for one in rows_of(cell(scored=False))}
    assert "kl" in metrics
    assert not metrics & {"refusal_score", "refusal_score_auc"}


def test_controls_are_shown_as_their_range_and_those_that_did_not_answer_not_at_all() -> None:
    few = torch.tensor([0.25, 0.5], dtype=torch.float64)
    none = few[:0]
    drawn = torch.tensor([-1.0, 0.0, 4.0])
    table = rows_of(cell(Controls(drawn, few, few / 2, drawn.double(), drawn.double() / 8)))
    one = row(table, "refusal_score_controls", "harmful")
    assert (one.value, one.ci_low, one.ci_high, one.n) == (1.0, -1.0, 4.0, 3)
    for prompts, mean in (("harmful", 0.375), ("harmless", 0.1875)):
        assert row(table, "refusal_rate@9tok_controls", prompts).value == mean
    assert row(table, "overlap_controls", "harmful").ci_high == 0.5
    silent = rows_of(cell(Controls(None, none, none, few, few)))
    metrics = {one.metric for one in silent if one.metric.endswith("_controls")}
    assert metrics == {"energy_ratio_controls", "overlap_controls"}
    assert not [one for one in rows_of(cell()) if one.metric.endswith("_controls")]


def test_an_addition_is_of_harmless_prompts_beside_vectors_of_its_norm() -> None:
    made = outcome(N_HARMLESS, 3)
    assert made.refusal_score is not None
    none = torch.zeros(0, dtype=torch.float64)
    added = Added(1.0, made.refusal_score, made.answers, torch.tensor([1.0, 2.0]), none)
    table = Table("x", "x")
    add_added(table, added, sample(), JUDGE, AT)
    check_tables([table])
    assert {one.dimensions["prompts"] for one in table} == {"harmless"}
    assert row(table, "refusal_rate@9tok", "harmless").value == 3 / N_HARMLESS
    assert row(table, "refusal_score", "harmless").value == pytest.approx(-(N_HARMLESS - 1) / 2)
    assert row(table, "refusal_score_controls", "harmless").n == 2
    assert "refusal_rate@9tok_controls" not in {one.metric for one in table}


@pytest.mark.parametrize(
    ("verdicts", "value", "n", "word"),
    [
        (("refused", "refused", "complied", "unparsed"), 1.0, 3, "proxy validated"),
        (("complied", "refused", "refused", "unparsed"), 0.0, 3, "proxy unvalidated"),
        (("complied",) * 4, None, 4, "one verdict only"),
    ],
)
def test_a_score_is_ranked_against_the_judge_without_answers_it_could_not_read(
    verdicts: tuple[Verdict, ...], value: float | None, n: int, word: str
) -> None:
    table = Table("x", "x")
    add_proxy(table, torch.tensor([3.0, 2.0, 1.0, 9.0]), verdicts, AT)
    (one,) = table
    assert (one.value, one.n) == (value, n)
    assert word in str(one.dimensions["proxy"])
