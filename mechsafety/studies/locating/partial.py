"""Where the direction's effect comes from: layers, tokens, doses and writers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.positions import Position
from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.data.prompts import PromptPairs, PromptSet
from mechsafety.effects.adding import added_scores, dose_scores
from mechsafety.effects.attribution import (
    Writer,
    WriterShares,
    attribute,
    shares,
    writer_edits,
    writer_means,
)
from mechsafety.effects.scores import refusal_scores, run_halfway
from mechsafety.effects.windows import Window, position_scores, window_scores
from mechsafety.linalg.typed import linalg
from mechsafety.studies.locating.reading import Asked


@dataclass(frozen=True)
class WhereJob:
    """Ablating one direction in some layers, or at some tokens, only."""

    asked: Asked
    prompts: PromptSet
    """Harmful prompts."""
    refusal_ids: tuple[int, ...]
    bases: Float[Tensor, "draw d_model"]
    """The direction first, then its controls."""
    windows: tuple[Window, ...]
    positions: tuple[str, ...]
    """Ablated one at a time; may be several tokens, such as `prompt`."""


@dataclass(frozen=True)
class Where:
    """Refusal scores under partial ablations."""

    windows: Float[Tensor, "draw prompt n_windows"]
    positions: Float[Tensor, "draw prompt position"]


def where(job: WhereJob) -> Where:
    """Ablate in every window and at every position."""
    model = job.asked.open()
    size = job.asked.runtime.batch_tokens
    tokens = job.asked.tokens(model, job.prompts)
    ids = torch.tensor(job.refusal_ids, dtype=torch.long)
    starts = run_halfway(model, tokens, sorted({first for first, _ in job.windows}), size)
    at = [Position.parse(name) for name in job.positions]
    return Where(
        windows=torch.stack(
            [
                window_scores(model, tokens, starts, basis[None], job.windows, ids, size)
                for basis in job.bases
            ]
        ),
        positions=torch.stack(
            [position_scores(model, tokens, basis[None], at, ids, size) for basis in job.bases]
        ),
    )


@dataclass(frozen=True)
class DoseJob:
    """Adding one direction at every layer, at every dose."""

    asked: Asked
    prompts: PromptSet
    refusal_ids: tuple[int, ...]
    directions: Float[Tensor, "draw d_model"]
    """The direction first, then its controls; only directions count."""
    norms: Mapping[int, float]
    doses: tuple[float, ...]
    by_layer: Float[Tensor, "layer d_model"]
    """Directions read at each layer, for their direct effect on the logits."""
    direct_dose: float
    """Dose of those, in the same units, added to the output of the last block."""


@dataclass(frozen=True)
class Doses:
    """Refusal scores under additions."""

    response: Float[Tensor, "draw prompt n_dosed dose"]
    """The last layer is the output of the last block."""
    direct: Float[Tensor, "prompt layer"]
    """With each layer's own direction added to the output of the last block."""


def dose_response(job: DoseJob) -> Doses:
    """Add the direction and its controls at every layer, at every dose."""
    model = job.asked.open()
    size = job.asked.runtime.batch_tokens
    tokens = job.asked.tokens(model, job.prompts)
    ids = torch.tensor(job.refusal_ids, dtype=torch.long)
    starts = run_halfway(model, tokens, sorted(job.norms), size)
    respond = partial(
        dose_scores,
        model,
        starts,
        norms=job.norms,
        doses=job.doses,
        refusal_ids=ids,
        batch_tokens=size,
    )
    norms = linalg.vector_norm(job.by_layer.double(), dim=1)[:, None]
    # A direction that is zero (template tokens at layer 0) stays zero and adds nothing.
    units = job.by_layer.double() / norms.clamp(min=torch.finfo(torch.float64).tiny)
    last = starts[model.dims.n_layers]
    added = (units * job.direct_dose * job.norms[model.dims.n_layers]).float()
    return Doses(
        response=torch.stack([respond(direction) for direction in job.directions]),
        direct=added_scores(model, last, added, ids, size),
    )


# --- who writes it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class WritersJob:
    """Attribution to heads and MLPs, and what ablating the top ones does."""

    asked: Asked
    fit: PromptPairs
    held_out: PromptPairs
    refusal_ids: tuple[int, ...]
    direction: Float[Tensor, " d_model"]
    site: ResidualSite
    position: Position
    share: float
    ablated_share: float
    n_controls: int


@dataclass(frozen=True)
class WriterAblation:
    """Refusal scores with some writers ablated."""

    form: str
    """`zero` or `mean`."""
    writers: tuple[str, ...]
    control: int | None
    """Which control draw this is; None for the direction's writers themselves."""
    overlap: float
    """Share of the direction's ablated writers that are among these."""
    harmful: Float[Tensor, " n_harmful"]
    harmless: Float[Tensor, " n_harmless"]


@dataclass(frozen=True)
class Writers:
    """Who writes the direction."""

    shares: WriterShares
    spread: Float[Tensor, " n_writers"]
    """Standard error of each difference, prompts as independent."""
    n: int
    """Prompts of both classes that the shares are of (fit split)."""
    top: tuple[Writer, ...]
    """The fewest that write the share asked for."""
    ablated: tuple[Writer, ...]
    """The fewest that write the share that is ablated, of those that can be."""
    ablations: tuple[WriterAblation, ...]


def writers(job: WritersJob) -> Writers:
    """Attribute the direction on the fit split; ablate its top writers on held-out prompts."""
    model = job.asked.open()
    size = job.asked.runtime.batch_tokens
    ids = torch.tensor(job.refusal_ids, dtype=torch.long)
    fit = [job.asked.tokens(model, side) for side in job.fit.sets]
    held_out = [job.asked.tokens(model, side) for side in job.held_out.sets]
    by_class = [
        attribute(model, tokens, job.direction, job.site, job.position, size) for tokens in fit
    ]
    found = shares(by_class[0], by_class[1])
    variances = [one.contributions.var(0) / len(one.contributions) for one in by_class]
    chosen = found.top_writers(job.ablated_share)
    can_be_ablated = [writer for writer in chosen if writer.site is not None]
    rivals = _other_writers(job, found.writers, can_be_ablated)
    able = [writer for writer in found.writers if writer.site is not None]
    # What enters the first block was written by the embeddings alone.
    means = writer_means(model, fit[1], able, size) if able else {}

    def ablated(form: str, some: Sequence[Writer], control: int | None) -> WriterAblation:
        edits = writer_edits(some, means if form == "mean" else None)
        scores = [refusal_scores(model, tokens, ids, size, edits) for tokens in held_out]
        shared = sum(writer in can_be_ablated for writer in some) / len(some)
        return WriterAblation(form, tuple(map(str, some)), control, shared, scores[0], scores[1])

    done = [ablated(form, can_be_ablated, None) for form in ("zero", "mean") if can_be_ablated]
    done += [
        ablated(form, rival, draw) for draw, rival in enumerate(rivals) for form in ("zero", "mean")
    ]
    return Writers(
        shares=found,
        spread=(variances[0] + variances[1]).sqrt(),
        n=sum(len(one.contributions) for one in by_class),
        top=found.top_writers(job.share),
        ablated=tuple(can_be_ablated),
        ablations=tuple(done),
    )


def _other_writers(
    job: WritersJob, everyone: Sequence[Writer], chosen: Sequence[Writer]
) -> list[list[Writer]]:
    """As many heads and as many MLPs as the chosen ones, drawn from all the others.

    Where the chosen ones leave too few others of a kind, as many writers as they are, drawn from
    all that can be ablated whatever their kind; the overlap is then part of the control.
    """
    generator = named_generator(job.asked.seed, "other writers")
    able = [writer for writer in everyone if writer.site is not None]
    counts = {kind: sum(writer.kind == kind for writer in chosen) for kind in ("head", "mlp")}
    pools = [
        ([writer for writer in able if writer.kind == kind and writer not in chosen], n)
        for kind, n in counts.items()
    ]
    if any(len(pool) < n for pool, n in pools):
        pools = [(able, len(chosen))]
    # With every writer chosen there is nothing to draw but the chosen ones themselves.
    if not chosen or len(chosen) == len(able):
        return []

    def drawn(pool: Sequence[Writer], n: int) -> list[Writer]:
        return [pool[int(i)] for i in torch.randperm(len(pool), generator=generator)[:n]]

    return [
        [writer for pool, n in pools for writer in drawn(pool, n)] for _ in range(job.n_controls)
    ]
