"""On the path of processes that tests start: toy studies are found as every other."""

from pathlib import Path

import mechsafety.studies

mechsafety.studies.__path__.append(str(Path(__file__).parents[1] / "toy_studies"))
