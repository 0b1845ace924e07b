# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pandas comes without complete types.
"""Two records side by side: which stage, row, tensor, finding and answer differs first, and why."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from mechsafety.core.result import Finding, Tolerances
from mechsafety.records.completions import AnswersCompared, compare_answers
from mechsafety.records.environments import (
    ELSEWHERE,
    EnvironmentDifference,
    environment_differences,
)
from mechsafety.records.metrics_table import COLUMNS
from mechsafety.records.reading import Run

if TYPE_CHECKING:
    import pandas as pd

ABSENT: Final = "not there"
_NUMBERS: Final = ("value", "ci_low", "ci_high")
_FINDING_NUMBERS: Final = ("value", "ci_low", "ci_high", "null_low", "null_high")
_FINDING_WORDS: Final = ("verdict", "n", "unit", "claim", "scope", "margin")


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two records are not equal bit for bit."""

    where: str
    """Stage and job, table and row, tensor or finding."""
    what: str
    """Which of its values."""
    before: Any
    now: Any
    allowed: bool
    """Whether it lies within the tolerance that the study declares, where that counts."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What was compared of one sort."""

    n: int
    """How many there are, in either record."""
    differences: tuple[Difference, ...]
    """In the order of the first record."""

    @property
    def same(self) -> bool:
        """Whether none lies beyond its tolerance."""
        return all(one.allowed for one in self.differences)

    @property
    def first(self) -> Difference | None:
        """The first that is not allowed, else the first of all."""
        refused = (one for one in self.differences if not one.allowed)
        return next(refused, self.differences[0] if self.differences else None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two records side by side."""

    exact: bool
    """Whether both ran on the same machine, versions, threads and code: then every bit counts.
    Elsewhere numbers may differ by what the first record's study tolerates."""
    environment: tuple[EnvironmentDifference, ...]
    stages: Compared
    """Every job of every stage, by the hash of its result."""
    rows: Compared
    tensors: Compared
    findings: Compared
    answers: AnswersCompared | None
    """None where one of the two kept no completions."""

    @property
    def same(self) -> bool:
        """Whether one may be cited for the other."""
        parts = (self.stages, self.rows, self.tensors, self.findings)
        equal = all(part.same for part in parts)
        return equal and not (self.exact and self.answers is not None and self.answers.differ)


def compare(before: Run, now: Run) -> Comparison:
    """Compare two records of one config, stage by stage, row by row.

    Raises:
        RecordError: One is damaged, or did not come so far as to have numbers.
    """
    environment = environment_differences(before.manifest, now.manifest)
    exact = not any(one.kind in ELSEWHERE for one in environment)
    tolerances = Tolerances() if exact else before.manifest.tolerances
    return Comparison(
        exact=exact,
        environment=environment,
        stages=_stages(before, now, exact),
        rows=_rows(before.metrics(), now.metrics(), tolerances),
        tensors=_tensors(before, now, tolerances),
        findings=_findings(before.findings, now.findings, tolerances),
        answers=compare_answers(before, now),
    )


def _stages(before: Run, now: Run, exact: bool) -> Compared:
    old, new = (dict(_jobs(run)) for run in (before, now))
    differences = [
        # Elsewhere no result is equal bit for bit; its numbers are judged in the tables.
        Difference(where, "sha256", a, b, allowed=not exact and ABSENT not in (a, b))
        for where in _union(old, new)
        if (a := old.get(where, ABSENT)) != (b := new.get(where, ABSENT))
    ]
    return Compared(len(_union(old, new)), tuple(differences))


def _jobs(run: Run) -> Iterator[tuple[str, str]]:
    for stage in run.manifest.stages:
        for number, job in enumerate(stage.jobs, start=1):
            yield f"stage '{stage.name}', job {number} ({job.what})", job.sha256


def _rows(before: "pd.DataFrame", now: "pd.DataFrame", tolerances: Tolerances) -> Compared:
    old, new = (dict(_indexed(frame)) for frame in (before, now))
    differences: list[Difference] = []
    for where in _union(old, new):
        if where not in old or where not in new:
            there = (ABSENT, "there") if where not in old else ("there", ABSENT)
            differences.append(Difference(where, "row", *there, allowed=False))
            continue
        tolerance = tolerances.of(str(old[where]["metric"]))
        for column in (*_NUMBERS, "n", "unit"):
            a, b = old[where][column], new[where][column]
            if a != b:
                near = column in _NUMBERS and None not in (a, b) and tolerance.allows(a, b)
                differences.append(Difference(where, column, a, b, allowed=near))
    return Compared(len(_union(old, new)), tuple(differences))


def _indexed(frame: "pd.DataFrame") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row by its table, metric and dimensions, in words."""
    dimensions = [name for name in frame.columns if name not in COLUMNS]
    plain = frame.astype(object).where(frame.notna(), None)
    seen: dict[str, Iterator[int]] = {}
    for row in plain.to_dict("records"):
        index = [f"{name}={row[name]}" for name in dimensions if row[name] is not None]
        where = f"table '{row['table']}', {row['metric']} at {', '.join(index) or 'no dimension'}"
        again = next(seen.setdefault(where, count(1)))
        yield where if again == 1 else f"{where} (row {again} of these)", row


def _tensors(before: Run, now: Run, tolerances: Tolerances) -> Compared:
    names = _union(before.tensor_names(), now.tensor_names())
    differences: list[Difference] = []
    for name in names:
        where = f"tensor '{name}'"
        if name not in before.tensor_names() or name not in now.tensor_names():
            there = (ABSENT, "there") if name in now.tensor_names() else ("there", ABSENT)
            differences.append(Difference(where, "tensor", *there, allowed=False))
            continue
        a, b = before.tensor(name), now.tensor(name)
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            kinds = [f"{one.dtype} {list(one.shape)}" for one in (a, b)]
            differences.append(Difference(where, "shape", *kinds, allowed=False))
        elif a.numpy().tobytes() != b.numpy().tobytes():
            norm = float(a.double().norm())
            off = float((a.double() - b.double()).norm()) / norm if norm else float("inf")
            differences.append(
                Difference(where, "relative distance", 0.0, off, off <= tolerances.tensors)
            )
    return Compared(len(names), tuple(differences))


def _findings(
    before: Sequence[Finding], now: Sequence[Finding], tolerances: Tolerances
) -> Compared:
    old, new = ({one.id: one for one in findings} for findings in (before, now))
    differences: list[Difference] = []
    for name in _union(old, new):
        where = f"finding '{name}'"
        if name not in old or name not in new:
            there = (ABSENT, "there") if name not in old else ("there", ABSENT)
            differences.append(Difference(where, "finding", *there, allowed=False))
            continue
        near = tolerances.margins * old[name].margin
        for field in (*_FINDING_WORDS, *_FINDING_NUMBERS):
            a, b = getattr(old[name], field), getattr(new[name], field)
            if a != b:
                number = field in _FINDING_NUMBERS and None not in (a, b)
                allowed = number and abs(b - a) <= near
                differences.append(Difference(where, field, a, b, allowed))
    return Compared(len(_union(old, new)), tuple(differences))


def _union(first: "Mapping[str, Any] | Sequence[str]", second: Any) -> list[str]:
    return list(dict.fromkeys([*first, *second]))
