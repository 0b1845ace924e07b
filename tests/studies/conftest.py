"""Locality studies that several test files look at; each runs once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.studies.locality_runs import (
    BRIEF,
    OPENED_FILTERS,
    Ran,
    configured,
    prompt_files,
    ran,
    random_folder,
)

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def ssft(organism_small: Folder, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """An organism that refuses, its base beside it."""
    folders = {name: organism_small(name) for name in ("ssft", "base")}
    return ran(configured(), folders, tmp_path_factory.mktemp("ssft"))


@pytest.fixture(scope="session")
def compliant(organism_small: Folder, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """An organism that refuses nothing, with no base beside it."""
    folders = {"base": organism_small("base")}
    return ran(configured("model=base", "base=null"), folders, tmp_path_factory.mktemp("compliant"))


@pytest.fixture(scope="session")
def from_files(organism_small: Folder, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The organism that refuses, asked two lists of prompts from files."""
    tmp = tmp_path_factory.mktemp("files")
    # Long enough for a refusal to be one.
    answered = ("answers_max_new_tokens=12", "evaluate.max_new_tokens=12")
    config = configured("base=null", *BRIEF, *answered, *prompt_files(tmp))
    return ran(config, {"ssft": organism_small("ssft")}, tmp)


@pytest.fixture(scope="session")
def gemma2(organism_small: Folder, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A random model with norms behind its blocks, told which tokens are refusals."""
    return _random("gemma2", organism_small("base"), tmp_path_factory.mktemp("gemma2"))


@pytest.fixture(scope="session")
def neox(organism_small: Folder, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A random model with attention and MLP side by side, told which tokens are refusals."""
    return _random("neox", organism_small("base"), tmp_path_factory.mktemp("neox"))


def _random(family: str, organism: Path, tmp: Path) -> Ran:
    folder = random_folder(family, organism, tmp / "model")
    told = (f"model={folder}", "base=null", "refusal_tokens=[7, 9]", *OPENED_FILTERS, *BRIEF)
    return ran(configured(*told), {}, tmp)


@pytest.fixture(scope="session")
def one_block(organism_small: Folder, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A random model of one block, read at one position, where the words differ."""
    tmp = tmp_path_factory.mktemp("one_block")
    folder = random_folder("one block", organism_small("base"), tmp / "model")
    read = ("positions=[instruction_end]", "maps.control_position=instruction_end")
    files = prompt_files(tmp, lambda text: text.rstrip(" ?."))
    told = (f"model={folder}", "base=null", "refusal_tokens=[7, 9]", *OPENED_FILTERS, *BRIEF)
    return ran(configured(*read, *files, *told), {}, tmp)
