"""Choosing the direction, and mapping what every direction causes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.data.prompts import PromptPairs
from mechsafety.effects.selection import (
    Candidates,
    CandidateScores,
    Mode,
    Selection,
    Trial,
    make_trial,
    score_candidates,
    select_direction,
)
from mechsafety.effects.selection_rule import SelectionFilters
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.matched_controls import draw_energy_matched, match_norm
from mechsafety.models.model import Model
from mechsafety.studies.locating.reading import Asked


@dataclass(frozen=True)
class SelectJob:
    """The search for the direction."""

    asked: Asked
    pairs: PromptPairs
    """Of the select split, those where the model behaves."""
    refusal_ids: tuple[int, ...]
    candidates: Candidates
    filters: SelectionFilters
    mode: Mode


def select(job: SelectJob) -> Selection:
    """The direction of the candidates that bypasses best."""
    model = job.asked.open()
    return select_direction(model, trial_of(job, model), job.candidates, job.filters, job.mode)


@dataclass(frozen=True)
class MapJob:
    """Every direction's causal effect, or that of controls in its place."""

    asked: Asked
    pairs: PromptPairs
    refusal_ids: tuple[int, ...]
    candidates: Candidates


def score_map(job: MapJob) -> CandidateScores:
    """Bypass, induce and KL of every direction of the map, prompt by prompt."""
    model = job.asked.open()
    return score_candidates(model, trial_of(job, model), job.candidates)


def control_candidates(
    rows: Float[Tensor, "row layer d_model"],
    vectors: Float[Tensor, "layer d_model"],
    sites: Sequence[ResidualSite],
    n_draws: int,
    seed: int,
) -> Candidates:
    """In place of each direction, draws that match it: in energy for ablation, norm for addition.

    Where the direction is zero (template tokens at layer 0) there is nothing to match, and the
    controls are zero as well.
    """
    drawn = torch.zeros(n_draws, *vectors.shape)
    for layer, (site, vector) in enumerate(zip(sites, vectors, strict=True)):
        norm = linalg.vector_norm(vector.double())
        if not norm > 0:
            continue
        generator = named_generator(seed, "controls", str(site))
        basis = (vector.double() / norm).float()[None]
        bases = draw_energy_matched(rows[:, layer], basis, n_draws, generator)
        drawn[:, layer] = match_norm(bases[:, 0], vector).float()
    return Candidates(tuple(f"control {i}" for i in range(n_draws)), tuple(sites), drawn)


def trial_of(job: SelectJob | MapJob, model: Model) -> Trial:
    return make_trial(
        model,
        job.asked.tokens(model, job.pairs.first),
        job.asked.tokens(model, job.pairs.second),
        job.refusal_ids,
        job.asked.runtime.batch_tokens,
    )


def at_block_inputs(candidates: Candidates) -> Candidates:
    """Those of the candidates that the published search chooses from."""
    columns = [i for i, site in enumerate(candidates.sites) if site.stream == "resid_pre"]
    sites = tuple(candidates.sites[i] for i in columns)
    return Candidates(candidates.positions, sites, candidates.vectors[:, columns])
