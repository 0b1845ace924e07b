# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pandas comes without complete types.
"""Two records side by side: which stage, row, tensor, finding and answer differs first, and why."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mechsafety.core.result import Finding, Tolerances
from mechsafety.records.completions import AnswersCompared, compare_answers
from mechsafety.records.environments import (
    ANOTHER_RUN,
    ELSEWHERE,
    EnvironmentDifference,
    environment_differences,
)
from mechsafety.records.metrics_table import COLUMNS
from mechsafety.records.reading import Run
from mechsafety.records.schema import Manifest

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

T = TypeVar("T")

ABSENT: Final = "not there"
_NUMBERS: Final = ("value", "ci_low", "ci_high")
_ASKED: Final = ("config", "declared")
_NOT_ASKED: Final = ("runtime", "wandb", "completions", "token_ids", "title")
"""Settings that change no number but by rounding; the environments' differences tell of them."""
_FINDING_NUMBERS: Final = ("value", "ci_low", "ci_high", "null_low", "null_high")
_FINDING_WORDS: Final = ("verdict", "n", "unit", "claim", "scope", "margin", "cell")
_FINDING_REMARKS: Final = ("null", "explanation", "specification", "mechanism", "notes")
"""What words and further analyses say of the numbers; elsewhere it moves with them."""


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
    described: Compared
    """What the manifest says beside numbers: config, seeds, notes, captions, figures."""
    answers: AnswersCompared | None
    """None where one of the two was to keep no answers."""

    @property
    def same(self) -> bool:
        """Whether one may be cited for the other."""
        parts = (self.stages, self.rows, self.tensors, self.findings, self.described)
        if not all(part.same for part in parts):
            return False
        # Another model or other prompts are another run, however near its numbers are.
        if any(one.kind in ANOTHER_RUN for one in self.environment):
            return False
        if self.answers is None:
            return True
        # Elsewhere greedy text takes another turn, but there is as much of it.
        return not (self.answers.differ if self.exact else self.answers.only_in_one)


def compare(before: Run, now: Run) -> Comparison:
    """Compare two records of one config, stage by stage, row by row.

    Raises:
        RecordError: One is damaged, or did not come so far as to have numbers.
    """
    environment = environment_differences(before.manifest, now.manifest)
    exact = not any(one.kind in ELSEWHERE for one in environment)
    # None, not a tolerance of nothing: that allows −0 for 0, and what squares to nothing.
    tolerances = None if exact else _stated(before, now)
    return Comparison(
        exact=exact,
        environment=environment,
        stages=_stages(before, now, exact),
        rows=_rows(before.metrics(), now.metrics(), tolerances),
        tensors=_tensors(before, now, tolerances),
        findings=_findings(before.findings, now.findings, tolerances),
        described=_described(before.manifest, now.manifest, exact),
        answers=compare_answers(before, now),
    )


def _stated(before: Run, now: Run) -> Tolerances:
    """The first record's; those of the second where the first is of before there were any."""
    stated = before.manifest.tolerances
    return now.manifest.tolerances if stated == Tolerances() else stated


def _described(before: Manifest, now: Manifest, exact: bool) -> Compared:
    old, new = (_told(one) for one in (before, now))
    differences = [
        # Elsewhere notes and captions move with the numbers that they quote.
        Difference("the manifest", name, old[name], new[name], not exact and name not in _ASKED)
        for name in old
        if old[name] != new[name]
    ]
    return Compared(len(old), tuple(differences))


def _told(manifest: Manifest) -> dict[str, Any]:
    told = manifest.model_dump(mode="json", include={"declared", "notes", "figures"})
    config = {name: one for name, one in manifest.config.items() if name not in _NOT_ASKED}
    return {
        "config": config,
        **told,
        "captions": {table.name: table.caption for table in manifest.tables},
    }


def _stages(before: Run, now: Run, exact: bool) -> Compared:
    old, new = (dict(_jobs(run)) for run in (before, now))
    if not old:
        # A record of before jobs were kept, or a study without any: there is nothing to say.
        return Compared(0, ())
    differences = [
        # Elsewhere no result is equal bit for bit; its numbers are judged in the tables.
        Difference(where, "sha256", a, b, allowed=not exact and ABSENT not in (a, b))
        for where in _union(old, new)
        if (a := old.get(where, ABSENT)) != (b := new.get(where, ABSENT))
    ]
    return Compared(len(_union(old, new)), tuple(differences))


def _jobs(run: Run) -> Iterator[tuple[str, str]]:
    jobs = (
        (f"stage '{stage.name}', job {number} ({job.what})", job.sha256)
        for stage in run.manifest.stages
        for number, job in enumerate(stage.jobs, start=1)
    )
    yield from _told_apart(jobs, "time")


def _rows(before: "pd.DataFrame", now: "pd.DataFrame", tolerances: Tolerances | None) -> Compared:
    # In one order, so that a row is told alike whatever its record has beside it.
    dimensions = [name for name in _union(before.columns, now.columns) if name not in COLUMNS]
    old, new = (dict(_indexed(frame, dimensions)) for frame in (before, now))
    differences: list[Difference] = []
    for where in _union(old, new):
        if where not in old or where not in new:
            differences.append(_in_one(where, "row", where in old))
            continue
        tolerance = tolerances and tolerances.of(str(old[where]["metric"]))
        for column in (*_NUMBERS, "n", "unit"):
            a, b = old[where][column], new[where][column]
            if not _alike(a, b):
                number = column in _NUMBERS and None not in (a, b)
                near = tolerance is not None and number and tolerance.allows(a, b)
                differences.append(Difference(where, column, a, b, allowed=near))
    return Compared(len(_union(old, new)), tuple(differences))


def _indexed(
    frame: "pd.DataFrame", dimensions: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row by its table, metric and dimensions, in words."""
    plain = frame.astype(object).where(frame.notna(), None)
    rows = ((_where(row, dimensions), row) for row in plain.to_dict("records"))
    yield from _told_apart(rows, "row")


def _where(row: Mapping[str, Any], dimensions: Sequence[str]) -> str:
    given = ((name, row.get(name)) for name in dimensions)
    index = [f"{name}={_plain(value)}" for name, value in given if value is not None]
    return f"table '{row['table']}', {row['metric']} at {', '.join(index) or 'no dimension'}"


def _plain(value: Any) -> Any:
    # A column with a fraction in any of its rows has fractions in all: 1 and 1.0 are one layer.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _told_apart(named: Iterable[tuple[str, T]], what: str) -> Iterator[tuple[str, T]]:
    seen: Counter[str] = Counter()
    for name, value in named:
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name} ({what} {seen[name]} of these)"), value


def _in_one(where: str, what: str, in_old: bool) -> Difference:
    there = ("there", ABSENT) if in_old else (ABSENT, "there")
    return Difference(where, what, *there, allowed=False)


def _alike(a: Any, b: Any) -> bool:
    """Equal bit for bit: of 0 and −0 one has another bit, and their text tells them apart."""
    return a == b and (not isinstance(a, float) or repr(a) == repr(b))


def _tensors(before: Run, now: Run, tolerances: Tolerances | None) -> Compared:
    old, new = before.tensor_names(), now.tensor_names()
    differences: list[Difference] = []
    for name in _union(old, new):
        where = f"tensor '{name}'"
        if name not in old or name not in new:
            differences.append(_in_one(where, "tensor", name in old))
            continue
        a, b = before.tensor(name), now.tensor(name)
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            kinds = [f"{one.dtype} {list(one.shape)}" for one in (a, b)]
            differences.append(Difference(where, "shape", *kinds, allowed=False))
        elif _bytes(a) != _bytes(b):
            off = _relative_distance(a, b)
            # Labels, counts and indices are not near one another.
            near = tolerances is not None and a.is_floating_point() and off <= tolerances.tensors
            # JSON has no infinity.
            told = off if isfinite(off) else "infinite"
            differences.append(Difference(where, "relative distance", 0.0, told, near))
    return Compared(len(_union(old, new)), tuple(differences))


def _bytes(tensor: "Tensor") -> bytes:
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _relative_distance(before: "Tensor", now: "Tensor") -> float:
    """Norm of the difference, as a share of the norm; infinite where other numbers are missing."""
    a, b = before.double(), now.double()
    finite = a.isfinite()
    # NaN and the infinities, as words: NaN differs from itself for `==` alone.
    if repr(a[~finite].tolist()) != repr(b[~finite].tolist()):
        return inf
    distance, norm = float((a - b)[finite].norm()), float(a[finite].norm())
    return 0.0 if distance == 0 else distance / norm if norm else inf


def _findings(
    before: Sequence[Finding], now: Sequence[Finding], tolerances: Tolerances | None
) -> Compared:
    old, new = ({one.id: one for one in findings} for findings in (before, now))
    differences: list[Difference] = []
    for name in _union(old, new):
        where = f"finding '{name}'"
        if name not in old or name not in new:
            differences.append(_in_one(where, "finding", name in old))
            continue
        near = 0.0 if tolerances is None else tolerances.margins * old[name].margin
        old_fields, new_fields = (one[name].model_dump(mode="json") for one in (old, new))
        for field in (*_FINDING_WORDS, *_FINDING_NUMBERS, *_FINDING_REMARKS):
            a, b = old_fields[field], new_fields[field]
            if not _alike(a, b):
                number = field in _FINDING_NUMBERS and None not in (a, b)
                allowed = field in _FINDING_REMARKS or (number and abs(b - a) <= near)
                differences.append(
                    Difference(where, field, a, b, allowed and tolerances is not None)
                )
    return Compared(len(_union(old, new)), tuple(differences))


def _union(first: Iterable[str], second: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *second]))
