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
from tests.studies.similarity_runs import WIDER, rotated
from tests.studies.similarity_runs import Ran as Compared
from tests.studies.similarity_runs import configured as comparing
from tests.studies.similarity_runs import ran as compared

Folder = Callable[[str], Path]

TURNED_CLAIMS = """findings=[
{id: copy, claim: c., scope: checkpoint, margin: 0.1, cell:
  {test: below_ceiling, first: ssft, second: wider, layer: 3}},
{id: copy_by_procrustes, claim: c., scope: checkpoint, margin: 0.1, cell:
  {test: below_ceiling, first: ssft, second: wider, layer: 3, via: procrustes}},
{id: copy_excess, claim: c., scope: checkpoint, margin: 0.1, cell:
  {test: likeness, first: ssft, second: wider, layer: 3}},
{id: lat, claim: c., scope: checkpoint, margin: 0.05, cell:
  {test: likeness, first: lat, second: ssft, layer: 3}},
{id: moved, claim: c., scope: checkpoint, margin: 10, cell:
  {test: angle, first: base, second: ssft, layer: 3}},
{id: carried_bypass, claim: c., scope: checkpoint, margin: 2, cell:
  {test: transfer, first: ssft, second: wider, form: affine}},
{id: own_bypass, claim: c., scope: checkpoint, margin: 2, cell:
  {test: transfer, first: ssft, second: ssft, form: affine}},
{id: carried_induce, claim: c., scope: checkpoint, margin: 2, cell:
  {test: transfer, first: ssft, second: wider, effect: induce}},
{id: into_base, claim: c., scope: checkpoint, margin: 2, cell:
  {test: transfer, first: ssft, second: base}},
{id: matched, claim: c., scope: checkpoint, margin: 0.02, cell:
  {test: layers_match, first: ssft, second: wider, by: cka}},
{id: unmatched, claim: c., scope: checkpoint, margin: 0.02, cell:
  {test: layers_match, first: ssft, second: wider}},
{id: seeds, claim: c., scope: method, margin: 5, cell:
  {test: angle, first: base, second: ssft, layer: 3, replicates: [[base, lat]]}}]"""
"""About a model and the same function in a wider space, turned at random."""
TURNED_TRANSFER = (
    "transfer.forms=[affine]",
    "transfer.models=[base, ssft, wider]",
    "maps.between=[[ssft, wider], [ssft, copy], [base, wider]]",
)


@pytest.fixture(scope="session")
def turned(organism_small: Folder, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Organisms of one base beside two rotated copies of one of them, one in a wider space."""
    tmp = tmp_path_factory.mktemp("turned")
    copies = {
        "copy": rotated(organism_small("ssft"), tmp / "copy", 64, 1),
        "wider": rotated(organism_small("ssft"), tmp / "wider", WIDER, 2),
    }
    arms = {name: f"{name}@preset=small" for name in ("base", "ssft", "lat")}
    models = ", ".join(f"{name}: {what}" for name, what in {**arms, **copies}.items())
    config = comparing("{" + models + "}", TURNED_CLAIMS, *TURNED_TRANSFER)
    folders = {what: organism_small(name) for name, what in arms.items()}
    return compared(config, folders, tmp)


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
