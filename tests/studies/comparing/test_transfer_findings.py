"""Claims about what a carried direction does: effects beside controls, forms, and reasons."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mechsafety.core.result import Finding, Row
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import AblationForm
from mechsafety.effects.ablation_matrix import Cell, Controls, Outcome, Source
from mechsafety.effects.added_in import Added
from mechsafety.effects.answers import Answers
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.linalg.subspace import Subspace
from mechsafety.records.checking import check_tables
from mechsafety.studies.attack import Baseline
from mechsafety.studies.comparing.carrying import Untried
from mechsafety.studies.comparing.findings import finding
from mechsafety.studies.comparing.measured import Measured, Transfers
from mechsafety.studies.comparing.transfer_table import transfer_table
from mechsafety.studies.comparing.transferring import (
    Carried,
    CarriedSource,
    TransferCell,
    Transferred,
)
from mechsafety.studies.samples import Sample
from tests.studies.comparing.conftest import BETWEEN, MODELS
from tests.studies.comparing.planted import COMPLIED, PAIRS, REFUSED, D, drawn
from tests.studies.similarity_runs import configured

N = len(REFUSED)
SITE = ResidualSite(3, "resid_pre")
CONTROLS = torch.tensor([4.0, 4.6, 5.2])
"""Refusal scores of harmful prompts under directions of equal energy; unedited about 5."""
ADDED_CONTROLS = torch.tensor([-4.5, -3.0])
"""Of harmless prompts with directions of equal norm added; unedited about -4."""


def scores(mean: float, seed: int) -> Tensor:
    """Of which the mean is exactly this."""
    found = 0.5 * drawn(N, seed=seed)
    return found - found.mean() + mean


def answers(verdicts: tuple[Verdict, ...]) -> Answers:
    return Answers(("",) * N, ((0,),) * N, verdicts, 12)


def ablated(form: AblationForm, left: float, kl: float, controls: Tensor | None = CONTROLS) -> Cell:
    """The direction's ablation leaves this refusal score on harmful prompts."""
    few = torch.zeros(0, dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    verdicts: tuple[Verdict, ...] = ("refused",) * 2 + ("degenerate",) + ("complied",) * (N - 3)
    nats = torch.full((N,), kl, dtype=torch.float64)
    return Cell(
        source=Source("a", SITE, Subspace(torch.eye(D)[:1], torch.ones(1))),
        form=form,
        harmful=Outcome(scores(left, 1), 2 * nats, answers(verdicts), nats, True),
        harmless=Outcome(scores(-4.0, 2), nats, answers(COMPLIED), nats, True),
        controls=None if controls is None else Controls(controls, few, few, ones, ones / 2),
    )


def cell(
    forms: Mapping[AblationForm, Cell],
    risen: float = 1.0,
    source: str = "a",
    via: Carried = "ridge",
) -> TransferCell:
    verdicts: tuple[Verdict, ...] = ("refused",) * 7 + ("complied",) * (N - 7)
    rates = torch.tensor([0.0], dtype=torch.float64)
    added = Added(1.0, scores(risen, 3), answers(verdicts), ADDED_CONTROLS, rates)
    return TransferCell(CarriedSource(source, via, torch.ones(D)), forms, added)


BOTH = {"zero": ablated("zero", 0.5, 0.2), "affine": ablated("affine", 1.0, 0.1)}


def seen(world: Measured, *cells: TransferCell, target: str = "far") -> Measured:
    """With a target that refuses its harmful prompts, and what was done in it."""
    baseline = Baseline(REFUSED, COMPLIED, torch.cat([scores(5.0, 4), scores(-4.0, 5)]))
    done = Transferred(target, baseline, cells, {})
    sample = Sample.of(PAIRS, None, 300, 0, "evaluate")
    untried = (Untried("blind", target, "it has none"),)
    return replace(world, transfers=Transfers({target: done}, sample, untried))


def claimed(
    measured: Measured,
    rest: str = "",
    first: str = "a",
    second: str = "far",
    margin: float = 2.0,
) -> Finding:
    text = f"{{test: transfer, first: {first}, second: {second}{rest}}}"
    claim = f"findings=[{{id: x, claim: x., scope: checkpoint, margin: {margin}, cell: {text}}}]"
    return finding(configured(MODELS, BETWEEN, claim).findings[0], measured)


def verdicts_of(found: Finding) -> dict[str, float]:
    assert found.specification is not None
    return dict(found.specification.values)


# --- numbers -------------------------------------------------------------------------------------


def test_a_bypass_is_what_the_score_falls_by_and_its_null_what_controls_make_it_fall_by(
    world: Measured,
) -> None:
    found = claimed(seen(world, cell(BOTH)))
    assert found.value == pytest.approx(4.0)
    assert (found.null_low, found.null_high) == pytest.approx((5.0 - 5.2, 5.0 - 4.0))
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert 3 < found.ci_low < 4 < found.ci_high < 5
    assert (found.n, found.verdict) == (N, "supported")
    assert found.cell["form"] == "affine"
    for words in (f"{N}/{N} before and 2/{N} after", "(1 degenerate)", "by the ridge map"):
        assert words in found.explanation


def test_a_bypass_that_controls_have_as_well_is_not_supported(world: Measured) -> None:
    same = {"affine": ablated("affine", 1.0, 0.1, CONTROLS - 4)}
    assert claimed(seen(world, cell(same))).verdict == "inconclusive"
    none = {"affine": ablated("affine", 4.9, 0.1)}
    assert claimed(seen(world, cell(none))).verdict == "equivalent"


def test_induced_refusal_is_what_the_score_rises_by_on_harmless_prompts(world: Measured) -> None:
    found = claimed(seen(world, cell(BOTH)), ", effect: induce")
    assert found.value == pytest.approx(5.0)
    assert (found.null_low, found.null_high) == pytest.approx((-0.5, 1.0))
    assert found.verdict == "supported"
    assert f"0/{N} before and 7/{N} after" in found.explanation
    assert verdicts_of(found) == {"effect=induce": found.value}
    assert claimed(seen(world, cell(BOTH, -4.0)), ", effect: induce").verdict == "equivalent"


@pytest.mark.parametrize(
    ("via", "words"),
    [("own", "in far ablated"), ("same space", ", same space"), ("procrustes", "procrustes map")],
)
def test_how_the_direction_came_is_said(world: Measured, via: Carried, words: str) -> None:
    assert words in claimed(seen(world, cell(BOTH, via=via))).explanation


# --- forms ---------------------------------------------------------------------------------------


def test_every_form_that_leaves_harmless_prompts_alone_is_a_choice(world: Measured) -> None:
    found = claimed(seen(world, cell(BOTH)), ", form: zero")
    assert found.value == pytest.approx(4.5)
    assert verdicts_of(found) == pytest.approx({"form=zero": 4.5, "form=affine": 4.0})
    assert "zero 0.20; affine 0.10 (bound 0.5)" in " ".join(found.notes)


def test_a_form_that_upsets_harmless_prompts_counts_only_where_the_claim_names_it(
    world: Measured,
) -> None:
    wild = seen(world, cell({**BOTH, "zero": ablated("zero", 0.5, 0.6)}))
    assert set(verdicts_of(claimed(wild))) == {"form=affine"}
    assert set(verdicts_of(claimed(wild, ", form: zero"))) == {"form=affine", "form=zero"}


def test_forms_that_disagree_or_upset_harmless_prompts_give_no_verdict(world: Measured) -> None:
    assert claimed(seen(world, cell(BOTH))).verdict == "supported"
    idle = seen(world, cell({**BOTH, "zero": ablated("zero", 5.0, 0.2)}))
    found = claimed(idle)
    assert found.verdict == "inconclusive"
    assert any("Forms below the bound disagree" in note for note in found.notes)
    wild = seen(world, cell({"affine": ablated("affine", 1.0, 0.6)}))
    found = claimed(wild)
    assert found.verdict == "inconclusive"
    assert any("'affine' upsets harmless prompts" in note for note in found.notes)


def test_a_form_without_controls_has_no_verdict(world: Measured) -> None:
    bare = seen(world, cell({"affine": ablated("affine", 1.0, 0.1, None)}))
    for found in (claimed(bare), claimed(seen(world, cell({"zero": BOTH["zero"]})))):
        assert found.value is None
        assert "Form 'affine' was not tried, or has no controls" in found.explanation


# --- reasons and notes ---------------------------------------------------------------------------


def test_what_was_not_tried_says_why(world: Measured) -> None:
    tried = seen(world, cell(BOTH))
    missing = {
        ("blind", "far"): "blind → far: it has none.",
        ("a", "b"): "The transfer matrix of this run does not hold a → b.",
        ("b", "far"): "The transfer matrix of this run does not hold b → far.",
    }
    for pair, why in missing.items():
        found = claimed(tried, "", *pair)
        assert (found.value, found.verdict) == (None, "inconclusive")
        assert why in found.explanation
    assert "compares geometry alone" in claimed(world).explanation


def test_geometry_stands_beside_the_effect_at_the_place_where_it_was_carried(
    world: Measured,
) -> None:
    (carried,) = [note for note in claimed(seen(world, cell(BOTH))).notes if "Geometry" in note]
    assert "cosine 1.000" in carried
    (one,) = [x for x in world.likenesses if (x.first, x.second, x.via) == ("a", "b", "none")]
    near = cell(BOTH, source="a", via="same space")
    (note,) = [
        note
        for note in claimed(seen(world, near, target="b"), "", "a", "b").notes
        if "Geometry" in note
    ]
    # Transfer is at 0.67 of four blocks.
    assert f"cosine {float(one.cosines.raw[3, 3]):.3f}" in note
    far = cell(BOTH, source="blind", via="procrustes")
    (none,) = [
        note
        for note in claimed(seen(world, far, target="far_b"), "", "blind", "far_b").notes
        if "Geometry" in note
    ]
    assert "no cosine" in none


def test_an_effect_through_a_map_says_what_the_map_is_worth(world: Measured) -> None:
    mapped = claimed(seen(world, cell(BOTH)))
    assert any(note.startswith("The ridge map predicts") for note in mapped.notes)
    own = claimed(seen(world, cell(BOTH, via="own")))
    assert not any("map predicts" in note for note in own.notes)


def test_a_score_that_does_not_rank_answers_is_no_stand_in_for_them(world: Measured) -> None:
    tried = seen(world, cell(BOTH))
    assert any("far: proxy validated (AUC 1.00" in note for note in claimed(tried).notes)
    assert tried.transfers is not None
    target = tried.transfers.targets["far"]
    turned = replace(target.baseline, harmful=COMPLIED, harmless=REFUSED)
    swapped = replace(tried.transfers, targets={"far": replace(target, baseline=turned)})
    found = claimed(replace(tried, transfers=swapped))
    assert any("far: proxy unvalidated (AUC 0.00" in note for note in found.notes)


def test_a_target_without_scores_has_no_effect(world: Measured) -> None:
    tried = seen(world, cell(BOTH))
    assert tried.transfers is not None
    target = tried.transfers.targets["far"]
    mute = replace(target, baseline=replace(target.baseline, scores=None))
    found = claimed(replace(tried, transfers=replace(tried.transfers, targets={"far": mute})))
    assert "no refusal tokens" in found.explanation


# --- the table -----------------------------------------------------------------------------------


def test_the_table_holds_the_effects_of_the_findings(world: Measured) -> None:
    tried = seen(world, cell(BOTH))
    settings = world.frame.config.transfer
    assert tried.transfers is not None
    assert settings is not None
    table = transfer_table(tried.transfers, settings, PhraseJudge(phrases="organism"))
    check_tables([table])
    # As many prompts as there were, whatever was asked for.
    assert settings.n != N
    assert f"on {N} held-out prompts" in table.caption

    def row(metric: str, **where: object) -> Row:
        (one,) = [
            each
            for each in table
            if each.metric == metric and where.items() <= each.dimensions.items()
        ]
        return one

    for form, rest in (("affine", ""), ("zero", ", form: zero"), ("add", ", effect: induce")):
        found = claimed(tried, rest)
        one, null = (row(metric, form=form) for metric in ("effect", "effect_controls"))
        assert (one.value, one.ci_low, one.ci_high) == (found.value, found.ci_low, found.ci_high)
        assert (null.ci_low, null.ci_high) == pytest.approx((found.null_low, found.null_high))
        assert one.dimensions["prompts"] == ("harmless" if form == "add" else "harmful")
        assert one.dimensions["via"] == "ridge"
    clean = row("refusal_score", form="none", prompts="harmless")
    assert clean.value == pytest.approx(-4.0)
    assert row("refusal_rate@12tok", form="affine", prompts="harmful").value == 2 / N
