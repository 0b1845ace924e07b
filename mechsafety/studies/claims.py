"""From a declared claim and the effects of its legal choices to a finding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor

from mechsafety.core.config import FrozenConfig
from mechsafety.core.result import (
    Cell,
    CellT,
    DeclaredFinding,
    Dimension,
    Finding,
    Verdict,
    verdict,
)
from mechsafety.core.seeding import named_generator
from mechsafety.core.specification import Choice, specification_curve
from mechsafety.metrics.intervals import Interval, mcnemar, paired_difference, student_mean
from mechsafety.metrics.seeds import MIN_SEEDS, over_seeds


@dataclass(frozen=True)
class Effect:
    """The claim's number under one choice of analysis."""

    value: float
    interval: Interval
    null: tuple[float, float]
    n: int
    words: str
    """Both sides of the difference, in words and numbers."""


Choices = Mapping[tuple[tuple[str, str], ...], Effect]
"""Settings of each legal choice, as sorted pairs → its effect."""


def choice_key(settings: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Settings as `Choices` holds them."""
    return tuple(sorted(settings.items()))


@dataclass(frozen=True)
class Assessed:
    """A claim under every legal choice, and which of them is primary."""

    primary: Mapping[str, str]
    choices: Choices
    null: str
    unit: str
    mechanism: str | None = None
    notes: tuple[str, ...] = ()
    agrees: bool = True
    """False where another form with acceptable harmless KL gives another verdict."""


def assembled(
    claim: DeclaredFinding[CellT],
    assessed: Assessed,
    notes: Sequence[str],
    *,
    choices: Choices | None = None,
    n: int | None = None,
    unit: str | None = None,
    words: str | None = None,
    inconclusive: bool = False,
) -> Finding:
    """The finding of an assessed claim: primary effect, verdict and specification curve.

    Args:
        claim: As the YAML states it.
        assessed: Its effects; the primary one must be among them.
        notes: Of the run, before those of the claim.
        choices: In place of the assessed ones, such as their means over training seeds.
        n: In place of the effect's.
        unit: In place of the assessed one.
        words: In place of the effect's.
        inconclusive: No verdict stands, whatever the numbers say.
    """
    used = assessed.choices if choices is None else choices
    effect = used[choice_key(assessed.primary)]
    found: Verdict = verdict(effect.value, *effect.interval, claim.margin, effect.null)
    curve = specification_curve(
        [Choice(dict(settings), e.value, *e.interval, e.null) for settings, e in used.items()],
        assessed.primary,
        claim.margin,
    )
    return Finding(
        id=claim.id,
        claim=claim.claim,
        scope=claim.scope,
        value=effect.value,
        ci_low=effect.interval.low,
        ci_high=effect.interval.high,
        null_low=effect.null[0],
        null_high=effect.null[1],
        null=assessed.null,
        n=effect.n if n is None else n,
        unit=assessed.unit if unit is None else unit,
        verdict="inconclusive" if inconclusive or not assessed.agrees else found,
        margin=claim.margin,
        explanation=effect.words if words is None else words,
        cell=resolved(claim, assessed.primary),
        specification=curve,
        mechanism=assessed.mechanism,
        notes=tuple(dict.fromkeys((*notes, *assessed.notes))),
    )


def replicated(
    claim: DeclaredFinding[CellT],
    assessed: Sequence[Assessed],
    seeds: Sequence[tuple[int, ...]],
    notes: Sequence[str],
) -> Finding:
    """The finding of a claim that was assessed on models of several training seeds.

    Each choice's effect is the mean over seeds and its interval is over seeds; its null is the
    mean of the seeds' null ranges. Below `MIN_SEEDS` it only counts seeds. Replications whose
    primary choice is another one, such as another layer number in a deeper model, have no mean,
    and the finding says so.

    Args:
        claim: Of scope `method`.
        assessed: The claim on each replication.
        seeds: The training seeds that enter each replication; what shares one is not independent.
        notes: Of the run.
    """
    primary = choice_key(assessed[0].primary)
    others = [one.primary for one in assessed if choice_key(one.primary) != primary]
    if others:
        apart = "; ".join(
            f"{key} {value} and {others[0].get(key, 'none')}"
            for key, value in assessed[0].primary.items()
            if others[0].get(key) != value
        )
        return unmeasured(
            claim,
            f"Its replications are measured at other places or in other ways ({apart}), so that "
            "they have no mean. Name models of one depth that are compared in one way.",
            notes,
        )
    choices = _over_seeds([one.choices for one in assessed], seeds)
    values = [one.choices[primary].value for one in assessed]
    # Two seeds that enter one pair are still one replication.
    n_seeds = min(len({seed for entered in seeds for seed in entered}), len(set(seeds)))
    units = "training seeds" if n_seeds == len(values) else f"pairs of {n_seeds} training seeds"
    words = (
        f"{sum(value > 0 for value in values)} of {len(values)} {units} positive. "
        f"{choices[primary].words}"
    )
    # Replications that all share one seed are as many as one.
    few = n_seeds < MIN_SEEDS or over_seeds(_by_seeds(seeds, values)).interval is None
    if few:
        words += f" Fewer than {MIN_SEEDS} independent seeds give no interval over training."
    return assembled(
        claim,
        assessed[0],
        notes,
        choices=choices,
        n=n_seeds,
        unit=f"{assessed[0].unit} (training seeds)",
        words=words,
        inconclusive=few or not all(one.agrees for one in assessed),
    )


def _over_seeds(by_seed: Sequence[Choices], seeds: Sequence[tuple[int, ...]]) -> Choices:
    shared = [key for key in by_seed[0] if all(key in one for one in by_seed)]
    merged: dict[tuple[tuple[str, str], ...], Effect] = {}
    for key in shared:
        effects = [one[key] for one in by_seed]
        means = _by_seeds(seeds, [e.value for e in effects])
        found = over_seeds(means)
        interval = found.interval
        if interval is None:
            # Too few for seeds to be left out: nobody gets a verdict from these.
            values = torch.tensor(list(means.values()), dtype=torch.float64)
            alone = Interval(found.value, found.value)
            interval = student_mean(values) if len(values) > 1 else alone
        nulls = torch.tensor([e.null for e in effects], dtype=torch.float64).mean(0)
        null = (float(nulls[0]), float(nulls[1]))
        merged[key] = Effect(
            value=found.value,
            interval=interval,
            null=null,
            n=len(effects),
            words=f"By seed: {', '.join(f'{e.value:+.2f}' for e in effects)}; the null spans "
            f"{span(null)} on average.",
        )
    return merged


def _by_seeds(
    seeds: Sequence[tuple[int, ...]], values: Sequence[float]
) -> dict[tuple[int, ...], float]:
    """Comparisons of the same training runs are one replication."""
    together: dict[tuple[int, ...], list[float]] = {}
    for entered, value in zip(seeds, values, strict=True):
        together.setdefault(entered, []).append(value)
    return {entered: fmean(several) for entered, several in together.items()}


def unmeasured(claim: DeclaredFinding[CellT], why: str, notes: Sequence[str]) -> Finding:
    """A claim that this run could not measure, with the reason in words."""
    return Finding(
        id=claim.id,
        claim=claim.claim,
        scope=claim.scope,
        value=None,
        ci_low=None,
        ci_high=None,
        null_low=None,
        null_high=None,
        null="not drawn, because the claim could not be measured",
        n=0,
        unit="not measured",
        verdict="inconclusive",
        margin=claim.margin,
        explanation=f"Not measured. {why}",
        cell=resolved(claim, {}),
        notes=tuple(notes),
    )


def resolved(claim: DeclaredFinding[CellT], primary: Mapping[str, str]) -> Cell:
    """The claim's cell with what its rules came to in this run."""
    stated = cast("FrozenConfig", claim.cell).model_dump(mode="json")
    flat = {key: _flat(value) for key, value in stated.items() if value != []}
    return {**flat, **primary}


def _flat(value: Any) -> Dimension:
    """A list of pairs, such as a claim's replications, in words; all else as it is."""
    if not isinstance(value, list):
        return value
    return "; ".join("–".join(pair) for pair in cast("list[list[str]]", value))


def rate_difference(
    first: Sequence[bool], second: Sequence[bool], clusters: Sequence[str], seed: int
) -> tuple[float, Interval]:
    """Difference of two rates of the same prompts, first minus second, clusters undivided."""
    a, b = torch.tensor(list(first)), torch.tensor(list(second))
    value = float(a.double().mean() - b.double().mean())
    if len(set(clusters)) < 2 or bool(((a.int() - b.int()) == (a.int() - b.int())[0]).all()):
        # Equal differences leave nothing to resample; McNemar's interval keeps its width. Each
        # cluster counts as one prompt, because nothing shows that prompts within one differ.
        firsts = [clusters.index(name) for name in dict.fromkeys(clusters)]
        found = mcnemar(a[firsts], b[firsts]).interval
        return value, Interval(min(found.low, value), max(found.high, value))
    generator = named_generator(seed, "rates")
    return value, paired_difference(
        a.double(), b.double(), generator, resamples=2000, clusters=list(clusters)
    )


def null_range(draws: Tensor) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of the draws of a null."""
    low, high = draws.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)


def span(null: tuple[float, float]) -> str:
    """The range of a null in words."""
    return f"{null[0]:+.2f} to {null[1]:+.2f}"


def share_words(outcomes: Sequence[bool]) -> str:
    """Such as `3/40`."""
    return f"{sum(outcomes)}/{len(outcomes)}"
