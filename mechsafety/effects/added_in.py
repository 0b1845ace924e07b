"""What adding a vector does to harmless prompts, beside other vectors of the same norm."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import Hooks, addition
from mechsafety.effects.adding import added_scores
from mechsafety.effects.answers import Answers, answer
from mechsafety.effects.scores import refusal_scores
from mechsafety.effects.target import Target


@dataclass(frozen=True)
class AddedControls:
    """Harmless prompts with directions of one norm added at one site, not the one asked about."""

    scores: Float[Tensor, " draw"]
    """Mean refusal score with each."""
    rates: Float[Tensor, " n_answered"]
    """Share refused with the first few of these (generation costs more)."""


@dataclass(frozen=True)
class Added:
    """Harmless prompts with a multiple of a vector added at its site."""

    dose: float
    """In multiples of the vector."""
    scores: Float[Tensor, " prompt"]
    answers: Answers
    control_scores: Float[Tensor, " draw"]
    """Mean refusal score with directions of the same norm added there."""
    control_rates: Float[Tensor, " n_answered"]
    """Share refused with the first few of these."""


def add_in(
    target: Target,
    site: ResidualSite,
    vector: Float[Tensor, " d_model"],
    dose: float,
    controls: AddedControls,
) -> Added:
    """Add `dose` × `vector` at all positions of the target's harmless prompts.

    Args:
        site: A block input whose layer the target was observed at.
        controls: From `added_controls` with the norm that is added here: vectors that are added
            at one site with one norm share them.
    """
    edits = addition(site, vector, dose)
    scores = refusal_scores(
        target.model, target.harmless.tokens, target.refusal_ids, target.batch_tokens, edits
    )
    return Added(dose, scores, _answers(target, edits), controls.scores, controls.rates)


def added_controls(
    target: Target,
    site: ResidualSite,
    vectors: Float[Tensor, "draw d_model"],
    answer_draws: int,
) -> AddedControls:
    """Add each of `vectors` at all positions of the target's harmless prompts.

    Args:
        site: As for `add_in`.
        vectors: From `draw_norm_matched`, in activation units.
        answer_draws: How many of them also generate answers (5 or more).
    """
    rates: list[float] = []
    for vector in vectors[:answer_draws]:
        refused = _answers(target, addition(site, vector, 1.0)).judged("refused")
        rates.append(sum(refused) / len(refused))
    start = target.harmless.halfway[site.layer]
    scores = added_scores(target.model, start, vectors, target.refusal_ids, target.batch_tokens)
    return AddedControls(scores.mean(0), torch.tensor(rates, dtype=torch.float64))


def _answers(target: Target, edits: Hooks) -> Answers:
    return answer(
        target.model,
        target.harmless.tokens,
        target.judge,
        target.max_new_tokens,
        target.batch_tokens,
        edits,
    )
