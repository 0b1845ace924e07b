"""The arms of a comparison: how YAML names them, and what is read from each, one at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.config import FrozenConfig, Runtime
from mechsafety.core.positions import Position
from mechsafety.core.sites import ModelDims, ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import PromptPairs, PromptSet, prompt_id
from mechsafety.effects.answers import Answers, answer
from mechsafety.effects.refusal_tokens import refusal_tokens_of
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.models.loading import open_model
from mechsafety.models.model import Model
from mechsafety.models.probe_report import Probe
from mechsafety.models.spec import ModelSpec
from mechsafety.models.tokens import TokenizedPrompts, TokenUse, tokenize

ORGANISM_NOTE: Final = (
    "A trained organism shows what the instrument detects on a model whose construction is known; "
    "it is not evidence about chat models."
)


class Arm(FrozenConfig):
    """One model of a comparison."""

    model: ModelSpec
    """Organism, folder, or `org/name@revision`."""
    attacked_layer: NonNegativeInt | None = None
    """Block whose input its training perturbed (0: the embeddings); marked in figures."""


@dataclass(frozen=True)
class ArmJob:
    """All that a worker process needs to read one arm."""

    arm: str
    model: ModelSpec
    """With an organism's name already turned into its folder."""
    runtime: Runtime
    chat: ChatFormat
    judge: PhraseJudge
    max_new_tokens: int
    pairs: PromptPairs
    """Harmful and harmless prompts; also answered, to know what the arm does with each."""
    contrasts: Mapping[str, PromptPairs]
    positions: tuple[str, ...]


@dataclass(frozen=True)
class PairRows:
    """Activations of both sides of a contrast, float32."""

    first: Float[Tensor, "n_first layer position d_model"]
    second: Float[Tensor, "n_second layer position d_model"]


@dataclass(frozen=True)
class ArmView:
    """What was read from one arm."""

    arm: str
    dims: ModelDims
    identity: Mapping[str, str]
    """Hashes of weights, tokenizer, template; dtype; quantization."""
    probes: tuple[Probe, ...]
    """What the load-time probes found."""
    token_use: Mapping[str, TokenUse]
    """By prompt set."""
    sites: tuple[ResidualSite, ...]
    """`resid_pre` of every layer, and the stream after the last block."""
    positions: tuple[Position, ...]
    pairs: PairRows
    contrasts: Mapping[str, PairRows]
    harmful: Answers
    harmless: Answers


def residual_sites(dims: ModelDims) -> tuple[ResidualSite, ...]:
    """Every place between blocks: layer `n_layers` of a table is the last `resid_post`."""
    inputs = [ResidualSite(layer, "resid_pre") for layer in range(dims.n_layers)]
    return (*inputs, ResidualSite(dims.n_layers - 1, "resid_post"))


def open_arm(model: ModelSpec, runtime: Runtime, chat: ChatFormat, probe: bool) -> Model:
    """Open an arm's model where and how the runtime says."""
    return open_model(
        model,
        dtype=runtime.dtype,
        device=runtime.device,
        device_map=runtime.device_map,
        probe=probe,
        format=chat,
        pass_tokens=runtime.pass_tokens,
    )


_resident: list[tuple[tuple[ModelSpec, Runtime, ChatFormat], Model]] = []


def resident_arm(model: ModelSpec, runtime: Runtime, chat: ChatFormat, probe: bool) -> Model:
    """The model of a job, kept open in this process for the job after it.

    One model at a time: asking for another lets the first go. A study whose jobs ask one model
    several questions so loads it once per process. `let_go` ends it.
    """
    key = (model, runtime, chat)
    if not _resident or _resident[0][0] != key or (probe and _resident[0][1].probes is None):
        let_go()
        _resident.append((key, open_arm(model, runtime, chat, probe)))
    return _resident[0][1]


def let_go() -> None:
    """Close the resident model of this process, if there is one."""
    while _resident:
        _resident.pop()[1].close()


def read_arm(job: ArmJob) -> ArmView:
    """Open one arm, read its activations and answers, and let it go."""
    model = open_arm(job.model, job.runtime, job.chat, probe=True)
    try:
        sites = residual_sites(model.dims)
        sets = {"harmful": job.pairs.first, "harmless": job.pairs.second}
        for name, pairs in job.contrasts.items():
            sets[f"{name}/first"], sets[f"{name}/second"] = pairs.first, pairs.second
        tokens = {name: tokenize(model, s.prompts, job.chat) for name, s in sets.items()}
        positions = single_positions(tokens["harmful"], job.positions)
        rows = {
            name: read_rows(model, tokenized, sites, positions, job.runtime)
            for name, tokenized in tokens.items()
        }

        def answers(name: str) -> Answers:
            return answer(
                model, tokens[name], job.judge, job.max_new_tokens, job.runtime.batch_tokens
            )

        return ArmView(
            arm=job.arm,
            dims=model.dims,
            identity=model.identity(),
            probes=() if model.probes is None else model.probes.probes,
            token_use={
                name: one.use(model.pass_tokens(job.runtime.batch_tokens))
                for name, one in tokens.items()
            },
            sites=sites,
            positions=positions,
            pairs=PairRows(rows["harmful"], rows["harmless"]),
            contrasts={
                name: PairRows(rows[f"{name}/first"], rows[f"{name}/second"])
                for name in job.contrasts
            },
            harmful=answers("harmful"),
            harmless=answers("harmless"),
        )
    finally:
        model.close()


def single_positions(tokens: TokenizedPrompts, names: Sequence[str]) -> tuple[Position, ...]:
    """The single positions that were asked for; `last` is the last of `eoi` and is read once."""
    found: dict[Position, None] = {}
    for name in names:
        for position in tokens.positions(Position.parse(name)):
            found[Position("last") if position == Position("eoi", -1) else position] = None
    return tuple(found)


def read_rows(
    model: Model,
    tokens: TokenizedPrompts,
    sites: Sequence[ResidualSite],
    positions: Sequence[Position],
    runtime: Runtime,
) -> Float[Tensor, "prompt layer position d_model"]:
    """Activations of every prompt; the `layer` axis runs over `sites`."""
    read = collect(
        model,
        tokens,
        sites,
        positions,
        batch_tokens=runtime.batch_tokens,
        memory_gib=runtime.memory_gib,
    )
    return torch.stack(
        [torch.stack([read.rows(site, p) for p in positions], dim=1) for site in sites], dim=1
    )


def subset(prompts: PromptSet, n: int) -> PromptSet:
    """The first `n` prompts, or all."""
    return prompts.select(list(range(min(n, len(prompts)))))


def first_of(pairs: PromptPairs, n: int) -> PromptPairs:
    """The first `n` prompts of each side, or all, as two lists."""
    return PromptPairs(pairs.name, subset(pairs.first, n), subset(pairs.second, n), "list")


def harmless_inputs(view: ArmView, position: int) -> dict[ResidualSite, Float[Tensor, "row d"]]:
    """Harmless activations at every block input: what ablations set to, and controls come from.

    Args:
        view: Read from the model that is edited.
        position: Index of the position that was read.
    """
    return {
        site: view.pairs.second[:, layer, position]
        for layer, site in enumerate(view.sites)
        if site.stream == "resid_pre"
    }


def common_refusal_ids(view: ArmView, views: Iterable[ArmView]) -> tuple[int, ...]:
    """Tokens that open refusals in any arm with this arm's tokenizer (evidence.md 8).

    One set for all, so that scores of two arms are of the same event.
    """
    found: dict[int, None] = {}
    for other in views:
        if other.identity.get("tokenizer") == view.identity.get("tokenizer"):
            found |= dict.fromkeys(refusal_tokens_of(other.harmful, other.harmless))
    return tuple(found)


def clusters_of(prompts: PromptSet, by: str | None) -> tuple[str, ...]:
    """The cluster of each prompt: its label `by`, else its group."""
    return tuple(p.labels.get(by, p.group) if by else p.group for p in prompts)


def cluster_word(prompts: PromptSet, by: str | None) -> str:
    """What `clusters_of` really went by: prompts of files may not have the label."""
    if by is None:
        return "group"
    return by if any(by in prompt.labels for prompt in prompts) else f"group, there being no {by}"


def completion_lines(
    at: Mapping[str, object], prompts: PromptSet, answers: Answers, cluster_by: str | None
) -> Iterator[dict[str, object]]:
    """Every answer with its prompt's id, for the private folder; texts of prompts stay out.

    With all that a judge, and an interval of its rates, must know later.
    """
    clusters = clusters_of(prompts, cluster_by)
    judged = zip(prompts, clusters, answers.ids, answers.verdicts, answers.texts, strict=True)
    for prompt, cluster, ids, verdict, text in judged:
        yield {
            **at,
            "prompt": prompt.id,
            # Without groups in the file a prompt's cluster is its own text.
            "cluster": prompt_id(cluster),
            "verdict": verdict,
            "max_new_tokens": answers.max_new_tokens,
            "thinking_open": answers.thinking_open,
            "ids": list(ids),
            "text": text,
        }
