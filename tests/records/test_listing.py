"""Hundreds of runs are listed at once, and none that is damaged hides another."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mechsafety.core.errors import RecordError
from mechsafety.records.listing import LISTED, Filter, RunSummary, list_runs
from mechsafety.records.schema import ModelUsed
from mechsafety.records.store import RunWriter
from tests.records.made_records import ENVIRONMENT, config, recorded


def opened(out: Path, **settings: object) -> RunWriter:
    return RunWriter.create(out, config(**settings), ENVIRONMENT, ["mechsafety"])


def made(out: Path, name: str, parent: str = "made", **changes: Any) -> Path:
    """A folder with a manifest like that of a run."""
    folder = out / parent / name
    folder.mkdir(parents=True)
    manifest: dict[str, Any] = {
        "study": parent,
        "status": "completed",
        "opened": "2026-11-21T18:24:03+00:00",
        "seconds": 1.5,
        "models": {},
        "config_sha256": "0" * 64,
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return folder


def names(out: Path, **wanted: str | None) -> list[str]:
    return [run.folder.name for run in list_runs(out, Filter(**wanted))]


def test_listing_is_newest_first_and_filtered(tmp_path: Path) -> None:
    folders = [recorded(tmp_path, seed=seed).folder for seed in range(3)]
    failed = opened(tmp_path, seed=7)
    failed.close("failed", ValueError("x"))
    assert {run.folder for run in list_runs(tmp_path)} == {*folders, failed.folder}
    assert [run.folder for run in list_runs(tmp_path, Filter(status="failed"))] == [failed.folder]
    assert list_runs(tmp_path, Filter(study="other")) == []
    assert len(list_runs(tmp_path, Filter(study="made"))) == 4
    times = [run.opened for run in list_runs(tmp_path)]
    assert times == sorted(times, reverse=True)


def test_a_line_says_what_the_manifest_says(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    used = {"organism:lat": ModelUsed(source="organisms/lat", organism=True)}
    writer.note_use(seeds={}, models=used, stages=(), sources={})
    manifest = writer.close("completed")
    (run,) = list_runs(tmp_path)
    assert run == RunSummary(
        folder=writer.folder,
        study="made",
        status="completed",
        opened=manifest.opened,
        seconds=manifest.seconds,
        models=("organism:lat",),
        config_sha256=manifest.config_sha256,
    )


def test_runs_of_one_second_have_one_order(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        made(tmp_path, name)
    assert names(tmp_path) == ["c", "b", "a"]


def test_a_study_is_that_of_the_manifest_wherever_the_folder_lies(tmp_path: Path) -> None:
    made(tmp_path, "here", "locality")
    made(tmp_path, "copied", "backup", study="locality")
    made(tmp_path, "other", "similarity")
    assert sorted(names(tmp_path, study="locality")) == ["copied", "here"]
    assert names(tmp_path, study="local") == []


@pytest.mark.parametrize("study", ["*", "**", "../runs", "/etc", "", "[", "made/..", "\0"])
def test_a_study_is_a_name_and_not_a_pattern(tmp_path: Path, study: str) -> None:
    made(tmp_path / "runs", "one")
    made(tmp_path / "elsewhere", "two")
    assert names(tmp_path / "runs") == ["one"]
    assert names(tmp_path / "runs", study=study) == []


def test_a_model_is_found_by_a_part_of_its_name(tmp_path: Path) -> None:
    made(tmp_path, "two", models={"google/Gemma-2b": {}, "ssft@preset=small": {}})
    made(tmp_path, "one", models={"gpt2": {}})
    made(tmp_path, "none")
    assert names(tmp_path, model="gemma") == ["two"]
    assert names(tmp_path, model="G") == ["two", "one"]
    assert names(tmp_path, model="llama") == []
    assert len(names(tmp_path, model="")) == 3


def test_days_are_the_first_and_the_last_that_are_shown(tmp_path: Path) -> None:
    for day in ("2026-11-20", "2026-11-21", "2026-11-22"):
        made(tmp_path, day, opened=f"{day}T23:59:59+00:00")
    assert names(tmp_path, since="2026-11-21") == ["2026-11-22", "2026-11-21"]
    assert names(tmp_path, until="2026-11-21") == ["2026-11-21", "2026-11-20"]
    assert names(tmp_path, since="2026-11-21", until="2026-11-21") == ["2026-11-21"]
    assert names(tmp_path, since="2026-11-23") == []


@pytest.mark.parametrize(
    "day",
    # Some are days to `date.fromisoformat`; none of them sorts as one.
    [
        "yesterday",
        "2026-13-01",
        "2026-W47-6",
        "20261121",
        "2026-11-1",
        "2026-11-21T00",
        "",
        "21.11.2026",
    ],
)
def test_what_is_no_day_is_refused(tmp_path: Path, day: str) -> None:
    for wanted in (Filter(since=day), Filter(until=day)):
        with pytest.raises(RecordError, match=r"is no day\. Write it as 2026-11-21"):
            list_runs(tmp_path, wanted)


def test_no_run_has_a_status_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no run is 'complete'\. Did you mean 'completed'"):
        list_runs(tmp_path, Filter(status="complete"))
    for status in LISTED:
        assert list_runs(tmp_path, Filter(status=status)) == []


def test_one_damaged_folder_does_not_hide_the_others(tmp_path: Path) -> None:
    folder, damaged = (recorded(tmp_path).folder for _ in range(2))
    (damaged / "manifest.json").chmod(0o644)
    (damaged / "manifest.json").write_text('{"schema_version": 1, "stu')
    assert {run.folder: run.status for run in list_runs(tmp_path)} == {
        folder: "completed",
        damaged: "damaged",
    }
    assert [run.folder for run in list_runs(tmp_path, Filter(status="damaged"))] == [damaged]
    # Nobody knows when it was, nor of what model.
    for wanted in (Filter(until="9999-12-31"), Filter(since="0001-01-01"), Filter(model="l")):
        assert damaged not in [run.folder for run in list_runs(tmp_path, wanted)]


ODD: list[dict[str, Any]] = [
    {"study": 3},
    {"study": None},
    {"status": "great"},
    {"status": ["completed"]},
    {"opened": None},
    {"opened": 20261121},
    {"seconds": "long"},
    {"seconds": []},
    {"models": 3},
    {"models": [1]},
    {"models": None},
    {"config_sha256": None},
]


@pytest.mark.parametrize("changes", ODD)
def test_a_manifest_with_a_part_of_another_kind_is_damaged(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    made(tmp_path, "sound")
    made(tmp_path, "odd", **changes)
    found = {run.folder.name: run.status for run in list_runs(tmp_path, Filter())}
    assert found == {"sound": "completed", "odd": "damaged"}
    assert names(tmp_path, since="2026-11-21", model="") == ["sound"]


def test_so_it_is_where_nothing_checks_types_as_tests_do(tmp_path: Path) -> None:
    for i, changes in enumerate(ODD):
        made(tmp_path, f"odd-{i}", **changes)
    made(tmp_path, "sound")
    code = (
        "import sys; from pathlib import Path\n"
        "from mechsafety.records.listing import Filter, list_runs\n"
        "for run in list_runs(Path(sys.argv[1]), Filter(model='')): print(run.status)\n"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert listed.stdout.split() == ["completed"] + ["damaged"] * len(ODD)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"null", b"\xff\xfe", b"{}", b"[" * 100_000, b'{"a": 1' * 9]
)
def test_a_manifest_that_is_none_is_damaged(tmp_path: Path, content: bytes) -> None:
    made(tmp_path, "sound")
    (made(tmp_path, "odd") / "manifest.json").write_bytes(content)
    assert names(tmp_path, status="completed") == ["sound"]
    assert names(tmp_path, status="damaged") == ["odd"]


def test_what_cannot_be_read_or_is_no_run_stays_out_of_the_way(tmp_path: Path) -> None:
    made(tmp_path, "sound")
    (made(tmp_path, "folder") / "manifest.json").unlink()
    (tmp_path / "made" / "folder" / "manifest.json").mkdir()
    (tmp_path / "made" / "killed early").mkdir()
    (tmp_path / "a file").write_text("x")
    (tmp_path / "made" / ".20261121T1-0.part").mkdir()
    (tmp_path / "made" / ".20261121T1-0.part" / "manifest.json").write_text("{}")
    (tmp_path / "made" / "broken").symlink_to(tmp_path / "nowhere")
    assert [(run.folder.name, run.status) for run in list_runs(tmp_path)] == [
        ("sound", "completed"),
        ("folder", "damaged"),
    ]
    assert list_runs(tmp_path / "nowhere") == []


def test_running_is_told_from_killed_by_the_lock(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    assert [run.status for run in list_runs(tmp_path)] == ["running"]
    (writer.folder / ".lock").unlink()
    assert [run.status for run in list_runs(tmp_path)] == ["interrupted"]
    assert [run.seconds for run in list_runs(tmp_path)] == [None]
    writer.close("interrupted", KeyboardInterrupt())


def test_hundreds_of_runs_are_listed_in_under_a_second(tmp_path: Path) -> None:
    text = (recorded(tmp_path).folder / "manifest.json").read_text()
    big = json.loads(text)
    big["environment"]["git"]["diff"] = "+ a changed line of code\n" * 2000
    for number in range(400):
        folder = tmp_path / "made" / f"copy-{number}"
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(big))
    start = time.process_time()
    assert len(list_runs(tmp_path)) == 401
    assert time.process_time() - start < 1.0
