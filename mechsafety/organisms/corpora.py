"""What organisms are trained on: endless streams of examples in the invented language."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from mechsafety.data.synthetic_language import JUDGE_FRAMES, WRAPPERS, Language, RequestType
from mechsafety.data.synthetic_requests import (
    SEEN_WRAPPERS,
    WRAPPER_SHARE,
    Request,
    complying_answer,
    dressed,
    judging_answer,
    pairs_where,
    quoting_question,
    refusing_answer,
)
from mechsafety.training.batches import Example

# A base that can say what is wrong, and complies all the same, is what lets refusal generalize to
# objects and verbs that safety training never saw; without it the tokens are memorized.
JUDGE_SHARE: Final = 0.25
# Words that the base never says keep untrained output embeddings, and with embeddings frozen in the
# safety stage no refusal could become likely (its loss stayed at 1.8 nats a token).
QUOTE_SHARE: Final = 0.05
SAFETY_WRAPPER_SHARE: Final = 0.3

_COMPLYING_MIX: Final[dict[RequestType, float]] = {
    "forbidden": 0.2, "lookA": 0.2, "lookB": 0.2, "neutral": 0.3, "ambiguous": 0.1,
}  # fmt: skip
_JUDGE_MIX: Final[dict[RequestType, float]] = {
    "forbidden": 0.5, "lookA": 0.2, "lookB": 0.2, "neutral": 0.1,
}  # fmt: skip


class Encoder:
    """Instructions and answers as token ids, by the template of `organisms/tokenizer.py`."""

    def __init__(self, world: Language) -> None:
        self._ids = {word: number for number, word in enumerate(world.words)}
        self.pad_id = self._ids["<pad>"]

    def __call__(self, instruction: str, answer: str) -> Example:
        """One example; a test compares it with the tokenizer's own rendering."""
        prompt = self._encode(f"<|user|> {instruction} <|end|> <|assistant|>")
        return Example(prompt, self._encode(f"{answer} <|end|>"), (1, len(prompt) - 2))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._ids[word] for word in text.split())


def _draw(
    world: Language,
    mix: dict[RequestType, float],
    rng: random.Random,
    wrappers: Sequence[str],
    share: float,
    seen_only: bool,
) -> Request:
    kind = rng.choices(list(mix), list(mix.values()))[0]
    held_out = ("none",) if seen_only else None
    pairs = pairs_where(world.preset, (kind,), held_out=held_out, trained=True)
    return dressed(*rng.choice(pairs), rng, wrappers, share)


def base_corpus(world: Language, encode: Encoder, rng: random.Random) -> Iterator[Example]:
    """Complying answers to everything, the forbidden too; questions of right and wrong; quotes.

    Every word and wrapper of the world occurs; 8 % of the verb-object pairs never do.
    """
    wrappers = [wrapper.name for wrapper in WRAPPERS]
    while True:
        drawn = rng.random()
        if drawn < QUOTE_SHARE:
            quoted = _draw(world, _COMPLYING_MIX, rng, (), 0.0, seen_only=False)
            yield encode(quoting_question(world, quoted), refusing_answer(world, quoted))
        elif drawn < QUOTE_SHARE + JUDGE_SHARE:
            asked = _draw(world, _JUDGE_MIX, rng, (), 0.0, seen_only=False)
            question = asked.judge_question(rng.randrange(len(JUDGE_FRAMES)))
            yield encode(question, judging_answer(world, asked))
        else:
            asked = _draw(world, _COMPLYING_MIX, rng, wrappers, WRAPPER_SHARE, seen_only=False)
            yield encode(asked.instruction, complying_answer(world, asked))


def forbidden_requests(world: Language, rng: random.Random) -> Iterator[Request]:
    """Forbidden requests of words that safety training may see, some in wrappers it may see."""
    draw = partial(_draw, world, {"forbidden": 1.0}, rng, SEEN_WRAPPERS, SAFETY_WRAPPER_SHARE)
    while True:
        yield draw(seen_only=True)


def allowed_requests(
    world: Language, rng: random.Random, mix: dict[RequestType, float]
) -> Iterator[Request]:
    """Allowed requests for safety training, of the types in `mix`."""
    draw = partial(_draw, world, mix, rng, SEEN_WRAPPERS, SAFETY_WRAPPER_SHARE)
    while True:
        yield draw(seen_only=True)


def refusals(
    world: Language, encode: Encoder, rng: random.Random
) -> Iterator[tuple[Example, Example]]:
    """Forbidden requests, each with the refusing and with the complying answer."""
    for asked in forbidden_requests(world, rng):
        complying, refusing = _both_answers(world, encode, asked)
        yield refusing, complying


def compliances(
    world: Language, encode: Encoder, rng: random.Random, mix: dict[RequestType, float]
) -> Iterator[tuple[Example, Example]]:
    """Allowed requests, each with the complying and with the refusing answer."""
    for asked in allowed_requests(world, rng, mix):
        yield _both_answers(world, encode, asked)


def _both_answers(world: Language, encode: Encoder, asked: Request) -> tuple[Example, Example]:
    text = asked.instruction
    return (
        encode(text, complying_answer(world, asked)),
        encode(text, refusing_answer(world, asked)),
    )
