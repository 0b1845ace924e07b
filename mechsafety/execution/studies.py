"""Finding a study by its name: a file of `mechsafety/studies/`, and nothing else."""

import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mechsafety.core.config import StudyConfig
from mechsafety.core.context import Context
from mechsafety.core.errors import ConfigError, did_you_mean, shown
from mechsafety.core.result import Result


@dataclass(frozen=True, slots=True)
class Study:
    """A question in code."""

    name: str
    config: type[StudyConfig]
    """Its settings; unknown keys are refused."""
    run: Callable[..., Result]
    """`run(config, context)`; its first argument is an instance of `config`."""

    def __call__(self, config: StudyConfig, context: Context) -> Result:
        """Run the study."""
        return self.run(config, context)


def study_names() -> list[str]:
    """Names of the studies there are, read from their files without importing one."""
    spec = importlib.util.find_spec("mechsafety.studies")
    folders = spec.submodule_search_locations if spec is not None else None
    return sorted(
        path.stem for folder in folders or () for path in Path(folder).glob("*.py") if _asks(path)
    )


def _asks(path: Path) -> bool:
    """Whether the file is a study: it has `Config` and `run` at its outermost level."""
    text = path.read_text(encoding="utf-8")
    return bool(re.search(r"^class Config\(", text, re.M) and re.search(r"^def run\(", text, re.M))


def load_study(name: object) -> Study:
    """The study of this name.

    Raises:
        ConfigError: No such study; the message lists all and suggests the nearest.
    """
    names = study_names()
    # Compared with the list before it is imported: a YAML cannot name another module.
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"unknown study {shown(name)}. {did_you_mean(str(name), names)}")
    module = importlib.import_module(f"mechsafety.studies.{name}")
    return Study(name, module.Config, module.run)
