"""The schemas that editors read: current, explained throughout, and of one mind with the runner."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mechsafety.core.config import StudyConfig, parse_config, read_yaml
from mechsafety.core.errors import ConfigError
from mechsafety.execution.runner import plan_experiment
from mechsafety.execution.schemas import schema_text, study_schema, write_schemas
from mechsafety.execution.studies import study_names

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "schemas"
EXPERIMENTS = sorted(
    path for kind in ("*.yaml", "*.yml") for path in (ROOT / "experiments").rglob(kind)
)
STUDIES = study_names()

UNITS = re.compile(
    r"\b(seeds?|CPU threads|processes|tokens?|token's|ids|GiB|seconds|nats|log-odds|degrees|shares?"
    r"|multiples?|norms|activation²|layers?|blocks?|components|prompts|pairs|twins|rows|groups"
    r"|halves|halvings|relabelings|re-pairings|derangements|shuffles|shuffled prompts|resamplings"
    r"|controls|directions|parts|folds)\b",
    re.IGNORECASE,
)
"""What a number counts or is measured in. A number of another unit adds its word here."""


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    return {study: study_schema(study) for study in STUDIES}


def _keys(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, schema) of every key at every depth; definitions are entered once each."""
    places = [("", schema)]
    places += [(f"{name}.", part) for name, part in schema.get("$defs", {}).items()]
    for where, place in places:
        for name, key in _properties({k: v for k, v in place.items() if k != "$defs"}):
            yield f"{where}{name}", key


def _properties(part: object) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(part, list):
        for item in part:
            yield from _properties(item)
    if isinstance(part, dict):
        for name, key in part.get("properties", {}).items():
            yield name, key
            yield from ((f"{name}.{below}", found) for below, found in _properties(key))
        for name, below in part.items():
            if name != "properties":
                yield from _properties(below)


def _description(key: dict[str, Any], schema: dict[str, Any]) -> str | None:
    """Its own, or that of what it refers to: pydantic writes equal ones once."""
    if "description" in key or "$ref" not in key:
        return key.get("description")
    return schema["$defs"][key["$ref"].rpartition("/")[2]].get("description")


def _types(part: object) -> Iterator[str]:
    """Types that a value of the key itself may have; not those of keys below it."""
    if isinstance(part, list):
        for item in part:
            yield from _types(item)
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for name, below in part.items():
            if name not in ("properties", "default"):
                yield from _types(below)


def test_every_study_has_its_schema_beside_the_experiments(tmp_path: Path) -> None:
    assert STUDIES
    written = {path.name: path.read_text() for path in write_schemas(tmp_path)}
    shipped = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    named = {f"{study}.json" for study in STUDIES}
    assert set(shipped) == named, "run `make schemas`"
    for name in named:
        assert shipped[name] == written[name], f"{name} is not current: run `make schemas`"


def test_schemas_of_studies_that_are_gone_are_taken_away(tmp_path: Path) -> None:
    (tmp_path / "gone.json").write_text("{}")
    write_schemas(tmp_path)
    assert not (tmp_path / "gone.json").exists()
    assert json.loads(schema_text(STUDIES[0])) == study_schema(STUDIES[0])


@pytest.mark.parametrize("study", STUDIES)
def test_every_key_is_described(study: str, schemas: dict[str, dict[str, Any]]) -> None:
    keys = dict(_keys(schemas[study]))
    assert len(keys) > 60
    assert any(name.count(".") >= 1 for name in keys)
    bare = [name for name, key in keys.items() if not _description(key, schemas[study])]
    assert not bare


@pytest.mark.parametrize("study", STUDIES)
def test_every_number_names_its_unit(study: str, schemas: dict[str, dict[str, Any]]) -> None:
    numbers = {
        name: key
        for name, key in _keys(schemas[study])
        if {"number", "integer"} & set(_types(key)) and "$ref" not in key
    }
    assert len(numbers) > 20
    unnamed = {
        name: told
        for name, key in numbers.items()
        if not UNITS.search(told := _description(key, schemas[study]) or "")
    }
    assert not unnamed
    # A description that says nothing of units is seen.
    assert not UNITS.search("How large it is; larger is slower.")


def test_there_are_experiments() -> None:
    assert EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_experiment_names_its_schema_and_fits_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    marked = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", lines[1])
    assert marked, "the second comment names the schema"
    schema = (path.parent / marked[1]).resolve()
    raw = read_yaml(path)
    assert schema == FOLDER / f"{raw['study']}.json"
    checked = Draft202012Validator(json.loads(schema.read_text()))
    assert not [error.message for error in checked.iter_errors(raw)]
    # So does what it is filled in to, which is what a record holds.
    config = json.loads(plan_experiment(path).config.model_dump_json())
    assert not [error.message for error in checked.iter_errors(config)]
    # The schema does see what is wrong.
    for wrong in ({"sed": 1}, {"seed": -1}, {"seed": "one"}, {"runtime": {"thread": 1}}):
        assert not checked.is_valid({**raw, **wrong})


def _leaves(part: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the numbers and truth values of a config are."""
    if isinstance(part, dict | list):
        for step, below in part.items() if isinstance(part, dict) else enumerate(part):
            yield from _leaves(below, (*at, step))
    elif isinstance(part, bool | int | float):
        yield at


def _is_refused(config: type[StudyConfig], raw: dict[str, Any], key: str) -> bool:
    try:
        parse_config(config, raw, "quoted")
    except ConfigError as error:
        return key in str(error)
    return False


@pytest.mark.parametrize("study", STUDIES)
def test_numbers_and_truth_values_in_quotes_are_refused_by_both(study: str) -> None:
    plan = plan_experiment(next(one for one in EXPERIMENTS if read_yaml(one)["study"] == study))
    filled = plan.config.model_dump(mode="json")
    assert parse_config(plan.study.config, copy.deepcopy(filled), "a record") == plan.config
    checked = Draft202012Validator(study_schema(study))
    # One of a list stands for the others.
    leaves = {tuple(step for step in at if isinstance(step, str)): at for at in _leaves(filled)}
    assert len(leaves) > 20
    refused = 0
    for *path, last in leaves.values():
        changed = copy.deepcopy(filled)
        holds: Any = changed
        for step in path:
            holds = holds[step]
        holds[last] = json.dumps(holds[last])
        key = next(step for step in (last, *reversed(path)) if isinstance(step, str))
        is_refused = _is_refused(plan.study.config, changed, key)
        assert is_refused == (not checked.is_valid(changed)), (path, last)
        refused += is_refused
    # A layer may be written either way.
    assert refused > 0.8 * len(leaves)


MODELS = ["ssft", "org/name@main", "./folder", "{id: org/name, revision: main, quantization: 4bit}"]
WHOLE = {
    "concentration": (
        "arms: {a: {model: MODEL}}\n"
        "model: MODEL\n"
        "spectra: {cells: {}, contrasts: {}}\n"
        "attack: {layers: [3, attacked, attacked+1, depth:0.4]}\n"
    ),
    "similarity": "models: {a: base, b: {model: MODEL}}\nneutral: {source: organism}\n",
    "locality": (
        "model: MODEL\n"
        "base: MODEL\n"
        "positions: [last, 'eoi[-2]', eoi]\n"
        "selection: {filters: {kl_threshold: .inf, induce_threshold: -inf}}\n"
    ),
}
"""What each study needs at least, in the forms that YAML may take."""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("chat", ["{thinking: off}", "{thinking: closed}", "{date: 2026-01-02}"])
def test_short_forms_that_run_are_not_underlined(
    study: str, model: str, chat: str, tmp_path: Path
) -> None:
    path = tmp_path / "short.yaml"
    start = f"study: {study}\nprompts: {{source: organism}}\nchat: {chat}\n"
    path.write_text(start + WHOLE[study].replace("MODEL", model))
    assert plan_experiment(path).config.study == study  # it runs
    checked = Draft202012Validator(study_schema(study))
    assert not [error.message for error in checked.iter_errors(read_yaml(path))]


FINDING = {
    "id": "x",
    "claim": "X.",
    "scope": "checkpoint",
    "margin": 0.1,
    "cell": {"test": "window"},
}


@pytest.mark.parametrize(
    ("study", "wrong"),
    [
        ("concentration", {"attack": {"layers": [-5]}}),
        ("concentration", {"attack": {"layers": ["attackd"]}}),
        ("concentration", {"positions": ["eoi[0]"]}),
        ("concentration", {"positions": []}),
        ("concentration", {"arms": {"a/b": {"model": "x"}}}),
        ("similarity", {"models": {"..": "x", "b": "y"}}),
        ("similarity", {"transfer": {"min_refusals": 7}}),
        ("locality", {"localize": {"share": 7}}),
        ("locality", {"model": ""}),
        ("locality", {"selection": {"filters": {"induce_threshold": "low"}}}),
        ("locality", {"refusal_tokens": [-1]}),
        ("locality", {"findings": [{**FINDING, "id": "../../x"}]}),
        ("locality", {"findings": [{**FINDING, "margin": -0.1}]}),
        ("locality", {"findings": [{**FINDING, "cell": {"test": "window", "max_length": 7}}]}),
    ],
)
def test_what_the_schema_can_say_is_wrong_is_refused_by_both(
    study: str, wrong: dict[str, Any], tmp_path: Path
) -> None:
    template = next(path for path in EXPERIMENTS if read_yaml(path)["study"] == study)
    raw = read_yaml(template)
    checked = Draft202012Validator(study_schema(study))
    assert checked.is_valid(raw)
    key, value = next(iter(wrong.items()))
    merged = {**raw, key: {**raw.get(key, {}), **value} if isinstance(value, dict) else value}
    assert not checked.is_valid(merged)
    path = tmp_path / "wrong.yaml"
    path.write_text(json.dumps(merged))
    with pytest.raises(ConfigError, match=key):
        plan_experiment(path)
