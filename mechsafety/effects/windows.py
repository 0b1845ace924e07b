"""Ablating a direction in some layers or at some tokens only: where does its effect come from?

Within window [a, b] the direction is removed from what enters block a and from all that blocks a
to b add; below and above nothing is edited, so that later blocks may write it again. The whole
model's window is zero ablation (arXiv:2406.11717).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechsafety.core.positions import Position
from mechsafety.core.progress import progress
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import Hooks, zero_ablation
from mechsafety.effects.scores import Halfway, refusal_scores
from mechsafety.interventions.ablate import ablate
from mechsafety.interventions.at_tokens import at_tokens
from mechsafety.interventions.intervention import Intervention
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenBatch, TokenizedPrompts

Window = tuple[int, int]
"""First and last layer, both included."""


def windows(n_layers: int, step: int) -> list[Window]:
    """Every window whose ends lie on multiples of `step`; the last may be shorter."""
    starts = range(0, n_layers, step)
    return [
        (start, min(stop + step, n_layers) - 1)
        for start in starts
        for stop in starts
        if stop >= start
    ]


def window_ablation(window: Window, basis: Float[Tensor, "k d_model"]) -> Hooks:
    """Remove the span of `basis` from what enters the window and from what its blocks add."""
    first, last = window
    edit: Intervention = partial(ablate, basis=basis)
    added = {
        ResidualSite(layer, stream): edit
        for layer in range(first, last + 1)
        for stream in ("attn_out", "mlp_out")
    }
    return {ResidualSite(first, "resid_pre"): edit, **added}


def window_scores(
    model: Model,
    prompts: TokenizedPrompts,
    starts: Mapping[int, Halfway],
    basis: Float[Tensor, "k d_model"],
    tried: Sequence[Window],
    refusal_ids: Int[Tensor, " n_refusal"],
    batch_tokens: int,
) -> Float[Tensor, "prompt n_windows"]:
    """Refusal score of each prompt with the direction ablated in each window alone; log-odds.

    Args:
        starts: The prompts up to the first layer of every window.
        tried: Windows.
    """
    columns: list[Tensor] = []
    for window in progress(tried, "ablating windows", total=len(tried)):
        edits = window_ablation(window, basis)
        start = starts[window[0]]
        columns.append(refusal_scores(model, prompts, refusal_ids, batch_tokens, edits, start))
    return torch.stack(columns, dim=1)


def position_scores(
    model: Model,
    prompts: TokenizedPrompts,
    basis: Float[Tensor, "k d_model"],
    positions: Sequence[Position],
    refusal_ids: Int[Tensor, " n_refusal"],
    batch_tokens: int,
) -> Float[Tensor, "prompt position"]:
    """Refusal score with the direction ablated in every layer, at one position's tokens alone."""
    everywhere = zero_ablation(model.dims, basis)
    columns: list[Tensor] = []
    for position in positions:
        edits = partial(_located, everywhere, prompts, position)
        columns.append(refusal_scores(model, prompts, refusal_ids, batch_tokens, edits))
    return torch.stack(columns, dim=1)


def token_mask(
    batch: TokenBatch, prompts: TokenizedPrompts, position: Position
) -> Bool[Tensor, "batch pos"]:
    """Which columns of a padded batch are the tokens of a position."""
    mask = torch.zeros_like(batch.ids, dtype=torch.bool)
    for row, (prompt, offset) in enumerate(zip(batch.rows, batch.offsets, strict=True)):
        tokens = position.tokens(prompts.spans[int(prompt)])
        mask[row, int(offset) + tokens.start : int(offset) + tokens.stop] = True
    return mask


def _located(
    edits: Hooks, prompts: TokenizedPrompts, position: Position, batch: TokenBatch
) -> Hooks:
    mask = token_mask(batch, prompts, position)
    return {site: partial(at_tokens, tokens=mask, edit=edit) for site, edit in edits.items()}
