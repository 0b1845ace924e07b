"""Scripts of `experiments/reproduce` as modules."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

REPRODUCE = Path(__file__).parents[2] / "experiments" / "reproduce"


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """A script by its name, loaded afresh."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, REPRODUCE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load
