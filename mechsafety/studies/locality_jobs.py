"""What the locality study asks of the model, as jobs that worker processes run.

Every job returns per-prompt numbers: means, intervals and choices are made of them later, at no
forward cost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.config import Runtime
from mechsafety.core.positions import Position
from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ModelDims, ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import PromptPairs, PromptSet
from mechsafety.effects.ablation import Edits, ZeroAblation, addition
from mechsafety.effects.ablation_matrix import (
    Cell,
    Source,
    Target,
    ablate_in,
    ablation_edits,
    check_zero_strength,
    observe_side,
)
from mechsafety.effects.adding import added_scores, dose_scores
from mechsafety.effects.answers import (
    Answers,
    answer,
    clean_answer_cross_entropy,
    content_scores,
)
from mechsafety.effects.attribution import (
    Writer,
    WriterShares,
    attribute,
    shares,
    writer_edits,
    writer_means,
)
from mechsafety.effects.refusal_tokens import find_refusal_tokens
from mechsafety.effects.scores import refusal_scores, run_halfway
from mechsafety.effects.second_direction import last_token_stream, refitted_candidates
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
from mechsafety.effects.windows import Window, position_scores, window_scores
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.matched_controls import draw_energy_matched, match_norm
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.metrics.representational_independence import representational_independence
from mechsafety.models.model import Model
from mechsafety.models.probe_report import Probe
from mechsafety.models.spec import ModelSpec
from mechsafety.models.tokens import TokenizedPrompts, tokenize
from mechsafety.studies.arms import resident_arm


@dataclass(frozen=True)
class Asked:
    """Which model a job asks, and how."""

    model: ModelSpec
    """With an organism's name already turned into its folder."""
    runtime: Runtime
    chat: ChatFormat
    seed: int

    def open(self, probe: bool = False) -> Model:
        """The model, which stays open in this process."""
        return resident_arm(self.model, self.runtime, self.chat, probe)

    def tokens(self, model: Model, prompts: PromptSet) -> TokenizedPrompts:
        """The prompts as this model receives them."""
        return tokenize(model, prompts.prompts, self.chat)


@dataclass(frozen=True)
class Task:
    """One question with what it is asked of, so that different ones run side by side."""

    ask: Callable[[Any], Any]
    job: object


def do(task: Task) -> Any:
    """Ask it; the caller knows what comes back."""
    return task.ask(task.job)


# --- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadJob:
    """Activations of every prompt set at every place of the map."""

    asked: Asked
    sets: Mapping[str, PromptSet]
    streams: tuple[str, ...]
    positions: tuple[str, ...]
    answered: tuple[str, ...]
    """Sets that the model also answers."""
    judge: PhraseJudge
    max_new_tokens: int


@dataclass(frozen=True)
class Token:
    """One token of the prompt that the page shows."""

    text: str
    part: str
    read: str | None


@dataclass(frozen=True)
class Read:
    """What was read from one model."""

    dims: ModelDims
    identity: Mapping[str, str]
    probes: tuple[Probe, ...]
    token_hashes: Mapping[str, str]
    sites: tuple[ResidualSite, ...]
    left_out: tuple[str, ...]
    """Streams that this architecture does not have, and why."""
    positions: tuple[Position, ...]
    rows: Mapping[str, Float[Tensor, "prompt layer position d_model"]]
    """By prompt set; the `layer` axis runs over `sites`."""
    norms: Mapping[int, float]
    """Mean norm of the residual stream before each block (and after the last) at the last token
    of harmless prompts."""
    answers: Mapping[str, Answers]
    instructions: Mapping[str, tuple[tuple[int, ...], ...]]
    """Token ids of each prompt's instruction, for the lexical baseline."""
    tokens: tuple[Token, ...]
    """The first harmless prompt."""


def read_model(job: ReadJob) -> Read:
    """Read one model's activations and answers."""
    model = job.asked.open(probe=True)
    runtime = job.asked.runtime
    tokens = {name: job.asked.tokens(model, prompts) for name, prompts in job.sets.items()}
    sites, left_out = map_sites(model, job.streams)
    positions = single_positions(tokens["harmless"], job.positions)
    rows: dict[str, Tensor] = {}
    for name, tokenized in tokens.items():
        found = collect(
            model,
            tokenized,
            sites,
            positions,
            batch_tokens=runtime.batch_tokens,
            memory_gib=runtime.memory_gib,
        )
        rows[name] = torch.stack(
            [torch.stack([found.rows(s, p) for p in positions], dim=1) for s in sites], dim=1
        )
    return Read(
        dims=model.dims,
        identity=model.identity(),
        probes=() if model.probes is None else model.probes.probes,
        token_hashes={name: tokenized.hash for name, tokenized in tokens.items()},
        sites=sites,
        left_out=left_out,
        positions=positions,
        rows=rows,
        norms=_norms(model, tokens["harmless"], runtime.batch_tokens),
        answers={
            name: answer(model, tokens[name], job.judge, job.max_new_tokens, runtime.batch_tokens)
            for name in job.answered
        },
        instructions={name: _instructions(tokenized) for name, tokenized in tokens.items()},
        tokens=_shown(model, tokens["harmless"], positions),
    )


def map_sites(
    model: Model, streams: Sequence[str]
) -> tuple[tuple[ResidualSite, ...], tuple[str, ...]]:
    """Every place of the map, in order of computation, and what this model does not have.

    The output of the last block always ends it.
    """
    n_layers = model.dims.n_layers
    parallel = model.wiring.anatomy.parallel
    left_out = ("resid_mid: attention and MLP of this model read the same stream",)
    absent = {"resid_mid"} if parallel else set[str]()
    sites = [
        ResidualSite(layer, stream)
        for layer in range(n_layers)
        for stream in ("resid_pre", "resid_mid")
        if stream in streams and stream not in absent
    ]
    last = ResidualSite(n_layers - 1, "resid_post")
    return (*sites, last), left_out if parallel and "resid_mid" in streams else ()


def single_positions(tokens: TokenizedPrompts, names: Sequence[str]) -> tuple[Position, ...]:
    """The single positions that were asked for; `last` is the last of `eoi` and is read once."""
    found: dict[Position, None] = {}
    for name in names:
        for position in tokens.positions(Position.parse(name)):
            found[Position("last") if position == Position("eoi", -1) else position] = None
    return tuple(found)


def _norms(model: Model, tokens: TokenizedPrompts, batch_tokens: int) -> dict[int, float]:
    last = model.dims.n_layers
    sites = [ResidualSite(layer, "resid_pre") for layer in range(last)]
    sites.append(ResidualSite(last - 1, "resid_post"))
    found = collect(model, tokens, sites, ["last"], batch_tokens=batch_tokens)
    return {
        layer: float(linalg.vector_norm(found.rows(site, "last").double(), dim=1).mean())
        for layer, site in enumerate(sites)
    }


def _instructions(tokens: TokenizedPrompts) -> tuple[tuple[int, ...], ...]:
    return tuple(
        ids[span.instruction[0] : span.instruction[1]]
        for ids, span in zip(tokens.ids, tokens.spans, strict=True)
    )


def _shown(
    model: Model, tokens: TokenizedPrompts, positions: Sequence[Position]
) -> tuple[Token, ...]:
    ids, spans = tokens.ids[0], tokens.spans[0]
    start, stop = spans.instruction
    read = {position.tokens(spans).start: str(position) for position in positions}
    texts = [str(model.tokenizer.decode([token])) for token in ids]
    return tuple(
        Token(text, "instruction" if start <= i < stop else "template", read.get(i))
        for i, text in enumerate(texts)
    )


# --- what the model does on the prompts of each split -------------------------------------------


@dataclass(frozen=True)
class ClassScores:
    """Refusal scores of the unedited model."""

    harmful: Float[Tensor, " n_harmful"]
    harmless: Float[Tensor, " n_harmless"]


@dataclass(frozen=True)
class ScoreJob:
    """Refusal scores of the unedited model on every split."""

    asked: Asked
    pairs: Mapping[str, PromptPairs]
    refusal_ids: tuple[int, ...]


def clean_scores(job: ScoreJob) -> dict[str, ClassScores]:
    """By split."""
    model = job.asked.open()
    ids = torch.tensor(job.refusal_ids, dtype=torch.long)
    size = job.asked.runtime.batch_tokens

    def scores(prompts: PromptSet) -> Tensor:
        return refusal_scores(model, job.asked.tokens(model, prompts), ids, size)

    return {
        split: ClassScores(scores(pairs.first), scores(pairs.second))
        for split, pairs in job.pairs.items()
    }


def refusal_tokens_of(harmful: Answers, harmless: Answers) -> tuple[int, ...]:
    """Tokens that open this model's own refusals."""
    return find_refusal_tokens(
        list(zip(harmful.ids, harmful.verdicts, strict=True)),
        list(zip(harmless.ids, harmless.verdicts, strict=True)),
    )


# --- selecting and mapping ----------------------------------------------------------------------


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
    return select_direction(model, _trial(job, model), job.candidates, job.filters, job.mode)


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
    return score_candidates(model, _trial(job, model), job.candidates)


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


def _trial(job: SelectJob | MapJob, model: Model) -> Trial:
    return make_trial(
        model,
        job.asked.tokens(model, job.pairs.first),
        job.asked.tokens(model, job.pairs.second),
        job.refusal_ids,
        job.asked.runtime.batch_tokens,
    )


# --- where the winner's effect comes from --------------------------------------------------------


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
    """Ablated one at a time, the first basis alone; may be several tokens, such as `prompt`."""


@dataclass(frozen=True)
class Where:
    """Refusal scores under partial ablations."""

    windows: Float[Tensor, "draw prompt n_windows"]
    positions: Float[Tensor, "prompt position"]


def where(job: WhereJob) -> Where:
    """Ablate in every window and at every position."""
    model = job.asked.open()
    size = job.asked.runtime.batch_tokens
    tokens = job.asked.tokens(model, job.prompts)
    ids = torch.tensor(job.refusal_ids, dtype=torch.long)
    starts = run_halfway(model, tokens, sorted({first for first, _ in job.windows}), size)
    return Where(
        windows=torch.stack(
            [
                window_scores(model, tokens, starts, basis[None], job.windows, ids, size)
                for basis in job.bases
            ]
        ),
        positions=position_scores(
            model, tokens, job.bases[:1], [Position.parse(p) for p in job.positions], ids, size
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

    response: Float[Tensor, "draw prompt layer dose"]
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
    n_controls: int


@dataclass(frozen=True)
class WriterAblation:
    """Refusal scores with some writers ablated."""

    form: str
    """`zero` or `mean`."""
    writers: tuple[str, ...]
    control: int | None
    """Which control draw this is; None for the top writers themselves."""
    overlap: float
    """Share of the top writers that are among these."""
    harmful: Float[Tensor, " n_harmful"]
    harmless: Float[Tensor, " n_harmless"]


@dataclass(frozen=True)
class Writers:
    """Who writes the direction."""

    shares: WriterShares
    spread: Float[Tensor, " n_writers"]
    """Standard error of each difference, prompts as independent."""
    top: tuple[Writer, ...]
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
    top = found.top_writers(job.share)
    rivals = _other_writers(job, found.writers, top)
    means = writer_means(model, fit[1], [w for w in found.writers if w.site is not None], size)

    can_be_ablated = [w for w in top if w.site is not None]

    def ablated(form: str, some: Sequence[Writer], control: int | None) -> WriterAblation:
        edits = writer_edits(some, means if form == "mean" else None)
        scores = [refusal_scores(model, tokens, ids, size, edits) for tokens in held_out]
        shared = sum(writer in can_be_ablated for writer in some) / len(some)
        return WriterAblation(form, tuple(map(str, some)), control, shared, scores[0], scores[1])

    done = [ablated(form, can_be_ablated, None) for form in ("zero", "mean") if can_be_ablated]
    done += [
        ablated(form, rival, draw) for draw, rival in enumerate(rivals) for form in ("zero", "mean")
    ]
    return Writers(found, (variances[0] + variances[1]).sqrt(), top, tuple(done))


def _other_writers(
    job: WritersJob, everyone: Sequence[Writer], top: Sequence[Writer]
) -> list[list[Writer]]:
    """As many heads and as many MLPs as the top ones, drawn from all the others.

    Where the top ones leave too few others of a kind, as many writers as they are, drawn from all
    that can be ablated whatever their kind; the overlap is then part of the control.
    """
    generator = named_generator(job.asked.seed, "other writers")
    able = [writer for writer in everyone if writer.site is not None]
    chosen = [writer for writer in top if writer.site is not None]
    counts = {kind: sum(writer.kind == kind for writer in chosen) for kind in ("head", "mlp")}
    pools = [
        ([writer for writer in able if writer.kind == kind and writer not in chosen], n)
        for kind, n in counts.items()
    ]
    if any(len(pool) < n for pool, n in pools):
        pools = [(able, len(chosen))]
    # With every writer on top there is nothing to draw but the top ones themselves.
    if not chosen or len(chosen) == len(able):
        return []

    def drawn(pool: Sequence[Writer], n: int) -> list[Writer]:
        return [pool[int(i)] for i in torch.randperm(len(pool), generator=generator)[:n]]

    return [
        [writer for pool, n in pools for writer in drawn(pool, n)] for _ in range(job.n_controls)
    ]


# --- a second direction ------------------------------------------------------------------------


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
    harmless_rows: Float[Tensor, "row layer d_model"]
    """At the last token, for controls of the second direction."""
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
    """Of the first from the second, and of the second from the first (arXiv:2502.17420)."""


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
    selection = select_direction(model, _trial(selecting, model), candidates, filters, "winner")
    if selection.chosen is None:
        return Second(selection, None, None, None, None, None)
    vector = candidates.at(*selection.chosen)
    layer = selection.chosen[1]
    drawn = control_candidates(
        job.harmless_rows[:, layer : layer + 1],
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
        independence=(
            representational_independence(clean, stream(without=unit[None]), job.first),
            representational_independence(clean, stream(without=job.first[None]), unit),
        ),
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
    addition_doses: tuple[float, ...]
    """In multiples of the raw mean difference."""
    max_new_tokens: int
    score_draws: int
    answer_draws: int


@dataclass(frozen=True)
class Added:
    """Harmless prompts with a multiple of the mean difference added at its site."""

    dose: float
    scores: Float[Tensor, " prompt"]
    answers: Answers


@dataclass(frozen=True)
class Evaluated:
    """The winner's effects."""

    harmful: Answers
    """Of the unedited model."""
    harmless: Answers
    scores: ClassScores
    cells: tuple[Cell, ...]
    """Zero and affine ablation, each with controls."""
    refits: Float[Tensor, "draw prompt"]
    """Refusal score of harmful prompts under zero ablation of each refit."""
    added: tuple[Added, ...]
    cross_entropy: Mapping[str, Float[Tensor, " prompt"]]
    """Nats per token of the model's own clean answers to harmless prompts: `clean`, and under
    each form of ablation."""
    clean_content: Float[Tensor, " prompt"] | None
    token_hashes: Mapping[str, str]


def evaluate(job: EvaluateJob) -> Evaluated:
    """Ablate and add the winner on held-out prompts, with judged answers."""
    model = job.asked.open()
    size = job.asked.runtime.batch_tokens
    sides = [
        observe_side(
            model,
            prompts,
            job.asked.tokens(model, prompts),
            job.judge,
            job.max_new_tokens,
            size,
            [job.source.site.layer],
        )
        for prompts in job.pairs.sets
    ]
    harmful, harmless = sides
    target = Target(
        model=model,
        harmful=harmful,
        harmless=harmless,
        harmless_means={
            site: rows.double().mean(0).float() for site, rows in job.harmless_rows.items()
        },
        harmless_rows=job.harmless_rows,
        refusal_ids=torch.tensor(job.refusal_ids, dtype=torch.long),
        judge=job.judge,
        max_new_tokens=job.max_new_tokens,
        batch_tokens=size,
    )
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
        token_hashes={f"evaluate/{s.prompts.name}": s.tokens.hash for s in sides},
    )


def zero_of(basis: Float[Tensor, "k d_model"]) -> ZeroAblation | None:
    """Zero ablation of the span; None for a single zero vector, which has none."""
    return ZeroAblation(basis) if bool(basis.any()) else None


def _added(target: Target, job: EvaluateJob, dose: float) -> Added:
    tokens, size = target.harmless.tokens, target.batch_tokens
    edits = addition(job.source.site, job.source.subspace.vector, dose)
    found = refusal_scores(target.model, tokens, target.refusal_ids, size, edits)
    answers = answer(target.model, tokens, job.judge, job.max_new_tokens, size, edits)
    return Added(dose, found, answers)


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
