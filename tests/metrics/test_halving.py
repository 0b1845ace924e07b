"""Halves hold whole clusters, all halvings are about as likely, and what cannot be is refused."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import SampleError
from mechsafety.metrics.halving import half_marks

KINDS = [name for name, size in zip("abcdef", (9, 4, 6, 2, 5, 3), strict=True) for _ in range(size)]
"""Clusters of other sizes: 29 rows, the largest of 9."""
LISTED = [f"harmless {i % 5}" for i in range(23)]
"""Of a second list, without a name of the first: 3 × 5 and 2 × 4 rows."""
N_SPLITS = 60


def clusters_of(marks: Tensor, names: Sequence[str]) -> set[str]:
    return {name for name, mark in zip(names, marks, strict=True) if mark}


@pytest.mark.parametrize(
    ("harmless", "largest"),
    [(None, (9, 9)), (LISTED, (9, 5)), ([*KINDS[4:], "g", "g", "g"], None)],
    ids=["pairs", "lists", "lists that share clusters"],
)
def test_halves_hold_whole_clusters_of_both_classes(
    generator: torch.Generator, harmless: list[str] | None, largest: tuple[int, int] | None
) -> None:
    names = KINDS, harmless or KINDS
    counts = len(names[0]), len(names[1])
    marks = half_marks(*counts, harmless is None, N_SPLITS, generator, KINDS, harmless)
    divided = half_marks(*counts, harmless is None, N_SPLITS, generator)
    assert clusters_of(divided[0][0], KINDS) & clusters_of(1 - divided[0][0], KINDS)
    assert [side.shape for side in marks] == [(N_SPLITS, n) for n in counts]
    for split in range(N_SPLITS):
        halves = [
            [clusters_of(side[split], listed) for side, listed in zip(half, names, strict=True)]
            for half in (marks, [1 - side for side in marks])
        ]
        assert not set.union(*halves[0]) & set.union(*halves[1])
        assert min(len(side) for half in halves for side in half) >= 2
        if harmless is None:
            assert torch.equal(marks[0][split], marks[1][split])
        for side, most in zip(marks, largest or (), strict=False):
            assert abs(float((2 * side[split] - 1).sum())) <= most
    assert len({tuple(one.tolist()) for one in marks[0]}) > 4


def test_every_halving_of_equal_clusters_is_drawn_about_as_often(
    generator: torch.Generator,
) -> None:
    names = [str(i // 3) for i in range(18)]
    marks, _ = half_marks(18, 18, True, 1000, generator, names)
    drawn = Counter(frozenset(clusters_of(one, names)) for one in marks)
    # 10 halvings, each with either half as A.
    assert len(drawn) == 20
    assert {len(half) for half in drawn} == {3}
    assert max(abs(count - 50) for count in drawn.values()) < 35  # 5 standard deviations


def test_what_cannot_be_halved_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(SampleError, match=r"11 harmful and 7 harmless prompts as pairs"):
        half_marks(11, 7, True, 3, generator)
    with pytest.raises(SampleError, match=r"halving 3 harmful"):
        half_marks(3, 7, False, 3, generator)
    with pytest.raises(SampleError, match=r"29 and 29 cluster names for 29 harmful and 28 harm"):
        half_marks(29, 28, False, 3, generator, KINDS)
    with pytest.raises(SampleError, match=r"0 and 29 cluster names for 29 harmful"):
        half_marks(29, 29, False, 3, generator, None, KINDS)
    with pytest.raises(SampleError, match=r"that are pairs\. Give one name"):
        half_marks(29, 29, True, 3, generator, KINDS, KINDS[::-1])
    with pytest.raises(SampleError, match=r"halving 3 clusters of harmful and 3 of harmless"):
        half_marks(12, 12, True, 3, generator, [i % 3 for i in range(12)])
