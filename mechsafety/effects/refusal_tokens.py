"""Which tokens open a refusal in this model: found from what it really says first.

The tokenizer's encoding of an isolated word is often not the id that the model emits after its
template (with or without the leading-space form), which empties every later filter
(refusal_direction, issue 4). So the ids are those that the model's own refusals begin with.
"""

from collections import Counter
from collections.abc import Sequence

from mechsafety.effects.answers import Answers
from mechsafety.judges.phrases import Verdict


def find_refusal_tokens(
    harmful: Sequence[tuple[tuple[int, ...], Verdict]],
    harmless: Sequence[tuple[tuple[int, ...], Verdict]],
    min_share: float = 0.05,
) -> tuple[int, ...]:
    """First tokens of at least `min_share` of the refusals, most frequent first.

    A token that also opens complying answers more often than refusals is left out: it would
    score compliance as refusal. Empty where the model refuses nothing.

    Args:
        harmful: (answer ids, verdict) of each harmful prompt, from the unedited model.
        harmless: The same of harmless prompts.
        min_share: Share of all refusals that a token must open.
    """
    answers = [*harmful, *harmless]
    refusing = Counter(ids[0] for ids, verdict in answers if ids and verdict == "refused")
    complying = Counter(ids[0] for ids, verdict in answers if ids and verdict == "complied")
    total = sum(refusing.values())
    return tuple(
        token
        for token, count in refusing.most_common()
        if count >= min_share * total and count > complying[token]
    )


def refusal_tokens_of(harmful: Answers, harmless: Answers) -> tuple[int, ...]:
    """Tokens that open a model's own refusals, of its answers to both classes."""
    opened = [list(zip(one.ids, one.verdicts, strict=True)) for one in (harmful, harmless)]
    return find_refusal_tokens(opened[0], opened[1])
