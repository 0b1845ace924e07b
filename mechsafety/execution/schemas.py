"""The JSON schema of every study, in files that editors read beside the experiments."""

import json
import sys
from pathlib import Path
from typing import Any, Final

from mechsafety.core.progress import say
from mechsafety.execution.studies import load_study, study_names

FOLDER: Final = Path(__file__).parents[2] / "experiments" / "schemas"


def study_schema(study: str) -> dict[str, Any]:
    """The JSON schema of a study's YAML, with descriptions and units.

    Raises:
        ConfigError: No such study.
    """
    return load_study(study).config.model_json_schema()


def schema_text(study: str) -> str:
    """The schema as its file holds it.

    Raises:
        ConfigError: No such study.
    """
    return json.dumps(study_schema(study), indent=1, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> list[Path]:
    """Put `<study>.json` of every study into `folder`, and take others' `.json` files out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{study}.json": schema_text(study) for study in study_names()}
    for stale in set(folder.glob("*.json")) - files.keys():
        stale.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def main() -> None:
    """Write into the folder given, or in place."""
    written = write_schemas(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    say(f"wrote {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
