"""Run folders are readable whatever ended them, quickly, and without torch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mechsafety.core.errors import RecordError
from mechsafety.records.listing import list_runs
from mechsafety.records.reading import open_run
from mechsafety.records.store import RunWriter
from tests.records.made_records import ENVIRONMENT, config, result

ROOT = Path(__file__).parents[2]


def opened(out: Path, **settings: object) -> RunWriter:
    return RunWriter.create(out, config(**settings), ENVIRONMENT, ["mechsafety"])


def finished(out: Path, **settings: object) -> Path:
    writer = opened(out, **settings)
    writer.write_result(result())
    writer.close("completed")
    return writer.folder


def test_dimensions_keep_their_kinds_and_gaps(tmp_path: Path) -> None:
    frame = open_run(finished(tmp_path)).metrics()
    assert list(frame.columns[:7]) == ["table", "metric", "value", "ci_low", "ci_high", "n", "unit"]
    assert list(frame.columns[7:]) == ["arm", "layer", "clean", "strength"]
    assert frame["layer"].tolist()[0] == 2
    assert pd.isna(frame["layer"].tolist()[1])
    assert str(frame["layer"].dtype) == "Int64"  # 2, not 2.0, although there is a gap
    assert frame["clean"].tolist()[2:] == [True, False]
    assert frame["strength"].tolist()[2:] == [1.0, 0.5]
    assert frame["n"].tolist() == [11, 0, 13, 13]
    assert pd.isna(frame["value"].tolist()[1])


def test_one_table_has_its_own_columns_only(tmp_path: Path) -> None:
    run = open_run(finished(tmp_path))
    rates = run.metrics("rates")
    assert list(rates.columns[7:]) == ["layer", "clean", "strength"]
    assert rates["value"].tolist() == [0.5, 1.0]
    with pytest.raises(RecordError, match=r"no table 'ratse'\. Did you mean 'rates'"):
        run.metrics("ratse")


def test_running_is_told_from_killed_by_the_lock(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    assert open_run(writer.folder).status == "running"
    assert [run.status for run in list_runs(tmp_path)] == ["running"]
    writer.close("interrupted", KeyboardInterrupt())
    assert open_run(writer.folder).status == "interrupted"


def test_a_run_killed_outright_reads_as_interrupted_with_its_events(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tests.records.made_records import *\n"
        "from mechsafety.records.store import RunWriter\n"
        "w = RunWriter.create(Path(sys.argv[1]), config(), ENVIRONMENT, ['x'])\n"
        "w.event('half_way', rows=3); print(w.folder, flush=True); time.sleep(60)\n"
    )
    path = str(ROOT)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert child.stdout is not None
    folder = Path(child.stdout.readline().strip())
    assert open_run(folder).status == "running"  # while it lives
    child.send_signal(signal.SIGKILL)
    child.wait()
    run = open_run(folder)
    assert run.status == "interrupted"
    assert [event["kind"] for event in run.events()] == ["opened", "half_way"]
    assert run.findings == ()
    assert run.tensor_names() == ()
    with pytest.raises(RecordError, match="is 'interrupted' and wrote none"):
        run.metrics()


def test_an_event_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.event("whole")
    with (writer.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "cut sho')
    assert [event["kind"] for event in open_run(writer.folder).events()] == ["opened", "whole"]
    writer.close("completed")


def test_a_record_of_a_newer_schema_is_refused_with_advice(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_text(json.dumps({**raw, "schema_version": 3}))
    with pytest.raises(RecordError, match=r"schema version 3.*Install a newer"):
        open_run(folder)


def test_a_folder_that_is_no_run_says_what_a_run_is(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no manifest.json in .*mechsafety runs"):
        open_run(tmp_path)


def test_a_file_of_the_folder_opens_the_run(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert open_run(folder / "findings.json").folder == folder


@pytest.mark.parametrize("name", ["metrics.parquet", "tensors.safetensors", "findings.json"])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    folder = finished(tmp_path)
    path = folder / name
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole[: len(whole) // 2])
    run = open_run(folder)
    read = {
        "metrics.parquet": run.metrics,
        "tensors.safetensors": run.tensor_names,
        "findings.json": lambda: run.findings,
    }[name]
    with pytest.raises(RecordError, match=f"{name}.*damaged"):
        read()


def test_what_a_completed_run_lost_is_not_read_as_never_written(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert open_run(folder).findings  # there was something to lose
    (folder / "findings.json").unlink()
    (folder / "metrics.parquet").unlink()
    with pytest.raises(
        RecordError, match=r"findings\.json: the run completed and the file is gone"
    ):
        _ = open_run(folder).findings
    with pytest.raises(RecordError, match=r"metrics\.parquet: the run completed"):
        open_run(folder).metrics()
    unfinished = opened(tmp_path)
    unfinished.close("failed", ValueError("early"))
    assert open_run(unfinished.folder).findings == ()


def test_reading_and_verifying_need_no_torch(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    code = (
        "import sys; from mechsafety.records.reading import open_run\n"
        "from mechsafety.records.listing import list_runs\n"
        "from mechsafety.records.verify import verify; import mechsafety.records.store\n"
        "from pathlib import Path\n"
        "run = open_run(sys.argv[1]); assert run.findings; assert run.tensor_names()\n"
        "assert len(run.metrics()) == 4; assert verify(run).intact\n"
        "assert list_runs(Path(sys.argv[1]).parents[1])\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"[1, 2]\n", b"3\n", b"{half\n{}\n"])
def test_damaged_events_are_one_clear_error(tmp_path: Path, content: bytes) -> None:
    folder = finished(tmp_path)
    assert open_run(folder).events()
    (folder / "events.jsonl").chmod(0o644)
    (folder / "events.jsonl").write_bytes(content)
    with pytest.raises(RecordError, match=r"events.jsonl: it is damaged"):
        open_run(folder).events()


@pytest.mark.parametrize("sources", ["null", "[1]", "3"])
def test_a_first_version_with_odd_sources_is_one_clear_error(tmp_path: Path, sources: str) -> None:
    folder = finished(tmp_path)
    raw = {**json.loads((folder / "manifest.json").read_text()), "schema_version": 1}
    (folder / "manifest.json").chmod(0o644)
    text = json.dumps({**raw, "sources": json.loads(sources)})
    (folder / "manifest.json").write_text(text)
    with pytest.raises(RecordError, match="sources"):
        open_run(folder)
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RecordError, match="it is damaged"):
        open_run(folder)
