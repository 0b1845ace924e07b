"""Every experiment in the tree fits its study, and says how it is run."""

import re
from pathlib import Path

import pytest

from mechsafety.core.errors import ConfigError
from mechsafety.execution.runner import plan_experiment
from mechsafety.organisms.recipes import DEMO, Organism
from mechsafety.records.schema import declared_findings

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(
    path for kind in ("*.yaml", "*.yml") for path in (ROOT / "experiments").rglob(kind)
)


def test_there_are_experiments() -> None:
    assert EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_experiment_fits_its_study(path: Path) -> None:
    plan = plan_experiment(path)
    assert plan.config.study == plan.study.name
    assert declared_findings(plan.config), "an experiment declares what it tests"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_first_line_is_the_command_that_runs_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first == f"# mechsafety run {path.relative_to(ROOT)}"


def test_claims_about_one_model_replace_the_others_and_are_checked_in_every_run() -> None:
    path = ROOT / "experiments" / "concentration.yaml"
    of_arms = [claim.id for claim in declared_findings(plan_experiment(path).config)]
    of_model = [
        claim.id for claim in declared_findings(plan_experiment(path, ["model=org/name"]).config)
    ]
    assert "lat_concentrates_at_attack" in of_arms
    assert "concentration_is_specific_to_harm" in of_model
    assert "lat_concentrates_at_attack" not in of_model
    for wrong, message in (
        ("margn: 1", r"findings_for_model\.0\.margn'\. Did you mean 'margin'"),
        ("margin: yes", r"findings_for_model\.0\.margin': expected a number"),
        ("margin: 1, cell: {test: concentration, arm: a, versus: b, layer: yes}", "cell.*layer"),
    ):
        cell = "" if "cell" in wrong else ", cell: {test: concentration, arm: a, versus: b}"
        slip = f"findings_for_model=[{{id: x, claim: X., scope: checkpoint, {wrong}{cell}}}]"
        for overrides in ([slip], [slip, "model=org/name"]):
            with pytest.raises(ConfigError, match=message):
                plan_experiment(path, overrides)


def test_the_demo_trains_what_its_experiments_ask_and_nothing_else() -> None:
    demo = re.search(r"mechsafety run (.*?) --out", (ROOT / "Makefile").read_text())
    assert demo
    asked: set[str] = set()
    for name in demo[1].split():
        config = plan_experiment(ROOT / name).config.model_dump(mode="json")
        models = [config.get("model"), config.get("base"), *config.get("arms", {}).values()]
        models += config.get("models", {}).values()
        for model in filter(None, models):
            inner = model.get("model", model)
            asked.add(inner if isinstance(inner, str) else inner["id"])
    assert {str(Organism.parse(name)) for name in asked} == {str(Organism.parse(n)) for n in DEMO}
