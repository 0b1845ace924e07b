"""What edits do to the first answer token: bypass, induce and KL.

`bypass` is the refusal score on harmful prompts under ablation, `induce` that on harmless
prompts under addition, `kl` the divergence on harmless prompts under ablation: one function
here, because they differ only in prompts and edits.

Source: arXiv:2406.11717, section 2.4.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import Edits, under
from mechsafety.metrics.kl import kl_divergence
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.models.hooking import reading
from mechsafety.models.model import Model
from mechsafety.models.prefix import without_first
from mechsafety.models.tokens import TokenBatch, TokenizedPrompts, batches

PerBatch: TypeAlias = Callable[[TokenBatch], Edits]
"""Makes the edits of one batch, where they depend on which tokens its columns hold."""


@dataclass(frozen=True)
class Scores:
    """Per-prompt effects at the position that predicts the first answer token."""

    refusal: Float[Tensor, " prompt"] | None
    """Log-odds that the first answer token is a refusal token (float64); None where the model
    has no refusal tokens, because it refuses nothing."""
    kl: Float[Tensor, " prompt"] | None
    """KL(clean ‖ edited) of the first answer token's distribution, in nats; None if not asked."""


@dataclass(frozen=True)
class Halfway:
    """Prompts that ran up to a layer, so that edits from there on need only the blocks above."""

    layer: int
    batches: tuple[tuple[TokenBatch, Float[Tensor, "_batch _pos d_model"]], ...]
    """Each batch with its clean `resid_pre` of the layer."""


def run_halfway(
    model: Model, prompts: TokenizedPrompts, layers: Collection[int], batch_tokens: int
) -> dict[int, Halfway]:
    """Run all prompts once and keep the clean residual stream before each of `layers`.

    `n_layers` keeps the output of the last block. Holds `4 · tokens · d_model` bytes a layer in
    float32; blocks above the last of `layers` do not run.
    """
    last = model.dims.n_layers
    sites = {
        layer: ResidualSite(layer, "resid_pre")
        if layer < last
        else ResidualSite(last - 1, "resid_post")
        for layer in layers
    }
    kept: dict[int, list[tuple[TokenBatch, Tensor]]] = {layer: [] for layer in layers}
    seen: dict[int, Tensor] = {}
    reads = {site: partial(_remember, seen, layer) for layer, site in sites.items()}
    if not sites:
        return {}
    with torch.inference_mode(), reading(model, reads, stop=True):
        for batch in batches(prompts, model.pass_tokens(batch_tokens)):
            model.run(batch, logits_to_keep=1)
            for layer in layers:
                kept[layer].append((batch, seen[layer]))
    return {layer: Halfway(layer, tuple(done)) for layer, done in kept.items()}


def _remember(seen: dict[int, Tensor], layer: int, residual: Tensor) -> None:
    seen[layer] = residual.clone()


def first_token_logits(
    model: Model,
    prompts: TokenizedPrompts,
    batch_tokens: int,
    edits: Edits | PerBatch | None = None,
    halfway: Halfway | None = None,
) -> Float[Tensor, "prompt vocab"]:
    """Logits of the first answer token of each prompt, in the prompts' order.

    Holds one float32 row of the vocabulary per prompt; nothing else is unembedded. First tokens
    that all prompts share are computed once where that is worth it.

    Args:
        edits: The same at every token, or a function that makes them for a batch, where they
            depend on its tokens.
        halfway: The same prompts up to a layer below which `edits` change nothing: only the
            blocks from there on run.
    """
    rows: Tensor | None = None
    with torch.inference_mode():
        for batch, logits in _passes(model, prompts, batch_tokens, edits, halfway):
            if rows is None:
                rows = torch.empty(len(prompts.ids), logits.shape[-1])
            rows[batch.rows] = logits.float().cpu()
    assert rows is not None  # an empty prompt set is refused where it is read
    return rows


def _passes(
    model: Model,
    prompts: TokenizedPrompts,
    batch_tokens: int,
    edits: Edits | PerBatch | None,
    halfway: Halfway | None,
) -> Iterator[tuple[TokenBatch, Float[Tensor, "batch vocab"]]]:
    most = model.pass_tokens(batch_tokens)
    if callable(edits):
        done = halfway.batches if halfway else ((b, None) for b in batches(prompts, most))
        for batch, residual in done:
            with under(model, edits(batch)):
                if residual is None or halfway is None:
                    yield batch, model.forward(batch)
                else:
                    yield batch, model.tail(residual, batch, halfway.layer)
        return
    with under(model, edits):
        if halfway is not None:
            for batch, residual in halfway.batches:
                yield batch, model.tail(residual, batch, halfway.layer)
            return
        shared = model.shared_length(prompts)
        # Computed under the edits, which change the prefix like every other token.
        prefix = model.run_prefix(prompts.ids[0][:shared]) if shared else None
        for batch in batches(without_first(prompts, shared) if shared else prompts, most):
            yield batch, model.forward(batch, after=prefix)


def refusal_scores(
    model: Model,
    prompts: TokenizedPrompts,
    refusal_ids: Int[Tensor, " n_refusal"],
    batch_tokens: int,
    edits: Edits | PerBatch | None = None,
    halfway: Halfway | None = None,
) -> Float[Tensor, " prompt"]:
    """Refusal score of every prompt under `edits`; arguments as for `score`."""
    return refusal_score(
        first_token_logits(model, prompts, batch_tokens, edits, halfway), refusal_ids
    )


def score(
    model: Model,
    prompts: TokenizedPrompts,
    refusal_ids: Int[Tensor, " n_refusal"],
    batch_tokens: int,
    edits: Edits | PerBatch | None = None,
    clean: Float[Tensor, "prompt vocab"] | None = None,
    halfway: Halfway | None = None,
) -> Scores:
    """Refusal score, and KL against the clean model, of every prompt under `edits`.

    Args:
        refusal_ids: Tokens that open a refusal in this model (`find_refusal_tokens`), or none.
        clean: `first_token_logits` of the unedited model on the same prompts; needed for the KL.
        halfway: As for `first_token_logits`.
    """
    logits = first_token_logits(model, prompts, batch_tokens, edits, halfway)
    return Scores(
        refusal=refusal_score(logits, refusal_ids) if len(refusal_ids) else None,
        kl=None if clean is None else kl_divergence(clean, logits),
    )
