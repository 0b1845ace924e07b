# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Reason: tokenizers of transformers are untyped.
"""From prompts to token ids with spans, and from ids to padded batches."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor

from mechsafety.core.errors import PositionError, PromptError, TemplateError
from mechsafety.core.positions import Position, TokenSpans
from mechsafety.data.chat_template import ChatFormat, Rendered, render_all
from mechsafety.data.prompts import Prompt

Side = Literal["left", "right"]

PADDING_SHARE: Final = 1 / 64
"""Padding of one batch, as a share of the tokens it may have, from which a further forward pass
is cheaper (on a CPU 128 tokens; a pass itself costs 10 to 60, at d_model 512 and 128)."""

PART: Final = 2048
"""Prompts that are tokenized at once."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompts:
    """Token ids of prompts, without padding, and where their parts lie."""

    ids: tuple[tuple[int, ...], ...]
    """Token ids of each prompt, in the caller's order."""
    spans: tuple[TokenSpans, ...]
    """The instruction and the end-of-instruction tokens of each."""
    names: tuple[str, ...]
    """Prompt ids, which errors name."""
    pad_id: int = 0
    """Fills padded positions, which are masked."""
    thinking_open: bool = False
    """Whether answers begin inside a thinking block that the template opened; judges ask."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hash(self) -> str:
        """SHA-256 of all token ids in order: what the model really received."""
        digest = hashlib.sha256()
        for ids in self.ids:
            digest.update(json.dumps(ids).encode())
        return digest.hexdigest()

    def use(self, pass_tokens: int) -> "TokenUse":
        """What the record says of these prompts, read in passes of so many padded tokens."""
        rows = json.dumps(batched_rows(self, pass_tokens))
        composition = hashlib.sha256(rows.encode()).hexdigest()
        return TokenUse(self.hash, composition, self.names, self.ids)

    def select(self, rows: Sequence[int]) -> "TokenizedPrompts":
        """These prompts, in this order."""
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            spans=tuple(self.spans[row] for row in rows),
            names=tuple(self.names[row] for row in rows),
        )

    def beside(self, other: "TokenizedPrompts") -> "TokenizedPrompts":
        """These prompts and then the others, of the same tokenizer, so that they share batches."""
        return replace(
            self,
            ids=self.ids + other.ids,
            spans=self.spans + other.spans,
            names=self.names + other.names,
        )

    def followed_by(self, answers: Sequence[Sequence[int]]) -> "TokenizedPrompts":
        """Each prompt with its answer's tokens behind it; the spans stay those of the prompt.

        `last` and `eoi` so go on to mean the prompt's tokens, not the answer's.

        Raises:
            PromptError: Another number of answers than of prompts.
        """
        if len(answers) != len(self):
            raise PromptError(
                f"joining prompts and answers: there are {len(self)} prompts and {len(answers)} "
                "answers. Give one answer per prompt, in the same order."
            )
        joined = tuple((*p, *a) for p, a in zip(self.ids, answers, strict=True))
        return replace(self, ids=joined)

    def positions(self, position: Position) -> tuple[Position, ...]:
        """`eoi` as its tokens `eoi[-P]`..`eoi[-1]`, which all prompts must share; others alone.

        Raises:
            PositionError: The prompts have different numbers of template tokens at their end.
        """
        if position.name != "eoi" or position.index is not None:
            return (position,)
        counts = {span.n_tokens - span.instruction[1] for span in self.spans}
        if len(counts) != 1:
            raise PositionError(
                f"position 'eoi': the prompts end with {min(counts)} to {max(counts)} template "
                "tokens, so that 'eoi[-k]' is not one place. A template token that merges with "
                "the instruction's end does this. Read 'last', or single positions 'eoi[-1]', "
                f"…, 'eoi[-{min(counts)}]', which every prompt has."
            )
        return tuple(Position("eoi", index) for index in range(-counts.pop(), 0))


@dataclass(frozen=True, slots=True)
class TokenUse:
    """What a prompt set became for one model, for the record."""

    sha256: str
    """Of all token ids in order."""
    batches: str
    """SHA-256 of which prompts share a forward pass: another composition changes last bits."""
    names: tuple[str, ...]
    """Prompt ids."""
    ids: tuple[tuple[int, ...], ...]
    """What the model received for each."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Prompts padded to one length, with everything a forward pass must be told."""

    ids: Int[Tensor, "batch pos"]
    """Token ids; padding holds `pad_id`."""
    attention_mask: Int[Tensor, "batch pos"]
    """1 for tokens, 0 for padding."""
    position_ids: Int[Tensor, "batch pos"]
    """Counted from each row's first token, so that padding moves no prompt."""
    rows: Int[Tensor, " batch"]
    """Which prompt each row is, in the caller's order."""
    offsets: Int[Tensor, " batch"]
    """Column of each row's first token: token `t` of a prompt lies in column `offsets + t`."""

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(
            self.ids.to(device),
            self.attention_mask.to(device),
            self.position_ids.to(device),
            self.rows.to(device),
            self.offsets.to(device),
        )


def tokenize(tokenizer: Any, prompts: Iterable[Prompt], format: ChatFormat) -> TokenizedPrompts:
    """Render every prompt in the format, and tokenize it with the spans of its parts.

    The template writes the special tokens, and the tokenizer adds none to it (bare text gets the
    tokenizer's own). A token belongs to the instruction if it holds one of its characters, so a
    template token that merges with the instruction's end counts as instruction.

    Args:
        tokenizer: A fast Hugging Face tokenizer, or a `Model`, whose own is taken.
        prompts: In the order that results will have.
        format: The chat template, system prompt and thinking state.

    Raises:
        TemplateError: The template cannot be rendered with exact spans, a prompt begins with
            two BOS tokens, or the tokenizer cannot say where its tokens lie.
        PromptError: There is no prompt.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if tokenizer is None:
        raise TemplateError(
            "tokenizing: this model has no tokenizer. Pass one to open_model(..., tokenizer=...)."
        )
    tokenized = encode(tokenizer, prompts, format)
    bos = cast("int | None", tokenizer.bos_token_id)
    doubled = sum(count_bos(ids, bos) > 1 for ids in tokenized.ids)
    if doubled:
        raise TemplateError(
            f"tokenizing: {doubled} of {len(tokenized)} prompts begin with BOS (id {bos}) twice, "
            "once from the template or text and once more. Remove it from one of the two."
        )
    return tokenized


def encode(tokenizer: Any, prompts: Iterable[Prompt], format: ChatFormat) -> TokenizedPrompts:
    """As `tokenize`, and without looking at BOS: what the model would receive."""
    listed = list(prompts)
    if not listed:
        raise PromptError("tokenizing: there is no prompt. Give at least one.")
    if not getattr(tokenizer, "is_fast", False):
        raise TemplateError(
            f"tokenizing: {type(tokenizer).__name__} is a slow tokenizer, which does not say which "
            "characters a token covers. Use the model's fast tokenizer (tokenizer.json)."
        )
    ids: list[tuple[int, ...]] = []
    spans: list[TokenSpans] = []
    # Equal ids share one object, and offsets live for one part only: a hundred thousand prompts
    # otherwise hold ten times the memory of their tokens.
    known: dict[int, int] = {}
    thinking_open = False
    for start in range(0, len(listed), PART):
        part = listed[start : start + PART]
        rendered = render_all(part, tokenizer, format)
        # A property of the template, so the same for every prompt.
        thinking_open = rendered[0].thinking_open
        encoded = tokenizer(
            [one.text for one in rendered],
            add_special_tokens=rendered[0].add_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            padding=False,
            truncation=False,
        )
        for row in encoded["input_ids"]:
            ids.append(tuple(known.setdefault(int(i), int(i)) for i in row))
        for one, offsets, prompt in zip(rendered, encoded["offset_mapping"], part, strict=True):
            spans.append(_spans(one, offsets, prompt))
    pad_id = tokenizer.pad_token_id
    names = tuple(prompt.id for prompt in listed)
    return TokenizedPrompts(
        tuple(ids),
        tuple(spans),
        names,
        0 if pad_id is None else int(pad_id),
        thinking_open,
    )


def _spans(rendered: Rendered, offsets: Sequence[tuple[int, int]], prompt: Prompt) -> TokenSpans:
    start, stop = rendered.instruction
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
    if not inside:
        raise TemplateError(
            f"tokenizing prompt {prompt.id}: none of its {len(offsets)} tokens holds a character "
            "of the instruction. Check that tokenizer and chat template belong together."
        )
    return TokenSpans(len(offsets), (inside[0], inside[-1] + 1))


def count_bos(ids: Sequence[int], bos: int | None) -> int:
    """How many BOS tokens a prompt begins with."""
    count = 0
    while bos is not None and count < len(ids) and ids[count] == bos:
        count += 1
    return count


def from_ids(ids: Sequence[Sequence[int]], pad_id: int = 0) -> TokenizedPrompts:
    """Bare token ids as prompts without template: the whole is the instruction.

    Raises:
        PromptError: There is no prompt, or one has no token.
    """
    if not ids or not all(len(one) for one in ids):
        raise PromptError("making prompts of token ids: expected at least one id in each prompt.")
    rows = tuple(tuple(one) for one in ids)
    spans = tuple(TokenSpans(len(one), (0, len(one))) for one in rows)
    return TokenizedPrompts(rows, spans, tuple(f"ids[{i}]" for i in range(len(rows))), pad_id)


def batches(
    prompts: TokenizedPrompts, batch_tokens: int, side: Side = "left", new_tokens: int = 0
) -> Iterator[TokenBatch]:
    """Padded batches of prompts of similar length, longest first, each at most `batch_tokens`.

    Longest first, so that what does not fit in memory fails at once. The order depends on the
    lengths alone. `TokenBatch.rows` puts results back into the caller's order.

    Args:
        prompts: Any number, of any lengths.
        batch_tokens: Most padded tokens of a batch; a longer prompt goes alone.
        side: Where padding goes.
        new_tokens: Room per row for tokens to come, in generation.
    """
    for rows in batched_rows(prompts, batch_tokens, new_tokens):
        yield pad([prompts.ids[row] for row in rows], rows, prompts.pad_id, side)


def batched_rows(
    prompts: TokenizedPrompts, batch_tokens: int, new_tokens: int = 0
) -> list[list[int]]:
    """Which prompts go together in `batches`, as indices.

    A batch ends when it is full, or when its padding would cost more than a pass of its own,
    `PADDING_SHARE` of `batch_tokens`; in generation a further batch costs a pass for every token.
    """
    worth = PADDING_SHARE * batch_tokens * (1 + new_tokens)
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts.ids[row]))
    found: list[list[int]] = []
    width = padding = 0
    for row in order:
        length = len(prompts.ids[row])
        padding += width - length
        full = found and (len(found[-1]) + 1) * (width + new_tokens) > batch_tokens
        if not found or full or padding > worth:
            found.append([])
            width, padding = length, 0
        found[-1].append(row)
    return found


def pad(ids: Sequence[Sequence[int]], rows: Sequence[int], pad_id: int, side: Side) -> TokenBatch:
    """One batch of these prompts, padded on one side to the longest."""
    lengths = torch.tensor([len(one) for one in ids])
    width = int(lengths.max())
    offsets = width - lengths if side == "left" else torch.zeros_like(lengths)
    columns = torch.arange(width)
    position_ids = columns - offsets[:, None]
    mask = (position_ids >= 0) & (position_ids < lengths[:, None])
    tokens = torch.full((len(ids), width), pad_id)
    tokens[mask] = torch.tensor([token for one in ids for token in one])
    return TokenBatch(
        ids=tokens,
        attention_mask=mask.long(),
        position_ids=torch.where(mask, position_ids, 0),
        rows=torch.tensor(rows),
        offsets=offsets,
    )
