"""How alike are refusal directions across models?

Published work calls directions of two models the same on one cosine. This study holds that cosine
against what the prompts alone explain (the same permuted labels in both models), against the
ceiling that halves of one model's prompts reach, and against what the direction *does* in the
other model; across bases, widths and tokenizers through maps that are fitted on neutral prompts
(arXiv:2505.17306 transfers across languages within a model; arXiv:2404.12038 across models of one
width).
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Final

from torch import Tensor

from mechsafety.core.context import Context
from mechsafety.core.result import Result, Table, Tolerances
from mechsafety.core.seeding import derive_seed
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.models.tokens import TokenUse
from mechsafety.organisms.sources import (
    NeutralPrompts,
    StudyPrompts,
    neutral_prompts,
    study_prompts,
)
from mechsafety.studies.arms import ORGANISM_NOTE, clusters_of, completion_lines, first_of
from mechsafety.studies.behavior import behavior_table
from mechsafety.studies.comparing.carrying import transfer_jobs, transfer_place
from mechsafety.studies.comparing.figures import figures
from mechsafety.studies.comparing.findings import finding
from mechsafety.studies.comparing.frame import Frame, framed
from mechsafety.studies.comparing.geometry import geometry_of, through_maps
from mechsafety.studies.comparing.likeness_tables import (
    best_match_table,
    cka_table,
    cosines_table,
    subspaces_table,
)
from mechsafety.studies.comparing.map_tables import maps_table, matches_table
from mechsafety.studies.comparing.mapping import FittedMap, MapJob, Place, fit_maps
from mechsafety.studies.comparing.measured import Measured, Transfers
from mechsafety.studies.comparing.reading import (
    check_common_prompts,
    check_comparable,
    mapped_pairs,
    read_models,
)
from mechsafety.studies.comparing.seeds_table import seeds_table
from mechsafety.studies.comparing.settings import Pair, SimilaritySettings
from mechsafety.studies.comparing.transfer_table import transfer_table
from mechsafety.studies.comparing.transferring import Transferred, transfer
from mechsafety.studies.samples import Sample
from mechsafety.studies.token_use import token_lines, token_provenance
from mechsafety.studies.tolerances import EXACT, EXTENT, RATE, RATES, SCORE, SHARE, each


class Config(SimilaritySettings):
    """Settings of the similarity study."""


TOLERANCES: Final = Tolerances(
    metrics={
        **RATES,
        **each(
            SHARE,
            "ceiling",
            "cosine",
            "cosine_disattenuated",
            "cosine_disjoint",
            "cosine_independent_labels",
            "cosine_permuted_labels",
            "cosine_permuted_residuals",
            "cosine_random_vectors",
            "excess",
            "best_cosine",
            "best_cosine_permuted_residuals",
            "overlap",
            "overlap_permuted_residuals",
            "overlap_controls",
            "cka",
            "cka_shuffled_prompts",
            "carried_cosine_shuffled",
            "r2",
            "r2_along_direction",
            "r2_along_direction_shuffled",
            "r2_shuffled",
            "refusal_score_auc",
        ),
        **each(
            EXTENT,
            "angle_1",
            "angle_1_permuted_residuals",
            "angle_2",
            "angle_2_permuted_residuals",
            "spread_along_direction",
            "highest_elsewhere",
            "massive_channel",
            "energy_ratio_controls",
        ),
        **each(
            SCORE,
            "cross_entropy",
            "effect",
            "effect_controls",
            "kl",
            "refusal_score",
            "refusal_score_controls",
        ),
        **each(RATE, "chosen", "content"),
        **each(EXACT, "second_layer", "rank", "penalty"),
    },
    tensors=1e-4,
    margins=0.1,
)


def run(config: Config, context: Context) -> Result:
    """Read every model, compare them layer by layer, map them, and try their directions."""
    check_common_prompts(config)
    with context.stage("prompts"):
        prompts = study_prompts(config.prompts, config.seed)
        neutral = neutral_prompts(config.neutral, prompts, config.seed)
        judge = config.judge or PhraseJudge(phrases="organism" if prompts.organism else "anchored")
    context.used("prompts", {**prompts.hashes, **neutral.hashes})
    folders = context.model_folders([one.model.id for one in config.models.values()])
    with context.stage("reading"):
        views = read_models(config, context, prompts, neutral, judge, folders)
    check_comparable(config, views, neutral)
    with context.stage("geometry"):
        frame = framed(config, views, prompts.pairs["fit"], neutral)
        measured = _geometry(frame, context)
    with context.stage("maps"):
        measured = _mapped(frame, measured, context)
    if config.transfer is not None:
        with context.stage("transfer"):
            measured = _transferred(frame, measured, context, prompts, judge, folders)
    _keep_completions(context, measured, prompts)
    context.keep_token_ids("token_ids", token_lines(_token_use(measured)))
    with context.stage("findings"):
        found = [finding(claim, measured) for claim in config.findings]
    return Result(
        tables=_tables(measured, prompts, judge),
        findings=tuple(found),
        figures=figures(measured),
        tensors=_tensors(measured),
        notes=_notes(config, prompts.organism),
        tolerances=TOLERANCES,
        provenance=_provenance(measured, prompts, neutral, judge),
    )


def _notes(config: Config, organism: bool) -> tuple[str, ...]:
    """What a reader must know of every number on the page."""
    notes = [ORGANISM_NOTE] if organism else []
    # One template that is given for all replaces their own.
    if config.templates == "own" and config.chat.chat_template is None:
        notes.append(
            f"Every model is read at position '{config.position}' of its own chat template "
            "(`templates: own`). Where templates differ this is another token in another context, "
            "so part of any difference between models may be one of templates."
        )
    return tuple(notes)


def _geometry(frame: Frame, context: Context) -> Measured:
    return Measured.of(frame, context.map(geometry_of, [frame.job], "comparing")[0])


def _mapped(frame: Frame, measured: Measured, context: Context) -> Measured:
    pairs = mapped_pairs(frame.config, frame.config.maps)
    places = {**measured.places}
    for pair in pairs:
        places[pair] = (*places[pair], *_transfer_places(frame, pair, places[pair]))
    jobs = [_map_job(frame, measured, pair, places[pair]) for pair in pairs]
    fitted = context.map(fit_maps, jobs, "fitting maps")
    maps: dict[Pair, tuple[FittedMap, ...]] = dict(zip(pairs, fitted, strict=True))
    carried = through_maps(frame, measured.stacks, maps)
    return replace(measured, places=places, maps=maps, likenesses=(*measured.likenesses, *carried))


def _transfer_places(frame: Frame, pair: Pair, known: tuple[Place, ...]) -> tuple[Place, ...]:
    """Where transfer edits, if depth alone does not lead there."""
    settings = frame.config.transfer
    if settings is None:
        return ()
    place = transfer_place(settings, *(frame.views[name] for name in pair))
    return () if place in known else (place,)


def _map_job(frame: Frame, measured: Measured, pair: Pair, places: tuple[Place, ...]) -> MapJob:
    first, second = pair
    return MapJob(
        first=first,
        second=second,
        source=frame.job.neutral[first],
        target=frame.job.neutral[second],
        places=places,
        groups=clusters_of(frame.neutral.fit, None),
        held_out_groups=clusters_of(frame.neutral.held_out, None),
        directions=(measured.stacks[first].whole, measured.stacks[second].whole),
        settings=frame.config.maps,
        seed=derive_seed(frame.config.seed, "maps"),
    )


def _transferred(
    frame: Frame,
    measured: Measured,
    context: Context,
    prompts: StudyPrompts,
    judge: PhraseJudge,
    folders: dict[str, str],
) -> Measured:
    config = frame.config
    settings = config.transfer
    assert settings is not None
    specs = {
        name: one.model.model_copy(update={"id": folders[one.model.id]})
        for name, one in config.models.items()
    }
    held_out = first_of(prompts.pairs["evaluate"], settings.n)
    jobs, untried = transfer_jobs(
        config, frame.views, specs, measured.directions(), measured.maps, held_out, judge
    )
    done = context.map(transfer, jobs, "trying directions in other models")
    sample = Sample.of(held_out, config.cluster_by, settings.resamples, config.seed, "evaluate")
    return replace(
        measured,
        transfers=Transfers({one.target: one for one in done}, sample, tuple(untried)),
    )


def _tables(measured: Measured, prompts: StudyPrompts, judge: PhraseJudge) -> tuple[Table, ...]:
    frame = measured.frame
    fit = prompts.pairs["fit"]
    clusters = {side.name: clusters_of(side, frame.config.cluster_by) for side in fit.sets}
    found = [
        behavior_table(list(frame.views.values()), judge, fit, clusters),
        cosines_table(measured),
        best_match_table(measured),
        subspaces_table(measured),
        cka_table(measured),
        matches_table(measured),
        maps_table(measured),
        frame.massive_table,
        seeds_table(measured),
    ]
    if measured.transfers is not None and frame.config.transfer is not None:
        found.append(transfer_table(measured.transfers, frame.config.transfer, judge))
    return tuple(found)


def _tensors(measured: Measured) -> dict[str, Tensor]:
    """Every model's direction at every layer."""
    return {f"directions.{name}": vectors for name, vectors in measured.directions().items()}


def _provenance(
    measured: Measured, prompts: StudyPrompts, neutral: NeutralPrompts, judge: PhraseJudge
) -> dict[str, object]:
    return {
        "prompts": {**prompts.hashes, **neutral.hashes},
        "judge": judge.name,
        "models": {
            name: {**view.identity, "probes": [asdict(probe) for probe in view.probes]}
            for name, view in measured.frame.views.items()
        },
        **token_provenance(_token_use(measured)),
    }


def _token_use(measured: Measured) -> dict[str, dict[str, TokenUse]]:
    """Every prompt set that each model saw."""
    transfers = measured.transfers
    tried: Mapping[str, Transferred] = {} if transfers is None else transfers.targets
    return {
        name: {**view.token_use, **(tried[name].token_use if name in tried else {})}
        for name, view in measured.frame.views.items()
    }


def _keep_completions(context: Context, measured: Measured, prompts: StudyPrompts) -> None:
    """Every answer with its prompt's id, for the private folder."""
    fit, held_out = prompts.pairs["fit"], prompts.pairs["evaluate"]
    by = measured.frame.config.cluster_by
    context.keep_completions(
        "answers",
        (
            row
            for name, view in measured.frame.views.items()
            for side, answers in zip(fit.sets, (view.harmful, view.harmless), strict=True)
            for row in completion_lines({"model": name, "prompts": side.name}, side, answers, by)
        ),
    )
    transfers = measured.transfers
    if transfers is None:
        return
    settings = measured.frame.config.transfer
    assert settings is not None
    sides = first_of(held_out, settings.n).sets
    context.keep_completions(
        "transferred",
        (
            row
            for target in transfers.targets.values()
            for cell in target.cells
            for form, side, answers in (
                *(
                    (form, side, outcome.answers)
                    for form, one in cell.ablated.items()
                    for side, outcome in zip(sides, (one.harmful, one.harmless), strict=True)
                ),
                ("add", sides[1], cell.added.answers),
            )
            for row in completion_lines(
                {
                    "target": target.target,
                    "source": cell.source.model,
                    "via": cell.source.via,
                    "form": form,
                    "prompts": side.name,
                },
                side,
                answers,
                by,
            )
        ),
    )
