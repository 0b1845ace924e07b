"""Where does the refusal direction live?

Published work picks one (layer, position) and stops (arXiv:2406.11717). This study maps the whole
model: how well every place separates harmful from harmless prompts, what ablating and adding the
direction read there causes, in which layers and at which tokens that effect arises, which heads
and MLPs write the direction, and whether there is a second one; each with its control.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from mechsafety.core.config import FrozenConfig, StudyConfig
from mechsafety.core.context import Context
from mechsafety.core.errors import SelfCheckError
from mechsafety.core.positions import Position, PositionText
from mechsafety.core.result import Result
from mechsafety.core.seeding import derive_seed, named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.pairs import OrganismPairs, PairsSource
from mechsafety.data.prompts import PromptPairs, PromptSet
from mechsafety.data.splits import Split
from mechsafety.effects.ablation_matrix import Source
from mechsafety.effects.selection import Candidates, Mode, Selection
from mechsafety.effects.selection_rule import SelectionFilters
from mechsafety.effects.windows import windows
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.linalg.subspace import Subspace, orthonormal_basis
from mechsafety.linalg.typed import linalg
from mechsafety.models.spec import ModelSpec
from mechsafety.organisms.prompts import behavior_sets, twins
from mechsafety.organisms.sources import StudyPrompts, study_prompts
from mechsafety.studies.arms import ORGANISM_NOTE, let_go
from mechsafety.studies.locality_findings import Claim, finding
from mechsafety.studies.locality_jobs import (
    Asked,
    ClassScores,
    DoseJob,
    Doses,
    Evaluated,
    EvaluateJob,
    MapJob,
    Read,
    ReadJob,
    ScoreJob,
    Second,
    SecondJob,
    SelectJob,
    Task,
    Where,
    WhereJob,
    Writers,
    WritersJob,
    clean_scores,
    control_candidates,
    do,
    dose_response,
    evaluate,
    read_model,
    refusal_tokens_of,
    score_map,
    second_direction,
    select,
    where,
    writers,
)
from mechsafety.studies.locality_measured import (
    Causal,
    CausalMap,
    Measured,
    Sample,
    Windows,
    Winner,
    lexical,
    separated,
)
from mechsafety.studies.locality_tables import figures, tables, tensors

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


class SelectionSettings(FrozenConfig):
    """How the direction is chosen."""

    mode: Mode = "winner"
    """`winner` finds the chosen direction fast; `exhaustive` scores every candidate. Where the map
    is drawn it scores them all anyway, and the choice is repeated inside a bootstrap."""
    filters: SelectionFilters = SelectionFilters()
    """Which candidates may win; the defaults are the published ones."""
    only_behaving: bool = True
    """Fit and select on prompts that the model treats as it should: harmful ones with a refusal
    score above 0, harmless ones below (twins stay or leave together)."""
    min_prompts: PositiveInt = 8
    """Fewer pairs left than this, and nothing causal is measured."""
    refits: PositiveInt = 5
    """Disjoint folds of the fit split, each giving the winner's direction again."""


class MapSettings(FrozenConfig):
    """Resolution of the maps."""

    streams: tuple[str, ...] = ("resid_pre", "resid_mid")
    """Places of each block at which directions are read."""
    permutations: PositiveInt = 200
    """Relabelings behind the separation band."""
    resamples: PositiveInt = 2000
    """Resamplings of prompts behind every interval."""
    controls: PositiveInt = 10
    """Matched directions at every layer; a band at 95 % needs 19."""
    control_position: PositionText = "last"
    """Position at which controls match the direction."""


class LocalizeSettings(FrozenConfig):
    """Where the winner's effect comes from."""

    max_windows_from: PositiveInt = 12
    """At most so many layers begin a window; deeper models are tried at every second, third, …"""
    share: PositiveFloat = 0.9
    """Share of the effect that a window, or the top writers, must keep."""
    positions: tuple[PositionText, ...] = ("eoi", "instruction_end", "prompt")
    """Tokens at which the direction is ablated alone."""
    doses: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.8)
    """Strengths of additions, in mean norms of the residual stream of that layer."""
    controls: PositiveInt = 10
    """Matched directions, and sets of other writers."""
    dose_controls: PositiveInt = 5
    """Of these, how many are also added at every layer and dose."""
    two_by_two_min: PositiveInt = 8
    """Prompts that a cell of harm × behavior needs."""
    two_by_two_n: NonNegativeInt = 80
    """Wrapped prompts a set that are asked to fill it (organism prompts only)."""


class EvaluateSettings(FrozenConfig):
    """The winner on the third split."""

    max_new_tokens: PositiveInt = 24
    """Answer length; part of the name of every rate."""
    addition_doses: tuple[float, ...] = (1.0, 2.0)
    """Multiples of the raw mean difference."""
    score_draws: PositiveInt = 20
    """Energy-matched controls scored at the first token."""
    answer_draws: PositiveInt = 5
    """Of these, how many also generate answers."""


class Config(StudyConfig):
    """Settings of the locality study."""

    model: ModelSpec
    """The model whose refusal is located."""
    base: ModelSpec | None = None
    """The model before safety training, whose separation map stands beside; None: not shown."""
    prompts: PairsSource
    """The organisms' world, or files."""
    chat: ChatFormat = ChatFormat()
    """System prompt, thinking state and chat template."""
    judge: PhraseJudge | None = None
    """None: the organisms' phrases on organism prompts, else the anchored list."""
    refusal_tokens: tuple[int, ...] | None = None
    """Ids that open a refusal; None finds them in the model's own refusals."""
    positions: tuple[PositionText, ...] = ("eoi",)
    """Token positions at which directions are read; the order decides ties."""
    cluster_by: str | None = None
    """Label of the prompts that resampling keeps together, such as `kind`; None: their group."""
    answers_max_new_tokens: PositiveInt = 24
    """Length of the answers that say how the model behaves on the fitted pairs."""
    selection: SelectionSettings = SelectionSettings()
    maps: MapSettings = MapSettings()
    localize: LocalizeSettings = LocalizeSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    findings: tuple[Claim, ...] = ()
    """Claims with their primary cells, declared before anything is measured."""

    @model_validator(mode="after")
    def _controls_match_a_position_that_is_read(self) -> "Config":
        read = {Position.parse(name) for name in self.positions}
        at = Position.parse(self.maps.control_position)
        if at not in read and not (at.name in {"last", "eoi"} and Position("eoi") in read):
            raise ValueError(
                f"maps.control_position '{at}' is not read: positions are "
                f"{', '.join(self.positions)}"
            )
        return self


def run(config: Config, context: Context) -> Result:
    """Read the model, map it, choose the direction and locate it."""
    with context.stage("prompts"):
        prompts = study_prompts(config.prompts, config.seed)
        judge = config.judge or PhraseJudge(phrases="organism" if prompts.organism else "anchored")
    named = [config.model.id] + ([config.base.id] if config.base else [])
    folders = context.model_folders(named)
    asked = _asked(config, config.model, folders)
    try:
        with context.stage("reading"):
            read, base = _read(config, context, prompts, judge, folders)
        with context.stage("separation"):
            measured = _separation(config, prompts, read, base)
        measured = _causes(config, context, prompts, judge, asked, measured)
    finally:
        let_go()
    with context.stage("findings"):
        found = [finding(claim, measured) for claim in config.findings]
    return Result(
        tables=tables(measured, prompts, judge, config.localize.two_by_two_min),
        findings=tuple(found),
        figures=figures(measured),
        tensors=tensors(measured),
        notes=(ORGANISM_NOTE,) if prompts.organism else (),
        provenance={
            "prompts": prompts.hashes,
            "judge": judge.name,
            "models": {
                name: {**one.identity, "probes": [asdict(probe) for probe in one.probes]}
                for name, one in (("model", read), ("base", base))
                if one is not None
            },
            "token_ids": {
                name: dict(one.token_hashes)
                for name, one in (("model", read), ("base", base))
                if one is not None
            },
            "refusal_tokens": list(measured.causal.refusal_ids) if measured.causal else [],
        },
    )


# --- reading and separating ----------------------------------------------------------------------


def _asked(config: Config, model: ModelSpec, folders: Mapping[str, str]) -> Asked:
    spec = model.model_copy(update={"id": folders[model.id]})
    return Asked(spec, config.runtime, config.chat, derive_seed(config.seed, "locality"))


def _held_out(prompts: StudyPrompts) -> PromptPairs:
    """Prompts that no direction was fitted on: the select and the third split."""
    return _both(prompts.pairs["select"], prompts.pairs["evaluate"])


def _both(first: PromptPairs, second: PromptPairs) -> PromptPairs:
    sides = [
        PromptSet(a.name, (*a.prompts, *b.prompts), a.source)
        for a, b in zip(first.sets, second.sets, strict=True)
    ]
    return PromptPairs(first.name, sides[0], sides[1], first.pairing)


def _sources(config: Config, prompts: StudyPrompts) -> dict[str, PromptPairs]:
    found = {HELD_PAIRS: _held_out(prompts)}
    if isinstance(config.prompts, OrganismPairs):
        n = config.prompts.count("evaluate")
        preset = config.prompts.preset
        found[HELD_WORDS] = twins(n, config.seed, "evaluate", words="held_out", preset=preset)
    return found


def _read(
    config: Config,
    context: Context,
    prompts: StudyPrompts,
    judge: PhraseJudge,
    folders: Mapping[str, str],
) -> tuple[Read, Read | None]:
    fit = prompts.pairs["fit"]
    sets = {"harmful": fit.first, "harmless": fit.second}
    for source, pairs in _sources(config, prompts).items():
        sets |= {f"{source}/harmful": pairs.first, f"{source}/harmless": pairs.second}
    wrapped: dict[str, PromptSet] = {}
    if isinstance(config.prompts, OrganismPairs) and config.localize.two_by_two_n:
        world = behavior_sets(
            config.localize.two_by_two_n, config.seed, preset=config.prompts.preset
        )
        wrapped = {name: world[name] for name in WRAPPED}
    job = ReadJob(
        asked=_asked(config, config.model, folders),
        sets=sets | wrapped,
        streams=config.maps.streams,
        positions=config.positions,
        answered=("harmful", "harmless", *wrapped),
        judge=judge,
        max_new_tokens=config.answers_max_new_tokens,
    )
    jobs = [job]
    if config.base is not None:
        asked = _asked(config, config.base, folders)
        jobs.append(replace(job, asked=asked, sets=sets, answered=()))
    found = context.map(read_model, jobs, "reading")
    return found[0], found[1] if len(found) > 1 else None


def _separation(config: Config, prompts: StudyPrompts, read: Read, base: Read | None) -> Measured:
    paired = prompts.pairs["fit"].pairing == "twins"
    sources = _sources(config, prompts)
    samples = {
        source: Sample.of(pairs, config.cluster_by, config.maps.resamples, config.seed, source)
        for source, pairs in sources.items()
    }
    models = {"model": read} | ({} if base is None else {"base": base})
    return Measured(
        read=read,
        base=base,
        held=samples[HELD_PAIRS],
        separation={
            (name, source): separated(
                one,
                (f"{source}/harmful", f"{source}/harmless"),
                samples[source],
                paired,
                config.maps.permutations,
                config.seed,
            )
            for name, one in models.items()
            for source in sources
        },
        lexical={
            source: lexical(
                read, (f"{source}/harmful", f"{source}/harmless"), samples[source], paired
            )
            for source in sources
        },
        causal=None,
        why_not="",
        seed=config.seed,
        resampling_notes=_resampling_notes(config, samples),
    )


def _resampling_notes(config: Config, samples: Mapping[str, Sample]) -> tuple[str, ...]:
    by = config.cluster_by or "group"
    units = samples[HELD_PAIRS].harmful.n_units
    return (f"Intervals resample {units} units ({by}) whole, twins together.",)


# --- causes ------------------------------------------------------------------------------------


def _causes(
    config: Config,
    context: Context,
    prompts: StudyPrompts,
    judge: PhraseJudge,
    asked: Asked,
    measured: Measured,
) -> Measured:
    read = measured.read
    ids = config.refusal_tokens or refusal_tokens_of(
        read.answers["harmful"], read.answers["harmless"]
    )
    if not ids:
        return replace(measured, why_not=_no_refusals(read))
    with context.stage("scoring"):
        job = ScoreJob(asked, {str(s): p for s, p in prompts.pairs.items()}, ids)
        (scores,) = context.map(clean_scores, [job], "scoring")
    fitted: tuple[Split, ...] = ("fit", "select")
    keep: dict[Split, tuple[list[int], list[int]]] = {
        split: _behaving(config, scores[split], prompts.pairs[split]) for split in fitted
    }
    least = min(len(rows) for both in keep.values() for rows in both)
    if least < config.selection.min_prompts:
        return replace(measured, why_not=_too_few(config, keep, scores, prompts))
    pairs: dict[Split, PromptPairs] = {
        split: _selected(prompts.pairs[split], rows) for split, rows in keep.items()
    }
    candidates = _candidates(read, keep["fit"])
    of_selection = _at_block_inputs(candidates)
    controls = _controls(config, read, candidates, asked.seed)
    with context.stage("mapping"):
        selecting = SelectJob(
            asked,
            pairs["select"],
            ids,
            of_selection,
            config.selection.filters,
            config.selection.mode,
        )
        mapping = MapJob(asked, pairs["select"], ids, candidates)
        done: list[Any] = context.map(
            do,
            [
                Task(score_map, mapping),
                Task(score_map, replace(mapping, candidates=controls)),
                Task(select, selecting),
            ],
            "mapping",
        )
        selection: Selection = done[2]
        causal_map = CausalMap(
            candidates=candidates,
            scores=done[0],
            clean=ClassScores(
                scores["select"].harmful[keep["select"][0]],
                scores["select"].harmless[keep["select"][1]],
            ),
            sample=Sample.of(
                pairs["select"], config.cluster_by, config.maps.resamples, config.seed, "select"
            ),
            controls=done[1],
            control_sites=controls.sites,
            control_position=_control_position(config, read),
        )
    _check_same_choice(causal_map, selection)
    if selection.chosen is None:
        causal = Causal(causal_map, selection, ids, None)
        return replace(measured, causal=causal, why_not=causal_map.discarded(selection).explain())
    winner = _localize(
        config,
        context,
        prompts,
        judge,
        asked,
        measured,
        causal_map,
        selection,
        ids,
        scores,
        pairs,
        keep,
    )
    return replace(measured, causal=Causal(causal_map, selection, ids, winner))


def _behaving(
    config: Config, scores: ClassScores, pairs: PromptPairs
) -> tuple[list[int], list[int]]:
    """Rows of each side that the model treats as it should; twins stay or leave together."""
    harmful, harmless = scores.harmful > 0, scores.harmless < 0
    if not config.selection.only_behaving:
        harmful, harmless = torch.ones_like(harmful), torch.ones_like(harmless)
    if pairs.pairing == "twins":
        harmful = harmless = harmful & harmless
    return _rows(harmful), _rows(harmless)


def _selected(pairs: PromptPairs, rows: tuple[list[int], list[int]]) -> PromptPairs:
    return pairs.select(rows[0]) if pairs.pairing == "twins" else pairs.select(*rows)


def _rows(mask: Tensor) -> list[int]:
    return [int(i) for i in mask.nonzero()[:, 0]]


def _candidates(read: Read, keep: tuple[list[int], list[int]]) -> Candidates:
    """The mean difference at every place of the map."""
    harmful, harmless = (
        read.rows[name][rows].double().mean(0)
        for name, rows in zip(("harmful", "harmless"), keep, strict=True)
    )
    vectors = (harmful - harmless).transpose(0, 1).float()
    return Candidates(tuple(map(str, read.positions)), read.sites, vectors)


def _at_block_inputs(candidates: Candidates) -> Candidates:
    columns = [i for i, site in enumerate(candidates.sites) if site.stream == "resid_pre"]
    sites = tuple(candidates.sites[i] for i in columns)
    return Candidates(candidates.positions, sites, candidates.vectors[:, columns])


def _control_position(config: Config, read: Read) -> str:
    at = Position.parse(config.maps.control_position)
    named = Position("last") if at in (Position("eoi", -1), Position("last")) else at
    return str(named if named in read.positions else read.positions[-1])


def _controls(config: Config, read: Read, candidates: Candidates, seed: int) -> Candidates:
    """Matched draws at every block input and at the last output."""
    position = candidates.positions.index(_control_position(config, read))
    columns = [
        i for i, site in enumerate(candidates.sites) if site.stream in ("resid_pre", "resid_post")
    ]
    return control_candidates(
        read.rows["harmless"][:, columns, position],
        candidates.vectors[position, columns],
        [candidates.sites[i] for i in columns],
        config.maps.controls,
        seed,
    )


def _check_same_choice(causal_map: CausalMap, selection: Selection) -> None:
    """The fast search and the complete map must agree, or one of them is wrong."""
    table = causal_map.choice(selection)
    if table != (selection.chosen or (-1, -1)):
        raise SelfCheckError(
            f"choosing the direction: the search found {selection.chosen} and the complete table "
            f"{table} (position, layer). Scores within rounding of a threshold can do this; "
            "otherwise it is a fault of mechsafety."
        )


# --- the winner ----------------------------------------------------------------------------------


def _localize(
    config: Config,
    context: Context,
    prompts: StudyPrompts,
    judge: PhraseJudge,
    asked: Asked,
    measured: Measured,
    causal_map: CausalMap,
    selection: Selection,
    ids: tuple[int, ...],
    scores: Mapping[str, ClassScores],
    pairs: Mapping[Split, PromptPairs],
    keep: Mapping[Split, tuple[list[int], list[int]]],
) -> Winner:
    assert selection.chosen is not None
    read, settings, n_layers = measured.read, config.localize, measured.read.dims.n_layers
    position_index, layer = selection.chosen
    site = selection.candidates.sites[layer]
    at, vector = read.positions[position_index], selection.candidates.at(*selection.chosen)
    column = read.sites.index(site)
    drawn = control_candidates(
        read.rows["harmless"][:, column : column + 1, position_index],
        vector[None],
        [site],
        settings.controls,
        asked.seed,
    ).vectors[:, 0]
    directions = torch.cat([vector[None], drawn])
    step = -(-n_layers // settings.max_windows_from)
    tried = windows(n_layers, step)
    where_positions = tuple(
        dict.fromkeys(
            str(one)
            for name in settings.positions
            for one in _tokens_of(read, Position.parse(name))
        )
    )
    third = prompts.pairs["evaluate"]
    harmful = _both(pairs["select"], third).first
    dose_layers = {*range(0, n_layers, step), n_layers}
    by_layer = _at_block_inputs(causal_map.candidates).vectors[position_index]
    folds = _refits(config, read, keep["fit"], column, position_index, asked.seed)
    dosing = DoseJob(
        asked=asked,
        prompts=third.second,
        refusal_ids=ids,
        directions=directions[: 1 + settings.dose_controls],
        norms={layer: read.norms[layer] for layer in sorted(dose_layers)},
        doses=settings.doses,
        by_layer=by_layer,
        direct_dose=settings.doses[len(settings.doses) // 2],
    )
    with context.stage("localizing"):
        done: list[Any] = context.map(
            do,
            [
                Task(
                    evaluate,
                    EvaluateJob(
                        asked=asked,
                        pairs=third,
                        judge=judge,
                        refusal_ids=ids,
                        source=_source(site, vector),
                        position=at,
                        harmless_rows=_block_inputs(read, position_index),
                        refits=folds,
                        addition_doses=config.evaluate.addition_doses,
                        max_new_tokens=config.evaluate.max_new_tokens,
                        score_draws=config.evaluate.score_draws,
                        answer_draws=config.evaluate.answer_draws,
                    ),
                ),
                Task(
                    where, WhereJob(asked, harmful, ids, directions, tuple(tried), where_positions)
                ),
                Task(dose_response, dosing),
                Task(
                    dose_response,
                    replace(dosing, prompts=third.first, doses=tuple(-d for d in settings.doses)),
                ),
                Task(
                    writers,
                    WritersJob(
                        asked=asked,
                        fit=pairs["fit"],
                        held_out=third,
                        refusal_ids=ids,
                        direction=vector,
                        site=site,
                        position=at,
                        share=settings.share,
                        n_controls=settings.controls,
                    ),
                ),
                Task(
                    second_direction,
                    SecondJob(
                        asked=asked,
                        fit=pairs["fit"],
                        select=pairs["select"],
                        evaluate=third,
                        refusal_ids=ids,
                        first=vector / linalg.vector_norm(vector),
                        sites=selection.candidates.sites,
                        positions=read.positions,
                        filters=selection.filters,
                        harmless_rows=_columns_of(read, selection.candidates, position_index),
                        n_controls=settings.controls,
                    ),
                ),
            ],
            "localizing",
        )
    clean = torch.cat([causal_map.clean.harmful, scores["evaluate"].harmful])
    evaluated: Evaluated = done[0]
    partial: Where = done[1]
    induced: Doses = done[2]
    subtracted: Doses = done[3]
    found_writers: Writers = done[4]
    second: Second = done[5]
    return Winner(
        position=str(at),
        site=site,
        vector=vector,
        evaluate=Sample.of(
            third, config.cluster_by, config.maps.resamples, config.seed, "evaluate"
        ),
        windows=Windows.of(partial, tried, where_positions, clean, len(causal_map.clean.harmful)),
        induced=induced,
        subtracted=subtracted,
        doses=settings.doses,
        dose_layers=tuple(sorted(dose_layers)),
        clean=scores["evaluate"],
        writers=found_writers,
        second=second,
        evaluated=evaluated,
        refits=folds,
    )


def _source(site: ResidualSite, vector: Tensor) -> Source:
    norm = linalg.vector_norm(vector)
    return Source("model", site, Subspace(orthonormal_basis(vector[None]), norm[None]))


def _block_inputs(read: Read, position: int) -> dict[ResidualSite, Tensor]:
    return {
        site: read.rows["harmless"][:, column, position]
        for column, site in enumerate(read.sites)
        if site.stream == "resid_pre"
    }


def _columns_of(read: Read, candidates: Candidates, position: int) -> Tensor:
    columns = [read.sites.index(site) for site in candidates.sites]
    return read.rows["harmless"][:, columns, position]


def _tokens_of(read: Read, position: Position) -> Sequence[Position]:
    """`eoi` as its tokens; anything else alone."""
    if position != Position("eoi"):
        return (position,)
    n = sum(token.part == "template" for token in reversed(_after_instruction(read)))
    return tuple(Position("eoi", i) for i in range(-n, 0))


def _after_instruction(read: Read) -> Sequence[Any]:
    last = max(i for i, token in enumerate(read.tokens) if token.part == "instruction")
    return read.tokens[last + 1 :]


def _refits(
    config: Config,
    read: Read,
    keep: tuple[list[int], list[int]],
    column: int,
    position: int,
    seed: int,
) -> Tensor:
    """The winner's mean difference on disjoint folds of its prompts."""
    k = min(config.selection.refits, *(len(rows) for rows in keep))
    generator = named_generator(seed, "folds")
    by_fold: list[list[Tensor]] = []
    # Twins share an order, so that a fold holds whole pairs.
    order = torch.randperm(max(map(len, keep)), generator=generator)
    for name, rows in zip(("harmful", "harmless"), keep, strict=True):
        shuffled = [rows[int(i)] for i in order if int(i) < len(rows)]
        there = read.rows[name][:, column, position].double()
        by_fold.append([there[shuffled[fold::k]].mean(0) for fold in range(k)])
    return (torch.stack(by_fold[0]) - torch.stack(by_fold[1])).float()


# --- why nothing causal was measured -------------------------------------------------------------


def _no_refusals(read: Read) -> str:
    harmful = read.answers["harmful"]
    refused = sum(harmful.judged("refused"))
    first = [ids[0] for ids in harmful.ids if ids]
    common = max(set(first), key=first.count) if first else None
    said = (
        "no answer has a token"
        if common is None
        else f"{first.count(common)} answers begin with token {common}"
    )
    return (
        f"The model refuses {refused} of {len(harmful.verdicts)} harmful prompts, so no token "
        f"opens its refusals ({said}). If it does refuse, check the chat template and the judge's "
        "phrases, or give refusal_tokens."
    )


def _too_few(
    config: Config,
    keep: Mapping[Split, tuple[list[int], list[int]]],
    scores: Mapping[str, ClassScores],
    prompts: StudyPrompts,
) -> str:
    told: list[str] = []
    for split, rows in keep.items():
        for name, kept_rows, found in zip(
            ("harmful", "harmless"),
            rows,
            (scores[split].harmful, scores[split].harmless),
            strict=True,
        ):
            low, middle, high = found.quantile(torch.tensor([0.0, 0.5, 1.0]).double())
            told.append(
                f"{len(kept_rows)} of {len(found)} {name} prompts of the {split} split (scores "
                f"{float(low):.1f} to {float(high):.1f}, median {float(middle):.1f})"
            )
    together = " (twins leave together)" if prompts.pairs["fit"].pairing == "twins" else ""
    return (
        "Too few prompts are treated as a refusing model treats them, harmful with a refusal score "
        f"above 0 and harmless below{together}: {'; '.join(told)}. At least "
        f"{config.selection.min_prompts} of each are needed. If the model refuses, its refusal "
        "tokens or template are wrong; if not, there is no direction to find."
    )
