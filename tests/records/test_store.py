"""A run folder opens before the work, closes with a status, and then never changes."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from mechsafety.core.config import config_hash
from mechsafety.core.errors import RecordError, SelfCheckError
from mechsafety.core.result import Table
from mechsafety.records.completions import purge
from mechsafety.records.reading import open_run
from mechsafety.records.schema import canonical_hash
from mechsafety.records.store import RunWriter
from mechsafety.records.verify import verify
from tests.records.made_records import ENVIRONMENT, config, finding, other_table, result, table


def opened(out: Path, **settings: object) -> RunWriter:
    return RunWriter.create(out, config(**settings), ENVIRONMENT, ["mechsafety", "run", "x.yaml"])


def test_what_is_known_before_the_work_is_on_disk_before_the_work(tmp_path: Path) -> None:
    writer = opened(tmp_path, seed=9)
    written = json.loads((writer.folder / "manifest.json").read_text())
    assert written["status"] == "running"
    assert written["command_line"] == ["mechsafety", "run", "x.yaml"]
    assert written["config"]["depth"] == 3  # a default that nobody wrote
    assert written["config_sha256"] == config_hash(config(seed=9))
    assert written["declared"][0]["id"] == "grows"
    assert written["declared_sha256"] == canonical_hash(written["declared"])
    assert written["environment"]["git"]["diff"] == "+ a line"
    assert written["seed"] == 9
    assert (writer.folder / "config.yaml").exists()
    writer.close("completed")


def test_another_claim_has_another_hash(tmp_path: Path) -> None:
    first = opened(tmp_path)
    declared = {"id": "grows", "claim": "It shrinks.", "scope": "checkpoint", "margin": 0.1}
    second = opened(tmp_path, findings=[{**declared, "cell": {"layer": 2}}])
    assert first.manifest.declared_sha256 != second.manifest.declared_sha256
    first.close("completed")
    second.close("completed")


def test_runs_of_one_config_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    writers = [opened(tmp_path) for _ in range(3)]
    folders = {writer.folder for writer in writers}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "made"}
    assert all(config_hash(config())[:8] in folder.name for folder in folders)
    for writer in writers:
        writer.close("completed")


def test_a_result_comes_back_as_it_was_given(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.write_result(result())
    writer.close("completed")
    run = open_run(writer.folder)
    assert run.status == "completed"
    assert run.findings == (finding(),)
    assert run.tensor_names() == ("view", "whole")
    torch.testing.assert_close(run.tensor("view"), torch.tensor([0.0, 2.0, 4.0]))
    torch.testing.assert_close(run.tensor("whole"), torch.arange(6.0).reshape(2, 3))
    assert [entry.name for entry in run.manifest.tables] == ["shares", "rates"]
    assert run.manifest.tables[0].caption == table().caption
    assert run.manifest.tables[1].dimensions == ("clean", "layer", "strength")
    assert run.manifest.figures[0].id == "f"
    assert run.manifest.notes == ("Made up.",)
    assert run.manifest.provenance == {"prompts": {"made": "2" * 64}}


def test_the_seal_covers_every_file_but_the_manifest_and_what_lies_outside(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.write_result(result())
    writer.write_report("<p>page</p>")
    writer.write_private("answers.jsonl", b"{}\n")
    (writer.folder / "derived").mkdir()
    (writer.folder / "derived" / "extra").write_text("x")
    manifest = writer.close("completed")
    expected = "config.yaml events.jsonl findings.json metrics.parquet report.html"
    assert list(manifest.files) == [*expected.split(), "tensors.safetensors"]
    assert list(manifest.private) == ["private/answers.jsonl"]
    assert manifest.seal is not None


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    path = writer.write_private("answers.jsonl", b"{}\n")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    writer.close("completed")


def test_a_closed_record_takes_nothing_more_and_is_read_only(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.write_result(result())
    writer.close("completed")
    for write in (
        lambda: writer.event("late"),
        lambda: writer.write_result(result()),
        lambda: writer.write_report("late"),
    ):
        with pytest.raises(RecordError, match=r"closed record never changes.*Start a new run"):
            write()
    for name in ("manifest.json", "metrics.parquet", "events.jsonl"):
        assert not (writer.folder / name).stat().st_mode & 0o222


def test_no_half_written_file_is_left_under_any_name(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.write_result(result())
    writer.close("completed")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_a_full_disk_leaves_the_earlier_record_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened(tmp_path)
    before = (writer.folder / "manifest.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"No space left.*recorded before is intact"):
        writer.write_result(result())
    with pytest.raises(RecordError, match="No space left"):
        writer.close("failed")
    assert (writer.folder / "manifest.json").read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
    assert open_run(writer.folder).status == "interrupted"


def test_a_disk_that_is_full_for_events_too_frees_the_lock_and_says_so(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer._events.close()
    writer._events = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(RecordError, match="No space left on device"):
        writer.close("completed")
    assert open_run(writer.folder).status == "interrupted"


def test_links_in_a_record_are_named_and_nothing_behind_them_is_touched(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    writer = opened(tmp_path)
    writer.write_result(result())
    writer.close("completed")
    run = open_run(writer.folder)
    (run.folder / "private").symlink_to(elsewhere)
    with pytest.raises(RecordError, match=r"private is a link to .*elsewhere"):
        purge(run)
    assert (elsewhere / "mine").read_text() == "mine"
    assert any("private: is a link" in problem for problem in verify(run).problems)


def test_a_file_where_the_folder_should_be_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(RecordError, match=r"making a run folder in .*runs.*--out"):
        opened(tmp_path / "runs")
    assert (tmp_path / "runs").read_text() == "in the way"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ci_low": 0.55, "ci_high": 0.6}, "excludes its own estimate"),
        ({"ci_low": None, "ci_high": None}, "no ci_low, ci_high"),
        ({"null_low": None}, "no null_low"),
        ({"n": 0}, "no n"),
        ({"null": " "}, "what its null is"),
        ({"value": None}, "cannot be 'supported'"),
        ({"claim": "It shrinks."}, "claim was declared as"),
        ({"margin": 0.01}, "margin was declared as 0.1"),
        ({"id": "other"}, "'grows' was declared and is not among"),
        ({"null_low": 0.3, "null_high": 0.1}, "null runs from"),
    ],
)
def test_a_finding_at_fault_fails_the_run_and_keeps_the_numbers(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    writer = opened(tmp_path)
    with pytest.raises(SelfCheckError, match=message):
        writer.write_result(result(findings=(finding(**changes),)))
    writer.close("failed", SelfCheckError("x"))
    assert not (writer.folder / "findings.json").exists()
    assert len(open_run(writer.folder).metrics("shares")) == 2


def test_a_finding_that_was_not_declared_is_labelled_exploratory(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.write_result(result(findings=(finding(), finding(id="seen_later", claim="Other."))))
    writer.close("completed")
    declared, later = open_run(writer.folder).findings
    assert declared.notes == ()
    assert later.notes == ("exploratory: not declared in the experiment before the run",)


def faulty(name: str = "shares", **row: object) -> Table:
    bad = Table(name, "caption")
    bad.add("top2", **{"value": 0.5, "n": 3, "unit": "share", **row})  # type: ignore[arg-type]
    return bad


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ((faulty(interval=(0.6, 0.7)),), "excludes its own estimate 0.5"),
        ((faulty(value=float("nan")),), "value is nan.*is None"),
        ((faulty(interval=(0.1, float("inf"))),), "ci_high is inf"),
        ((faulty(n=-1),), "n is -1"),
        ((faulty(), faulty()), "two are named 'shares'"),
        ((faulty(ci_low=3),), "cannot be named 'ci_low'"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    tmp_path: Path, tables: tuple[Table, ...], message: str
) -> None:
    writer = opened(tmp_path)
    with pytest.raises(SelfCheckError, match=message):
        writer.write_result(result(tables=tables))
    writer.close("failed")


def test_an_interval_that_touches_its_estimate_up_to_rounding_passes(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.write_result(result(tables=(faulty(value=1.0, interval=(0.9, 1.0 - 1e-12)),)))
    writer.close("completed")


def test_provenance_that_is_no_json_is_named(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    with pytest.raises(SelfCheckError, match=r"recording the provenance.*Tensor"):
        writer.write_result(result(provenance={"weights": torch.ones(2)}))
    writer.close("failed")


def test_a_run_without_tensors_has_an_empty_file_of_them(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.write_result(result(tensors={}, tables=(other_table(),)))
    writer.close("completed")
    assert open_run(writer.folder).tensor_names() == ()
    assert "tensors.safetensors" in open_run(writer.folder).manifest.files
