"""A record of the first schema version stays readable, and none names what lies beside it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from mechsafety.cli import app
from mechsafety.core.errors import RecordError
from mechsafety.core.result import Tolerances
from mechsafety.records.compare import compare
from mechsafety.records.completions import completions, purge
from mechsafety.records.listing import list_runs
from mechsafety.records.reading import Run, open_run
from mechsafety.records.schema import SCHEMA_VERSION, check_inside, parse_manifest
from mechsafety.records.verify import verify
from tests.records.made_records import ENVIRONMENT, recorded, result

STORED = Path(__file__).parents[1] / "fixtures" / "records" / "v1"


@pytest.fixture
def v1(tmp_path: Path) -> Run:
    """A copy, as it would lie among a user's runs."""
    folder = tmp_path / "runs" / "made" / "20261121T182403Z-963408fb"
    shutil.copytree(STORED, folder)
    return open_run(folder)


def changed(run: Run, change: Callable[[dict[str, Any]], None]) -> Path:
    path = run.folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.chmod(0o644)
    path.write_text(json.dumps(raw))
    return run.folder


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_stored_record_is_of_the_first_version() -> None:
    # Written by the code of then: nothing that makes records today can have made it.
    assert json.loads((STORED / "manifest.json").read_text())["schema_version"] == 1
    assert SCHEMA_VERSION > 1


def test_it_opens_as_this_version_has_it() -> None:
    manifest = open_run(STORED).manifest
    assert manifest.schema_version == SCHEMA_VERSION
    assert (manifest.study, manifest.status, manifest.seed) == ("made", "completed", 0)
    assert manifest.models["organism:lat"].source == "organisms/lat"
    assert manifest.provenance == {"prompts": {"made": "2" * 64}}
    assert [(stage.name, stage.jobs) for stage in manifest.stages] == [("prompts", ())]
    # What it could not say, it does not say.
    assert (manifest.sessions, manifest.replay_of) == ((), None)
    assert manifest.tolerances == Tolerances()


def test_its_sources_are_keys_of_the_bibliography() -> None:
    methods = ("mechsafety.directions.difference_in_means",)
    assert open_run(STORED).manifest.sources == {"arXiv:2406.11717": methods}


def test_it_verifies_by_the_seal_of_its_own_version(v1: Run) -> None:
    found = verify(v1)
    assert found.intact
    assert found.checked == 7
    assert open_run(changed(v1, lambda raw: raw.update(seed=1)))
    assert not verify(open_run(v1.folder)).intact


def test_one_changed_byte_of_it_is_still_found(v1: Run) -> None:
    path = v1.folder / "findings.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert verify(v1).problems == ("findings.json: differs (same size, another SHA-256)",)


def test_its_findings_numbers_tensors_events_and_answers_are_read() -> None:
    run = open_run(STORED)
    (finding,) = run.findings
    assert (finding.id, finding.verdict, finding.value, finding.n) == (
        "grows",
        "supported",
        0.5,
        11,
    )
    frame = run.metrics()
    assert frame["table"].tolist() == ["shares", "shares", "rates", "rates"]
    assert frame["value"].tolist()[2:] == [0.5, 1.0]
    assert pd.isna(frame["value"].tolist()[1])
    assert str(frame["layer"].dtype) == "Int64"
    assert run.metrics("rates")["strength"].tolist() == [1.0, 0.5]
    assert run.tensor_names() == ("view", "whole")
    assert torch.equal(run.tensor("whole"), torch.arange(6.0).reshape(2, 3))
    assert [one["kind"] for one in run.events()] == [
        "opened",
        "stage_started",
        "stage_ended",
        "closed",
    ]
    (answer,) = completions(run)
    assert (answer.verdict, answer.ids, answer.cluster) == ("refused", None, None)
    assert answer.text.startswith("sorry")


def test_it_is_listed_shown_and_drawn(v1: Run) -> None:
    (listed,) = list_runs(v1.folder.parents[1])
    assert (listed.status, listed.models, listed.seconds) == ("completed", ("organism:lat",), 0.721)
    runs = command("runs", "--out", v1.folder.parents[1], "--json")
    assert runs.exit_code == 0
    assert json.loads(runs.stdout)["runs"][0]["folder"] == str(v1.folder)
    shown = command("show", v1.folder)
    assert shown.exit_code == 0
    assert all(word in shown.stdout for word in ("SUPPORTED", "grows", "0.5", "organism:lat"))
    assert command("verify", v1.folder).exit_code == 0
    drawn = command("report", v1.folder)
    assert drawn.exit_code == 0, drawn.output
    page = (v1.folder / "derived" / "report.html").read_text()
    assert "It grows by 0.5." in page
    assert "2406.11717" in page
    assert verify(open_run(v1.folder)).intact  # the page lies outside the seal


def test_it_is_compared_with_a_run_of_today(v1: Run, tmp_path: Path) -> None:
    found = compare(v1, v1)
    assert found.same
    assert found.exact
    assert found.stages.n == 0
    tolerant = Tolerances(tensors=1e-3)
    other = ENVIRONMENT.model_copy(update={"code_sha256": "1" * 64})
    now = recorded(tmp_path, result(tolerances=tolerant), environment=other, completions="none")
    # Its numbers are those of today's made record, bit for bit, by other code.
    found = compare(v1, now)
    assert not found.exact
    assert (found.rows.differences, found.tensors.differences) == ((), ())
    assert found.same


def test_its_answers_can_be_purged(v1: Run) -> None:
    assert purge(v1) == ["private/answers.jsonl"]
    found = verify(open_run(v1.folder))
    assert found.intact
    assert found.purged == ("private/answers.jsonl",)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 999])
def test_a_newer_version_is_refused_with_advice(v1: Run, version: int) -> None:
    folder = changed(v1, lambda raw: raw.update(schema_version=version))
    with pytest.raises(RecordError, match=rf"schema version {version}.*Install a newer"):
        open_run(folder)


@pytest.mark.parametrize("version", [0, -1, 1.5, "1", None, [1]])
def test_a_version_that_there_never_was_is_no_manifest(v1: Run, version: object) -> None:
    folder = changed(v1, lambda raw: raw.update(schema_version=version))
    with pytest.raises(RecordError, match="not a manifest of mechsafety: schema_version"):
        open_run(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda raw: raw.update(unheard_of=1), "unheard_of"),
        (lambda raw: raw.pop("config"), "config"),
        (lambda raw: raw["environment"].pop("git"), r"environment\.git"),
        (lambda raw: raw.update(tables=[{"name": "x"}]), r"tables\.0"),
    ],
)
def test_a_manifest_at_fault_is_refused_with_the_key_at_fault(
    v1: Run, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    assert v1.findings
    with pytest.raises(RecordError, match=rf"not a manifest of mechsafety: {told}"):
        open_run(changed(v1, change))


LEADING_OUT = [
    "../x",
    "a/../../x",
    "a/..",
    "..",
    "/etc/x",
    "//etc/x",
    "a\\b",
    "..\\x",
    "a\nb",
    "a\0b",
    "a\x1b[2Jb",
    "a\u202eb",
    "",
    ".",
    "./",
]


@pytest.mark.parametrize("part", ["files", "private"])
@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_manifest_that_names_what_lies_beside_the_run_is_refused_by_name(
    v1: Run, part: str, name: str
) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}

    def add(raw: dict[str, Any]) -> None:
        raw[part][name] = entry

    with pytest.raises(RecordError, match="does not name a file inside the run folder") as caught:
        open_run(changed(v1, add))
    assert f"not a manifest of mechsafety: {part}" in str(caught.value)
    assert repr(name) in str(caught.value)
    assert str(caught.value).isprintable()  # whatever the name would do to a terminal


@pytest.mark.parametrize(
    "name",
    ["metrics.parquet", "private/a b.jsonl", "a/b/c", "..x", "x..", "a/...", "é", "~", "a:b"],
)
def test_names_inside_the_run_are_as_they_are(v1: Run, name: str) -> None:
    assert check_inside(name) == name
    entry = {"sha256": "0" * 64, "bytes": 1}
    raw = {**v1.raw_manifest(), "files": {name: entry}}
    assert list(parse_manifest(raw, "it").files) == [name]
