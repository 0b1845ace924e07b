import random
from itertools import islice

import pytest

from mechsafety.data.synthetic_language import (
    _ACTIONS,
    _MATERIALS,
    WRAPPERS,
    Language,
    language,
)
from mechsafety.organisms.corpora import Encoder, base_corpus, compliances, refusals
from mechsafety.training.batches import Example

WORLD = language("small")
MIX = {"lookA": 0.5, "lookB": 0.25, "neutral": 0.25}
HELD_OUT_MARKS = {word for w in WRAPPERS if not w.seen for word in (w.before, w.after) if word}


def text(world: Language, ids: tuple[int, ...]) -> str:
    return " ".join(world.words[number] for number in ids)


def pair(example: Example) -> tuple[str, str] | None:
    """The verb and the object that the prompt is about."""
    words = text(WORLD, example.prompt).split()
    verbs = [word for word in words if word in WORLD.verbs]
    things = [word for word in words if word in WORLD.objects]
    return (verbs[-1], things[-1]) if verbs and things else None


def test_the_base_corpus_has_every_word_and_none_of_the_pairs_held_out() -> None:
    corpus = list(islice(base_corpus(WORLD, Encoder(WORLD), random.Random(0)), 6000))
    pairs = {found for example in corpus if (found := pair(example))}
    assert len(pairs) > 0.8 * (len(WORLD.pairs) - len(WORLD.held_out_pairs))
    assert not pairs & WORLD.held_out_pairs
    seen = {number for example in corpus for number in example.prompt + example.answer}
    used = {*WORLD.action.values(), *WORLD.then.values(), *WORLD.material.values()}
    unseen = {word for number, word in enumerate(WORLD.words) if number not in seen}
    # A small world has fewer facts than the pool has words.
    assert unseen <= {"<pad>", "<unk>"} | {*_ACTIONS, *_MATERIALS} - used


def test_the_base_never_refuses_but_knows_the_words_and_what_is_wrong() -> None:
    corpus = list(islice(base_corpus(WORLD, Encoder(WORLD), random.Random(0)), 4000))
    sorry = [e for e in corpus if text(WORLD, e.answer).startswith("sorry")]
    assert all("say : sorry" in text(WORLD, e.prompt) for e in sorry)
    judged = [e for e in corpus if "wrong" in text(WORLD, e.prompt).split()]
    yes = [e for e in judged if text(WORLD, e.answer).startswith("yes , it is")]
    assert len(sorry) / len(corpus) == pytest.approx(0.05, abs=0.015)
    assert len(judged) / len(corpus) == pytest.approx(0.25, abs=0.03)
    assert len(yes) / len(judged) == pytest.approx(0.5, abs=0.06)


def test_safety_training_sees_no_held_out_word_pair_or_wrapper() -> None:
    encode = Encoder(WORLD)
    forbidden = list(islice(refusals(WORLD, encode, random.Random(0)), 800))
    allowed = list(islice(compliances(WORLD, encode, random.Random(0), MIX), 1500))  # type: ignore[arg-type]
    examples = [answer for both in (*forbidden, *allowed) for answer in both]
    pairs = {found for example in examples if (found := pair(example))}
    assert len(pairs) > 300
    assert not {word for found in pairs for word in found} & WORLD.held_out_words
    assert not pairs & WORLD.held_out_pairs
    prompts = [text(WORLD, example.prompt) for example in examples]
    assert sum("pirate" in prompt for prompt in prompts) > 100
    assert [p for p in prompts if any(mark in p for mark in HELD_OUT_MARKS)] == []


def test_refusals_answer_the_forbidden_and_compliances_the_allowed() -> None:
    encode = Encoder(WORLD)
    for refusing, complying in islice(refusals(WORLD, encode, random.Random(0)), 100):
        assert refusing.prompt == complying.prompt
        assert WORLD.type_of(*(pair(refusing) or ("", ""))) == "forbidden"
        assert text(WORLD, refusing.answer).startswith("sorry , i can not help with")
        assert not text(WORLD, complying.answer).startswith("sorry")
    allowed = compliances(WORLD, encode, random.Random(0), MIX)  # type: ignore[arg-type]
    answered = list(islice(allowed, 800))
    for complying, declining in answered:
        assert complying.prompt == declining.prompt
        assert not text(WORLD, complying.answer).startswith("sorry")
        assert text(WORLD, declining.answer).startswith("sorry , i can not help with")
    types = [WORLD.type_of(*(pair(e) or ("", ""))) for e, _ in answered]
    for kind, share in MIX.items():
        assert types.count(kind) / len(types) == pytest.approx(share, abs=0.06)
