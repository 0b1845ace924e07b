"""Whatever an experiment's YAML holds, planning it gives a plan, or one error that helps.

Mutations are seeded by their number: `mutation(TEXTS, 123)` is the same one everywhere.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mechsafety.core.config import apply_overrides, read_yaml
from mechsafety.core.errors import InputError
from mechsafety.execution.runner import Plan, plan_experiment
from mechsafety.execution.schemas import study_schema
from mechsafety.execution.studies import study_names
from tests.config_mutations import Mutation, mutation, override

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(
    path for kind in ("*.yaml", "*.yml") for path in (ROOT / "experiments").rglob(kind)
)
TEXTS = [path.read_text(encoding="utf-8") for path in EXPERIMENTS]

LONGEST_MESSAGE = 5_000
SHOWN = 12
LONGEST_SECONDS = 4.0
"""CPU seconds of one plan, types checked at run time as in every test; without that, a second."""

LEAST = "study: locality\nmodel: ssft\nprompts: {source: organism}\n"
"""Short, so that overrides and not the file take the time."""


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """The first plan of each study imports it, which is no part of reading a config."""
    for path in EXPERIMENTS:
        plan_experiment(path)


@cache
def _schema(study: str) -> Draft202012Validator:
    return Draft202012Validator(study_schema(study))


def _as_editors_read(raw: Any) -> Any:
    """With `1e-3` a number, as YAML 1.2 reads it; to YAML 1.1 it is text, which pydantic takes."""
    if isinstance(raw, dict):
        return {key: _as_editors_read(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_as_editors_read(value) for value in raw]
    is_number = isinstance(raw, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", raw)
    return float(raw) if is_number else raw


def _planned(path: Path, overrides: Iterable[str] = ()) -> tuple[Plan | str, float]:
    """The plan, or the error's message, and how long it took; other errors go through."""
    started = time.process_time()
    try:
        found: Plan | str = plan_experiment(path, list(overrides))
    except InputError as error:
        found = str(error)
    return found, time.process_time() - started


def _faults(one: Mutation, raw: object, found: Plan | str, seconds: float) -> list[str]:
    """What is wrong with how a mutation was met; `raw` is what was read of a valid one."""
    faults: list[str] = []
    if seconds > LONGEST_SECONDS:
        faults.append(f"took {seconds:.1f} s")
    if isinstance(found, Plan):
        if one.refused:
            faults.append("is valid, and cannot be")
        checked = _schema(found.study.name)
        readings = (raw, _as_editors_read(raw))
        underlined = [[error.message for error in checked.iter_errors(one)] for one in readings]
        told = min(underlined, key=len)
        return [*faults, *(f"an editor underlines it: {message}" for message in told[:1])]
    if len(found) > LONGEST_MESSAGE:
        faults.append(f"its message has {len(found)} characters")
    if not found.replace("\n", "").isprintable():
        faults.append("its message is not printable")
    if one.names and not any(name in found for name in one.names):
        faults.append(f"its message names none of {one.names}")
    if one.meant is not None:
        meant = f"Did you mean '{one.meant}'?"
        if meant not in found:
            faults.append(f"its message does not say: {meant}")
    return faults


def _fuzzed(numbers: range, path: Path) -> str:
    """Plan each mutation; a line of counts, or the faults of the first that are met badly."""
    wrong: list[str] = []
    refused: Counter[str] = Counter()
    all_of: Counter[str] = Counter()
    slowest = 0.0
    for number in numbers:
        one = mutation(TEXTS, number)
        path.write_bytes(one.content)
        try:
            found, seconds = _planned(path)
        except Exception as error:
            wrong.append(f"{number} ({one.kind}): {type(error).__name__}: {str(error)[:200]}")
            continue
        slowest = max(slowest, seconds)
        all_of[one.kind] += 1
        refused[one.kind] += isinstance(found, str)
        raw = read_yaml(path) if isinstance(found, Plan) else None
        faults = _faults(one, raw, found, seconds)
        if faults:
            wrong.append(f"{number} ({one.kind}): {'; '.join(faults)}: {str(found)[:700]}")
    assert not wrong, f"{len(wrong)} of {all_of.total()} are met badly:\n" + "\n".join(
        wrong[:SHOWN]
    )
    # Most mutations break something, and each kind that must be seen is.
    assert refused.total() > 0.6 * all_of.total()
    assert all(refused[kind] for kind in all_of if all_of[kind] >= 20 and kind != "line ends")
    counts = ", ".join(f"{kind} {refused[kind]}/{n}" for kind, n in sorted(all_of.items()))
    return (
        f"{all_of.total()} mutations of {len(TEXTS)} experiments, {refused.total()} refused "
        f"({counts}); slowest {slowest:.2f} s"
    )


def _overridden(numbers: range, path: Path) -> str:
    """Plan with each override; a line of counts, or the faults of those that are met badly."""
    path.write_text(LEAST, encoding="utf-8")
    raw = read_yaml(path)
    wrong: list[str] = []
    refused, slowest = 0, 0.0
    for number in numbers:
        given = [override(number)] + [override(-number)] * (number % 3 == 0)
        try:
            found, seconds = _planned(path, given)
        except Exception as error:
            wrong.append(f"{str(given)[:200]}: {type(error).__name__}: {str(error)[:200]}")
            continue
        slowest = max(slowest, seconds)
        refused += isinstance(found, str)
        merged = apply_overrides(raw, given) if isinstance(found, Plan) else None
        faults = _faults(Mutation("override", b""), merged, found, seconds)
        if faults:
            wrong.append(f"{str(given)[:200]}: {'; '.join(faults)}: {str(found)[:300]}")
    assert not wrong, f"{len(wrong)} of {len(numbers)} are met badly:\n" + "\n".join(wrong[:SHOWN])
    assert 0.5 * len(numbers) < refused < len(numbers)
    return f"{len(numbers)} overrides, {refused} refused; slowest {slowest:.2f} s"


def test_there_are_experiments_and_all_are_valid() -> None:
    assert EXPERIMENTS
    assert {plan_experiment(path).study.name for path in EXPERIMENTS} == set(study_names())


def test_the_mutations_break_what_they_say_and_are_the_same_every_time() -> None:
    ones = [mutation(TEXTS, number) for number in range(300)]
    assert [mutation(TEXTS, number) for number in range(50)] == ones[:50]
    kinds = Counter(one.kind for one in ones)
    assert len(kinds) == 24
    assert len({one.content for one in ones}) > 290
    assert kinds["near miss"] > 30
    assert len({override(number) for number in range(300)}) > 200


SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))


@pytest.mark.parametrize(
    ("tried", "numbers"),
    [
        pytest.param(_fuzzed, range(500), id="500 mutated experiments"),
        pytest.param(_overridden, range(200), id="200 overrides"),
        pytest.param(_fuzzed, range(500, 10_500), id="10,000 mutated experiments", marks=SLOW),
        pytest.param(_overridden, range(200, 5_200), id="5,000 overrides", marks=SLOW),
    ],
)
def test_mutations_give_a_plan_or_one_error_that_helps(
    tried: Callable[[range, Path], str],
    numbers: range,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = tried(numbers, tmp_path / "experiment.yaml")
    with capsys.disabled():
        print(f"\n{told}")
