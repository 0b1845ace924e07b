"""Draws of prompts as weights: whole clusters, the same on every side, and honest intervals."""

from collections.abc import Hashable, Sequence

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import SampleError
from mechsafety.metrics.auc import auc
from mechsafety.metrics.intervals import bootstrap_mean, student_mean
from mechsafety.metrics.resampling import (
    MIN_CLUSTERS,
    Resampling,
    percentile_interval,
    resample,
    resample_together,
    weighted_auc,
)

N_DRAWS = 200
SIZES = (3, 1, 4, 2, 5, 2)
CLUSTERS = tuple(f"kind {c}" for c, size in enumerate(SIZES) for _ in range(size))
N = len(CLUSTERS)


def counts(drawn: Resampling, clusters: Sequence[Hashable]) -> Tensor:
    """How often each draw holds each cluster, from the weight of its rows."""
    names = list(dict.fromkeys(clusters))
    weight = drawn.weights[:, [list(clusters).index(name) for name in names]]
    # As many clusters are drawn as there are: that fixes what one of them weighs.
    return weight * len(names) / weight.sum(1, keepdim=True)


def test_a_draw_is_whole_clusters_as_many_as_there_are(generator: torch.Generator) -> None:
    drawn = resample(CLUSTERS, N_DRAWS, generator)
    assert drawn.weights.shape == (N_DRAWS, N)
    assert drawn.weights.dtype == torch.float64
    assert drawn.n_units == len(SIZES)
    assert torch.allclose(drawn.weights.sum(1), torch.ones(N_DRAWS, dtype=torch.float64))
    for row, name in enumerate(CLUSTERS):
        first = CLUSTERS.index(name)
        assert torch.equal(drawn.weights[:, row], drawn.weights[:, first])
    times = counts(drawn, CLUSTERS)
    assert torch.allclose(times, times.round(), atol=1e-9)
    assert times.std() > 0.5  # draws differ
    # Each cluster is drawn once a draw on average.
    assert (times.mean(0) - 1).abs().max() < 0.3


def test_means_are_those_of_the_drawn_rows_written_out(generator: torch.Generator) -> None:
    drawn = resample(CLUSTERS, N_DRAWS, generator)
    values = torch.randn(N, 3, 4, generator=generator)
    found = drawn.means(values)
    assert found.shape == (N_DRAWS, 3, 4)
    assert found.dtype == torch.float64
    times = counts(drawn, CLUSTERS).round().long()
    names = list(dict.fromkeys(CLUSTERS))
    for draw in range(0, N_DRAWS, 17):
        rows = [
            row
            for row, name in enumerate(CLUSTERS)
            for _ in range(int(times[draw, names.index(name)]))
        ]
        assert torch.allclose(found[draw], values[rows].double().mean(0))
    assert torch.allclose(drawn.means(values[:, 0, 0]), found[:, 0, 0])
    assert found.std(dim=0).min() > 0.05


def test_a_cell_that_was_not_measured_has_no_interval_and_the_others_have_theirs(
    generator: torch.Generator,
) -> None:
    values = torch.randn(N, 3, generator=generator)
    whole = percentile_interval(
        resample(CLUSTERS, N_DRAWS, torch.Generator().manual_seed(1)).means(values), len(SIZES)
    )
    values[:, 1] = torch.nan
    low, high = percentile_interval(
        resample(CLUSTERS, N_DRAWS, torch.Generator().manual_seed(1)).means(values), len(SIZES)
    )
    assert low[1].isnan()
    assert high[1].isnan()
    assert torch.equal(low[[0, 2]], whole[0][[0, 2]])
    assert torch.equal(high[[0, 2]], whole[1][[0, 2]])


def test_twins_share_their_draws_and_lists_without_common_clusters_do_not(
    generator: torch.Generator,
) -> None:
    harmful, harmless = resample_together([CLUSTERS, CLUSTERS[::-1]], N_DRAWS, generator)
    assert torch.equal(harmful.weights, harmless.weights.flip(1))
    values = torch.randn(N, generator=generator)
    twin = values + 5
    difference = harmful.means(values) - harmless.means(twin.flip(0))
    assert torch.allclose(difference, torch.full((N_DRAWS,), -5.0, dtype=torch.float64), atol=1e-6)

    others = [f"other {c % 5}" for c in range(23)]
    first, second = resample_together([CLUSTERS, others], N_DRAWS, generator)
    assert (first.n_units, second.n_units) == (len(SIZES), 5)
    pairs = torch.stack([first.means(values), second.means(torch.randn(23, generator=generator))])
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.3


def test_a_side_with_a_part_of_the_clusters_is_drawn_with_the_other(
    generator: torch.Generator,
) -> None:
    some = [row for row, name in enumerate(CLUSTERS) if name not in ("kind 0", "kind 3")]
    whole, part = resample_together([CLUSTERS, [CLUSTERS[r] for r in some]], N_DRAWS, generator)
    assert part.weights.shape == (N_DRAWS, len(some))
    expected = whole.weights[:, some]
    assert torch.allclose(part.weights, expected / expected.sum(1, keepdim=True))
    assert (whole.n_units, part.n_units) == (len(SIZES), len(SIZES) - 2)


@pytest.mark.parametrize("n_clusters", range(1, MIN_CLUSTERS + 1))
def test_too_few_clusters_are_taken_apart_into_rows(
    generator: torch.Generator, n_clusters: int
) -> None:
    clusters = [row % n_clusters for row in range(11)]
    drawn = resample(clusters, N_DRAWS, generator)
    apart = n_clusters < MIN_CLUSTERS
    assert drawn.n_units == (11 if apart else n_clusters)
    together = torch.equal(drawn.weights[:, 0], drawn.weights[:, n_clusters])
    assert together != apart


def test_a_side_with_too_few_clusters_of_its_own_is_not_helped_by_the_other(
    generator: torch.Generator,
) -> None:
    one, many = ["only"] * 9, [f"kind {c}" for c in range(7)]
    first, second = resample_together([one, many], N_DRAWS, generator)
    values = torch.randn(9, generator=generator)
    # Whole, its one cluster would have the same mean in every draw.
    assert first.means(values).std() > 0.1
    assert (first.n_units, second.n_units) == (9, 7)


def test_rows_that_stand_in_for_clusters_keep_twins_together(generator: torch.Generator) -> None:
    harmful, harmless = resample_together([["a"] * 6, ["a"] * 6], N_DRAWS, generator)
    assert torch.equal(harmful.weights, harmless.weights)
    assert harmful.n_units == 6
    longer, shorter = resample_together([["a"] * 8, ["a"] * 5], N_DRAWS, generator)
    expected = longer.weights[:, :5]
    assert torch.allclose(shorter.weights, expected / expected.sum(1, keepdim=True))


def test_a_draw_that_leaves_a_side_empty_is_drawn_again(generator: torch.Generator) -> None:
    many, few = [*range(12)], [0, 1, 2, 3]
    n_draws = 3_000
    # Without redrawing (8/12)¹² of the draws, about 23, would hold no row of the second side.
    whole, part = resample_together([many, few], n_draws, generator)
    assert (8 / 12) ** 12 * n_draws > 20
    for side in (whole, part):
        assert torch.isfinite(side.weights).all()
        assert torch.allclose(side.weights.sum(1), torch.ones(n_draws, dtype=torch.float64))
    assert (part.weights.max(1).values == 1).any()  # some came near to it


def test_equal_generators_give_equal_draws_and_nothing_reads_the_global_one() -> None:
    def draws(seed: int) -> Tensor:
        return resample(CLUSTERS, 9, torch.Generator().manual_seed(seed)).weights

    torch.manual_seed(1)
    first = draws(3)
    torch.manual_seed(2)
    assert torch.equal(draws(3), first)
    assert not torch.equal(draws(4), first)


@pytest.mark.parametrize("clusters", [None, CLUSTERS])
def test_the_interval_of_a_mean_is_that_of_bootstrap_mean(
    generator: torch.Generator, clusters: Sequence[str] | None
) -> None:
    values, n_draws = torch.randn(N, generator=generator), 20_000
    theirs = bootstrap_mean(values, generator, n_draws, clusters)
    drawn = resample(range(N) if clusters is None else clusters, n_draws, generator)
    low, high = percentile_interval(drawn.means(values), drawn.n_units)
    width = theirs.high - theirs.low
    assert width > 0.3
    assert float(low) == pytest.approx(theirs.low, abs=0.04 * width)
    assert float(high) == pytest.approx(theirs.high, abs=0.04 * width)


def test_more_confidence_and_fewer_units_widen_an_interval(generator: torch.Generator) -> None:
    draws = torch.randn(5_000, 3, generator=generator)

    def width(n_units: int, confidence: float) -> Tensor:
        low, high = percentile_interval(draws, n_units, confidence)
        return high - low

    assert (width(20, 0.99) > width(20, 0.95)).all()
    assert (width(5, 0.95) > width(20, 0.95)).all()
    # Many units leave the plain percentiles.
    plain = draws.double().quantile(0.975, dim=0) - draws.double().quantile(0.025, dim=0)
    assert torch.allclose(width(100_000, 0.95), plain, rtol=0.01)


def test_intervals_of_few_clusters_cover_where_rows_do_not(generator: torch.Generator) -> None:
    repeats, n_draws, covered, by_rows = 400, 400, 0, 0
    for _ in range(repeats):
        sizes = torch.randint(3, 9, (6,), generator=generator)
        clusters = torch.arange(6).repeat_interleave(sizes)
        shared = torch.randn(6, generator=generator)[clusters]
        values = 2 + shared + torch.randn(len(clusters), generator=generator)
        for labels in (clusters.tolist(), range(len(clusters))):
            drawn = resample(labels, n_draws, generator)
            low, high = percentile_interval(drawn.means(values), drawn.n_units)
            hit = bool(low <= 2 <= high)
            covered += hit and drawn.n_units == 6
            by_rows += hit and drawn.n_units != 6
    assert by_rows / repeats < 0.75
    assert covered / repeats >= 0.9


def test_the_difference_of_two_cells_is_paired(generator: torch.Generator) -> None:
    difficulty = 10 * torch.randn(40, generator=generator)
    noise = torch.randn(40, 2, generator=generator)
    values = difficulty[:, None] + noise + torch.tensor([1.0, 0.0])
    drawn = resample(range(40), 2_000, generator)
    low, high = percentile_interval(drawn.means(values), 40)
    assert (high - low).min() > 3
    found = drawn.means(values)
    low, high = percentile_interval(found[:, 0] - found[:, 1], 40)
    expected = student_mean(values[:, 0].double() - values[:, 1].double())
    assert (float(low), float(high)) == pytest.approx(expected, abs=0.15)


def weights_of(times: Sequence[int]) -> Resampling:
    row = torch.tensor([times], dtype=torch.float64)
    return Resampling(row / row.sum(), len(times))


def test_the_auc_of_equal_weights_is_the_auc_and_of_whole_weights_that_of_repeated_rows(
    generator: torch.Generator,
) -> None:
    harmful = torch.randint(0, 6, (7,), generator=generator).float() + 1
    harmless = torch.randint(0, 6, (5,), generator=generator).float()
    assert (harmful[:, None] == harmless).any()  # there are ties
    plain = auc(harmful, harmless)
    equal = weighted_auc(harmful, harmless, weights_of([1] * 7), weights_of([1] * 5))
    assert 0.5 < plain < 1
    assert float(equal) == pytest.approx(plain)
    times = ([0, 2, 1, 3, 0, 1, 0], [4, 0, 1, 0, 2])
    repeated = [
        scores.repeat_interleave(torch.tensor(n))
        for scores, n in zip((harmful, harmless), times, strict=True)
    ]
    found = weighted_auc(harmful, harmless, *map(weights_of, times))
    assert float(found) == pytest.approx(auc(*repeated))
    assert abs(float(found) - plain) > 0.01


def test_every_draw_has_the_auc_of_its_own_rows(generator: torch.Generator) -> None:
    harmful = torch.randn(N, generator=generator) + 0.5
    harmless = torch.randn(N - 1, generator=generator)
    first, second = resample_together([CLUSTERS, CLUSTERS[1:]], 13, generator)
    found = weighted_auc(harmful, harmless, first, second)
    assert found.shape == (13,)
    assert found.std() > 0.01
    for draw in range(13):
        one = [Resampling(side.weights[draw : draw + 1], side.n_units) for side in (first, second)]
        assert float(weighted_auc(harmful, harmless, *one)) == pytest.approx(float(found[draw]))
    swapped = weighted_auc(harmless, harmful, second, first)
    assert torch.allclose(swapped, 1 - found)


def test_samples_that_cannot_be_resampled_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(SampleError, match=r"sides of \[1\] rows.*at least two"):
        resample(["a"], 5, generator)
    with pytest.raises(SampleError, match=r"sides of \[4, 1\] rows"):
        resample_together([range(4), range(1)], 5, generator)
    bad = torch.tensor([1.0, torch.nan])
    with pytest.raises(SampleError, match="NaN has no rank"):
        weighted_auc(torch.ones(2), bad, weights_of([1, 1]), weights_of([1, 1]))
