"""The study of similarity, on models whose likeness is known: copies in turned, wider spaces."""

import io

import pandas as pd
import pytest
import torch

from mechsafety.core.result import Row
from mechsafety.records.checking import check_findings, check_tables
from mechsafety.records.metrics_table import to_parquet
from mechsafety.records.schema import declared_findings
from mechsafety.report.figures import drawing
from mechsafety.studies.arms import ORGANISM_NOTE
from mechsafety.studies.similarity import _notes
from tests.studies.counting import Work, grown
from tests.studies.similarity_runs import Ran, configured
from tests.studies.tolerated import without_tolerance

LAYER = 3
WORK = {
    "reading models": Work(passes=1_013, tokens=79_362, bytes=1_236_480),
    "comparing": Work(bytes=1_385_144),
    "fitting maps": Work(bytes=2_396_480),
    "trying directions in other models": Work(passes=1_348, tokens=61_148, bytes=8_632),
}


def test_the_study_does_no_more_work_than_it_did(turned: Ran) -> None:
    assert not grown(turned.work, WORK)


def test_every_metric_says_what_a_replay_elsewhere_may_differ_by(turned: Ran) -> None:
    assert without_tolerance(turned.result) == set()


def test_the_record_accepts_every_row_and_every_declared_finding(turned: Ran) -> None:
    check_tables(turned.result.tables)
    check_findings(turned.result.findings, declared_findings(turned.config))
    assert all(len(table.rows) for table in turned.result.tables if table.name != "seeds")


def test_every_figure_draws_rows_and_none_is_refused(turned: Ran) -> None:
    metrics = pd.read_parquet(io.BytesIO(to_parquet(turned.result.tables)))
    assert {one.id for one in turned.result.figures} == {
        "models", "layer_match", "best_match", "subspaces", "cka", "maps", "carried",
        "transfer", "transfer_rates",
    }  # fmt: skip
    for figure in turned.result.figures:
        drawn = drawing(figure, metrics, {})
        assert drawn.points == drawn.total_points > 0, figure.id
        assert drawn.left_out == 0, figure.id
        hovered = set(figure.hover) - set(metrics[metrics["table"] == figure.table]["metric"])
        assert not hovered, figure.id


def test_the_carried_figure_draws_maps_alone(turned: Ran) -> None:
    (figure,) = [one for one in turned.result.figures if one.id == "carried"]
    drawn = {row.dimensions["via"] for row in turned.rows("matches", "cosine")}
    assert drawn == {"none", *figure.where["via"]}
    assert figure.where["via"] == ["procrustes", "ridge"]


def test_the_page_says_that_templates_are_each_models_own(turned: Ran) -> None:
    assert turned.result.notes == (ORGANISM_NOTE,)
    models = "{base: base, ssft: ssft}"
    (note,) = _notes(configured(models, "templates=own"), organism=False)
    assert "position 'last' of its own chat template" in note
    assert _notes(configured(models, "templates=own", "chat.chat_template=none"), False) == ()


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["procrustes", "ridge"])
@pytest.mark.parametrize(("first", "second"), [("ssft", "wider"), ("wider", "ssft")])
def test_a_map_finds_how_a_space_was_turned(turned: Ran, via: str, first: str, second: str) -> None:
    pair = {"first": first, "second": second}
    places = {**pair, "first_layer": LAYER, "second_layer": LAYER}
    at = {**places, "match": "depth", "via": via}
    assert turned.value("maps", "r2", **at) > 0.999
    assert turned.value("maps", "r2_shuffled", **at) < 0.1
    assert turned.value("cosines", "cosine", **places, via=via) > 0.999
    assert abs(turned.value("maps", "carried_cosine_shuffled", **at)) < 0.8


def test_between_spaces_that_share_nothing_channels_say_nothing(turned: Ran) -> None:
    at = {"first": "ssft", "second": "copy", "first_layer": LAYER, "second_layer": LAYER}
    null = turned.row("cosines", "cosine_permuted_residuals", **at, via="none")
    assert null.ci_low is not None
    assert null.ci_high is not None
    assert null.ci_low < 0 < null.ci_high
    assert abs(turned.value("cosines", "cosine", **at, via="none")) < 0.5
    # It was not for want of likeness.
    assert turned.value("cosines", "cosine", **at, via="ridge") > 0.999


def test_widths_that_differ_have_no_cosine_without_a_map(turned: Ran) -> None:
    assert turned.rows("cosines", "cosine", first="ssft", second="copy", via="none")
    assert not turned.rows("cosines", "cosine", first="ssft", second="wider", via="none")


def test_a_copy_is_as_like_as_a_model_is_to_itself(turned: Ran) -> None:
    for name in ("copy", "copy_by_procrustes"):
        found = turned.finding(name)
        assert found.verdict == "equivalent", found.explanation
        assert found.value == pytest.approx(0, abs=1e-3)
        assert "held-out neutral activations" in found.notes[0]
    excess = turned.finding("copy_excess")
    assert excess.value == pytest.approx(0, abs=1e-3)
    assert excess.verdict == "inconclusive"
    assert any("cannot show that this one is" in note for note in excess.notes)


# --- one space -----------------------------------------------------------------------------------


def test_the_diagonal_is_the_ceiling_that_halves_of_one_model_reach(turned: Ran) -> None:
    at = {"first_layer": LAYER, "second_layer": LAYER, "via": "none"}
    for name in ("ssft", "lat"):
        itself = turned.value("cosines", "cosine_disjoint", first=name, second=name, **at)
        assert 0.5 < itself < 1
        assert not turned.rows("cosines", "cosine", first=name, second=name, **at)
    apart = turned.value("cosines", "cosine_disjoint", first="ssft", second="lat", **at)
    ceiling = turned.value("cosines", "ceiling", first="ssft", second="lat", **at)
    without = turned.value("cosines", "cosine_disattenuated", first="ssft", second="lat", **at)
    assert without == pytest.approx(apart / ceiling)


def test_an_excess_is_a_cosine_less_the_mean_of_its_null(turned: Ran) -> None:
    for row in turned.rows("cosines", "excess"):
        where = row.dimensions
        raw = turned.row("cosines", "cosine", **where)
        null = turned.value("cosines", "cosine_permuted_residuals", **where)
        assert raw.value is not None
        assert row.value == pytest.approx(raw.value - null)
        assert width(row) == pytest.approx(width(raw))


def width(row: Row) -> float:
    assert row.ci_low is not None
    assert row.ci_high is not None
    return row.ci_high - row.ci_low


def test_a_claim_holds_whichever_of_two_models_of_one_space_comes_first(turned: Ran) -> None:
    found = turned.finding("lat")
    at = {"first": "ssft", "second": "lat", "first_layer": LAYER, "second_layer": LAYER}
    assert found.value == pytest.approx(turned.value("cosines", "excess", **at, via="none"))


def test_safety_training_turns_the_direction(turned: Ran) -> None:
    found = turned.finding("moved")
    assert found.value is not None
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert 0 <= found.ci_low < found.value < found.ci_high <= 180
    at = {"first": "base", "second": "ssft", "first_layer": LAYER, "second_layer": LAYER}
    cosine = turned.value("cosines", "cosine_disattenuated", **at, via="none")
    assert found.value == pytest.approx(float(torch.tensor(cosine).arccos().rad2deg()), abs=1e-3)
    assert found.null_low is not None
    assert found.null_low < 0


# --- layers --------------------------------------------------------------------------------------


def test_layers_of_a_copy_match_by_depth(turned: Ran) -> None:
    assert turned.finding("matched").verdict == "supported"
    for match in ("depth", "best"):
        rows = turned.rows("matches", "second_layer", first="ssft", second="wider", match=match)
        assert [row.value for row in rows] == [row.dimensions["first_layer"] for row in rows]
        assert rows


def test_layers_without_a_common_space_are_matched_by_activations_only(turned: Ran) -> None:
    found = turned.finding("unmatched")
    assert (found.value, found.verdict) == (None, "inconclusive")
    assert "matched by `cka` only" in found.explanation


def test_the_template_token_before_any_block_is_no_layer(turned: Ran) -> None:
    for name in ("cosines", "cka", "maps", "matches"):
        (table,) = [one for one in turned.result.tables if one.name == name]
        assert {row.dimensions["first_layer"] for row in table if "first_layer" in row.dimensions}
        assert not [row for row in table if row.dimensions.get("first_layer") == 0]


# --- transfer ------------------------------------------------------------------------------------


def test_a_direction_does_in_a_copy_what_it_does_at_home(turned: Ran) -> None:
    home, away = turned.finding("own_bypass"), turned.finding("carried_bypass")
    assert home.value is not None
    assert home.value > 5
    assert away.value == pytest.approx(home.value, rel=0.02)
    assert away.verdict == "supported"
    induced = turned.finding("carried_induce")
    assert induced.verdict == "supported"
    at = {"source": "ssft", "prompts": "harmless", "form": "add"}
    effects = [turned.value("transfer", "effect", target=name, **at) for name in ("ssft", "wider")]
    assert effects[1] == pytest.approx(effects[0], rel=0.02)


def test_a_model_that_refuses_nothing_gives_a_direction_and_receives_none(turned: Ran) -> None:
    found = turned.finding("into_base")
    assert (found.value, found.verdict) == (None, "inconclusive")
    assert "base refuses 0 of" in found.explanation
    assert turned.rows("transfer", "effect", source="base", target="ssft")
    assert not turned.rows("transfer", "effect", target="base")


def test_how_a_direction_came_is_said_in_every_cell(turned: Ran) -> None:
    came = {
        (row.dimensions["source"], row.dimensions["target"]): row.dimensions["via"]
        for row in turned.rows("transfer", "effect", form="affine")
    }
    assert came["ssft", "ssft"] == "own"
    assert came["base", "ssft"] == "same space"
    assert came["base", "wider"] == came["wider", "ssft"] == "ridge"


# --- seeds, provenance ---------------------------------------------------------------------------


def test_a_claim_about_a_method_counts_training_seeds(turned: Ran) -> None:
    found = turned.finding("seeds")
    assert (found.verdict, found.n) == ("inconclusive", 1)
    assert "Fewer than 6 independent seeds" in found.explanation
    assert found.cell["replicates"] == "base–lat"


def test_the_record_says_what_every_model_saw(turned: Ran) -> None:
    about = turned.result.provenance
    hashed = {"split.fit", "split.evaluate", "neutral.fit", "neutral.held_out"}
    assert hashed <= set(about["prompts"])
    assert set(about["models"]) == set(turned.config.models)
    assert "transfer/harmful" in about["token_ids"]["wider"]
    directions = turned.result.tensors
    assert directions["directions.wider"].shape == (5, 80)
    assert directions["directions.ssft"].shape == (5, 64)


def test_completions_name_the_model_and_the_edit(turned: Ran) -> None:
    assert {row["model"] for row in turned.kept["answers"]} == set(turned.config.models)
    forms = {(row["form"], row["prompts"]) for row in turned.kept["transferred"]}
    assert forms == {("affine", p) for p in ("harmful", "harmless")} | {("add", "harmless")}


def test_the_shipped_experiment_is_what_is_tested_here() -> None:
    config = configured("{base: base, ssft: ssft}")
    assert config.study == "similarity"
