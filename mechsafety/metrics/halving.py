"""Random halves of the rows of two classes, clusters whole.

A direction that halves of the prompts agree on is one of the class and not of the prompts. What
prompts of one cluster have in common must then not lie in both halves.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import SampleError

MAX_TRIES: Final = 1000
"""Random orders of the clusters before a halving is called impossible."""


def half_marks(
    n_harmful: int,
    n_harmless: int,
    paired: bool,
    n_splits: int,
    generator: torch.Generator,
    clusters: Sequence[Hashable] | None = None,
    harmless_clusters: Sequence[Hashable] | None = None,
) -> tuple[Float[Tensor, "split {n_harmful}"], Float[Tensor, "split {n_harmless}"]]:
    """Ones for the rows of half A of each split; of an odd count A has one row less.

    Without clusters prompts are halved one by one, and what some of them have in common beyond
    their class is in both halves and counts as reproducible. With clusters each goes whole into
    the half that has fewer rows of its classes, in random order: halves of pairs, or of lists that
    share no cluster, differ by at most the largest cluster of a class. Each half has 2 clusters or
    more of both classes, so that a cluster can be left out of it. Few clusters have few distinct
    halvings, 3 of 4 and 10 of 6 equal ones; further splits repeat them.

    Args:
        n_harmful: Rows of the positive class, at least 4.
        n_harmless: Rows of the negative class, at least 4.
        paired: Pairs go into one half as a whole, so that what their sides share cancels.
        n_splits: Random halvings.
        generator: Draws them.
        clusters: Cluster of each harmful row, never divided. None: every row, or pair, is its own.
        harmless_clusters: Cluster of each harmless row; a name of both classes is one cluster.
            Those of the harmful rows where not given.

    Raises:
        SampleError: Classes of under 4 rows, or (paired) of other counts; clusters that do not fit
            the rows, or of which no half has 2 of each class.
    """
    if min(n_harmful, n_harmless) < 4 or (paired and n_harmful != n_harmless):
        raise SampleError(
            f"halving {n_harmful} harmful and {n_harmless} harmless prompts"
            f"{' as pairs' if paired else ''}: expected at least 4 of each, and as many of one as "
            "of the other where they are pairs."
        )

    if clusters is not None or harmless_clusters is not None:
        names = _cluster_names(n_harmful, n_harmless, paired, clusters, harmless_clusters)
        return _marks_of_clusters(*names, n_splits, generator)

    def marks(n: int) -> Tensor:
        rank = torch.rand(n_splits, n, generator=generator, device=generator.device).argsort(1)
        return (rank < n // 2).double().cpu()

    harmful = marks(n_harmful)
    return harmful, harmful if paired else marks(n_harmless)


def _cluster_names(
    n_harmful: int,
    n_harmless: int,
    paired: bool,
    clusters: Sequence[Hashable] | None,
    harmless_clusters: Sequence[Hashable] | None,
) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
    names = clusters or ()
    others = names if harmless_clusters is None else harmless_clusters
    if (
        (len(names), len(others)) != (n_harmful, n_harmless)
        # Pairs whose sides are of other clusters could not go into one half.
        or (paired and list(names) != list(others))
    ):
        raise SampleError(
            f"halving clusters: {len(names)} and {len(others)} cluster names for {n_harmful} "
            f"harmful and {n_harmless} harmless rows{' that are pairs' if paired else ''}. Give "
            "one name a row for each class; of pairs, names of the harmful rows alone."
        )
    return names, others


def _marks_of_clusters(
    names: Sequence[Hashable],
    others: Sequence[Hashable],
    n_splits: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "split n_harmful"], Float[Tensor, "split n_harmless"]]:
    """Ones for the rows of half A of each split."""
    sizes = {name: [0, 0] for name in (*names, *others)}
    for side, listed in enumerate((names, others)):
        for name in listed:
            sizes[name][side] += 1
    by_cluster = [_half_of_clusters(sizes, generator) for _ in range(n_splits)]
    harmful, harmless = (
        torch.tensor([[float(name in half) for name in listed] for half in by_cluster]).double()
        for listed in (names, others)
    )
    return harmful, harmless


def _half_of_clusters(
    sizes: Mapping[Hashable, Sequence[int]], generator: torch.Generator
) -> set[Hashable]:
    """Clusters of half A. `sizes`: harmful and harmless rows of each cluster."""
    distinct = list(sizes)
    for _ in range(MAX_TRIES):
        halves: tuple[set[Hashable], set[Hashable]] = (set(), set())
        lead = [0, 0]  # rows of A less those of B, of each class
        for i in torch.randperm(len(distinct), generator=generator, device=generator.device):
            name = distinct[int(i)]
            harmful, harmless = sizes[name]
            behind = lead[0] * harmful + lead[1] * harmless <= 0
            halves[0 if behind else 1].add(name)
            sign = 1 if behind else -1
            lead = [lead[0] + sign * harmful, lead[1] + sign * harmless]
        if all(
            sum(sizes[name][side] > 0 for name in half) > 1 for half in halves for side in (0, 1)
        ):
            return halves[0]
    counts = [sum(size[side] > 0 for size in sizes.values()) for side in (0, 1)]
    raise SampleError(
        f"halving {counts[0]} clusters of harmful and {counts[1]} of harmless rows: in "
        f"{MAX_TRIES} random orders a half had under 2 clusters of a class. Expected at least 4 of "
        "each class. Use more or finer clusters, or none: then rows are halved one by one."
    )
