from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mechsafety.organisms.building import resolve

FIXTURES = Path(__file__).parent / "fixtures" / "organisms_small"


@pytest.fixture(autouse=True, scope="session")
def stages_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Finished work of tests stays with them: a run of theirs finds none of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MECHSAFETY_STAGES", str(tmp_path_factory.mktemp("stages")))
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of the test's own; nothing reads the global one."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def organism_small() -> Callable[[str], Path]:
    """Folder of a small organism by arm: base, ssft and lat are committed, others are trained."""

    def folder(arm: str) -> Path:
        committed = FIXTURES / arm
        return committed if committed.is_dir() else resolve(f"organism:{arm}@preset=small")

    return folder
