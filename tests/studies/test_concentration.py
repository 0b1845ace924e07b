"""The concentration study, end to end on small organisms: what it must show, and what not."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mechsafety.core.config import apply_overrides, parse_config, read_yaml
from mechsafety.core.errors import ConfigError, ModelError
from mechsafety.core.result import Result, Table
from mechsafety.core.seeding import named_generator
from mechsafety.records.checking import check_findings, check_tables
from mechsafety.records.schema import declared_findings
from mechsafety.studies.concentration import Config, run
from tests.studies.counting import Work, counted, grown, held
from tests.studies.tolerated import without_tolerance

YAML = Path(__file__).parents[2] / "experiments" / "concentration.yaml"
SMALL = (
    "prompts.preset=small",
    "prompts.n=64",
    "attack.n=8",
    "attack.score_draws=3",
    "attack.answer_draws=2",
    "attack.ranks=[1, 2]",
    "spectra.cells.groups=6",
    "spectra.contrasts.groups=6",
    "spectra.cells.splits=4",
    "spectra.cells.null_draws=8",
    "spectra.cells.unrelated_pairings=4",
    "spectra.contrasts.splits=4",
)


class InlineContext:
    """A context without a run behind it."""

    def __init__(self, tmp: Path, folders: dict[str, str]) -> None:
        self.scratch = tmp
        self.stages: list[str] = []
        self._folders = folders
        self.kept: dict[str, list[Mapping[str, Any]]] = {}
        self.token_ids: dict[str, list[Mapping[str, Any]]] = {}
        self.inputs: dict[str, dict[str, str]] = {}
        self.work: dict[str, Work] = {}
        """By what the jobs did."""

    def generator(self, *names: str | int) -> torch.Generator:
        return named_generator(0, *names)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(name)
        yield

    def event(self, kind: str, **details: Any) -> None:
        pass

    def map(self, function: Callable[[Any], Any], jobs: Sequence[Any], what: str) -> list[Any]:
        work = self.work.setdefault(what, Work())
        with counted(work):
            results = [function(job) for job in jobs]
        work.bytes += sum(held(one) for one in results)
        return results

    def progress(self, items: Iterable[Any], what: str) -> Iterable[Any]:
        return items

    def model_folders(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self._folders.get(name, name) for name in names}

    def used(self, what: str, hashes: Mapping[str, str]) -> None:
        self.inputs[what] = dict(hashes)

    def keep_completions(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.kept[name] = list(rows)

    def keep_token_ids(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.token_ids[name] = list(rows)


def configured(*overrides: str) -> Config:
    return parse_config(Config, apply_overrides(read_yaml(YAML), [*SMALL, *overrides]), "test")


@pytest.fixture(scope="module")
def context(organism_small: Callable[[str], Path], tmp_path_factory: Any) -> InlineContext:
    folders = {name: str(organism_small(name)) for name in ("ssft", "lat")}
    return InlineContext(tmp_path_factory.mktemp("run"), folders)


@pytest.fixture(scope="module")
def result(context: InlineContext) -> Result:
    arms = "arms={ssft: {model: ssft}, lat: {model: lat, attacked_layer: 1}}"
    return run(configured(arms), context)


def rows(table: Table, metric: str, **where: object) -> list[Any]:
    return [
        row
        for row in table
        if row.metric == metric
        and all(row.dimensions.get(key) == value for key, value in where.items())
    ]


def table(result: Result, name: str) -> Table:
    return next(t for t in result.tables if t.name == name)


def test_the_study_does_no_more_work_than_it_did(context: InlineContext, result: Result) -> None:
    assert result.findings is not None
    assert not grown(
        context.work,
        {
            "reading arms": Work(passes=570, tokens=58_420, bytes=1_966_080),
            "spectra": Work(bytes=227_328),
            "self-test": Work(),
            "ablating": Work(passes=5_124, tokens=173_496, bytes=15_872),
        },
    )


def test_every_metric_says_what_a_replay_elsewhere_may_differ_by(result: Result) -> None:
    assert without_tolerance(result) == set()


def test_the_record_accepts_every_row_and_every_declared_finding(result: Result) -> None:
    check_tables(result.tables)
    check_findings(result.findings, declared_findings(configured()))


def test_every_cell_of_the_study_stands_in_the_spectra(result: Result) -> None:
    spectra = table(result, "spectra")
    harm = {"contrast": "harmful-harmless", "rows": "all", "pairing": "list", "channels": "all"}
    found = rows(spectra, "top2_share", **harm)
    cells = {
        (
            r.dimensions["arm"],
            r.dimensions["layer"],
            r.dimensions["position"],
            r.dimensions["centering"],
        )
        for r in found
    }
    # Four blocks: layers 1 to 4 (the last is the final stream); layer 0 of a template token is
    # the same in every prompt and has nothing to decompose.
    assert cells == {
        (arm, layer, position, centering)
        for arm in ("ssft", "lat")
        for layer in (1, 2, 3, 4)
        for position in ("last", "eoi[-2]")
        for centering in ("uncentered", "centered")
    }
    assert all(r.ci_low is not None and r.ci_low <= r.value <= r.ci_high for r in found)


def test_contrasts_that_are_not_about_harm_stand_beside_each_share(result: Result) -> None:
    spectra = table(result, "spectra")
    for contrast in ("harmless-harmless", "harmful-harmful", "place", "adjective", "neutral_verb"):
        assert len(rows(spectra, "top2_share", contrast=contrast, arm="lat")) == 16
    assert rows(spectra, "excess_over_harmless_harmless", contrast="harmful-harmless")


def test_all_controls_are_reported_and_equal_where_no_channel_is_massive(result: Result) -> None:
    assert not rows(table(result, "massive_channels"), "peak")
    spectra = table(result, "spectra")
    where = {"arm": "lat", "layer": 2, "position": "last", "centering": "uncentered"}
    found = rows(
        spectra, "top2_share", contrast="harmful-harmless", rows="all", pairing="list", **where
    )
    assert {r.dimensions["channels"] for r in found} == {
        "all", "channels_out", "pairs_out", "both_out", "placebo_out",
    }  # fmt: skip
    assert len({r.value for r in found}) == 1


def test_findings_without_their_arms_are_inconclusive_and_say_why(result: Result) -> None:
    by_id = {finding.id: finding for finding in result.findings}
    absent = by_id["lat_concentrates_more_than_noise"]
    assert absent.value is None
    assert absent.verdict == "inconclusive"
    assert "no arm named noise" in absent.explanation


def test_measured_findings_have_interval_null_curve_and_mechanism(result: Result) -> None:
    found = next(f for f in result.findings if f.id == "lat_concentrates_at_attack")
    assert found.n == 32
    assert found.null_low is not None
    assert found.specification is not None
    assert found.specification.total >= 2 * 2 * 2 * 2 * 4  # pairing, centering, position, …
    assert found.mechanism is not None
    assert "mean shift" in found.mechanism
    assert found.cell["layer"] == "1"


def test_the_matrix_holds_every_source_in_every_target_in_both_forms(result: Result) -> None:
    ablation = table(result, "ablation")
    cells = rows(ablation, "refusal_rate@24tok_harmful")
    edited = [r for r in cells if r.dimensions["form"] != "none"]
    keys = {
        tuple(r.dimensions[k] for k in ("source", "target", "form", "rank", "layer"))
        for r in edited
    }
    # Rank 1 of every arm in every arm, rank 2 in its own alone; two forms and two layers each.
    assert len(keys) == len(edited) == (2 * 2 + 2) * 2 * 2
    assert all(source == target for source, target, _, rank, _ in keys if rank == 2)
    affine = rows(
        ablation, "refusal_rate@24tok_harmful", source="ssft", target="ssft", form="affine", rank=1
    )
    clean = rows(ablation, "refusal_rate@24tok_harmful", target="ssft", form="none")
    assert clean[0].value == 1
    assert min(r.value for r in affine) == 0  # there is something to see in the matrix


def test_the_refusal_score_stands_beside_the_judge_clean_and_ablated(result: Result) -> None:
    found = rows(table(result, "ablation"), "refusal_score_auc")
    assert {r.dimensions["target"] for r in found} == {"ssft", "lat"}
    # Two ranks, layers and forms of the own direction, and the unedited arm.
    assert len(found) == 2 * (2 * 2 * 2 + 1)
    assert {r.dimensions["source"] for r in found} <= {"none", "ssft", "lat"}
    clean = rows(table(result, "ablation"), "refusal_score_auc", form="none")
    assert all(r.value >= 0.9 and r.dimensions["proxy"] == "proxy validated" for r in clean)


def test_the_same_config_gives_the_same_numbers(
    organism_small: Callable[[str], Path], tmp_path: Path
) -> None:
    config = configured("arms={ssft: {model: ssft}}", "positions=[last]", "attack.layers=[2]")
    context = InlineContext(tmp_path, {"ssft": str(organism_small("ssft"))})
    first, again = run(config, context), run(config, context)
    other = run(config.model_copy(update={"seed": 1}), context)
    assert numbers(first) == numbers(again)
    assert first.findings == again.findings
    assert numbers(first) != numbers(other)


def numbers(result: Result) -> list[tuple[float | None, float | None]]:
    return [(row.value, row.ci_low) for table in result.tables for row in table]


def test_arms_of_different_shapes_are_refused_with_their_shapes(
    organism_small: Callable[[str], Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(organism_small("ssft"), other)
    narrow = AutoConfig.from_pretrained(other)
    narrow.hidden_size, narrow.num_hidden_layers = 32, 3
    AutoModelForCausalLM.from_config(narrow).save_pretrained(other)
    folders = {"ssft": str(organism_small("ssft")), "other": str(other)}
    config = configured("arms={ssft: {model: ssft}, other: {model: other}}")
    with pytest.raises(ModelError, match=r"share depth and width.*ssft 4 × 64"):
        run(config, InlineContext(tmp_path, folders))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attack.layers=[attackd]", "is no layer rule"),
        ("findings.0=1", "key 'findings"),
        ("arms={}", "at least one arm"),
        ("positions=[lst]", "Did you mean 'last'"),
        ("spectra.cells.grups=3", "Did you mean 'groups'"),
        ("prompts.source=file", "prompts"),
    ],
)
def test_a_wrong_setting_is_refused_before_the_run(override: str, message: str) -> None:
    raw = apply_overrides(read_yaml(YAML), [])
    key, _, _ = override.partition("=")
    if key == "findings.0":
        raw["findings"] = [1]
        overrides: list[str] = []
    else:
        overrides = [override]
    with pytest.raises(ConfigError, match=message):
        parse_config(Config, apply_overrides(raw, overrides), "test")


def test_a_run_of_one_model_has_claims_of_its_own() -> None:
    assert len(configured().findings) == 11
    alone = configured("model=some/folder")
    assert [claim.id for claim in alone.findings] == [
        "concentration_is_specific_to_harm",
        "zero_ablation_moves_harmless_prompts",
    ]
    assert {claim.cell.arm for claim in alone.findings} == set(alone.compared()) == {"model"}
    # What was filled in is read back as it was.
    again = parse_config(Config, alone.model_dump(mode="json"), "test")
    assert again == alone


def test_training_seeds_are_told_apart_and_too_few_give_a_count(
    organism_small: Callable[[str], Path], tmp_path: Path
) -> None:
    arms = "arms={ssft: {model: ssft}, lat: {model: lat, attacked_layer: 1}}"
    cheap = ("positions=[last]", "attack.layers=[1]", "attack.ranks=[1]", "attack.score_draws=0")
    config = configured(arms, *cheap, "training_seeds=[100, 101]")
    claims = tuple(c.model_copy(update={"scope": "method"}) for c in config.findings)
    # One small organism stands in for both seeds, so their effects must agree exactly.
    folders = {
        f"{arm}@seed={seed}": str(organism_small(arm))
        for arm in ("ssft", "lat")
        for seed in (100, 101)
    }
    found = run(config.model_copy(update={"findings": claims}), InlineContext(tmp_path, folders))
    by_seed = [
        rows(table(found, "spectra"), "top2_share", training_seed=seed) for seed in (100, 101)
    ]
    assert len(by_seed[0]) > 10
    assert [r.value for r in by_seed[0]] == [r.value for r in by_seed[1]]
    over_seeds = next(f for f in found.findings if f.id == "lat_concentrates_at_attack")
    assert over_seeds.n == 2
    assert over_seeds.verdict == "inconclusive"
    assert "of 2 training seeds positive" in over_seeds.explanation
    assert "Fewer than 6 independent seeds" in over_seeds.explanation
    assert {"projection.lat@100", "projection.ssft@101"} <= found.tensors.keys()
