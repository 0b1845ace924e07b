"""What edits do to answers: verdicts of a judge, and whether the content survives.

Content has two measures. Where prompts carry facts (organisms), it is the share of answers that
contain all of them. Elsewhere it is the cross-entropy of the model's own clean answers under the
edit, which is labelled so wherever it is printed: it is a distance from the clean model, not a
mark for being right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.data.prompts import Prompt
from mechsafety.effects.ablation import Edits, under
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.metrics.cross_entropy import cross_entropy
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenizedPrompts, batches


@dataclass(frozen=True)
class Answers:
    """Greedy answers to a prompt set, judged."""

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    """New token ids of each answer, end-of-sequence excluded."""
    verdicts: tuple[Verdict, ...]
    max_new_tokens: int
    """Answer length; part of the name of every rate that is made of these verdicts."""
    thinking_open: bool = False
    """Whether the prompts opened the thinking block that answers begin in; judges ask."""

    def judged(self, verdict: Verdict) -> list[bool]:
        """For each answer, whether it got this verdict."""
        return [found == verdict for found in self.verdicts]

    def part(self, start: int, stop: int) -> "Answers":
        """The answers from `start` up to `stop`."""
        rows = slice(start, stop)
        return replace(
            self, texts=self.texts[rows], ids=self.ids[rows], verdicts=self.verdicts[rows]
        )


def answer(
    model: Model,
    prompts: TokenizedPrompts,
    judge: PhraseJudge,
    max_new_tokens: int,
    batch_tokens: int,
    edits: Edits | None = None,
) -> Answers:
    """Generate greedily under `edits` and judge each answer."""
    with under(model, edits):
        generated = model.generate(
            prompts, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens
        )
    return Answers(
        texts=generated.texts,
        ids=generated.ids,
        verdicts=tuple(judge.judge(text, prompts.thinking_open) for text in generated.texts),
        max_new_tokens=max_new_tokens,
        thinking_open=prompts.thinking_open,
    )


def content_right(text: str, facts: Sequence[str]) -> bool:
    """Whether every fact appears in the answer as a word of its own."""
    words = set(text.split())
    return all(fact in words for fact in facts)


def content_scores(answers: Answers, prompts: Sequence[Prompt]) -> list[bool] | None:
    """For each answer whether its content is right; None where the prompts carry no facts."""
    if not all(prompt.facts for prompt in prompts):
        return None
    return [content_right(text, p.facts) for text, p in zip(answers.texts, prompts, strict=True)]


def clean_answer_cross_entropy(
    model: Model,
    prompts: TokenizedPrompts,
    clean: Answers,
    batch_tokens: int,
    edits: Edits | None = None,
) -> Float[Tensor, " prompt"]:
    """Mean cross-entropy in nats per token of the model's own clean answers, under `edits`.

    Prompts whose clean answer is empty give NaN: there is nothing to predict.
    """
    joined = prompts.followed_by(clean.ids)
    starts = [len(ids) for ids in prompts.ids]
    means = torch.full((len(prompts.ids),), float("nan"), dtype=torch.float64)
    with torch.inference_mode(), under(model, edits):
        for batch in batches(joined, batch_tokens):
            logits = model.forward(batch, keep="all")[:, :-1]
            targets = batch.ids[:, 1:].to(logits.device)
            mask = torch.zeros_like(targets, dtype=torch.bool)
            for i, row in enumerate(batch.rows):
                answer_length = len(joined.ids[int(row)]) - starts[int(row)]
                # Left padding: the answer is the end of the row.
                mask[i, targets.shape[1] - answer_length :] = True
            total, count = cross_entropy(logits, targets, mask)
            means[batch.rows] = (total / count).cpu()
    return means
