"""Prompts of a split and the resampling that all their numbers share."""

from collections.abc import Sequence

import pytest
import torch

from mechsafety.data.prompts import Pairing, Prompt, PromptPairs, PromptSet
from mechsafety.studies.samples import Sample, estimates


def prompts(name: str, kinds: Sequence[str]) -> PromptSet:
    made = [
        Prompt.of(f"{name} {row}", group=f"{row}", labels={"kind": kind})
        for row, kind in enumerate(kinds)
    ]
    return PromptSet(name, tuple(made), "test")


def sample(first: Sequence[str], second: Sequence[str], pairing: Pairing) -> Sample:
    pairs = PromptPairs("x", prompts("harmful", first), prompts("harmless", second), pairing)
    return Sample.of(pairs, "kind", 50, 0, "somewhere")


FIVE = [f"{row % 5}" for row in range(12)]
SEVEN = [f"{row % 7}" for row in range(9)]


def test_both_sides_of_twins_are_drawn_together() -> None:
    # Twins share the cluster of their harmful prompt, whatever their harmless one is.
    found = sample(FIVE, ["only"] * 12, "twins")
    assert torch.equal(found.harmful.weights, found.harmless.weights)
    assert found.n_units == 5
    assert found.note == "Intervals resample 5 units (somewhere, kind) whole, twins together."
    assert found.harmless_clusters == ("only",) * 12


def test_rows_of_a_cluster_are_drawn_together_and_other_rows_are_not() -> None:
    weights = sample(FIVE, FIVE, "twins").harmful.weights
    assert torch.equal(weights[:, 0], weights[:, 5])
    assert not torch.equal(weights[:, 0], weights[:, 1])


def test_equal_names_in_two_lists_are_different_clusters() -> None:
    found = sample(FIVE, SEVEN, "list")
    assert (found.harmful.n_units, found.harmless.n_units, found.n_units) == (5, 7, 5)
    assert found.note == "Intervals resample 5 + 7 units (somewhere, kind) whole."
    harmful, harmless = found.harmful.weights > 0, found.harmless.weights > 0
    assert not torch.equal(harmful[:, 0], harmless[:, 0])


@pytest.mark.parametrize("pairing", ["twins", "list"])
def test_where_clusters_are_too_few_prompts_are_drawn_and_the_reader_is_told(
    pairing: Pairing,
) -> None:
    found = sample([f"{row % 3}" for row in range(12)], FIVE, pairing)
    weights = found.harmful.weights
    assert not torch.equal(weights[:, 0], weights[:, 3])  # of one cluster, drawn apart
    assert found.n_units == 12
    assert "12 " in found.note
    assert "3 of kind are too few to keep whole" in found.note
    # Row i of one list has nothing to do with row i of the other.
    assert torch.equal(weights, found.harmless.weights) == (pairing == "twins")


def test_a_map_and_its_resampling_have_the_same_cells_and_prompts() -> None:
    scores = torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(0)) + 5
    found = estimates(scores, sample(FIVE, FIVE, "twins").harmful)
    torch.testing.assert_close(found.value, scores.double().mean(0))
    assert found.n == 12
    assert bool((found.low < found.value).all() & (found.value < found.high).all())
    assert found.interval(1, 2) == (float(found.low[1, 2]), float(found.high[1, 2]))
