from pathlib import Path

import pytest

from mechsafety.core.errors import ConfigError, ModelError, WorkerError
from mechsafety.organisms.building import build, resolve
from mechsafety.organisms.cache import folder_of
from mechsafety.organisms.recipes import Organism


def test_what_lies_in_the_cache_is_not_built_again_nor_is_its_base(tmp_path: Path) -> None:
    arms = ("ssft", "lat@seed=3", "organism:at@preset=small")
    folders = {arm: folder_of(Organism.parse(arm), tmp_path) for arm in arms}
    for folder in folders.values():
        folder.mkdir(parents=True)
    assert build(arms, cache=tmp_path) == folders
    assert not folder_of(Organism(arm="base"), tmp_path).exists()


def test_seed_and_preset_replace_those_of_the_names(tmp_path: Path) -> None:
    folder = folder_of(Organism(arm="ssft", seed=5, preset="small"), tmp_path)
    folder.mkdir(parents=True)
    assert build(["ssft@seed=1"], seed=5, preset="small", cache=tmp_path) == {"ssft@seed=1": folder}


def test_a_preset_that_has_no_such_size_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"small preset has one size.*Leave out one"):
        build(["ssft@size=wide"], preset="small", cache=tmp_path)


def test_a_training_process_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "organisms").mkdir()
    (tmp_path / "organisms" / ".locks").touch()  # a file where the process needs a folder
    expected = r"(?s)building organism:base@seed=0@preset=small: the process failed.*Set MECHSAFETY"
    with pytest.raises(WorkerError, match=expected):
        build(["base"], preset="small", workers=1, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_refused_before_a_process_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot be written.*Set MECHSAFETY_CACHE"):
        build(["base"], cache=tmp_path / "file")


def test_names_that_are_no_organisms_are_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="no organism 'sft'"):
        resolve("organism:sft")
