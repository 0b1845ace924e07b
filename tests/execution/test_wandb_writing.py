"""What wandb is told about a run, in the forms that wandb takes."""

from pathlib import Path
from typing import Any

import pytest

from mechsafety.execution import wandb_writing
from mechsafety.records.reading import Run
from mechsafety.records.schema import TENSORS, ModelUsed, Parent
from tests.report.fake_record import manifest


def run(folder: Path, **changes: Any) -> Run:
    return Run(folder, manifest(()).model_copy(update=changes))


def test_a_replay_is_a_job_of_its_own_kind(tmp_path: Path) -> None:
    parent = Parent(run="20260301T101500Z-3fa91c77", folder="../first", seal=None)
    replay = run(tmp_path, replay_of=parent)
    assert wandb_writing._job_type(run(tmp_path)) == "run"
    assert wandb_writing._job_type(replay) == "replay"
    assert wandb_writing._config(replay)["record"]["replay_of"] == parent.run


def test_tags_are_study_models_and_methods_each_once_and_short_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "/".join(["folder"] * 20) + "/model@revision"
    names = (long, "lat", "concentration")
    models = {name: ModelUsed(source="x", organism=True) for name in names}
    config = {"direction": {"method": "scav"}}
    monkeypatch.setenv("WANDB_TAGS", "mine,,lat")
    # One that failed before it had any tensor has tags too.
    tags = wandb_writing._tags(run(tmp_path, status="failed", models=models, config=config))
    assert not (tmp_path / TENSORS).exists()
    assert tags == ["mine", "lat", "concentration", long[-64:], "scav"]


@pytest.mark.parametrize("words", ["..", "../../../etc/x", "/etc/x", "a\\b", "a\nb", "x" * 400])
def test_no_word_of_a_record_leads_a_figure_out_of_its_folder(words: str) -> None:
    name = wandb_writing._file_name(words)
    assert len(name) < 150
    assert not set(name) & set("/\\\n")
    assert name.strip(".")
    assert name != wandb_writing._file_name(words + "y")
    assert wandb_writing._file_name("layer=3,form=zero") == "layer=3,form=zero"
