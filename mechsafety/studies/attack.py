"""Running the self- and cross-ablation matrix of a study: one job per target arm."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from mechsafety.core.config import FrozenConfig, Runtime
from mechsafety.core.layers import LayerRule
from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import PromptPairs
from mechsafety.directions.difference_in_means import DifferenceInMeans
from mechsafety.directions.principal_components import principal_components
from mechsafety.effects.ablation import AblationForm
from mechsafety.effects.ablation_matrix import Cell, Source, ablate_in
from mechsafety.effects.target import Target, check_zero_strength, observed_target
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.metrics.pairing import Pairing, difference_rows
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.models.spec import ModelSpec
from mechsafety.models.tokens import TokenUse
from mechsafety.studies.arms import open_arm


class AttackMatrix(FrozenConfig):
    """Settings of the self- and cross-ablation matrix."""

    layers: tuple[LayerRule, ...]
    """Layers at which directions are read; each gives a matrix of its own, since layer changes the
    story."""
    ranks: tuple[PositiveInt, ...] = (1, 2)
    """1: the mean difference; k: the first k uncentered components of the differences."""
    cross_ranks: tuple[PositiveInt, ...] = (1, 2)
    """Ranks (components) that are also ablated in other arms than their own."""
    forms: tuple[AblationForm, ...] = ("zero", "affine")
    """`zero` removes the component everywhere; `affine` sets it to the harmless mean."""
    n: PositiveInt = 48
    """Held-out prompts of each class."""
    max_new_tokens: PositiveInt = 24
    """Answer length in tokens; part of the name of every rate."""
    score_draws: NonNegativeInt = 20
    """Energy-matched controls that are scored at the first token; 0 for none."""
    answer_draws: NonNegativeInt = 5
    """How many of these controls also generate answers."""
    control_ranks: tuple[PositiveInt, ...] = (1,)
    """Ranks of off-diagonal cells that get controls; cells on the diagonal always get theirs."""
    kl_bound: PositiveFloat = 0.5
    """Forms whose harmless KL exceeds this, in nats, do not count towards robustness claims."""


@dataclass(frozen=True)
class AttackJob:
    """All that a worker process needs to attack one arm with every source."""

    arm: str
    model: ModelSpec
    runtime: Runtime
    chat: ChatFormat
    judge: PhraseJudge
    settings: AttackMatrix
    pairs: PromptPairs
    """Held-out harmful and harmless prompts."""
    sources: tuple[Source, ...]
    harmless_rows: Mapping[ResidualSite, Float[Tensor, "row d_model"]]
    """Harmless activations of this arm at every block input, from the fit split."""
    refusal_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Baseline:
    """Verdicts on the unedited arm's answers to the held-out prompts."""

    harmful: tuple[Verdict, ...]
    harmless: tuple[Verdict, ...]
    scores: Float[Tensor, " prompt"] | None
    """Refusal scores of the harmful prompts, then the harmless ones; None without refusal
    tokens."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of the harmful prompts, then the harmless ones, as `scores`."""
        return (*self.harmful, *self.harmless)

    @classmethod
    def of(cls, target: Target) -> "Baseline":
        """What a target did unedited."""
        sides = (target.harmful, target.harmless)
        scores = None
        if len(target.refusal_ids):
            scores = torch.cat([refusal_score(side.logits, target.refusal_ids) for side in sides])
        return cls(sides[0].answers.verdicts, sides[1].answers.verdicts, scores)


@dataclass(frozen=True)
class Attacked:
    """One arm under every source."""

    arm: str
    baseline: Baseline
    cells: tuple[Cell, ...]
    token_use: Mapping[str, TokenUse]
    """By prompt set."""


def source(
    arm: str,
    site: ResidualSite,
    rank: int,
    harmful: Float[Tensor, "n_harmful d_model"],
    harmless: Float[Tensor, "n_harmless d_model"],
    pairing: Pairing,
) -> Source:
    """The direction of one arm at one site (rank 1), or the subspace of its top components.

    Rank 1 is the mean difference; rank k the first k uncentered components of the differences,
    whose energy is what the study calls the top-k share.

    Raises:
        DegenerateDirectionError: The classes do not differ there in so many dimensions.
    """
    if rank == 1:
        return Source(arm, site, DifferenceInMeans().fit(harmful, harmless))
    rows = difference_rows(harmful, harmless, pairing)
    return Source(arm, site, principal_components(rows.float(), rank, centered=False))


def attack_arm(job: AttackJob) -> Attacked:
    """Open one arm, ablate every source in it in every form, and let it go."""
    model = open_arm(job.model, job.runtime, job.chat, probe=False)
    try:
        target = observed_target(
            model,
            job.pairs,
            job.chat,
            job.judge,
            harmless_rows=job.harmless_rows,
            refusal_ids=job.refusal_ids,
            layers={source.site.layer for source in job.sources},
            max_new_tokens=job.settings.max_new_tokens,
            batch_tokens=job.runtime.batch_tokens,
        )
        check_zero_strength(target, job.sources[0].site)
        cells = tuple(
            _cell(job, target, source, form)
            for source in job.sources
            for form in job.settings.forms
        )
        return Attacked(
            arm=job.arm,
            baseline=Baseline.of(target),
            cells=cells,
            token_use=target.token_use("attack"),
        )
    finally:
        model.close()


def _cell(job: AttackJob, target: Target, source: Source, form: AblationForm) -> Cell:
    rank = source.subspace.k
    diagonal = source.arm == job.arm
    controlled = diagonal or rank in job.settings.control_ranks
    # The name, not the order of cells, decides a cell's draws: arms can be added to a run.
    generator = named_generator(job.seed, "controls", job.arm, source.arm, str(source.site), rank)
    return ablate_in(
        target,
        source,
        form,
        score_draws=job.settings.score_draws if controlled else 0,
        answer_draws=job.settings.answer_draws if diagonal else 0,
        generator=generator,
    )
