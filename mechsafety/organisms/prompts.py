"""The organisms' world as prompt sets: twins, unrelated contrasts, neutral and behavior sets.

Splits are disjoint by (verb, object): a pair of words that fits a direction neither selects its
site nor evaluates it. Sets depend on the world, on `seed` and on nothing else, so that models of
every arm and training seed answer the same questions.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, Literal, TypeVar, get_args

from mechsafety.core.errors import PromptError
from mechsafety.core.seeding import derive_seed
from mechsafety.data.prompts import PromptPairs, PromptSet, normalized
from mechsafety.data.synthetic_language import (
    ADJECTIVES,
    PLACES,
    HeldOut,
    Language,
    Preset,
    RequestType,
    Split,
    language,
)
from mechsafety.data.synthetic_requests import (
    HELD_OUT_WRAPPERS,
    SEEN_WRAPPERS,
    Pair,
    Request,
    as_prompt,
    dressed,
    pairs_where,
)

Words = Literal["any", "seen", "held_out"]
"""Which prompts by their words: `held_out` takes those whose verb or object (of the forbidden
prompt, in twins) safety training never saw."""

Contrast = Literal["harmless-harmless", "harmful-harmful", "place", "adjective", "neutral_verb"]
CONTRASTS: Final[tuple[Contrast, ...]] = get_args(Contrast)

_NOVELTY: Final[dict[Words, tuple[HeldOut, ...] | None]] = {
    "any": None,
    "seen": ("none",),
    "held_out": ("object", "verb", "both"),
}
_ALLOWED: Final[tuple[RequestType, ...]] = ("lookA", "lookB", "neutral")
_ALL: Final[tuple[RequestType, ...]] = ("forbidden", *_ALLOWED, "ambiguous")
# Everything but the split where recipes are tuned.
_REPORTED: Final[tuple[Split, ...]] = ("fit", "select", "evaluate")
_SWAPS: Final = ("verb", "object", "both")

Two = tuple[Request, Request]
Drawn = TypeVar("Drawn", bound=tuple[Request, ...])


def twins(
    n: int, seed: int, split: Split, *, words: Words = "any", preset: Preset = "default"
) -> PromptPairs:
    """`n` forbidden prompts, each with an allowed twin: verb, object or both swapped, a third each.

    All else (frame, adjective, place) is equal, and so is the number of tokens, position by
    position; no wrappers. Both prompts of a twin lie in `split`. Prompts are distinct.

    Raises:
        PromptError: The split does not have `n` distinct forbidden prompts.
    """

    def one(world: Language, rng: random.Random, turn: int) -> Two | None:
        pairs = pairs_where(preset, ("forbidden",), (split,), _NOVELTY[words])
        forbidden = dressed(*rng.choice(pairs), rng)
        twin = _swapped(world, forbidden, rng, _SWAPS[turn % 3], split, _ALLOWED)
        return None if twin is None else (forbidden, twin)

    name = "harmful-harmless"
    return _pairs(name, ("harmful", "harmless"), n, seed, split, preset, one, extra=words)


def contrasts(
    n: int, seed: int, split: Split, *, preset: Preset = "default"
) -> dict[str, PromptPairs]:
    """Pairs that differ in something else than harm, by name; each as long as its partner.

    `harmless-harmless`: two allowed prompts, verb, object or both swapped; `harmful-harmful`:
    two forbidden ones (another pair of the same kind, or of another kind). These two have no
    order that means anything. `place`, `adjective`, `neutral_verb`: allowed prompts that differ
    in that word alone, `first` having one half of the words (the indoor places, the colors, the
    verbs that describe) and `second` the other, so that there is a mean shift to find.

    Raises:
        PromptError: The split does not have `n` distinct prompts of a kind.
    """
    makers: dict[Contrast, Callable[[Language, random.Random, int], Two | None]] = {
        "harmless-harmless": lambda world, rng, turn: _both(world, rng, turn, split, _ALLOWED),
        "harmful-harmful": lambda world, rng, turn: _both(world, rng, turn, split, ("forbidden",)),
        "place": lambda world, rng, _: _halves(_allowed(world, rng, split), rng, "place", PLACES),
        "adjective": lambda world, rng, _: _halves(
            _allowed(world, rng, split), rng, "adjective", ADJECTIVES
        ),
        "neutral_verb": lambda world, rng, _: _neutral_verbs(world, rng, split),
    }
    sides = {
        "harmless-harmless": ("harmless", "other harmless"),
        "harmful-harmful": ("harmful", "other harmful"),
        "place": ("indoors", "outdoors"),
        "adjective": ("color", "size"),
        "neutral_verb": ("depicting verb", "handling verb"),
    }
    return {
        name: _pairs(name, sides[name], n, seed, split, preset, maker)
        for name, maker in makers.items()
    }


def neutral(
    n: int,
    seed: int,
    split: Split = "fit",
    *,
    look_alikes: bool = False,
    preset: Preset = "default",
    avoid: Collection[str] = (),
) -> PromptSet:
    """`n` distinct prompts that are not about harm: a neutral verb on a harmless object.

    Dressed as twins are (frame, adjective, place) and never wrapped.

    Args:
        n: How many.
        seed: Of the prompts.
        split: Where their verb-object pairs lie; two splits share none.
        look_alikes: Two thirds are allowed requests with one restricted word, verb or object.
        preset: Which world.
        avoid: Normalized instructions that must not be drawn.

    Raises:
        PromptError: The split does not have `n` distinct such prompts.
    """
    avoided = frozenset(avoid)
    kinds: tuple[RequestType, ...] = ("neutral", "lookA", "lookB") if look_alikes else ("neutral",)
    pairs = [pairs_where(preset, (kind,), (split,)) for kind in kinds]
    rng = random.Random(derive_seed(seed, "organism neutral", preset, split))

    def one(turn: int) -> tuple[Request] | None:
        asked = dressed(*rng.choice(pairs[turn % len(kinds)]), rng)
        return None if normalized(asked.instruction) in avoided else (asked,)

    drawn = [asked for (asked,) in _distinct(n, "neutral", one)]
    return _set(language(preset), "neutral", drawn, seed, split)


def behavior_sets(n: int, seed: int, *, preset: Preset = "default") -> dict[str, PromptSet]:
    """What a model card measures: `n` prompts a set, none of the tuning split.

    `forbidden/<what is held out>`, `forbidden/wrappers seen` and `held out`, `allowed/<type>` with
    words that safety training never saw, `allowed/wrappers held out`, and `all/unseen pairs`, whose
    verb-object pairs no training saw, the base's included.
    """
    new = _NOVELTY["held_out"]
    held = ("object", "verb", "both")
    plans: dict[
        str, tuple[tuple[RequestType, ...], tuple[HeldOut, ...] | None, Sequence[str], bool | None]
    ] = {
        "forbidden/seen": (("forbidden",), ("none",), (), None),
        **{f"forbidden/{what}": (("forbidden",), (what,), (), None) for what in held},
        "forbidden/wrappers seen": (("forbidden",), new, SEEN_WRAPPERS, None),
        "forbidden/wrappers held out": (("forbidden",), new, HELD_OUT_WRAPPERS, None),
        **{f"allowed/{kind}": ((kind,), new, (), None) for kind in _ALLOWED},
        "allowed/wrappers held out": (_ALLOWED, new, HELD_OUT_WRAPPERS, None),
        "all/unseen pairs": (_ALL, None, (), False),
    }
    sets: dict[str, PromptSet] = {}
    for name, (types, held_out, wrappers, trained) in plans.items():
        pairs: dict[RequestType, tuple[Pair, ...]] = {
            kind: pairs_where(preset, (kind,), _REPORTED, held_out, trained) for kind in types
        }
        rng = random.Random(derive_seed(seed, "organism behavior", preset, name))

        def one(
            turn: int,
            rng: random.Random = rng,
            pairs: dict[RequestType, tuple[Pair, ...]] = pairs,
            wrappers: Sequence[str] = wrappers,
        ) -> tuple[Request]:
            kinds = tuple(pairs)
            asked = dressed(*rng.choice(pairs[kinds[turn % len(kinds)]]), rng)
            wrapper = wrappers[turn % len(wrappers)] if wrappers else None
            return (replace(asked, wrapper=wrapper),)

        drawn = _distinct(n, name, one)
        sets[name] = _set(language(preset), name, [asked for (asked,) in drawn], seed, "reported")
    return sets


def _pairs(
    name: str,
    sides: tuple[str, str],
    n: int,
    seed: int,
    split: Split,
    preset: Preset,
    one: Callable[[Language, random.Random, int], Two | None],
    extra: str = "",
) -> PromptPairs:
    world = language(preset)
    rng = random.Random(derive_seed(seed, "organism pairs", preset, name, split, extra))
    drawn = _distinct(n, name, lambda turn: one(world, rng, turn))
    first, second = ([two[side] for two in drawn] for side in (0, 1))
    return PromptPairs(
        name,
        _set(world, sides[0], first, seed, split),
        _set(world, sides[1], second, seed, split),
        pairing="twins",
    )


def _distinct(n: int, name: str, one: Callable[[int], Drawn | None]) -> list[Drawn]:
    """`n` draws, no instruction twice on the same side; a draw that fails is tried again."""
    drawn: list[Drawn] = []
    seen: set[tuple[int, str]] = set()
    for _ in range(200 * n + 1000):
        if len(drawn) == n:
            return drawn
        found = one(len(drawn))
        if found is None:
            continue
        keys = {(side, asked.instruction) for side, asked in enumerate(found)}
        if not keys & seen:
            seen |= keys
            drawn.append(found)
    raise PromptError(
        f"drawing {n} prompts of '{name}' from the organisms' world: after {200 * n + 1000} draws "
        f"there are {len(drawn)} distinct ones. Ask for at most {len(drawn)}."
    )


def _set(
    world: Language, name: str, requests: Sequence[Request], seed: int, split: str
) -> PromptSet:
    source = f"organism world '{world.preset}', split {split}, prompt seed {seed}"
    return PromptSet(name, tuple(as_prompt(world, asked) for asked in requests), source)


def _swapped(
    world: Language,
    asked: Request,
    rng: random.Random,
    what: str,
    split: Split,
    types: tuple[RequestType, ...],
) -> Request | None:
    """`asked` with verb, object or both replaced, in the same split and of one of `types`."""
    choices = [
        (verb, thing)
        for verb, thing in pairs_where(world.preset, types, (split,))
        if (verb != asked.verb) == (what != "object") and (thing != asked.thing) == (what != "verb")
    ]
    if not choices:
        return None
    verb, thing = rng.choice(choices)
    return replace(asked, verb=verb, thing=thing)


def _both(
    world: Language, rng: random.Random, turn: int, split: Split, types: tuple[RequestType, ...]
) -> Two | None:
    kind = types[turn // 3 % len(types)]
    asked = dressed(*rng.choice(pairs_where(world.preset, (kind,), (split,))), rng)
    other = _swapped(world, asked, rng, _SWAPS[turn % 3], split, types)
    return None if other is None else (asked, other)


def _allowed(world: Language, rng: random.Random, split: Split) -> Request:
    kind = rng.choice(_ALLOWED)
    return dressed(*rng.choice(pairs_where(world.preset, (kind,), (split,))), rng)


def _halves(
    asked: Request, rng: random.Random, field: Literal["place", "adjective"], words: Sequence[str]
) -> Two:
    half = len(words) // 2
    one, other = rng.choice(words[:half]), rng.choice(words[half:])
    if field == "place":
        return replace(asked, place=one), replace(asked, place=other)
    return replace(asked, adjective=one), replace(asked, adjective=other)


def _neutral_verbs(world: Language, rng: random.Random, split: Split) -> Two | None:
    neutral = [group for group in world.groups if group.restricts is None]
    half = len(neutral) // 2
    sides = [[v for g in part for v in g.verbs] for part in (neutral[:half], neutral[half:])]
    thing = rng.choice(world.objects)
    one, other = ([v for v in verbs if world.split[v, thing] == split] for verbs in sides)
    if not one or not other:
        return None
    asked = dressed(rng.choice(one), thing, rng)
    return asked, replace(asked, verb=rng.choice(other))
