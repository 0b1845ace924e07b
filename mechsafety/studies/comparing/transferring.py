"""Carried directions ablated and added in a target: one job per target model.

A cosine says that two directions look alike; this says whether one does the other's work.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from mechsafety.core.config import FrozenConfig, Runtime
from mechsafety.core.errors import DegenerateDirectionError, SubspaceError
from mechsafety.core.layers import LayerRule
from mechsafety.core.progress import progress
from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import PromptPairs
from mechsafety.effects.ablation import AblationForm
from mechsafety.effects.ablation_matrix import Cell, Source, ablate_in
from mechsafety.effects.added_in import Added, AddedControls, add_in, added_controls
from mechsafety.effects.target import Target, check_zero_strength, observed_target
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.linalg.subspace import Subspace
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.matched_controls import draw_norm_matched
from mechsafety.models.spec import ModelSpec
from mechsafety.models.tokens import TokenUse
from mechsafety.studies.arms import open_arm
from mechsafety.studies.attack import Baseline

Carried = Literal["own", "same space", "procrustes", "ridge"]
"""How a direction came into the target's space: it is the target's own, both models were trained
from one base, or a map of the activations of neutral prompts carried it."""


class TransferSettings(FrozenConfig):
    """How carried directions are tried in a target."""

    layer: LayerRule = "depth:0.85"
    """Layer of the target that directions are carried to, ablated and added at."""
    forms: tuple[AblationForm, ...] = ("zero", "affine")
    """`zero` removes the component everywhere; `affine` sets it to the harmless mean."""
    n: PositiveInt = 40
    """Held-out prompts of each class."""
    max_new_tokens: PositiveInt = 24
    """Answer length in tokens; part of the name of every rate."""
    score_draws: PositiveInt = 20
    """Matched controls that are scored at the first token."""
    answer_draws: NonNegativeInt = 5
    """How many of these controls also generate answers: of additions, and of ablations of a
    target's own direction."""
    kl_bound: PositiveFloat = 0.5
    """Forms whose harmless KL exceeds this, in nats, do not count towards robustness claims."""


@dataclass(frozen=True)
class CarriedSource:
    """The direction of one model in the space of another."""

    model: str
    """Whose direction it is."""
    via: Carried
    direction: Float[Tensor, " d_model"]
    """Of any length, with the harmful side positive; d_model is the target's."""


@dataclass(frozen=True)
class TransferJob:
    """All that a worker process needs to try every source in one target."""

    target: str
    model: ModelSpec
    """With an organism's name already turned into its folder."""
    runtime: Runtime
    chat: ChatFormat
    judge: PhraseJudge
    settings: TransferSettings
    pairs: PromptPairs
    """Held-out harmful and harmless prompts."""
    site: ResidualSite
    """Block input of the target: affine ablation edits from there on, addition edits there."""
    sources: tuple[CarriedSource, ...]
    own_norm: float
    """Norm of the target's own direction there, as the method fits it, in activation units: the
    dose of every addition, so that directions differ in nothing but where they point."""
    harmless_rows: Mapping[ResidualSite, Float[Tensor, "row d_model"]]
    """Harmless activations of the target at every block input, from the fit split."""
    refusal_ids: tuple[int, ...]
    """At least one: without a score nothing is seen to transfer."""
    seed: int


@dataclass(frozen=True)
class TransferCell:
    """One source in one target."""

    source: CarriedSource
    ablated: Mapping[AblationForm, Cell]
    """By form, with controls of the same energy."""
    added: Added
    """At `own_norm`, with controls of that norm, which all cells of a target share."""


@dataclass(frozen=True)
class ScoreEffect:
    """How far an edit moves the refusal score the way it is meant to."""

    by_prompt: Float[Tensor, " prompt"]
    controls: Float[Tensor, " draw"] | None
    """The mean over prompts of each control; None where none were drawn."""


@dataclass(frozen=True)
class Transferred:
    """One target under every source, in the order of the job's sources."""

    target: str
    baseline: Baseline
    cells: tuple[TransferCell, ...]
    token_use: Mapping[str, TokenUse]
    """By prompt set."""

    @property
    def clean(self) -> tuple[Float[Tensor, " n_harmful"], Float[Tensor, " n_harmless"]] | None:
        """Refusal scores of both classes, unedited; None without refusal tokens."""
        scores, n = self.baseline.scores, len(self.baseline.harmful)
        return None if scores is None else (scores[:n], scores[n:])

    def fallen(self, cell: Cell) -> ScoreEffect | None:
        """What an ablation takes from harmful prompts; None without scores."""
        edited, controls = cell.harmful.refusal_score, cell.controls
        if self.clean is None or edited is None:
            return None
        harmful, _ = self.clean
        drawn = None if controls is None else controls.harmful_score
        return ScoreEffect(harmful - edited, None if drawn is None else harmful.mean() - drawn)

    def risen(self, added: Added) -> ScoreEffect | None:
        """What an addition gives to harmless prompts; None without scores."""
        if self.clean is None:
            return None
        _, harmless = self.clean
        return ScoreEffect(added.scores - harmless, added.control_scores - harmless.mean())


def transfer(job: TransferJob) -> Transferred:
    """Open one target, ablate and add every source in it, and let it go.

    Raises:
        SubspaceError: A direction of another width than the target's.
        DegenerateDirectionError: A direction, or the dose, is zero or not finite.
    """
    sources = [_in_target(job, source) for source in job.sources]
    model = open_arm(job.model, job.runtime, job.chat, probe=False)
    try:
        target = observed_target(
            model,
            job.pairs,
            job.chat,
            job.judge,
            harmless_rows=job.harmless_rows,
            refusal_ids=job.refusal_ids,
            layers=[job.site.layer],
            max_new_tokens=job.settings.max_new_tokens,
            batch_tokens=job.runtime.batch_tokens,
        )
        check_zero_strength(target, job.site)
        controls = _norm_matched(job, target)
        both = list(zip(job.sources, sources, strict=True))
        return Transferred(
            target=job.target,
            baseline=Baseline.of(target),
            cells=tuple(
                TransferCell(
                    source=carried,
                    ablated={
                        form: _ablated(job, target, carried, source, form)
                        for form in job.settings.forms
                    },
                    added=add_in(target, job.site, source.subspace.vector, 1.0, controls),
                )
                for carried, source in progress(both, f"directions in {job.target}")
            ),
            token_use=target.token_use("transfer"),
        )
    finally:
        model.close()


def _in_target(job: TransferJob, source: CarriedSource) -> Source:
    """The direction with the length at which the target's own would be added."""
    direction = source.direction.double()
    size = float(linalg.vector_norm(direction))
    width = job.harmless_rows[job.site].shape[1]
    what = f"transferring the direction of '{source.model}' into '{job.target}' ({source.via})"
    if len(direction) != width:
        raise SubspaceError(
            f"{what}: it has {len(direction)} entries, and the target is {width} wide at "
            f"{job.site}. Carry it over by a map between the two models first."
        )
    if not (0 < size < math.inf and 0 < job.own_norm < math.inf):
        raise DegenerateDirectionError(
            f"{what}: its norm is {size:.3g} and the dose {job.own_norm:.3g}; both must be finite "
            "and above 0. Leave out a direction that the map takes to zero, and choose a layer at "
            "which the target's classes differ."
        )
    return Source(
        source.model, job.site, Subspace.of_vector(source.direction.float(), job.own_norm)
    )


def _ablated(
    job: TransferJob, target: Target, carried: CarriedSource, source: Source, form: AblationForm
) -> Cell:
    # The name, not the order of cells, decides a cell's draws: models can be added to a run.
    names = ("controls", job.target, carried.model, carried.via, str(job.site))
    return ablate_in(
        target,
        source,
        form,
        score_draws=job.settings.score_draws,
        answer_draws=job.settings.answer_draws if carried.via == "own" else 0,
        generator=named_generator(job.seed, *names),
    )


def _norm_matched(job: TransferJob, target: Target) -> AddedControls:
    """Controls of addition depend on the dose alone, which all sources share."""
    rows = job.harmless_rows[job.site]
    # Any vector of that norm asks for the same draws.
    dose = torch.zeros(rows.shape[1])
    dose[0] = job.own_norm
    generator = named_generator(job.seed, "controls of addition", job.target, str(job.site))
    drawn = draw_norm_matched(dose, job.settings.score_draws, generator, rows)
    return added_controls(target, job.site, drawn, job.settings.answer_draws)
