"""Reading the model and its base, and how well every place separates the classes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from mechsafety.core.errors import ModelError
from mechsafety.data.pairs import OrganismPairs
from mechsafety.data.prompts import PromptPairs, PromptSet
from mechsafety.organisms.prompts import behavior_sets, twins
from mechsafety.organisms.sources import StudyPrompts
from mechsafety.studies.locating.frame import Frame, ask_of
from mechsafety.studies.locating.measured import Lexical, Measured, Separated, lexical, separated
from mechsafety.studies.locating.reading import Read, ReadJob, read_model
from mechsafety.studies.locating.settings import LocalitySettings
from mechsafety.studies.samples import Sample

HELD_PAIRS: Final = "held-out pairs"
"""Source of prompts: other verb-object pairs (or groups) than those fitted."""
HELD_WORDS: Final = "held-out words"
"""Source of prompts: words that safety training never saw."""
WRAPPED: Final = {
    "forbidden/wrappers seen": "harmful",
    "forbidden/wrappers held out": "harmful",
    "allowed/wrappers held out": "harmless",
}
"""Sets of the organisms' world that may fill the off-diagonal of harm × behavior."""


def held_out_pairs(prompts: StudyPrompts) -> PromptPairs:
    """Prompts that no direction was fitted on: the select and the third split."""
    return both(prompts.pairs["select"], prompts.pairs["evaluate"])


def both(first: PromptPairs, second: PromptPairs) -> PromptPairs:
    """The pairs of two splits, one after the other."""
    sides = [
        PromptSet(a.name, (*a.prompts, *b.prompts), a.source)
        for a, b in zip(first.sets, second.sets, strict=True)
    ]
    return PromptPairs(first.name, sides[0], sides[1], first.pairing)


def sources_of(config: LocalitySettings, prompts: StudyPrompts) -> dict[str, PromptPairs]:
    """Held-out prompts by where they come from."""
    found = {HELD_PAIRS: held_out_pairs(prompts)}
    if isinstance(config.prompts, OrganismPairs):
        n = config.prompts.count("evaluate")
        preset = config.prompts.preset
        found[HELD_WORDS] = twins(n, config.seed, "evaluate", words="held_out", preset=preset)
    return found


def wrapped_prompts(config: LocalitySettings) -> dict[str, PromptSet]:
    """Prompts that fill the off-diagonal of harm × behavior; none for files."""
    if not isinstance(config.prompts, OrganismPairs) or not config.localize.two_by_two_n:
        return {}
    n, preset = config.localize.two_by_two_n, config.prompts.preset
    world = behavior_sets(n, config.seed, preset=preset)
    return {name: world[name] for name in WRAPPED}


def read_models(frame: Frame, folders: Mapping[str, str]) -> tuple[Read, Read | None]:
    """The model and its base, side by side."""
    config, prompts = frame.config, frame.prompts
    fit = prompts.pairs["fit"]
    sets = {"harmful": fit.first, "harmless": fit.second}
    for source, pairs in sources_of(config, prompts).items():
        sets |= {f"{source}/harmful": pairs.first, f"{source}/harmless": pairs.second}
    wrapped = wrapped_prompts(config)
    job = ReadJob(
        asked=frame.asked,
        sets=sets | wrapped,
        streams=config.maps.streams,
        positions=config.positions,
        answered=("harmful", "harmless", *wrapped),
        judge=frame.judge,
        max_new_tokens=config.answers_max_new_tokens,
    )
    jobs = [job]
    if config.base is not None:
        asked = ask_of(config, config.base, folders)
        # First, so that one process has the model open for what is asked next.
        jobs.insert(0, replace(job, asked=asked, sets=sets, answered=()))
    *bases, read = frame.context.map(read_model, jobs, "reading")
    for base in bases:
        _check_comparable(read, base)
    return read, bases[0] if bases else None


def _check_comparable(read: Read, base: Read) -> None:
    if (read.sites, read.positions) != (base.sites, base.positions):
        raise ModelError(
            "reading the base model, whose map stands beside the model's place by place: the model "
            f"has {read.dims.n_layers} layers and is read at {', '.join(map(str, read.positions))},"
            f" its base {base.dims.n_layers} at {', '.join(map(str, base.positions))}. Name as "
            "`base` the model that was trained into this one, or null to do without."
        )


@dataclass(frozen=True)
class SeparationJob:
    """All that the separation maps are made of."""

    models: Mapping[str, Read]
    samples: Mapping[str, Sample]
    """Held-out prompts by source."""
    paired: bool
    permutations: int
    seed: int


@dataclass(frozen=True)
class Separations:
    """How well every place of every model separates the classes, and words alone."""

    maps: Mapping[tuple[str, str], Separated]
    """(model, source) → map."""
    lexical: Mapping[str, Lexical]


def separations(job: SeparationJob) -> Separations:
    """Every model's map on the held-out prompts of every source."""
    held = {source: (f"{source}/harmful", f"{source}/harmless") for source in job.samples}
    return Separations(
        maps={
            (name, source): separated(
                one, held[source], sample, job.paired, job.permutations, job.seed
            )
            for name, one in job.models.items()
            for source, sample in job.samples.items()
        },
        lexical={
            source: lexical(job.models["model"], held[source], sample, job.paired)
            for source, sample in job.samples.items()
        },
    )


def separation_of(frame: Frame, read: Read, base: Read | None) -> Measured:
    """The maps of both models, beside what words alone give; nothing causal yet."""
    config, prompts = frame.config, frame.prompts
    samples = {
        source: Sample.of(pairs, config.cluster_by, config.maps.resamples, config.seed, source)
        for source, pairs in sources_of(config, prompts).items()
    }
    job = SeparationJob(
        models={"model": read} | ({} if base is None else {"base": base}),
        samples=samples,
        paired=prompts.pairs["fit"].pairing == "twins",
        permutations=config.maps.permutations,
        seed=config.seed,
    )
    (found,) = frame.context.map(separations, [job], "separating")
    return Measured(
        read=read,
        base=base,
        held=samples[HELD_PAIRS],
        separation=found.maps,
        lexical=found.lexical,
        causal=None,
        why_not="",
        seed=config.seed,
    )
