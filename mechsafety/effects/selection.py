"""Which of many directions a model refuses by: every score of every candidate, or only the winner.

The published procedure makes three passes over its prompts for each candidate, with hooks on
every block (arXiv:2406.11717, section 2.4). The same numbers come faster: additions at a layer
run only the blocks above it, from residual streams that were computed once; ablations run as
edited weights; prompts go by length; and where only the winner is wanted, filters run in order of
their cost and what they discard is not scored further.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechsafety.core.errors import SampleError
from mechsafety.core.progress import progress
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import RowwiseAblation, ZeroAblation, addition
from mechsafety.effects.adding import added_scores
from mechsafety.effects.scores import Halfway, first_token_logits, refusal_scores, run_halfway
from mechsafety.effects.selection_rule import SelectionFilters, choose, kept
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.kl import kl_divergence
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenBatch, TokenizedPrompts

Mode = Literal["exhaustive", "winner"]

TOGETHER: Final = 8
"""Candidates whose ablations share passes; so many times the prompts' logits are held."""
FULL: Final = 4
"""Passes that one candidate's prompts fill, from which sharing them gains nothing."""

_NOT_SCORED: Final = float("nan")


@dataclass(frozen=True)
class Candidates:
    """Directions to choose from: one for each position and site at which it was read."""

    positions: tuple[str, ...]
    """In the order in which ties are decided; for controls, names of the draws."""
    sites: tuple[ResidualSite, ...]
    """As above; the `layer` axis of every score."""
    vectors: Float[Tensor, "position layer d_model"]
    """Mean differences in activation units: additions add them as they are."""

    def __post_init__(self) -> None:
        if self.vectors.shape[:2] != (len(self.positions), len(self.sites)):
            raise SampleError(
                f"candidate directions: {tuple(self.vectors.shape[:2])} vectors for "
                f"{len(self.positions)} positions and {len(self.sites)} sites; expected one each."
            )

    @property
    def real(self) -> Bool[Tensor, "position layer"]:
        """Where there is a direction at all: at layer 0 template tokens do not differ."""
        return (self.vectors != 0).any(-1)

    def at(self, position: int, layer: int) -> Float[Tensor, " d_model"]:
        """The mean difference at these indices."""
        return self.vectors[position, layer]


@dataclass(frozen=True)
class Trial:
    """What candidates are tried on."""

    harmful: TokenizedPrompts
    harmless: TokenizedPrompts
    clean_harmful: Float[Tensor, "n_harmful vocab"]
    """First-token logits of the unedited model."""
    clean_harmless: Float[Tensor, "n_harmless vocab"]
    """As above."""
    refusal_ids: Int[Tensor, " n_refusal"]
    batch_tokens: int


@dataclass(frozen=True)
class CandidateScores:
    """Scores of every prompt under every candidate; NaN where a candidate was not scored."""

    bypass: Float[Tensor, "n_harmful position layer"]
    """Refusal score of harmful prompts, direction ablated; log-odds."""
    induce: Float[Tensor, "n_harmless position layer"]
    """Refusal score of harmless prompts, mean difference added at its site, all positions."""
    kl: Float[Tensor, "n_harmless position layer"]
    """KL(clean ‖ ablated) of the first answer token on harmless prompts; nats."""


@dataclass(frozen=True)
class Selection:
    """The chosen candidate, and all that was measured on the way."""

    candidates: Candidates
    scores: CandidateScores
    filters: SelectionFilters
    mode: Mode
    chosen: tuple[int, int] | None
    """Indices into positions and sites; None where the filters keep no candidate."""

    @property
    def site(self) -> ResidualSite | None:
        """Where the chosen direction was read."""
        return None if self.chosen is None else self.candidates.sites[self.chosen[1]]


def make_trial(
    model: Model,
    harmful: TokenizedPrompts,
    harmless: TokenizedPrompts,
    refusal_ids: Sequence[int],
    batch_tokens: int,
) -> Trial:
    """Run both prompt sets once through the unedited model, as what edits are compared with."""
    both = harmful.beside(harmless)
    clean = first_token_logits(model, both, batch_tokens)
    return Trial(
        harmful=harmful,
        harmless=harmless,
        clean_harmful=clean[: len(harmful)],
        clean_harmless=clean[len(harmful) :],
        refusal_ids=torch.tensor(list(refusal_ids), dtype=torch.long),
        batch_tokens=batch_tokens,
    )


def select_direction(
    model: Model,
    trial: Trial,
    candidates: Candidates,
    filters: SelectionFilters,
    mode: Mode = "exhaustive",
) -> Selection:
    """Choose the candidate whose ablation lowers refusal most, of those that the filters keep.

    Both modes choose the same one. `exhaustive` scores all, so that selection can be repeated
    inside a bootstrap; `winner` scores additions first (the cheapest), then KL, then bypass, each
    only of the candidates that are still in, so that selection uncertainty is not available.

    Source: arXiv:2406.11717, section 2.4 and appendix C.

    Args:
        trial: Prompts of the split that selects.
        candidates: Fitted on another split.
        filters: Which candidates may win.
        mode: See above.
    """
    n_layers = model.dims.n_layers
    if mode == "exhaustive":
        scores = score_candidates(model, trial, candidates)
    else:
        scores = _score_survivors(model, trial, candidates, filters)
    means = {name: getattr(scores, name).mean(0) for name in ("bypass", "induce", "kl")}
    allowed = kept(filters, n_layers, means["induce"], means["kl"], means["bypass"])
    allowed &= candidates.real
    position, layer = (int(index) for index in choose(means["bypass"], allowed))
    chosen = (position, layer) if position >= 0 else None
    return Selection(candidates, scores, filters, mode, chosen)


def score_candidates(model: Model, trial: Trial, candidates: Candidates) -> CandidateScores:
    """All three scores of every candidate, prompt by prompt."""
    everything = [(p, s) for p in range(len(candidates.positions)) for s in _indices(candidates)]
    induce = induce_scores(model, trial, candidates, everything)
    bypass, kl = _empty(trial.harmful, candidates), _empty(trial.harmless, candidates)
    # Where there is no direction, ablating it changes nothing.
    bypass[:, ~candidates.real] = refusal_score(trial.clean_harmful, trial.refusal_ids)[:, None]
    kl[:, ~candidates.real] = 0.0
    n = len(trial.harmful)
    both = trial.harmful.beside(trial.harmless)
    for (p, s), logits in _ablated(model, both, candidates, everything, trial):
        bypass[:, p, s] = refusal_score(logits[:n], trial.refusal_ids)
        kl[:, p, s] = kl_divergence(trial.clean_harmless, logits[n:])
    return CandidateScores(bypass, induce, kl)


def induce_scores(
    model: Model,
    trial: Trial,
    candidates: Candidates,
    wanted: Sequence[tuple[int, int]],
) -> Float[Tensor, "n_harmless position layer"]:
    """Refusal score of harmless prompts with each wanted mean difference added at its own site.

    Only the blocks above run; candidates of one site share passes up to `Model.pass_tokens`.
    """
    found = _empty(trial.harmless, candidates)
    by_site: dict[int, list[int]] = {}
    for position, site in wanted:
        by_site.setdefault(site, []).append(position)
    entries = {s: _entry(candidates.sites[s]) for s in by_site}
    halfway = run_halfway(model, trial.harmless, sorted(set(entries.values())), trial.batch_tokens)
    for s, positions in progress(by_site.items(), "adding candidates", total=len(by_site)):
        vectors = candidates.vectors[positions, s]
        start = halfway[entries[s]]
        found[:, positions, s] = _added(model, trial, start, candidates.sites[s], vectors)
    return found


def _score_survivors(
    model: Model, trial: Trial, candidates: Candidates, filters: SelectionFilters
) -> CandidateScores:
    n_layers = model.dims.n_layers
    shape = candidates.vectors.shape[:2]
    nothing_known = torch.zeros(shape, dtype=torch.float64)
    # An unmeasured KL of 0 and an induce score without bound pass every filter.
    unbounded = torch.full(shape, torch.inf, dtype=torch.float64)

    def survivors(induce: Tensor, kl: Tensor) -> list[tuple[int, int]]:
        allowed = kept(filters, n_layers, induce, kl, nothing_known)
        return [(int(p), int(s)) for p, s in (allowed & candidates.real).nonzero()]

    todo = survivors(unbounded, nothing_known)
    induce = induce_scores(model, trial, candidates, todo)
    todo = survivors(induce.mean(0), nothing_known)
    kl = _empty(trial.harmless, candidates)
    for (p, s), logits in _ablated(model, trial.harmless, candidates, todo, trial):
        kl[:, p, s] = kl_divergence(trial.clean_harmless, logits)
    todo = survivors(induce.mean(0), kl.mean(0))
    bypass = _empty(trial.harmful, candidates)
    for (p, s), logits in _ablated(model, trial.harmful, candidates, todo, trial):
        bypass[:, p, s] = refusal_score(logits, trial.refusal_ids)
    return CandidateScores(bypass, induce, kl)


def _ablated(
    model: Model,
    prompts: TokenizedPrompts,
    candidates: Candidates,
    wanted: Sequence[tuple[int, int]],
    trial: Trial,
) -> Iterator[tuple[tuple[int, int], Float[Tensor, "prompt vocab"]]]:
    """Logits with each wanted direction ablated; vectors of zeros or not finite give none.

    Candidates share passes, each row with its own direction, where their prompts are few: passes
    are then full, and hold prompts of nearly one length. Where one candidate's prompts fill
    passes by themselves, or share a long prefix, its ablation is cheaper as edited weights.
    """
    real = [
        w for w in wanted if bool(candidates.real[w]) and bool(candidates.at(*w).isfinite().all())
    ]
    tokens = sum(map(len, prompts.ids))
    alone = tokens >= FULL * model.pass_tokens(trial.batch_tokens) or model.shared_length(prompts)
    together = 1 if alone else TOGETHER
    for first in progress(
        range(0, len(real), together), "ablating candidates", total=-(-len(real) // together)
    ):
        some = real[first : first + together]
        vectors = torch.stack([candidates.at(*one) for one in some])
        if len(some) == 1:
            edits = ZeroAblation(vectors / linalg.vector_norm(vectors))
            yield some[0], first_token_logits(model, prompts, trial.batch_tokens, edits)
            continue
        n = len(prompts)
        copies = prompts.select([*range(n)] * len(some))

        def rowwise(batch: TokenBatch, vectors: Tensor = vectors, n: int = n) -> RowwiseAblation:
            return RowwiseAblation(vectors[batch.rows // n])

        logits = first_token_logits(model, copies, trial.batch_tokens, rowwise)
        for place, one in enumerate(some):
            yield one, logits[place * n : (place + 1) * n]


def _added(
    model: Model,
    trial: Trial,
    start: Halfway,
    site: ResidualSite,
    vectors: Float[Tensor, "n_vectors d_model"],
) -> Float[Tensor, "n_harmless n_vectors"]:
    """Refusal scores with each vector added at the site."""
    if site.stream in ("resid_pre", "resid_post"):
        return added_scores(model, start, vectors, trial.refusal_ids, trial.batch_tokens)
    scores = [
        refusal_scores(
            model,
            trial.harmless,
            trial.refusal_ids,
            trial.batch_tokens,
            addition(site, vector, 1.0),
            start,
        )
        for vector in vectors
    ]
    return torch.stack(scores, dim=1)


def _entry(site: ResidualSite) -> int:
    """The layer whose input is the last place below `site` where a tail can begin."""
    return site.layer + (site.stream == "resid_post")


def _indices(candidates: Candidates) -> range:
    return range(len(candidates.sites))


def _empty(prompts: TokenizedPrompts, candidates: Candidates) -> Tensor:
    shape = (len(prompts), *candidates.vectors.shape[:2])
    return torch.full(shape, _NOT_SCORED, dtype=torch.float64)
