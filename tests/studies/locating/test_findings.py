"""Claims become findings, or say what kept them from it."""

from dataclasses import replace
from typing import Any

import pytest

from mechsafety.core.result import Finding
from mechsafety.studies.locating.claims import Claim
from mechsafety.studies.locating.findings import finding
from mechsafety.studies.locating.measured import Measured
from tests.studies.locality_runs import Ran


def claim_of(run: Ran, name: str, **changes: Any) -> Claim:
    found = next(claim for claim in run.config.findings if claim.id == name)
    return found.model_copy(update={"cell": found.cell.model_copy(update=changes)})


def without(run: Ran, **changes: Any) -> Measured:
    """What was measured, with parts of the winner replaced."""
    causal = replace(run.causal, winner=replace(run.winner, **changes))
    return replace(run.measured, causal=causal)


def not_measured(found: Finding) -> str:
    assert found.value is None
    assert found.verdict == "inconclusive"
    return found.explanation.removeprefix("Not measured. ")


def test_a_dose_that_was_not_tried_is_named_with_those_that_were(ssft: Ran) -> None:
    tried = finding(claim_of(ssft, "direction_is_sufficient", dose=2.0), ssft.measured)
    assert tried.value is not None
    found = finding(claim_of(ssft, "direction_is_sufficient", dose=3.0), ssft.measured)
    assert not_measured(found) == "Dose 3 was not tried; 1, 2 were."


def test_a_base_that_was_not_given_and_a_position_that_was_not_read_are_named(ssft: Ran) -> None:
    name = "separation_is_due_to_safety_training"
    assert finding(claim_of(ssft, name), ssft.measured).value is not None
    alone = replace(ssft.measured, base=None)
    assert not_measured(finding(claim_of(ssft, name), alone)) == "No base model was given (`base`)."
    elsewhere = finding(claim_of(ssft, name, position="eoi[-5]"), ssft.measured)
    assert not_measured(elsewhere).startswith("Position eoi[-5] was not read; instruction_end")


def test_a_second_direction_that_no_filter_keeps_is_no_direction(ssft: Ran) -> None:
    none = replace(ssft.winner.second, vector=None, alone=None, both=None, controls=None)
    found = finding(claim_of(ssft, "there_is_a_second_direction"), without(ssft, second=none))
    assert not_measured(found).startswith("No refitted direction passes the filters")


@pytest.mark.parametrize("form", ["zero", "affine"])
def test_necessity_is_the_fall_of_the_judged_rate_in_the_form_that_was_claimed(
    ssft: Ran, form: str
) -> None:
    found = finding(claim_of(ssft, "direction_is_necessary", form=form), ssft.measured)
    at = {"prompts": "harmful"}
    rates = [ssft.value("winner", "refusal_rate@24tok", form=one, **at) for one in ("none", form)]
    assert found.value == pytest.approx(rates[0] - rates[1])
    assert rates[0] == 1
    assert found.n == len(ssft.winner.clean.harmful)
    assert "range over 2 energy-matched" in found.null
    assert found.cell["form"] == form


def test_every_claim_about_the_winner_says_whether_the_score_stands_in_for_the_judge(
    ssft: Ran,
) -> None:
    found = ssft.finding("there_is_a_second_direction")
    assert any("AUC of the refusal score against the judge: clean 1.00" in n for n in found.notes)
    clean = ssft.winner.evaluated.scores
    upside_down = replace(clean, harmful=clean.harmless, harmless=clean.harmful)
    wrong = replace(ssft.winner.evaluated, scores=upside_down)
    again = finding(claim_of(ssft, found.id), without(ssft, evaluated=wrong))
    assert any(note.startswith("Proxy unvalidated. ") for note in again.notes)
    assert not any("unvalidated" in note for note in found.notes)


def test_claims_about_the_map_rest_on_its_own_split(ssft: Ran) -> None:
    found = ssft.finding("direction_is_causal_by_mid_depth")
    row = {"stream": "resid_pre", "layer": 2, "position": "last"}
    assert found.value == pytest.approx(ssft.value("causal_map", "bypass_effect", **row))
    (controls,) = ssft.rows("causal_map", "bypass_effect_controls", **row)
    assert (found.null_low, found.null_high) == (controls.ci_low, controls.ci_high)
    assert ssft.measured.causal is not None
    assert ssft.measured.causal.map.sample.note in found.notes
    assert "(select, group)" in ssft.measured.causal.map.sample.note
    induced = finding(
        claim_of(ssft, "direction_is_causal_by_mid_depth", score="induce"), ssft.measured
    )
    assert induced.value == pytest.approx(ssft.value("causal_map", "induce_effect", **row))
