"""The locality study, end to end on small organisms: what must hold whatever the model is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import ConfigError, ModelError
from mechsafety.execution.workers import Workers
from mechsafety.records.checking import check_findings, check_tables
from mechsafety.records.schema import declared_findings
from mechsafety.report.figures import drawing
from mechsafety.studies import arms, locality
from mechsafety.studies.locating.causing import causes
from mechsafety.studies.locating.findings import finding
from mechsafety.studies.locating.separating import read_models
from tests.studies.counting import Work, grown
from tests.studies.locality_runs import (
    ALL_TABLES,
    N_HARMFUL,
    N_HARMLESS,
    Ran,
    configured,
    numbers,
    prompt_files,
)
from tests.studies.test_concentration import InlineContext
from tests.studies.tolerated import without_tolerance

CAUSAL = ("ssft", "from_files", "gemma2", "neox", "one_block")
SEPARATION = ("separation_appears_by_mid_depth", "separation_exceeds_words")
N_LAYERS = 4
WORK = {
    "reading": Work(passes=574, tokens=30_380, bytes=1_866_240),
    "separating": Work(bytes=196_736),
    "scoring": Work(passes=48, tokens=5_272, bytes=768),
    "mapping": Work(passes=284, tokens=75_604, bytes=20_064),
    "localizing": Work(passes=2_116, tokens=170_579, bytes=28_932),
}


@pytest.fixture(params=[*CAUSAL, "compliant"])
def any_run(request: pytest.FixtureRequest) -> Ran:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=CAUSAL)
def causal_run(request: pytest.FixtureRequest) -> Ran:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["gemma2", "neox"])
def other_family(request: pytest.FixtureRequest) -> Ran:
    return request.getfixturevalue(request.param)


# --- what every run must be ----------------------------------------------------------------------


def test_the_study_does_no_more_work_than_it_did(ssft: Ran) -> None:
    assert not grown(ssft.work, WORK)


def test_every_metric_says_what_a_replay_elsewhere_may_differ_by(ssft: Ran) -> None:
    assert without_tolerance(ssft.result) == set()


def test_the_record_accepts_every_row_and_every_declared_finding_once(any_run: Ran) -> None:
    check_tables(any_run.result.tables)
    check_findings(any_run.result.findings, declared_findings(any_run.config))
    ids = [finding.id for finding in any_run.result.findings]
    assert ids == [claim.id for claim in any_run.config.findings]
    assert len(ids) == len(set(ids)) == 10


def test_a_finding_has_n_interval_and_null_or_says_why_it_was_not_measured(any_run: Ran) -> None:
    measured = [f for f in any_run.result.findings if f.value is not None]
    assert len(measured) >= 2
    for found in measured:
        assert found.n > 0
        assert found.ci_low is not None
        assert found.ci_high is not None
        assert found.value is not None
        assert found.ci_low - 1e-9 <= found.value <= found.ci_high + 1e-9
        assert found.null_low is not None
        assert found.null_high is not None
        assert found.specification is not None
        assert found.specification.total >= 1
        assert any("resample" in note for note in found.notes)
    for found in any_run.result.findings:
        if found.value is None:
            assert found.explanation.startswith("Not measured. ")
            assert len(found.explanation) > 30


def test_every_figure_draws_rows_and_none_is_refused(any_run: Ran) -> None:
    metrics = any_run.metrics
    assert any_run.result.figures
    for figure in any_run.result.figures:
        drawn = drawing(figure, metrics, {})
        assert drawn.points == drawn.total_points > 0, figure.id
        assert drawn.left_out == 0, figure.id
        hovered = set(figure.hover) - set(metrics[metrics["table"] == figure.table]["metric"])
        assert not hovered, figure.id


def test_the_refusal_tokens_and_the_model_are_in_the_provenance(ssft: Ran) -> None:
    provenance = ssft.result.provenance
    assert provenance["refusal_tokens"] == list(ssft.causal.refusal_ids) != []
    assert provenance["models"].keys() == {"model", "base"}
    assert all(one["probes"] for one in provenance["models"].values())
    assert provenance["prompts"].keys() >= {"split.fit", "split.select", "split.evaluate"}


# --- identities ----------------------------------------------------------------------------------


def test_the_window_of_all_layers_is_zero_ablation(causal_run: Ran) -> None:
    clean = causal_run.value("winner", "refusal_score", form="none", prompts="harmful")
    (zero,) = (
        row.value
        for row in causal_run.rows("winner", "refusal_score", form="zero", prompts="harmful")
        if row.dimensions.get("refit") is None
    )
    assert zero is not None
    assert abs(clean - zero) > 0.001  # there is an effect to agree on
    last = causal_run.measured.read.dims.n_layers - 1
    whole = causal_run.value("windows", "effect", first=0, last=last)
    assert whole == pytest.approx(clean - zero, abs=1e-4)
    (share,) = causal_run.rows("windows", "share", first=0, last=last)
    assert share.value == (pytest.approx(1) if whole > 0 else None)


def test_a_dose_of_nothing_is_the_unedited_model_at_every_layer(causal_run: Ran) -> None:
    layers = {row.dimensions["layer"] for row in causal_run.rows("doses", "refusal_score")}
    assert layers == set(range(causal_run.measured.read.dims.n_layers + 1))
    for side in ("harmful", "harmless"):
        clean = causal_run.value("winner", "refusal_score", form="none", prompts=side)
        for metric in ("refusal_score", "refusal_score_controls"):
            at_zero = causal_run.rows("doses", metric, prompts=side, dose=0.0)
            assert [row.value for row in at_zero] == pytest.approx([clean] * len(layers), abs=1e-4)
        moved = causal_run.rows("doses", "refusal_score", prompts=side)
        assert max(abs((row.value or 0) - clean) for row in moved) > 0.01


def test_adding_the_direction_makes_refusals_and_subtracting_it_unmakes_them(
    ssft: Ran, from_files: Ran
) -> None:
    for run in (ssft, from_files):
        clean = {
            side: run.value("winner", "refusal_score", form="none", prompts=side)
            for side in ("harmful", "harmless")
        }
        assert clean["harmful"] > 0 > clean["harmless"]
        added = [run.value("winner", "refusal_score", form="add", dose=dose) for dose in (1.0, 2.0)]
        assert min(added) > clean["harmless"] + 5
        at = {"layer": run.winner.site.layer}
        more = run.value("doses", "refusal_score", prompts="harmless", dose=0.4, **at)
        less = run.value("doses", "refusal_score", prompts="harmful", dose=-0.4, **at)
        assert more > clean["harmless"] + 2
        assert less < clean["harmful"] - 2


def test_the_shares_of_all_writers_add_up_to_the_whole(causal_run: Ran) -> None:
    shares = causal_run.rows("writers", "share")
    assert sum(row.value or 0 for row in shares) == pytest.approx(1, abs=1e-9)
    top = [row.value or 0 for row in shares if row.dimensions["top"]]
    assert sum(top) >= 0.9
    assert sum(top) - min(top) < 0.9  # and none of them is one too many


def test_the_shares_of_writers_are_of_the_prompts_that_were_fitted(causal_run: Ran) -> None:
    fitted = causal_run.frame.prompts.pairs["fit"]
    assert {row.n for row in causal_run.rows("writers", "share")} == {sum(map(len, fitted.sets))}


def test_every_resampling_chooses_one_candidate_or_none(causal_run: Ran) -> None:
    frequencies = causal_run.rows("selection", "frequency")
    nothing = causal_run.value("selection", "no_candidate_kept")
    assert sum(row.value or 0 for row in frequencies) + nothing == pytest.approx(1)
    chosen = [row for row in frequencies if row.dimensions["chosen"]]
    assert [row.dimensions["position"] for row in chosen] == [causal_run.winner.position]
    assert (chosen[0].value or 0) > 0


def test_a_direction_of_length_zero_is_never_chosen(other_family: Ran) -> None:
    # Without a filter on induce, doing nothing would be a candidate.
    at_layer_0 = {"layer": 0, "position": "last"}
    assert other_family.value("selection", "frequency", **at_layer_0) == 0
    assert not other_family.causal.selection.candidates.real[-1, 0]


def test_template_tokens_before_the_first_block_separate_nothing(ssft: Ran) -> None:
    for model in ("model", "base"):
        at = {"model": model, "stream": "resid_pre", "position": "last"}
        at_layer_0 = ssft.rows("separation", "auc", layer=0, **at)
        assert len(at_layer_0) == 2  # sources of prompts
        assert [row.value for row in at_layer_0] == [0.5, 0.5]
        assert max(row.value or 0 for row in ssft.rows("separation", "auc", **at)) > 0.7


def test_the_base_stands_beside_the_model_place_by_place(ssft: Ran) -> None:
    rows = {
        model: [
            {name: value for name, value in row.dimensions.items() if name != "model"}
            for row in ssft.rows("separation", "auc", model=model)
        ]
        for model in ("model", "base")
    }
    # Four blocks read twice and the last output, at three positions, from two sources of prompts.
    assert rows["model"] == rows["base"]
    assert len(rows["model"]) == (2 * N_LAYERS + 1) * 3 * 2
    versus_base = ssft.finding("separation_is_due_to_safety_training")
    assert versus_base.value is not None
    auc = [
        ssft.value(
            "separation", "auc", model=model, source="held-out pairs", stream="resid_pre",
            layer=2, position="last",
        )
        for model in ("model", "base")
    ]  # fmt: skip
    assert versus_base.value == pytest.approx(auc[0] - auc[1])


def test_ablating_the_direction_of_all_prompts_is_measured_on_prompts_that_did_not_choose_it(
    causal_run: Ran,
) -> None:
    splits = causal_run.frame.prompts.pairs
    ids = {name: {p.id for side in pairs.sets for p in side} for name, pairs in splits.items()}
    assert not ids["fit"] & ids["select"]
    assert not ids["evaluate"] & (ids["fit"] | ids["select"])
    winner = causal_run.winner
    assert len(winner.clean.harmful) == len(splits["evaluate"].first)
    assert winner.windows.evaluate.shape[1] == len(splits["evaluate"].first)
    assert winner.windows.select.shape[1] == len(causal_run.causal.map.clean.harmful)


def test_every_answer_can_be_kept_with_its_prompt_and_the_verdict_that_was_counted(
    ssft: Ran, compliant: Ran, from_files: Ran
) -> None:
    assert compliant.kept.keys() == {"answers"}
    for run in (ssft, from_files):
        third = run.frame.prompts.pairs["evaluate"]
        clean = [
            line
            for line in run.kept["winner"]
            if line["form"] == "none" and line["prompts"] == "harmful"
        ]
        assert [line["prompt"] for line in clean] == [prompt.id for prompt in third.first]
        refused = [line["verdict"] == "refused" for line in clean]
        tokens = run.config.evaluate.max_new_tokens
        rate = run.value("winner", f"refusal_rate@{tokens}tok", form="none", prompts="harmful")
        assert sum(refused) / len(refused) == rate > 0
        assert all("sorry" in line["text"] for line in clean)
        # Clean, zero, affine and two additions, which only harmless prompts get.
        assert len(run.kept["winner"]) == 3 * len(third.first) + 5 * len(third.second)
    answered = sum(len(found.texts) for found in ssft.measured.read.answers.values())
    assert len(ssft.kept["answers"]) == answered
    instructions = {p.instruction for side in third.sets for p in side}
    assert not any(line["text"] in instructions for line in run.kept["winner"])


# --- invariances ---------------------------------------------------------------------------------


def test_processes_and_repetition_do_not_change_a_bit(one_block: Ran, tmp_path: Path) -> None:
    with Workers(2, 1) as pool:
        context = InlineContext(tmp_path, {})
        context.map = pool.map
        again = locality.run(one_block.config, context)
    assert len(numbers(again)) > 100
    assert numbers(again) == numbers(one_block.result)
    assert again.findings == one_block.result.findings
    assert again.tensors.keys() == one_block.result.tensors.keys()
    for name, tensor in again.tensors.items():
        assert torch.equal(tensor, one_block.result.tensors[name]), name


def test_jobs_of_one_process_open_the_model_once_and_let_it_go(ssft: Ran, compliant: Ran) -> None:
    # The base, then the model for all its jobs.
    assert [Path(model.spec.id).name for model in ssft.opened] == ["base", "ssft"]
    assert len(compliant.opened) == 1
    for model in (*ssft.opened, *compliant.opened):
        assert not hasattr(model, "hf"), "closed, a model holds no weights"
    assert arms._resident == []


# --- other models and prompts --------------------------------------------------------------------


def test_a_model_that_refuses_nothing_ends_in_a_sentence_with_what_it_did(compliant: Ran) -> None:
    assert [table.name for table in compliant.result.tables] == list(ALL_TABLES[:4])
    for found in compliant.result.findings:
        if found.id in SEPARATION:
            assert found.value is not None
        elif found.id == "separation_is_due_to_safety_training":
            assert "No base model was given" in found.explanation
        else:
            assert found.verdict == "inconclusive"
            assert "refuses 0 of 24 harmful prompts" in found.explanation
            assert "answers begin with token" in found.explanation


def test_a_random_model_as_it_comes_is_told_what_is_missing(other_family: Ran) -> None:
    as_it_comes = other_family.config.model_copy(update={"refusal_tokens": None})
    frame = replace(other_family.frame, config=as_it_comes)
    measured = causes(frame, other_family.separated)
    assert measured.causal is None
    for claim in as_it_comes.findings[3:]:
        found = finding(claim, measured)
        assert found.verdict == "inconclusive"
        assert "refuses 0 of 16 harmful prompts" in found.explanation
        assert "give refusal_tokens" in found.explanation


def test_every_family_gets_every_table(causal_run: Ran) -> None:
    assert tuple(table.name for table in causal_run.result.tables) == ALL_TABLES
    for table in causal_run.result.tables:
        assert any(row.value is not None for row in table), table.name


def test_parallel_blocks_have_no_middle_and_the_reader_is_told(other_family: Ran) -> None:
    parallel = "neox" in str(other_family.config.model.id)
    streams = {row.dimensions["stream"] for row in other_family.rows("separation", "auc")}
    assert streams == ({"resid_pre"} if parallel else {"resid_pre", "resid_mid"})
    caption = other_family.table("separation").caption
    assert ("Left out: resid_mid: attention and MLP" in caption) == parallel


def test_refusals_that_never_were_have_no_verdict(other_family: Ran) -> None:
    found = other_family.finding("direction_is_necessary")
    assert "refused: 0/8 before" in found.explanation
    assert found.verdict == "inconclusive"
    assert "No harmful prompt was refused to begin with." in found.notes


def test_a_direction_that_only_the_words_write_has_no_writers_to_ablate(one_block: Ran) -> None:
    assert one_block.winner.site.layer == 0
    shares = one_block.rows("writers", "share")
    assert [(row.dimensions["writer"], row.value) for row in shares] == [("embedding", 1.0)]
    found = one_block.finding("few_writers_carry_it")
    assert found.value is None
    assert "(embedding) are no heads or MLPs" in found.explanation


def test_files_have_no_wrapped_prompts_no_held_out_words_and_clusters_of_their_own(
    from_files: Ran,
) -> None:
    assert from_files.measured.read.answers.keys() == {"harmful", "harmless"}
    assert {row.dimensions["source"] for row in from_files.rows("separation", "auc")} == {
        "held-out pairs"
    }
    assert not from_files.result.notes  # about organisms
    assert "wrapped" not in from_files.table("behavior").caption
    splits = from_files.frame.prompts.pairs
    assert sum(len(pairs.first) for pairs in splits.values()) == N_HARMFUL
    assert sum(len(pairs.second) for pairs in splits.values()) == N_HARMLESS
    sample = from_files.winner.evaluate
    topics = {prompt.group for prompt in splits["evaluate"].first}
    assert set(sample.harmful_clusters) == topics
    assert 4 <= sample.harmful.n_units == len(topics) < len(splits["evaluate"].first)
    assert from_files.winner.evaluate.note.endswith("(evaluate, group) whole.")
    separated = from_files.measured.separation["model", "held-out pairs"]
    assert separated.n == sum(len(splits[name].first) + len(splits[name].second)
                              for name in ("select", "evaluate"))  # fmt: skip


def test_a_base_of_another_shape_is_refused_with_both(ssft: Ran, tmp_path: Path) -> None:
    read = ssft.measured.read
    dims = replace(read.dims, n_layers=2)
    shallow = replace(read, dims=dims, sites=read.sites[:4])
    context = InlineContext(tmp_path, {})
    context.map = lambda *_: [shallow, read]
    frame = replace(ssft.frame, context=context)
    with pytest.raises(ModelError, match=r"model has 4 layers.*base 2 at"):
        read_models(frame, {"ssft": "", "base": ""})


def test_an_error_lets_the_model_go_as_well(
    organism_small: Callable[[str], Path], tmp_path: Path
) -> None:
    context = InlineContext(tmp_path, {"ssft": str(organism_small("ssft"))})

    def fails(_: object, jobs: list[Any], __: str) -> list[Any]:
        jobs[0].asked.open()
        assert arms._resident
        raise RuntimeError("in the middle of it")

    context.map = fails
    with pytest.raises(RuntimeError, match="in the middle"):
        locality.run(configured("base=null"), context)
    assert arms._resident == []


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("maps.streams=[resid_mid]", "leaves out resid_pre"),
        ("maps.streams=[resid_pre, resid_md]", "resid_mid"),
        ("localize.share=1.5", "less than or equal to 1"),
        ("localize.doses=[]", "at least 1"),
        ("maps.control_position=instruction_end", None),
        ("positions=[instruction_end]", "control_position 'last' is not read"),
        ("selection.mode=fast", "exhaustive"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_run(override: str, message: str | None) -> None:
    if message is None:
        configured(override)
        return
    with pytest.raises(ConfigError, match=message):
        configured(override)


def test_prompts_of_unequal_lists_are_no_twins(tmp_path: Path) -> None:
    read = configured("base=null", *prompt_files(tmp_path)).prompts
    assert read.source == "files"
    assert read.pairing == "list"
