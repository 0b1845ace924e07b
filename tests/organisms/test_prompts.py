from itertools import combinations

import pytest

from mechsafety.core.errors import PromptError
from mechsafety.data.prompts import PromptPairs
from mechsafety.data.synthetic_language import ADJECTIVES, PLACES, Split, language
from mechsafety.data.synthetic_requests import Request
from mechsafety.organisms import prompts
from mechsafety.organisms.prompts import CONTRASTS, behavior_sets, contrasts, neutral, twins

N = 45
SPLITS: tuple[Split, ...] = ("fit", "select", "evaluate", "tuning")


def differing(pairs: PromptPairs) -> list[list[tuple[str, str]]]:
    """For each pair, the words at the positions where the two prompts differ."""
    rows = zip(pairs.first, pairs.second, strict=True)
    return [
        [
            (a, b)
            for a, b in zip(one.instruction.split(), other.instruction.split(), strict=True)
            if a != b
        ]
        for one, other in rows
    ]


def test_twins_are_forbidden_against_allowed_and_swap_verb_object_or_both() -> None:
    world, pairs = language("default"), twins(N, 0, "fit")
    assert len(pairs.first) == N
    assert {p.labels["type"] for p in pairs.first} == {"forbidden"}
    assert {p.labels["type"] for p in pairs.second} == {"lookA", "lookB", "neutral"}
    swaps = {"verb": 0, "object": 0, "both": 0}
    for words in differing(pairs):
        (verb_swapped, thing_swapped) = (
            any(a in group for a, _ in words) for group in (world.verbs, world.objects)
        )
        assert len(words) == verb_swapped + thing_swapped
        swaps["both" if len(words) == 2 else "verb" if verb_swapped else "object"] += 1
    assert swaps == {"verb": N // 3, "object": N // 3, "both": N // 3}


def test_no_content_serves_two_splits() -> None:
    groups = {}
    for split in SPLITS:
        sets = [twins(N, 0, split), *contrasts(N, 0, split).values()]
        groups[split] = {group for pairs in sets for side in pairs.sets for group in side.groups}
        assert len(groups[split]) > 30
    for one, other in combinations(SPLITS, 2):
        assert not groups[one] & groups[other]


def test_prompts_depend_on_their_seed_and_on_nothing_else() -> None:
    assert twins(N, 0, "fit").hash == twins(N, 0, "fit").hash
    assert twins(N, 0, "fit").hash != twins(N, 1, "fit").hash
    drawn = twins(N, 0, "fit").first
    assert len({p.id for p in drawn}) == N


@pytest.mark.parametrize("preset", ["default", "small"])
def test_contrasts_differ_in_what_they_are_named_for_and_in_nothing_else(preset: str) -> None:
    world = language("small" if preset == "small" else "default")
    found = contrasts(N, 0, "fit", preset=world.preset)
    assert tuple(found) == CONTRASTS
    neutral = [v for g in world.groups if g.restricts is None for v in g.verbs]
    words = {"place": PLACES, "adjective": ADJECTIVES, "neutral_verb": tuple(neutral)}
    for name, legal in words.items():
        for changed in differing(found[name]):
            ((one, other),) = changed
            # First from one half of the words, second from the other: there is a mean shift.
            assert legal.index(one) < len(legal) // 2 <= legal.index(other)
        for side in found[name].sets:
            assert "forbidden" not in {p.labels["type"] for p in side}
    for name, types in (("harmful-harmful", {"forbidden"}), ("harmless-harmless", None)):
        assert all(differing(found[name]))
        for side in found[name].sets:
            seen = {p.labels["type"] for p in side}
            assert seen == types if types else "forbidden" not in seen


def test_held_out_twins_have_a_word_that_safety_training_never_saw() -> None:
    new = {p.labels["held_out"] for p in twins(N, 0, "evaluate", words="held_out").first}
    assert new <= {"object", "verb", "both"}
    assert {p.labels["held_out"] for p in twins(N, 0, "evaluate", words="seen").first} == {"none"}


def test_behavior_sets_are_what_their_names_say_and_leave_out_the_tuning_split() -> None:
    sets = behavior_sets(28, 0)
    for name, asked in sets.items():
        assert len(asked) == 28
        assert "tuning" not in {p.labels["split"] for p in asked}
        family, _, what = name.partition("/")
        if family != "all":
            types = {p.labels["type"] == "forbidden" for p in asked}
            assert types == {family == "forbidden"}
        if what in ("object", "verb", "both"):
            assert {p.labels["held_out"] for p in asked} == {what}
        wrapped = {p.labels["wrapper"] for p in asked}
        assert len(wrapped) == (7 if "held out" in what else 3 if "wrappers" in what else 1)
    assert {p.labels["base_held_out"] for p in sets["all/unseen pairs"]} == {"yes"}


@pytest.mark.parametrize("preset", ["default", "small"])
def test_neutral_prompts_have_a_harmless_verb_and_object_and_no_wrapper(preset: str) -> None:
    world = language("small" if preset == "small" else "default")
    drawn = neutral(512, 0, preset=world.preset)
    assert len({p.id for p in drawn}) == 512
    assert {p.labels["type"] for p in drawn} == {"neutral"}
    assert {p.labels["wrapper"] for p in drawn} == {"none"}
    assert {p.labels["split"] for p in drawn} == {"fit"}
    for words in (ADJECTIVES, PLACES):  # dressed as twins are: some have one, some have none
        dressed = sum(any(w in p.instruction.split() for w in words) for p in drawn)
        assert 100 < dressed < 300


def test_look_alikes_are_allowed_and_have_one_restricted_word() -> None:
    drawn = neutral(120, 0, look_alikes=True, preset="small")
    kinds = [p.labels["type"] for p in drawn]
    assert {kind: kinds.count(kind) for kind in kinds} == {"neutral": 40, "lookA": 40, "lookB": 40}


def test_look_alikes_are_two_thirds_of_neutral_prompts_where_they_are_asked_for() -> None:
    plain, mixed = (neutral(N, 0, look_alikes=asked) for asked in (False, True))
    assert {p.labels["type"] for p in plain} == {"neutral"}
    types = [p.labels["type"] for p in mixed]
    assert {kind: types.count(kind) for kind in types} == {
        "neutral": N // 3, "lookA": N // 3, "lookB": N // 3,
    }  # fmt: skip


def test_neutral_prompts_leave_out_what_they_are_told_to_avoid() -> None:
    first = neutral(N, 0, preset="small")
    avoided = {p.instruction for p in first}
    again = neutral(N, 0, preset="small", avoid=avoided)
    assert len(again) == N
    assert not avoided & {p.instruction for p in again}


def test_asking_for_more_prompts_than_the_world_has_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompts, "dressed", lambda verb, thing, _rng: Request(verb, thing))
    assert len(twins(5, 0, "tuning", words="held_out", preset="small").first) == 5
    with pytest.raises(PromptError, match=r"there are 6 distinct ones\. Ask for at most 6"):
        twins(7, 0, "tuning", words="held_out", preset="small")
