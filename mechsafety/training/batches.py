"""Prompts with their answers as padded batches, and the loss on answers alone."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt, chat template included, and the answer that follows it, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    instruction: tuple[int, int]
    """First token of the user's words in `prompt`, and one past the last."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class AnswerBatch:
    """Examples padded on the right, where causal attention cannot see the padding."""

    input_ids: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    """All ones: to the right of every real token, padding is invisible to it without a mask, and
    attention without a mask is the fast kind."""
    prompt_mask: Bool[Tensor, "batch pos"]
    """Tokens of the prompt, template included."""
    instruction_mask: Bool[Tensor, "batch pos"]
    """Tokens of the user's words."""
    targets: Int[Tensor, "batch kept"]
    """Next tokens at the last `kept` positions but one; −100 where no answer token follows."""

    @property
    def kept(self) -> int:
        """How many last positions need logits: those from the first predicted answer token on."""
        return self.targets.shape[1]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a forward pass takes."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def pad(examples: Sequence[Example], pad_id: int) -> AnswerBatch:
    """One batch of `examples`, in their order.

    The last token of the longest row predicts nothing and is left out of the input.
    """
    width = max(map(len, examples)) - 1
    first_kept = min(len(example.prompt) for example in examples) - 1
    ids = torch.full((len(examples), width), pad_id)
    prompt = torch.zeros((len(examples), width), dtype=torch.bool)
    instruction = torch.zeros_like(prompt)
    targets = torch.full((len(examples), width), -100)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.prompt + example.answer)
        n_prompt = len(example.prompt)
        ids[row, : len(tokens)] = tokens[:width]
        prompt[row, :n_prompt] = True
        instruction[row, slice(*example.instruction)] = True
        targets[row, n_prompt - 1 : len(tokens) - 1] = tokens[n_prompt:]
    return AnswerBatch(
        input_ids=ids,
        position_ids=torch.arange(width).expand(len(examples), width),
        attention_mask=torch.ones_like(ids),
        prompt_mask=prompt,
        instruction_mask=instruction,
        targets=targets[:, first_kept:],
    )


def length_buckets(
    examples: Iterator[Example], batch_size: int, n_buckets: int, pad_id: int, rng: random.Random
) -> Iterator[AnswerBatch]:
    """Batches of examples of like length, without end.

    Draws `n_buckets` batches' worth at a time, sorts them by length, and yields the batches in
    random order, so that short ones are not always first.
    """
    while True:
        drawn = sorted((next(examples) for _ in range(batch_size * n_buckets)), key=len)
        cuts = [drawn[start : start + batch_size] for start in range(0, len(drawn), batch_size)]
        rng.shuffle(cuts)
        yield from (pad(cut, pad_id) for cut in cuts)


def answer_cross_entropy(
    logits: Float[Tensor, "batch kept vocab"], targets: Int[Tensor, "batch kept"]
) -> Float[Tensor, ""]:
    """Mean over the batch's answer tokens of −log p(token); float32 at least."""
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100
    )


def answer_log_probability(
    logits: Float[Tensor, "batch kept vocab"], targets: Int[Tensor, "batch kept"]
) -> Float[Tensor, " batch"]:
    r"""Natural logarithm of each row's probability of its answer, in float32 at least.

    $\log \pi(y \mid x) = \sum_t \log \pi(y_t \mid x, y_{<t})$: a sum, so that long answers are less
    likely than short ones.
    """
    return (_token_log_p(logits, targets) * (targets != -100)).sum(dim=1)


def away_from(
    logits: Float[Tensor, "batch kept vocab"], targets: Int[Tensor, "batch kept"]
) -> Float[Tensor, ""]:
    r"""Mean over answer tokens of $-\log(1 - p(\text{token}))$: small where the answer is unlikely.

    Tokens with $\log p < -5$ add nothing, so that what is already unlikely is left alone.
    Source: the `away` loss of arXiv:2407.15549, appendix; cut-off as in its public code.
    """
    asked = targets != -100
    log_p = _token_log_p(logits, targets)
    # log(1 − p) through expm1: exact where p is tiny, and finite where p rounds to 1.
    per_token = -torch.log((-torch.expm1(log_p)).clamp_min(1e-6))
    counted = asked & (log_p >= -5)
    return (per_token * counted).sum() / asked.sum()


def _token_log_p(
    logits: Float[Tensor, "batch kept vocab"], targets: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept"]:
    """log p of each target; where there is none, of token 0."""
    return logits.float().log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
