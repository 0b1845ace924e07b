"""Results and environments made up for tests of the record."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mechsafety.core.config import StudyConfig
from mechsafety.core.result import DeclaredFinding, Figure, Finding, Result, Table
from mechsafety.records.reading import Run, open_run
from mechsafety.records.schema import Environment, Git, JobDone, StageTiming
from mechsafety.records.store import RunWriter

ENVIRONMENT = Environment(
    python="3.11",
    platform="test",
    packages={"torch": "2"},
    hardware={"cores": 2},
    threads={"torch": 1},
    determinism={},
    variables={},
    code_sha256="0" * 64,
    git=Git(commit="1" * 40, dirty=True, diff="+ a line"),
)


class Config(StudyConfig):
    depth: int = 3
    findings: tuple[DeclaredFinding, ...] = (
        DeclaredFinding(
            id="grows", claim="It grows.", scope="checkpoint", margin=0.1, cell={"layer": 2}
        ),
    )


def config(**settings: object) -> Config:
    return Config.model_validate({"study": "made", **settings})


def finding(**changes: object) -> Finding:
    numbers: dict[str, object] = {
        "id": "grows",
        "claim": "It grows.",
        "scope": "checkpoint",
        "value": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "null_low": -0.1,
        "null_high": 0.1,
        "null": "labels permuted across pairs, 100 draws",
        "n": 11,
        "unit": "share (pairs)",
        "verdict": "supported",
        "margin": 0.1,
        "explanation": "It grows by 0.5.",
        "cell": {"layer": 2},
    }
    return Finding.model_validate({**numbers, **changes})


def table() -> Table:
    shares = Table("shares", "Top-2 share; subsampling intervals; null: labels permuted.")
    shares.add("top2", 0.25, n=11, unit="share", interval=(0.2, 0.3), arm="lat", layer=2)
    shares.add("top2", None, n=0, unit="share", arm="base", layer=None)
    return shares


def other_table() -> Table:
    rates = Table("rates", "Refusal rates; Wilson intervals.")
    rates.add("refusal_rate@32tok", 0.5, n=13, unit="rate", clean=True, layer=4, strength=1)
    rates.add("refusal_rate@32tok", 1.0, n=13, unit="rate", clean=False, layer=4, strength=0.5)
    return rates


def result(**changes: object) -> Result:
    parts: dict[str, object] = {
        "tables": (table(), other_table()),
        "findings": (finding(),),
        "figures": (
            Figure(id="f", title="F", caption="n = 11", kind="lines", table="shares", x="layer"),
        ),
        "tensors": {"whole": torch.arange(6.0).reshape(2, 3), "view": torch.arange(6.0)[::2]},
        "notes": ("Made up.",),
        "provenance": {"prompts": {"made": "2" * 64}},
    }
    return Result(**{**parts, **changes})  # type: ignore[arg-type]


def stage(name: str, *hashes: str, what: str = "squares") -> StageTiming:
    """A stage whose jobs gave these results."""
    jobs = tuple(JobDone(what=what, sha256=one, cached=False) for one in hashes)
    return StageTiming(name=name, started=0.0, seconds=0.1, jobs=jobs)


def answer_line(prompt: str, **changes: object) -> dict[str, object]:
    """An answer as studies keep it."""
    line: dict[str, object] = {
        "arm": "lat",
        "prompts": "harmful",
        "prompt": prompt,
        "cluster": "curse",
        "verdict": "refused",
        "max_new_tokens": 12,
        "thinking_open": False,
        "ids": [5, 7, 9],
        "text": "sorry , i can not help with curses .",
    }
    return {**line, **changes}


def recorded(
    out: Path,
    found: Result | None = None,
    *,
    environment: Environment = ENVIRONMENT,
    stages: Sequence[StageTiming] = (),
    private: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    **settings: object,
) -> Run:
    """A completed record, opened; `private` as file → lines."""
    given: dict[str, object] = {"completions": "local" if private else "none", **settings}
    writer = RunWriter.create(out, config(**given), environment, ["mechsafety"])
    writer.write_result(result() if found is None else found)
    writer.note_use(seeds={}, models={}, stages=stages, sources={})
    for name, lines in (private or {}).items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        writer.write_private(name, text.encode())
    writer.close("completed")
    return open_run(writer.folder)
