"""Reading a model: activations of every prompt set, its answers and its clean scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.config import Runtime
from mechsafety.core.positions import Position
from mechsafety.core.sites import ModelDims, ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import PromptPairs, PromptSet
from mechsafety.effects.answers import (
    Answers,
    answer,
)
from mechsafety.effects.scores import refusal_scores
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.linalg.typed import linalg
from mechsafety.models.model import Model
from mechsafety.models.probe_report import Probe
from mechsafety.models.spec import ModelSpec
from mechsafety.models.tokens import TokenizedPrompts, TokenUse, tokenize
from mechsafety.studies.arms import read_rows, resident_arm, single_positions


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
    token_use: Mapping[str, TokenUse]
    """By prompt set."""
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
    return Read(
        dims=model.dims,
        identity=model.identity(),
        probes=() if model.probes is None else model.probes.probes,
        token_use={
            name: one.use(model.pass_tokens(runtime.batch_tokens)) for name, one in tokens.items()
        },
        sites=sites,
        left_out=left_out,
        positions=positions,
        rows={
            name: read_rows(model, tokenized, sites, positions, runtime)
            for name, tokenized in tokens.items()
        },
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
