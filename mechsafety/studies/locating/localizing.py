"""Everything about the chosen direction, asked side by side."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mechsafety.core.positions import Position
from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation_matrix import Source
from mechsafety.effects.selection import Candidates, Selection
from mechsafety.effects.windows import windows
from mechsafety.linalg.subspace import Subspace
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.matched_controls import draw_norm_matched
from mechsafety.studies.locating.frame import Behaving, Frame
from mechsafety.studies.locating.held_out import (
    Evaluated,
    EvaluateJob,
    Second,
    SecondJob,
    evaluate,
    second_direction,
)
from mechsafety.studies.locating.mapping import at_block_inputs, control_candidates
from mechsafety.studies.locating.measured import CausalMap, Windows, Winner
from mechsafety.studies.locating.partial import (
    DoseJob,
    Doses,
    Where,
    WhereJob,
    Writers,
    WritersJob,
    dose_response,
    where,
    writers,
)
from mechsafety.studies.locating.reading import Read, Task, do
from mechsafety.studies.locating.separating import both
from mechsafety.studies.locating.settings import LocalitySettings
from mechsafety.studies.samples import Sample


def localize(
    frame: Frame, read: Read, found: Behaving, causal_map: CausalMap, selection: Selection
) -> Winner:
    """Ask all questions about the chosen direction."""
    assert selection.chosen is not None
    config, asked, ids = frame.config, frame.asked, found.refusal_ids
    settings, n_layers, pairs = config.localize, read.dims.n_layers, found.pairs
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
    third = pairs["evaluate"]
    harmful = both(pairs["select"], third).first
    dose_layers = {*range(0, n_layers, step), n_layers}
    by_layer = at_block_inputs(causal_map.candidates).vectors[position_index]
    folds = _refits(config, read, found.rows["fit"], column, position_index, asked.seed)
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
    with frame.context.stage("localizing"):
        done: list[Any] = frame.context.map(
            do,
            [
                Task(
                    evaluate,
                    EvaluateJob(
                        asked=asked,
                        pairs=third,
                        judge=frame.judge,
                        refusal_ids=ids,
                        source=_source(site, vector),
                        position=at,
                        harmless_rows=_block_inputs(read, position_index),
                        refits=folds,
                        norm_matched=draw_norm_matched(
                            vector,
                            config.evaluate.score_draws,
                            named_generator(asked.seed, "controls of addition"),
                            read.rows["harmless"][:, column, position_index],
                        ),
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
                        ablated_share=settings.ablated_share,
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
                        harmless_rows=_columns_of(read, selection.candidates),
                        n_controls=settings.controls,
                    ),
                ),
            ],
            "localizing",
        )
    clean = torch.cat([causal_map.clean.harmful, found.scores["evaluate"].harmful])
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
        share=settings.share,
        doses=settings.doses,
        dose_layers=tuple(sorted(dose_layers)),
        clean=found.scores["evaluate"],
        writers=found_writers,
        second=second,
        evaluated=evaluated,
        refits=folds,
    )


def _source(site: ResidualSite, vector: Tensor) -> Source:
    # In the vector's own precision: records of this study have the last bit of that norm.
    norm = float(linalg.vector_norm(vector))
    return Source("model", site, Subspace.of_vector(vector, norm))


def _block_inputs(read: Read, position: int) -> dict[ResidualSite, Tensor]:
    return {
        site: read.rows["harmless"][:, column, position]
        for column, site in enumerate(read.sites)
        if site.stream == "resid_pre"
    }


def _columns_of(read: Read, candidates: Candidates) -> Tensor:
    return read.rows["harmless"][:, [read.sites.index(site) for site in candidates.sites]]


def _tokens_of(read: Read, position: Position) -> Sequence[Position]:
    """`eoi` as its tokens, of which the last is called so; anything else alone."""
    if position != Position("eoi"):
        return (position,)
    n = len(_after_instruction(read))
    return (*(Position("eoi", i) for i in range(-n, -1)), Position("last"))


def _after_instruction(read: Read) -> Sequence[Any]:
    last = max(i for i, token in enumerate(read.tokens) if token.part == "instruction")
    return read.tokens[last + 1 :]


def _refits(
    config: LocalitySettings,
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
