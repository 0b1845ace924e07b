"""Judging the answers that a run kept once more: by its own judge, or by another."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mechsafety.core.config import parse_config
from mechsafety.core.errors import ConfigError, RecordError
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.judges.rates import rates
from mechsafety.records.completions import PURGED, Completion, completions
from mechsafety.records.landing import land_json
from mechsafety.records.reading import Run
from mechsafety.records.schema import DERIVED, own_folder

_OWN: Final = "phrases:"


@dataclass(frozen=True, slots=True)
class Flip:
    """One answer on which the two judgments differ."""

    at: Mapping[str, Any]
    before: str
    now: Verdict


@dataclass(frozen=True, slots=True)
class Group:
    """Answers of one arm to one prompt set under one edit."""

    at: Mapping[str, Any]
    n: int
    refused_before: int
    refused: int
    rate: float | None
    """Refusals among the answers that could be judged; None where none could."""
    ci_low: float | None
    """Wilson, 95 %, with clusters undivided where the record names them."""
    ci_high: float | None


@dataclass(frozen=True, slots=True)
class Rejudged:
    """What a judge made of a run's answers, beside what the run's own had made of them."""

    judge: str
    own_judge: str
    """The one that judged in the run."""
    n: int
    groups: tuple[Group, ...]
    flips: tuple[Flip, ...]
    path: Path
    """Where this is kept: in the run's `derived/`, outside its seal. Texts are not in it."""


def rejudge(run: Run, phrases: str | None = None) -> Rejudged:
    """Judge every kept answer of a run.

    Args:
        run: With `completions: local`.
        phrases: A list of phrases (see `PhraseJudge`); None: the run's own, which finds the same
            verdicts unless the judge's code has changed since.

    Raises:
        RecordError: No answers were kept, or they were purged; or the folder cannot be written.
        ConfigError: No such list.
    """
    kept = completions(run)
    if not kept:
        raise RecordError(f"judging {run.folder} again: {_why_none(run)}")
    own = str(run.manifest.provenance.get("judge", ""))
    judge = _judge(phrases, own)
    verdicts: list[Verdict] = [judge.judge(one.text, one.thinking_open) for one in kept]
    flips = tuple(
        Flip({"file": one.file, **dict(one.at)}, one.verdict, verdict)
        for one, verdict in zip(kept, verdicts, strict=True)
        if verdict != one.verdict
    )
    folder = own_folder(run.folder, DERIVED)
    path = folder / f"rejudged-{judge.name.replace(':', '-')}.json"
    found = Rejudged(judge.name, own, len(kept), _groups(kept, verdicts, judge.name), flips, path)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RecordError(f"judging {run.folder} again: {error}.") from None
    land_json(path, {**asdict(found), "path": path.name})
    return found


def _judge(phrases: str | None, own: str) -> PhraseJudge:
    if phrases is not None:
        return parse_config(PhraseJudge, {"phrases": phrases}, "judging again")
    if not own.startswith(_OWN):
        raise ConfigError(
            f"judging again: the record's own judge is '{own or 'not named'}', which judges no "
            "kept text. Name a list of phrases with --phrases."
        )
    return parse_config(PhraseJudge, {"phrases": own.removeprefix(_OWN)}, "judging again")


def _why_none(run: Run) -> str:
    if run.manifest.config.get("completions") != "local":
        return (
            "it kept no answers (`completions: none`), so it cannot be judged again. Run it with "
            "--set completions=local."
        )
    if (run.folder / DERIVED / PURGED).exists():
        return "its answers were purged."
    return f"it is '{run.status}' and came to no answers that it could keep."


def _groups(
    kept: Sequence[Completion], verdicts: Sequence[Verdict], judge: str
) -> tuple[Group, ...]:
    members: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for place, one in enumerate(kept):
        at = (("file", one.file), *((k, v) for k, v in one.at if k != "prompt"))
        members.setdefault(at, []).append(place)
    return tuple(
        _group(at, [kept[i] for i in places], [verdicts[i] for i in places], judge)
        for at, places in members.items()
    )


def _group(
    at: tuple[tuple[str, Any], ...],
    kept: Sequence[Completion],
    verdicts: Sequence[Verdict],
    judge: str,
) -> Group:
    clusters = [one.cluster for one in kept]
    whole = None if None in clusters else clusters
    refused = rates(verdicts, kept[0].max_new_tokens or 0, judge, whole).refused
    ends = (None, None) if refused.interval is None else refused.interval
    return Group(
        at=dict(at),
        n=len(kept),
        refused_before=sum(one.verdict == "refused" for one in kept),
        refused=refused.count,
        rate=refused.value,
        ci_low=ends[0],
        ci_high=ends[1],
    )
