"""From a read model to what its directions cause."""

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from mechsafety.core.errors import SelfCheckError
from mechsafety.core.positions import Position
from mechsafety.data.prompts import PromptPairs
from mechsafety.data.splits import Split
from mechsafety.effects.refusal_tokens import refusal_tokens_of
from mechsafety.effects.selection import Candidates, Selection
from mechsafety.studies.locating.frame import Behaving, Frame
from mechsafety.studies.locating.localizing import localize
from mechsafety.studies.locating.mapping import (
    MapJob,
    SelectJob,
    at_block_inputs,
    control_candidates,
    score_map,
    select,
)
from mechsafety.studies.locating.measured import Causal, CausalMap, Measured
from mechsafety.studies.locating.reading import (
    ClassScores,
    Read,
    ScoreJob,
    Task,
    clean_scores,
    do,
)
from mechsafety.studies.locating.refusing import no_refusals, too_few
from mechsafety.studies.locating.settings import LocalitySettings
from mechsafety.studies.samples import Sample

ROUNDING: Final = 1e-3
"""Most that two ways to the same mean score may differ in float32, in log-odds or nats."""
HALF_ROUNDING: Final = 0.25
"""As above, in half precision."""


def causes(frame: Frame, measured: Measured) -> Measured:
    """Map what directions cause, choose one and locate it; or say why that cannot be asked."""
    found = _behaving(frame, measured.read)
    if isinstance(found, str):
        return replace(measured, why_not=found)
    causal_map, selection = _map(frame, measured.read, found)
    _check_same_scores(causal_map, selection, measured.read.identity.get("dtype", "float32"))
    if selection.chosen is None:
        causal = Causal(causal_map, selection, found.refusal_ids, None)
        return replace(measured, causal=causal, why_not=causal_map.discarded(selection).explain())
    winner = localize(frame, measured.read, found, causal_map, selection)
    return replace(measured, causal=Causal(causal_map, selection, found.refusal_ids, winner))


def _behaving(frame: Frame, read: Read) -> Behaving | str:
    """The prompts to fit and select on; a string says why there are too few."""
    config, prompts = frame.config, frame.prompts
    ids = config.refusal_tokens or refusal_tokens_of(
        read.answers["harmful"], read.answers["harmless"]
    )
    if not ids:
        return no_refusals(read)
    with frame.context.stage("scoring"):
        job = ScoreJob(frame.asked, {str(s): p for s, p in prompts.pairs.items()}, ids)
        (scores,) = frame.context.map(clean_scores, [job], "scoring")
    fitted: tuple[Split, ...] = ("fit", "select")
    rows: dict[Split, tuple[list[int], list[int]]] = {
        split: _treated_right(config, scores[split], prompts.pairs[split]) for split in fitted
    }
    third = min(len(side) for side in prompts.pairs["evaluate"].sets)
    if third < config.selection.min_prompts:
        return (
            f"The third split has {third} prompts of a class, and {config.selection.min_prompts} "
            "are needed to say anything of the direction: give more prompts."
        )
    if min(len(side) for sides in rows.values() for side in sides) < config.selection.min_prompts:
        return too_few(config.selection.min_prompts, ids, rows, scores, prompts)
    pairs: dict[Split, PromptPairs] = {
        split: _selected(prompts.pairs[split], sides) for split, sides in rows.items()
    }
    return Behaving(ids, scores, rows, {**pairs, "evaluate": prompts.pairs["evaluate"]})


def _map(frame: Frame, read: Read, found: Behaving) -> tuple[CausalMap, Selection]:
    config, pairs = frame.config, found.pairs["select"]
    candidates = _candidates(read, found.rows["fit"])
    controls = _controls(config, read, candidates, frame.asked.seed)
    settings = config.selection
    mapping = MapJob(frame.asked, pairs, found.refusal_ids, candidates)
    with frame.context.stage("mapping"):
        done: list[Any] = frame.context.map(
            do,
            [
                Task(score_map, mapping),
                Task(score_map, replace(mapping, candidates=controls)),
                Task(
                    select,
                    SelectJob(
                        frame.asked,
                        pairs,
                        found.refusal_ids,
                        at_block_inputs(candidates),
                        settings.filters,
                        settings.mode,
                    ),
                ),
            ],
            "mapping",
        )
    scores, (harmful, harmless) = found.scores["select"], found.rows["select"]
    causal_map = CausalMap(
        candidates=candidates,
        scores=done[0],
        clean=ClassScores(scores.harmful[harmful], scores.harmless[harmless]),
        sample=Sample.of(pairs, config.cluster_by, config.maps.resamples, config.seed, "select"),
        controls=done[1],
        control_sites=controls.sites,
        control_position=_control_position(config, read),
    )
    return causal_map, done[2]


def _treated_right(
    config: LocalitySettings, scores: ClassScores, pairs: PromptPairs
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


def _control_position(config: LocalitySettings, read: Read) -> str:
    at = Position.parse(config.maps.control_position)
    named = Position("last") if at in (Position("eoi", -1), Position("last")) else at
    return str(named if named in read.positions else read.positions[-1])


def _controls(
    config: LocalitySettings, read: Read, candidates: Candidates, seed: int
) -> Candidates:
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


def _check_same_scores(causal_map: CausalMap, selection: Selection, dtype: str) -> None:
    """What the search scored, the map has scored too: the two must agree but for rounding.

    Scores and not choices are compared, since a tie may fall to either side of rounding.
    """
    tolerance = ROUNDING if dtype == "float32" else HALF_ROUNDING
    columns = [causal_map.candidates.sites.index(site) for site in selection.candidates.sites]
    for name in ("bypass", "induce", "kl"):
        searched: Tensor = getattr(selection.scores, name).mean(0)
        mapped: Tensor = getattr(causal_map.scores, name).mean(0)[:, columns]
        known = searched.isfinite()
        off = float((searched - mapped)[known].abs().max()) if bool(known.any()) else 0.0
        if not off <= tolerance:
            raise SelfCheckError(
                f"choosing the direction: the search and the complete map differ by {off:.3g} in "
                f"the mean {name} of a candidate, where {tolerance:g} could be rounding in "
                f"{dtype}. Both compute the same thing, so one of them is wrong."
            )
