"""What ablating each arm's direction does in one target arm, beside controls of equal energy.

Diagonal and off-diagonal cells share site, prompts and n (evidence.md 11). A cell is measured on
harmful prompts (does refusal go?) and on harmless ones (does anything else move?): an ablation
that removes refusal by wrecking the model, or that makes harmless prompts refused, is not a
bypass, and only the second column shows it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import AblationForm, Edits, ZeroAblation, affine_ablation
from mechsafety.effects.answers import (
    Answers,
    answer,
    clean_answer_cross_entropy,
    content_scores,
)
from mechsafety.effects.scores import Halfway, score
from mechsafety.effects.target import Side, Target
from mechsafety.linalg.subspace import Subspace
from mechsafety.metrics.matched_controls import ablation_energy, draw_energy_matched


@dataclass(frozen=True)
class Source:
    """A direction (or subspace) of one arm, to be ablated in another."""

    arm: str
    site: ResidualSite
    """Where it was read; affine ablation edits block inputs from this layer on."""
    subspace: Subspace


@dataclass(frozen=True)
class Outcome:
    """Per-prompt measurements of one class of prompts under one edit."""

    refusal_score: Float[Tensor, " prompt"] | None
    """Log-odds of a refusal token; None where the model's refusal tokens are unknown."""
    kl: Float[Tensor, " prompt"]
    """KL(clean ‖ edited) at the first answer token, nats."""
    answers: Answers
    content: Float[Tensor, " prompt"]
    """1 where the content is right; without facts, nats per token of the own clean answers."""
    content_is_cross_entropy: bool


@dataclass(frozen=True)
class Controls:
    """The same ablation with subspaces that are not about refusal, of matched energy."""

    harmful_score: Float[Tensor, " draw"] | None
    """Mean refusal score on harmful prompts of each draw."""
    harmful_rate: Float[Tensor, " n_answered"]
    """Share of harmful prompts refused, of the first few draws (generation costs more)."""
    harmless_rate: Float[Tensor, " n_answered"]
    """Share of harmless prompts refused, of the same few draws."""
    energy_ratio: Float[Tensor, " draw"]
    """Energy that the control removes over energy that the ablation removes."""
    overlap: Float[Tensor, " draw"]
    """Share of the ablated subspace that the control removes too; near 1 it is no control."""


@dataclass(frozen=True)
class Cell:
    """One source ablated in one target, in one form."""

    source: Source
    form: AblationForm
    harmful: Outcome
    harmless: Outcome
    controls: Controls | None


def ablation_edits(target: Target, source: Source, form: AblationForm, basis: Tensor) -> Edits:
    """The edits of one form of ablation in this target."""
    if form == "zero":
        return ZeroAblation(basis)
    means = {s: m for s, m in target.harmless_means.items() if s.layer >= source.site.layer}
    return affine_ablation(basis, means)


def _outcome(
    target: Target, side: Side, answers: Answers, source: Source, form: AblationForm
) -> Outcome:
    """What one class of prompts does with `source` ablated, of which the answers are known."""
    edits = ablation_edits(target, source, form, source.subspace.basis)
    scores = score(
        target.model,
        side.tokens,
        target.refusal_ids,
        target.batch_tokens,
        edits,
        side.logits,
        _halfway(side, source, form),
    )
    right = content_scores(answers, side.prompts.prompts)
    if right is None:
        content = clean_answer_cross_entropy(
            target.model, side.tokens, side.answers, target.batch_tokens, edits
        )
    else:
        content = torch.tensor(right, dtype=torch.float64)
    assert scores.kl is not None  # clean logits were given
    return Outcome(scores.refusal, scores.kl, answers, content, right is None)


def _answers(target: Target, edits: Edits) -> tuple[Answers, Answers]:
    """Of the harmful and the harmless prompts, generated together: steps cost more than rows."""
    both = target.harmful.tokens.beside(target.harmless.tokens)
    found = answer(
        target.model, both, target.judge, target.max_new_tokens, target.batch_tokens, edits
    )
    n = len(target.harmful.tokens)
    return found.part(0, n), found.part(n, len(both))


def ablate_in(
    target: Target,
    source: Source,
    form: AblationForm,
    *,
    score_draws: int,
    answer_draws: int,
    generator: torch.Generator,
) -> Cell:
    """Ablate one source in the target, with `score_draws` controls of matched energy.

    Args:
        score_draws: Controls scored at the first token; 0 for none (20 or more for a p-value).
        answer_draws: Of these, how many also generate answers (5 or more).
    """
    edits = ablation_edits(target, source, form, source.subspace.basis)
    harmful, harmless = _answers(target, edits)
    return Cell(
        source=source,
        form=form,
        harmful=_outcome(target, target.harmful, harmful, source, form),
        harmless=_outcome(target, target.harmless, harmless, source, form),
        controls=_controls(target, source, form, score_draws, answer_draws, generator)
        if score_draws
        else None,
    )


def _controls(
    target: Target,
    source: Source,
    form: AblationForm,
    score_draws: int,
    answer_draws: int,
    generator: torch.Generator,
) -> Controls:
    rows = target.harmless_rows[source.site]
    basis, centered = source.subspace.basis, form == "affine"
    bases = draw_energy_matched(rows, basis, score_draws, generator, centered)
    scores: list[Tensor] = []
    harmful_rates: list[float] = []
    harmless_rates: list[float] = []
    for draw, control in enumerate(bases):
        edits = ablation_edits(target, source, form, control)
        under = score(
            target.model,
            target.harmful.tokens,
            target.refusal_ids,
            target.batch_tokens,
            edits,
            halfway=_halfway(target.harmful, source, form),
        )
        if under.refusal is not None:
            scores.append(under.refusal.mean())
        if draw < answer_draws:
            harmful, harmless = _answers(target, edits)
            harmful_rates.append(_refusal_rate(harmful))
            harmless_rates.append(_refusal_rate(harmless))
    return Controls(
        harmful_score=torch.stack(scores) if scores else None,
        harmful_rate=torch.tensor(harmful_rates, dtype=torch.float64),
        harmless_rate=torch.tensor(harmless_rates, dtype=torch.float64),
        energy_ratio=ablation_energy(rows, bases, centered)
        / ablation_energy(rows, basis[None], centered),
        overlap=(bases.double() @ basis.double().T).square().sum(dim=(1, 2)) / len(basis),
    )


def _halfway(side: Side, source: Source, form: AblationForm) -> Halfway | None:
    """Affine edits begin at the source's layer; the zero form edits from the first block on."""
    return side.halfway.get(source.site.layer) if form == "affine" else None


def _refusal_rate(answers: Answers) -> float:
    refused = answers.judged("refused")
    return sum(refused) / len(refused)
