"""The direction on held-out prompts, and the one that is left when it is removed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.positions import Position
from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.data.prompts import PromptPairs
from mechsafety.effects.ablation import Edits, ZeroAblation
from mechsafety.effects.ablation_matrix import Cell, Source, ablate_in, ablation_edits
from mechsafety.effects.added_in import Added, add_in, added_controls
from mechsafety.effects.answers import Answers, clean_answer_cross_entropy, content_scores
from mechsafety.effects.scores import refusal_scores
from mechsafety.effects.second_direction import last_token_stream, refitted_candidates
from mechsafety.effects.selection import (
    Selection,
    select_direction,
)
from mechsafety.effects.selection_rule import SelectionFilters
from mechsafety.effects.target import Target, check_zero_strength, observed_target
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.metrics.representational_independence import representational_independence
from mechsafety.models.tokens import TokenUse
from mechsafety.studies.locating.mapping import SelectJob, control_candidates, trial_of
from mechsafety.studies.locating.reading import Asked, ClassScores


@dataclass(frozen=True)
class SecondJob:
    """What is left to find once the first direction is removed."""

    asked: Asked
    fit: PromptPairs
    select: PromptPairs
    evaluate: PromptPairs
    refusal_ids: tuple[int, ...]
    first: Float[Tensor, " d_model"]
    """Unit length."""
    sites: tuple[ResidualSite, ...]
    positions: tuple[Position, ...]
    filters: SelectionFilters
    harmless_rows: Float[Tensor, "row layer position d_model"]
    """Of the fit split, for controls of the second direction."""
    n_controls: int


@dataclass(frozen=True)
class Second:
    """The refitted direction and what it does by itself, and together with the first."""

    selection: Selection
    vector: Float[Tensor, " d_model"] | None
    """The best refitted direction; None where the filters keep none."""
    alone: Float[Tensor, " prompt"] | None
    """Refusal score of held-out harmful prompts with it ablated in the unedited model."""
    both: Float[Tensor, " prompt"] | None
    """With both ablated."""
    controls: Float[Tensor, "draw prompt"] | None
    """With energy-matched directions in its place."""
    independence: tuple[float, float] | None
    """Of the first from the second, and of the second from the first (arXiv:2502.17420); None in
    a model of one layer."""


def second_direction(job: SecondJob) -> Second:
    """Refit with the first direction ablated, and try the result alone."""
    model = job.asked.open()
    size = job.asked.runtime.batch_tokens
    harmful, harmless = (job.asked.tokens(model, side) for side in job.fit.sets)
    candidates = refitted_candidates(
        model, harmful, harmless, job.first[None], job.sites, job.positions, size
    )
    # Whether it induces is another question than whether it is needed, so that filter is off.
    filters = job.filters.model_copy(update={"induce_threshold": None})
    selecting = SelectJob(job.asked, job.select, job.refusal_ids, candidates, filters, "winner")
    selection = select_direction(model, trial_of(selecting, model), candidates, filters, "winner")
    if selection.chosen is None:
        return Second(selection, None, None, None, None, None)
    vector = candidates.at(*selection.chosen)
    position, layer = selection.chosen
    drawn = control_candidates(
        job.harmless_rows[:, layer : layer + 1, position],
        vector[None],
        [candidates.sites[layer]],
        job.n_controls,
        job.asked.seed,
    ).vectors[:, 0]
    held_out = job.asked.tokens(model, job.evaluate.first)
    ids = torch.tensor(job.refusal_ids, dtype=torch.long)

    def bypass(basis: Tensor) -> Tensor:
        return refusal_scores(model, held_out, ids, size, zero_of(basis))

    stream = partial(last_token_stream, model, held_out, job.sites, size)
    clean = stream()
    unit = vector / linalg.vector_norm(vector)
    return Second(
        selection=selection,
        vector=vector,
        alone=bypass(vector[None]),
        both=bypass(torch.stack([job.first, vector])),
        controls=torch.stack([bypass(control[None]) for control in drawn]),
        # Of one layer the measure, which leaves the last tenth out, keeps none.
        independence=(
            representational_independence(clean, stream(without=unit[None]), job.first),
            representational_independence(clean, stream(without=job.first[None]), unit),
        )
        if len(job.sites) > 1
        else None,
    )


# --- the winner on the third split ---------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateJob:
    """Everything about the winner on prompts that neither fitted nor selected it."""

    asked: Asked
    pairs: PromptPairs
    judge: PhraseJudge
    refusal_ids: tuple[int, ...]
    source: Source
    position: Position
    harmless_rows: Mapping[ResidualSite, Float[Tensor, "row d_model"]]
    """Of the fit split at the winner's position, at every block input."""
    refits: Float[Tensor, "draw d_model"]
    """The same difference on disjoint folds of the fit split."""
    norm_matched: Float[Tensor, "draw d_model"]
    """Controls of addition: as long as the mean difference."""
    addition_doses: tuple[float, ...]
    """In multiples of the raw mean difference."""
    max_new_tokens: int
    score_draws: int
    answer_draws: int


@dataclass(frozen=True)
class Evaluated:
    """The winner's effects."""

    harmful: Answers
    """Of the unedited model."""
    harmless: Answers
    scores: ClassScores
    cells: tuple[Cell, ...]
    """Zero and affine ablation, each with controls."""
    refits: Float[Tensor, "draw n_harmful"]
    """Refusal score of harmful prompts under zero ablation of each refit."""
    added: tuple[Added, ...]
    cross_entropy: Mapping[str, Float[Tensor, " n_harmless"]]
    """Nats per token of the model's own clean answers to harmless prompts: `clean`, and under
    each form of ablation."""
    clean_content: Float[Tensor, " n_harmless"] | None
    token_use: Mapping[str, TokenUse]
    """By prompt set."""


def evaluate(job: EvaluateJob) -> Evaluated:
    """Ablate and add the winner on held-out prompts, with judged answers."""
    model = job.asked.open()
    size = job.asked.runtime.batch_tokens
    target = observed_target(
        model,
        job.pairs,
        job.asked.chat,
        job.judge,
        harmless_rows=job.harmless_rows,
        refusal_ids=job.refusal_ids,
        layers=[job.source.site.layer],
        max_new_tokens=job.max_new_tokens,
        batch_tokens=size,
    )
    harmful, harmless = sides = (target.harmful, target.harmless)
    check_zero_strength(target, job.source.site)
    cells = tuple(
        ablate_in(
            target,
            job.source,
            form,
            score_draws=job.score_draws,
            answer_draws=job.answer_draws,
            generator=named_generator(job.asked.seed, "winner", form),
        )
        for form in ("zero", "affine")
    )
    refits = [
        refusal_scores(model, harmful.tokens, target.refusal_ids, size, zero_of(refit[None]))
        for refit in job.refits
    ]
    content = content_scores(harmless.answers, job.pairs.second.prompts)
    return Evaluated(
        harmful=harmful.answers,
        harmless=harmless.answers,
        scores=ClassScores(*(refusal_score(s.logits, target.refusal_ids) for s in sides)),
        cells=cells,
        refits=torch.stack(refits),
        added=tuple(_added(target, job, dose) for dose in job.addition_doses),
        cross_entropy=_cross_entropies(target, job),
        clean_content=None if content is None else torch.tensor(content, dtype=torch.float64),
        token_use=target.token_use("evaluate"),
    )


def zero_of(basis: Float[Tensor, "k d_model"]) -> ZeroAblation | None:
    """Zero ablation of the span; None for a single zero vector, which has none."""
    return ZeroAblation(basis) if bool(basis.any()) else None


def _added(target: Target, job: EvaluateJob, dose: float) -> Added:
    site, vector = job.source.site, job.source.subspace.vector
    controls = added_controls(target, site, dose * job.norm_matched, job.answer_draws)
    return add_in(target, site, vector, dose, controls)


def _cross_entropies(target: Target, job: EvaluateJob) -> dict[str, Tensor]:
    side = target.harmless
    conditions: dict[str, Edits | None] = {
        "clean": None,
        **{
            form: ablation_edits(target, job.source, form, job.source.subspace.basis)
            for form in ("zero", "affine")
        },
    }
    return {
        name: clean_answer_cross_entropy(
            target.model, side.tokens, side.answers, target.batch_tokens, edits
        )
        for name, edits in conditions.items()
    }
