"""The mirror has what the record has, and nothing that happens to it harms the run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechsafety.core.errors import ConfigError, InputError, RecordError
from mechsafety.execution import wandb_mirror
from mechsafety.execution.runner import execute, plan_experiment
from mechsafety.execution.wandb_mirror import MirrorError, mirror, sync
from mechsafety.records.locking import RunLock
from mechsafety.records.reading import Run, open_run
from mechsafety.records.verify import verify

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_wandb.py")


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Makes records that have no mirror yet."""

    def make(*overrides: str) -> Run:
        experiment = tmp_path / "mirrored.yaml"
        experiment.write_text("study: mirrored\nwandb: {group: sweep-1, upload_directions: true}\n")
        monkeypatch.setenv("WANDB_MODE", "disabled")
        folder = execute(plan_experiment(experiment, overrides), tmp_path / "runs").folder
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        assert not (folder / "derived").exists()
        run = open_run(folder)
        assert run.status == ("failed" if "fail=true" in overrides else "completed")
        return run

    return make


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a fake wandb first; the file says which processes hang."""
    folder = tmp_path / "fake"
    folder.mkdir()
    processes = tmp_path / "processes"

    def choose(fault: str = "") -> Path:
        (folder / "wandb.py").write_text(FAKE.read_text())
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
        monkeypatch.setenv("FAKE_WANDB", fault)
        monkeypatch.setenv("FAKE_WANDB_PROCESSES", str(processes))
        return processes

    return choose


def lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def read_back(placed: Path, home: Path) -> dict[str, list[Any]]:
    """The records of an offline run's own file by kind, as wandb's own reader prints them."""
    (path,) = placed.glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    variables = {**os.environ, "HOME": str(home), "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    records: dict[str, list[Any]] = {}
    for line in done.stdout.splitlines():
        one = json.loads(line)
        records.setdefault(one["type"], []).append(one[one["type"]])
    return records


def plain(run: Run) -> list[dict[str, Any]]:
    """The record's rows with None for what they lack."""
    frame = run.metrics().astype(object)
    return frame.where(frame.notna(), None).to_dict("records")


def mirrored_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_the_offline_mirror_holds_every_number_of_the_record(
    record: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record()
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    warning = mirror(run.folder)
    assert warning is not None
    assert "it lacks figure cannot_be_drawn (" in warning
    assert not [path for path in home.rglob("*") if "artifacts" in str(path)]
    assert verify(run).intact

    placed = run.folder / "derived" / "wandb" / "wandb"
    links = [path for path in placed.rglob("*") if path.is_symlink()]
    assert links  # such as to the latest run
    assert [link for link in links if not link.exists()] == []
    records = read_back(placed, home)
    (about,) = records["run"]
    assert (about["project"], about["run_group"], about["job_type"]) == (
        "mirrored",
        "sweep-1",
        "run",
    )
    assert (about["display_name"], about["run_id"]) == (
        run.manifest.run,
        f"mirrored-{run.manifest.run}",
    )
    assert about["tags"] == ["mirrored", "difference_in_means"]
    config = about["config"]["update"]
    assert {key: config[key] for key in run.manifest.config} == run.manifest.config
    assert config["record"]["seal"] == run.manifest.seal
    # What the mirror's own process runs on is not what the run ran on.
    assert "environment" not in records
    assert "stats" not in records
    assert not list(placed.rglob("requirements.txt"))

    summary: dict[str, Any] = {}
    for one in records["summary"]:
        summary |= one["update"]
    rows = plain(run)
    measured = [row for row in rows if row["value"] is not None]
    assert (len(rows), len(measured)) == (13, 12)
    named = {key: value for key, value in summary.items() if key.startswith(("tok", "eff"))}
    assert sorted(named.values()) == sorted(row["value"] for row in measured)
    assert named["effects/bypass/layer=2/form=mean%2Faffine/chosen=False"] == 2 / 3
    assert named["tokens/index/token=the/#2"] == 2
    assert summary["finding/later_is_stronger/null_high"] == 0.25
    assert summary["status"] == "completed"

    artifacts = {one["name"]: one for one in records["artifact"]}
    staged = {
        name: {file["path"]: Path(file["local_path"]) for file in one["manifest"]["contents"]}
        for name, one in artifacts.items()
    }
    of_run = f"mirrored-{run.manifest.run}"
    table = json.loads(staged[f"run-{of_run}-metrics"]["metrics.table.json"].read_text())
    assert mirrored_rows(table) == rows
    (history,) = records["history"]
    shown = next(placed.glob("offline-run-*")) / "files" / history["item"]["metrics.path"]
    assert mirrored_rows(json.loads(shown.read_text())) == rows
    findings = json.loads(staged[f"run-{of_run}-findings"]["findings.table.json"].read_text())
    assert mirrored_rows(findings)[0]["verdict"] == "supported"
    figures = [key for key in history["item"] if key.startswith("figure/") and "._type" in key]
    assert len(figures) == 4  # two forms, each for the chosen layer and the others
    assert len(list(placed.rglob("*.plotly.json"))) == 4

    report = artifacts[f"{of_run}-report"]
    assert (report["type"], set(report["aliases"])) == ("report", {"latest", run.manifest.run})
    page = (run.folder / "report.html").read_bytes()
    assert staged[report["name"]]["report.html"].read_bytes() == page
    (direction,) = [one for one in artifacts.values() if one["type"] == "direction"]
    assert direction["name"].startswith("direction-org-chat-main-difference_in_means-")
    told = json.loads(direction["metadata"])
    assert (told["model"], told["method"]) == ("org/chat@main", "difference_in_means")
    assert (told["run"], told["weights"]) == (run.manifest.run, "a" * 64)
    assert sorted(told["site"]) == sorted(told["sha256"]) == ["candidates", "direction"]
    assert records["exit"][0].get("exit_code", 0) == 0


def test_an_old_record_is_mirrored_anew_and_an_earlier_mirror_stays_until_then(
    record: Callable[..., Run], fake: Callable[[str], Path], tmp_path: Path
) -> None:
    run = record("fail=true")
    done = sync(run.folder, seconds=60.0)
    assert (done.mode, done.warning) == ("offline", None)
    assert done.folder == run.folder / "derived" / "wandb" / "wandb"
    records = read_back(done.folder, tmp_path)
    assert records["exit"][0]["exit_code"] == 1
    assert any(one["update"].get("status") == "failed" for one in records["summary"])

    into = run.folder / "derived" / "wandb"
    before = {path: path.read_bytes() for path in done.folder.rglob("*.wandb")}
    (data,) = (into / "data").iterdir()
    fake("finish:raise")
    with pytest.raises(MirrorError, match=r"no luck at finish\. The record itself is untouched"):
        sync(run.folder)
    assert {path: path.read_bytes() for path in done.folder.rglob("*.wandb")} == before
    assert list((into / "data").iterdir()) == [data]

    fake("")
    again = sync(run.folder)
    assert again.folder == done.folder
    assert [path.name for path in again.folder.iterdir()] == ["offline-run-fake"]
    assert (again.folder / "offline-run-fake" / "finished").read_text() == "1"
    assert sorted(path.name for path in into.iterdir()) == [".lock", "data", "mirror.log", "wandb"]
    assert len(list((into / "data").iterdir())) == 1
    assert not data.exists()
    assert verify(run).intact


BROKEN = [("import", "raise"), ("finish", "hang")]


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        pytest.param(stage, what, marks=() if (stage, what) in BROKEN else pytest.mark.slow)
        for stage in ("import", "init", "log", "finish")
        for what in ("raise", "hang")
    ],
)
def test_a_broken_wandb_is_one_warning_in_time_and_leaves_nothing(
    record: Callable[..., Run], fake: Callable[[str], Path], stage: str, what: str
) -> None:
    run = record("fail=true")
    processes = fake(f"{stage}:{what}")
    box = 3.0 if what == "hang" else 60.0
    start = time.monotonic()
    warning = mirror(run.folder, seconds=box)
    assert time.monotonic() - start < box + 1.5
    assert warning is not None
    assert "\n" not in warning
    assert ("gave up after 3 s" if what == "hang" else f"no luck at {stage}") in warning
    assert "The record itself is untouched" in warning
    left = sorted(path.name for path in (run.folder / "derived" / "wandb").iterdir())
    assert left == [".lock", "data", "mirror.log"]
    assert not list((run.folder / "derived" / "wandb" / "data").iterdir())
    assert processes.exists() == (what == "hang")
    if what == "hang":
        assert not any(lives(int(process)) for process in processes.read_text().split())
    assert verify(run).intact


def test_a_missing_wandb_is_one_warning(
    record: Callable[..., Run], fake: Callable[[str], Path], tmp_path: Path
) -> None:
    run = record("fail=true")
    fake("")
    missing = "raise ModuleNotFoundError(\"No module named 'wandb'\")"
    (tmp_path / "fake" / "wandb.py").write_text(missing)
    assert "No module named 'wandb'" in str(mirror(run.folder))


@pytest.mark.slow
def test_a_mirror_whose_writer_is_killed_does_not_look_finished(
    record: Callable[..., Run], fake: Callable[[str], Path]
) -> None:
    run = record("fail=true")
    processes = fake("finish:hang")
    code = (
        "import sys; from pathlib import Path; "
        "from mechsafety.execution.wandb_mirror import mirror; "
        "mirror(Path(sys.argv[1]), seconds=4.0)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(run.folder)])
    while not processes.exists() or not processes.read_text():
        time.sleep(0.02)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    into = run.folder / "derived" / "wandb"
    assert not (into / "wandb").exists()
    assert list(into.glob(".*.part"))  # there was one in progress
    child, helper = map(int, processes.read_text().split())
    until = time.monotonic() + 8
    while lives(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not lives(child)  # it ends by its own clock
    os.kill(helper, signal.SIGKILL)

    fake("")
    assert sync(run.folder).folder == into / "wandb"
    assert not list(into.glob(".*.part"))
    assert verify(run).intact


def test_two_mirrors_of_one_run_are_not_written_at_once(
    record: Callable[..., Run], fake: Callable[[str], Path]
) -> None:
    run = record("fail=true")
    fake("")
    into = run.folder / "derived" / "wandb"
    into.mkdir(parents=True)
    lock = RunLock(into)
    with pytest.raises(MirrorError, match="another mirror of this run is being written"):
        sync(run.folder)
    assert "another mirror" in str(mirror(run.folder))
    lock.release()
    assert sync(run.folder).folder.exists()


def test_a_run_in_progress_and_unknown_modes_are_refused(
    record: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record("fail=true")
    with pytest.raises(ConfigError, match=r"the mode is 'onlin'. Did you mean 'online'"):
        sync(run.folder, mode="onlin")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(ConfigError, match=r"WANDB_MODE is 'disabled'. Expected one of: offline"):
        sync(run.folder)
    manifest = json.loads((run.folder / "manifest.json").read_text())
    (run.folder / "manifest.json").chmod(0o644)
    (run.folder / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    lock = RunLock(run.folder)
    with pytest.raises(RecordError, match="still being written"):
        sync(run.folder)
    lock.release()
    assert not issubclass(MirrorError, InputError)  # exit code 1, where these have 2


def test_a_run_whose_mirror_fails_is_still_completed(
    toy_yaml: Path,
    tmp_path: Path,
    fake: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    fake("import:raise")
    monkeypatch.setenv("WANDB_MODE", "offline")
    outcome = execute(plan_experiment(toy_yaml), tmp_path / "runs")
    assert outcome.status == "completed"
    assert "warning: wandb mirror of" in capsys.readouterr().err


def told(run: Run) -> dict[str, Any]:
    text = (run.folder / "derived/wandb/wandb/offline-run-fake/told.json").read_text()
    return json.loads(text)


def test_the_environment_wins_over_the_config(
    record: Callable[..., Run],
    fake: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run = record("fail=true")
    assert run.manifest.config["wandb"]["mode"] == "offline"
    fake("")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mirror(run.folder) is None
    assert not (run.folder / "derived").exists()

    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("PROJECT", "ENTITY", "RUN_GROUP", "JOB_TYPE", "NAME", "RUN_ID"):
        monkeypatch.setenv(f"WANDB_{name}", f"my-{name}")
    monkeypatch.setenv("WANDB_TAGS", "mine, toy,mirrored")
    assert sync(run.folder).mode == "online"
    found = told(run)
    given, variables = found["given"], found["variables"]
    assert given["project"] == "my-PROJECT"
    assert (given["group"], given["job_type"]) == ("my-RUN_GROUP", "my-JOB_TYPE")
    assert (given["name"], given["id"]) == ("my-NAME", "my-RUN_ID")
    assert given["tags"] == ["mine", "toy", "mirrored", "difference_in_means"]
    assert "entity" not in given  # wandb reads it from the environment
    assert (variables["WANDB_ENTITY"], variables["WANDB_MODE"]) == ("my-ENTITY", "online")
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        assert Path(variables[name]).is_relative_to(run.folder / "derived" / "wandb")

    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    assert sync(run.folder, mode="offline").folder == tmp_path / "elsewhere" / "wandb"
    assert (tmp_path / "elsewhere/wandb/offline-run-fake/finished").exists()


def test_a_run_that_was_not_to_be_mirrored_can_be(
    record: Callable[..., Run], fake: Callable[[str], Path]
) -> None:
    run = record("wandb.mode=disabled")
    fake("")
    assert mirror(run.folder) is None
    assert sync(run.folder).mode == "offline"


def test_the_time_box_is_the_configs_and_records_without_one_have_the_default(
    record: Callable[..., Run], fake: Callable[[str], Path]
) -> None:
    run = record("wandb.seconds=1.5")
    fake("import:hang")
    start = time.monotonic()
    assert "gave up after 1.5 s" in str(mirror(run.folder))
    assert time.monotonic() - start < 3.5
    old = {key: value for key, value in run.manifest.config["wandb"].items() if key != "seconds"}
    config = {**run.manifest.config, "wandb": old}
    older = Run(run.folder, run.manifest.model_copy(update={"config": config}))
    assert wandb_mirror._settings(older).seconds == 90.0


def test_a_full_disk_is_one_warning(
    record: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record("fail=true")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb_mirror, "run_in_time_box", full)
    assert "No space left on device" in str(mirror(run.folder))
    with pytest.raises(MirrorError, match="No space left on device"):
        sync(run.folder)
