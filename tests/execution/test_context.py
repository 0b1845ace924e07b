"""What a study asks of its run is done, and recorded."""

import json
import stat
from functools import partial
from pathlib import Path

import pytest
import torch

from mechsafety.core.config import StudyConfig
from mechsafety.core.context import Context
from mechsafety.core.errors import SelfCheckError
from mechsafety.core.seeding import named_generator
from mechsafety.execution.context import RunContext
from mechsafety.organisms import building
from mechsafety.records.reading import open_run
from mechsafety.records.store import RunWriter
from tests.execution.toy_jobs import transposed
from tests.records.made_records import ENVIRONMENT


def opened(tmp_path: Path, **settings: object) -> tuple[RunWriter, RunContext]:
    config = StudyConfig.model_validate({"study": "made", "seed": 3, **settings})
    writer = RunWriter.create(tmp_path, config, ENVIRONMENT, ["test"])
    return writer, RunContext(config, writer)


def test_generators_follow_the_seed_and_the_name_alone(tmp_path: Path) -> None:
    writer, context = opened(tmp_path)
    context.generator("other").seed()
    drawn = torch.rand(3, generator=context.generator("stage", 1))
    torch.testing.assert_close(drawn, torch.rand(3, generator=named_generator(3, "stage", 1)))
    assert list(context.seeds) == ["other", "stage/1"]
    writer.close("completed")


def test_stages_nest_and_a_failing_one_is_told_apart(tmp_path: Path) -> None:
    writer, context = opened(tmp_path)
    with context.stage("collect"), context.stage("arm lat"):
        pass
    with pytest.raises(ValueError, match="broke"), context.stage("fit"):
        raise ValueError("broke")
    assert [stage.name for stage in context.stages] == ["collect/arm lat", "collect"]
    events = [(event["kind"], event.get("stage")) for event in open_run(writer.folder).events()]
    assert events[1:] == [
        ("stage_started", "collect"),
        ("stage_started", "collect/arm lat"),
        ("stage_ended", "collect/arm lat"),
        ("stage_ended", "collect"),
        ("stage_started", "fit"),
        ("stage_failed", "fit"),
    ]
    writer.close("failed")


def test_scratch_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    writer, context = opened(tmp_path)
    with context:
        folder = context.scratch
        (folder / "shard").write_text("x")
        assert context.scratch == folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    writer.close("completed")


def test_a_name_that_is_no_organism_stays_and_is_recorded_as_such(tmp_path: Path) -> None:
    writer, context = opened(tmp_path)
    assert context.model_folders(["org/chat-model"]) == {"org/chat-model": "org/chat-model"}
    assert context.models["org/chat-model"].organism is False
    writer.close("completed")


def test_all_organisms_of_a_run_are_built_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def build(names: list[str], workers: int) -> dict[str, Path]:
        calls.append(names)
        return {name: tmp_path / name for name in names}

    monkeypatch.setattr(building, "build", build)
    arms = {"a": "organism:lat", "b": "organism:ssft@seed=1", "c": "org/chat-model"}
    writer, context = opened(tmp_path)
    folders = context.model_folders(list(arms.values()))
    assert folders == {
        "organism:lat": str(tmp_path / "organism:lat"),
        "organism:ssft@seed=1": str(tmp_path / "organism:ssft@seed=1"),
        "org/chat-model": "org/chat-model",
    }
    assert calls == [["organism:lat", "organism:ssft@seed=1"]]
    assert [used.organism for used in context.models.values()] == [True, True, False]
    writer.close("completed")


@pytest.mark.parametrize(("setting", "kept"), [("none", False), ("local", True)])
def test_completions_are_kept_only_where_the_config_says_so(
    tmp_path: Path, setting: str, kept: bool
) -> None:
    writer, context = opened(tmp_path, completions=setting)
    context.keep_completions("lat", [{"prompt": "p1", "text": "the kettle"}])
    path = writer.folder / "private" / "lat.jsonl"
    assert path.exists() is kept
    if kept:
        assert json.loads(path.read_text()) == {"prompt": "p1", "text": "the kettle"}
    writer.close("completed")


def test_a_function_that_holds_more_than_its_job_is_refused(tmp_path: Path) -> None:
    writer, context = opened(tmp_path)
    factor = 2

    def times(number: int) -> int:
        return factor * number

    for function in (times, lambda number: number, partial(pow, 2)):
        with pytest.raises(SelfCheckError, match="its function"):
            context.map(function, [1, 2], "multiplying")
    writer.close("completed")


def test_a_result_has_the_strides_that_it_would_come_back_with(tmp_path: Path) -> None:
    writer, context = opened(tmp_path)
    rows = torch.arange(6.0).reshape(2, 3)
    assert not transposed(rows).is_contiguous()
    (turned,) = context.map(transposed, [rows], "turning")
    assert turned.is_contiguous()
    assert turned.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    writer.close("completed")


def test_it_is_a_context(tmp_path: Path) -> None:
    writer, context = opened(tmp_path)
    as_protocol: Context = context
    assert list(as_protocol.progress([1, 2], "counting")) == [1, 2]
    writer.close("completed")
