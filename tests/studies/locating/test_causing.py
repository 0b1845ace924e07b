"""From what was read to what is caused: which prompts count, and why nothing may be caused."""

from dataclasses import replace

import pytest
import torch

from mechsafety.core.errors import SelfCheckError
from mechsafety.studies.arms import let_go
from mechsafety.studies.locating.causing import (
    _check_same_scores,
    _control_position,
    _selected,
    _treated_right,
    causes,
)
from mechsafety.studies.locating.findings import finding
from mechsafety.studies.locating.output import tables
from mechsafety.studies.locating.reading import ClassScores
from mechsafety.studies.locating.refusing import no_refusals
from tests.studies.locality_runs import ALL_TABLES, Ran, configured


def causes_with(run: Ran, *overrides: str) -> Ran:
    """The same model and prompts, asked with other settings."""
    config = configured(*overrides)
    frame = replace(run.frame, config=config)
    try:
        measured = causes(frame, run.separated)
    finally:
        let_go()
    return replace(run, config=config, frame=frame, measured=measured)


def test_filters_that_keep_nothing_say_what_was_discarded_and_the_map_still_stands(
    ssft: Ran,
) -> None:
    found = causes_with(ssft, "selection.filters.kl_threshold=1e-9", "base=null")
    assert found.causal.winner is None
    assert found.causal.selection.chosen is None
    for claim in found.config.findings:
        result = finding(claim, found.measured)
        if claim.cell.test == "causal":
            assert result.value is not None
            assert result.n == len(found.causal.map.clean.harmful)
            assert any("no direction was evaluated" in note for note in result.notes)
        elif claim.cell.test != "separation":
            assert result.value is None
            assert "0 of 9 candidates are kept" in result.explanation
            assert "KL > 1e-09 (smallest" in result.explanation
    made = tables(found.measured, found.frame.prompts, found.frame.judge, 4)
    assert tuple(table.name for table in made) == ALL_TABLES[:7]
    (none_kept,) = (row for table in made for row in table if row.metric == "no_candidate_kept")
    assert none_kept.value == 1


def test_refusal_tokens_do_not_make_a_model_refuse_and_its_scores_are_told(compliant: Ran) -> None:
    found = causes_with(compliant, "model=base", "base=null", "refusal_tokens=[7, 9]")
    assert found.measured.causal is None
    why = found.measured.why_not
    assert "0 of 24 harmful prompts of the fit split (scores -" in why
    assert "of the select split" in why
    assert "(twins leave together)" in why
    assert "refusal tokens 7, 9" in why
    assert "At least 8 of each" in why
    (necessary,) = (c for c in found.config.findings if c.id == "direction_is_necessary")
    assert finding(necessary, found.measured).explanation == f"Not measured. {why}"


def test_twins_leave_together_and_lists_apart(ssft: Ran, from_files: Ran) -> None:
    for run, kept in ((ssft, ([0, 3], [0, 3])), (from_files, ([0, 1, 3], [0, 2, 3, 4]))):
        pairs = run.frame.prompts.pairs["select"].select(range(5))
        if pairs.pairing == "list":
            pairs = run.frame.prompts.pairs["select"].select(range(5), range(5))
        harmful = torch.tensor([1.0, 1.0, -1.0, 1.0, 0.0])
        harmless = torch.tensor([-1.0, 0.0, -1.0, -1.0, -1.0])
        rows = _treated_right(run.config, ClassScores(harmful, harmless), pairs)
        assert rows == kept
        chosen = _selected(pairs, rows)
        assert [p.id for p in chosen.first] == [pairs.first.prompts[i].id for i in kept[0]]
        assert [p.id for p in chosen.second] == [pairs.second.prompts[i].id for i in kept[1]]


def test_a_search_whose_scores_are_not_those_of_the_map_fails_the_run(ssft: Ran) -> None:
    found, selection = ssft.causal.map, ssft.causal.selection
    scored = selection.scores.bypass.isfinite()
    assert int(scored.sum()) > 0
    _check_same_scores(found, selection, "float32")
    for name in ("bypass", "induce", "kl"):
        moved = {name: getattr(selection.scores, name) + 0.01}
        forged = replace(selection, scores=replace(selection.scores, **moved))
        with pytest.raises(SelfCheckError, match=f"mean {name} of a candidate"):
            _check_same_scores(found, forged, "float32")
        # Rounding of half precision moves scores by more than that.
        _check_same_scores(found, forged, "bfloat16")


def test_controls_match_at_the_position_that_was_asked_for(ssft: Ran) -> None:
    read = ssft.measured.read
    assert [str(p) for p in read.positions] == ["instruction_end", "eoi[-2]", "last"]
    for asked, found in (
        ("last", "last"),
        ("eoi[-1]", "last"),
        ("eoi[-2]", "eoi[-2]"),
        ("instruction_end", "instruction_end"),
    ):
        assert _control_position(configured(f"maps.control_position={asked}"), read) == found


def test_a_model_without_answers_is_said_to_have_none(compliant: Ran) -> None:
    read = compliant.measured.read
    silent = replace(read.answers["harmful"], ids=((),) * len(read.answers["harmful"].ids))
    found = no_refusals(replace(read, answers={**read.answers, "harmful": silent}))
    assert "(no answer has a token)" in found
    assert "answers begin with token" in no_refusals(read)
