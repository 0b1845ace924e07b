"""The baseline finds what one word says, and cannot find what only two words say together."""

import pytest
import torch

from mechsafety.core.errors import SampleError
from mechsafety.metrics.auc import auc
from mechsafety.metrics.lexical import left_out_errors, lexical_scores

VOCAB = 30
A, B = 100, 101


def _filler(n: int, generator: torch.Generator) -> list[list[int]]:
    return torch.randint(VOCAB, (n, 8), generator=generator).tolist()


def _auc(scores: torch.Tensor, harmful: torch.Tensor) -> float:
    return auc(scores[harmful], scores[~harmful])


def _half(n: int) -> torch.Tensor:
    return torch.arange(n) % 2 == 0


def test_a_word_that_tells_the_class_is_found_on_held_out_prompts(
    generator: torch.Generator,
) -> None:
    fit, held = _filler(60, generator), _filler(41, generator)
    chance = _auc(lexical_scores(fit, _half(60), held), _half(41))
    assert 0.3 < chance < 0.7  # the filler says nothing
    for ids, harmful in [*zip(fit, _half(60), strict=True), *zip(held, _half(41), strict=True)]:
        ids.append(A if harmful else B)
    assert _auc(lexical_scores(fit, _half(60), held), _half(41)) > 0.98


def _exclusive_or(
    n: int, both: int | None, generator: torch.Generator
) -> tuple[list[list[int]], torch.Tensor]:
    """Each of a and b is there or not, in every combination alike; harmful if exactly one is."""
    a, b = torch.arange(n) % 4 < 2, _half(n)
    prompts = _filler(n, generator) if both is not None else [[] for _ in range(n)]
    for ids, has_a, has_b in zip(prompts, a, b, strict=True):
        ids.extend([A] * bool(has_a) + [B] * bool(has_b))
        if both and has_a and has_b:
            ids.append(both)
    return prompts, a ^ b


def test_an_exclusive_or_of_two_words_is_beyond_any_bag_of_words(
    generator: torch.Generator,
) -> None:
    fit, fit_harmful = _exclusive_or(80, None, generator)
    held, harmful = _exclusive_or(48, None, generator)
    assert _auc(lexical_scores(fit, fit_harmful, held), harmful) == 0.5

    fit, fit_harmful = _exclusive_or(400, 0, generator)
    held, harmful = _exclusive_or(400, 0, generator)
    assert 0.4 < _auc(lexical_scores(fit, fit_harmful, held), harmful) < 0.6
    # A token that stands for the pair is all that was missing.
    fit, fit_harmful = _exclusive_or(400, 102, generator)
    held, harmful = _exclusive_or(400, 102, generator)
    assert _auc(lexical_scores(fit, fit_harmful, held), harmful) > 0.9


def test_the_order_of_words_and_unknown_words_do_not_matter(generator: torch.Generator) -> None:
    fit = _filler(30, generator)
    held = _filler(9, generator)
    scores = lexical_scores(fit, _half(30), held)
    assert scores.std() > 0
    shuffled = [[999, *reversed(ids)] for ids in held]
    torch.testing.assert_close(lexical_scores(fit, _half(30), shuffled), scores, atol=0, rtol=0)


def test_prompts_with_one_bag_give_one_score() -> None:
    scores = lexical_scores([[1, 2], [2, 1], [1, 2]], torch.tensor([True, False, False]), [[3], []])
    torch.testing.assert_close(scores, torch.full((2,), -1 / 3).double())


def test_left_out_errors_are_those_of_refits_without_the_group(generator: torch.Generator) -> None:
    counts = torch.randint(4, (11, 5), generator=generator).double()
    target = torch.randn(11, generator=generator).double()
    groups = ["a", "b", "a", "c", "d", "e", "b", "f", "g", "h", "a"]
    penalties = [0.3, 20.0]
    for penalty, found in zip(
        penalties, left_out_errors(counts, target, groups, penalties), strict=True
    ):
        for group in set(groups):
            out = torch.tensor([g == group for g in groups])
            x, y = counts[~out], target[~out]
            xc = x - x.mean(0)
            gram = xc.T @ xc + penalty * torch.eye(5).double()
            weights = torch.linalg.solve(gram, xc.T @ (y - y.mean()))
            errors = target[out] - y.mean() - (counts[out] - x.mean(0)) @ weights
            torch.testing.assert_close(found[out], errors)


def test_the_scores_are_those_of_the_best_left_out_ridge(generator: torch.Generator) -> None:
    fit, held = _filler(25, generator), _filler(7, generator)
    counts = torch.stack([torch.bincount(torch.tensor(i), minlength=VOCAB) for i in fit]).double()
    read = torch.stack([torch.bincount(torch.tensor(i), minlength=VOCAB) for i in held]).double()
    target, center = 2 * _half(25).double() - 1, counts.mean(0)
    scores = lexical_scores(fit, _half(25), held)
    unit = float((counts - center).square().sum()) / 25
    penalties = [unit * 10 ** (p / 2) for p in range(-8, 9)]
    errors = [e.square().sum() for e in left_out_errors(counts, target, range(25), penalties)]
    penalty = penalties[int(torch.stack(errors).argmin())]
    gram = (counts - center).T @ (counts - center) + penalty * torch.eye(VOCAB).double()
    weights = torch.linalg.solve(gram, (counts - center).T @ target)
    torch.testing.assert_close(scores, target.mean() + (read - center) @ weights)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SampleError, match="both classes"):
        lexical_scores([[1], [2]], torch.tensor([True, True]), [])
    with pytest.raises(SampleError, match="one label"):
        lexical_scores([[1], [2]], torch.tensor([True, False, True]), [])
    with pytest.raises(SampleError, match="two groups"):
        lexical_scores([[1], [2]], torch.tensor([True, False]), [], ["a", "a"])
