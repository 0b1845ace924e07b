# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Reason: transformers' caches are untyped.
"""The beginning that all prompts share, such as a template's system prompt, computed once."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from mechsafety.core.positions import TokenSpans
from mechsafety.models.tokens import TokenBatch, TokenizedPrompts

WORTH: Final = 0.2
"""Share of all tokens that sharing must save: below it, copying keys and values costs as much."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of shared first tokens, under whatever was installed when they ran."""

    length: int
    """Tokens."""
    cache: Any
    """A transformers cache of one row; read it through `for_rows`, which leaves it as it is."""

    def for_rows(self, n_rows: int) -> Any:
        """A cache of `n_rows` rows that begins with the prefix, for one forward pass."""
        fresh = copy.copy(self.cache)
        fresh.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in fresh.layers:
            # Views: a forward pass makes new tensors when it appends to them.
            layer.keys = layer.keys.expand(n_rows, *layer.keys.shape[1:])
            layer.values = layer.values.expand(n_rows, *layer.values.shape[1:])
        return fresh

    def before(self, rest: TokenBatch) -> dict[str, Any]:
        """What a forward pass of `rest` must be told, so that the prefix stands before it."""
        ones = rest.attention_mask.new_ones(len(rest.ids), self.length)
        return {
            "attention_mask": torch.cat([ones, rest.attention_mask], dim=1),
            "position_ids": rest.position_ids + self.length,
            "past_key_values": self.for_rows(len(rest.ids)),
            "use_cache": True,
        }


def shared_length(prompts: TokenizedPrompts) -> int:
    """How many first tokens to compute once: those that all prompts share, if that is worth it.

    The last token of a prompt is never among them, as its logits are what is asked for. 0 where
    sharing would save less than `WORTH` of all tokens.
    """
    if len(prompts) < 2:
        return 0
    common = _common_start(prompts.ids)
    saved = common * (len(prompts) - 1)
    return common if saved >= WORTH * sum(map(len, prompts.ids)) else 0


def without_first(prompts: TokenizedPrompts, length: int) -> TokenizedPrompts:
    """The prompts without their first tokens."""
    spans = (
        TokenSpans(
            s.n_tokens - length,
            (max(0, s.instruction[0] - length), max(0, s.instruction[1] - length)),
        )
        for s in prompts.spans
    )
    return replace(prompts, ids=tuple(ids[length:] for ids in prompts.ids), spans=tuple(spans))


def _common_start(ids: Sequence[Sequence[int]]) -> int:
    most = min(map(len, ids)) - 1
    first = ids[0]
    for place in range(most):
        if any(one[place] != first[place] for one in ids):
            return place
    return most
