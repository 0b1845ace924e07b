"""Two planted axes come apart in the 2 × 2; a difference in means mixes them."""

import pytest
import torch

from mechsafety.core.errors import ActivationError, SampleError
from mechsafety.directions.difference_in_means import difference_in_means
from mechsafety.metrics.harm_and_refusal import CELLS, Cell, HarmAndRefusal, split

D = 60
HARM, REFUSAL = 3 * torch.eye(D)[0], 4 * torch.eye(D)[1]


def _cells(
    counts: dict[Cell, int], generator: torch.Generator, noise: float = 0.3
) -> dict[Cell, torch.Tensor]:
    return {
        (harmful, refused): noise * torch.randn(n, D, generator=generator)
        + 2
        + harmful * HARM
        + refused * REFUSAL
        for (harmful, refused), n in counts.items()
    }


# As models answer: hardly any harmful prompt is answered, hardly any harmless one refused.
USUAL = {(True, True): 90, (True, False): 8, (False, True): 5, (False, False): 80}


def _cosine(found: torch.Tensor | None, truth: torch.Tensor) -> float:
    assert found is not None
    return float(torch.cosine_similarity(found, truth.double(), dim=0))


def _sum(found: HarmAndRefusal) -> torch.Tensor:
    assert found.harmfulness is not None
    assert found.refusal is not None
    return found.harmfulness + found.refusal


def test_the_split_recovers_both_axes_that_difference_in_means_mixes(
    generator: torch.Generator,
) -> None:
    cells = _cells(USUAL, generator)
    harmful = torch.cat([cells[True, True], cells[True, False]])
    harmless = torch.cat([cells[False, True], cells[False, False]])
    mixed = difference_in_means(harmful, harmless)
    assert 0.5 < _cosine(mixed.double(), HARM) < 0.75  # there is something to take apart
    assert 0.7 < _cosine(mixed.double(), REFUSAL) < 0.85

    found = split(cells, min_rows=2)
    assert _cosine(found.harmfulness, HARM) > 0.95
    assert _cosine(found.refusal, REFUSAL) > 0.95
    assert found.naive_harmfulness_cosine == pytest.approx(0.6, abs=0.05)
    assert found.naive_refusal_cosine == pytest.approx(0.8, abs=0.05)
    assert found.harmfulness_from == ("refused", "complied")
    assert found.refusal_from == ("harmful", "harmless")
    assert found.counts == USUAL


def test_a_balanced_design_finds_orthogonal_axes_orthogonal(generator: torch.Generator) -> None:
    found = split(_cells(dict.fromkeys(CELLS, 50), generator), min_rows=2)
    assert found.cosine == pytest.approx(0, abs=0.05)
    assert found.corrected_cosine == pytest.approx(0, abs=0.05)


def test_a_small_off_diagonal_pulls_the_cosine_down_and_the_corrected_one_stays(
    generator: torch.Generator,
) -> None:
    counts = {(True, True): 200, (True, False): 3, (False, True): 3, (False, False): 200}
    raw, corrected = list[float](), list[float]()
    for _ in range(60):
        found = split(_cells(counts, generator, noise=0.7), min_rows=2)
        assert found.cosine is not None
        assert found.corrected_cosine is not None
        raw.append(found.cosine)
        corrected.append(found.corrected_cosine)
    assert sum(raw) / 60 < -0.15
    assert sum(corrected) / 60 == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("gone", "behaviors", "harms"),
    [
        ((False, True), ("complied",), ("harmful",)),
        ((True, False), ("refused",), ("harmless",)),
        ((True, True), ("complied",), ("harmless",)),
        (None, ("refused", "complied"), ("harmful", "harmless")),
    ],
)
def test_a_missing_cell_leaves_one_contrast_and_the_two_add_up_to_the_naive_one(
    generator: torch.Generator, gone: Cell | None, behaviors: tuple[str, ...], harms: tuple[str]
) -> None:
    cells = _cells(USUAL, generator)
    if gone:
        cells[gone] = cells[gone][:1]
    found = split(cells, min_rows=2)
    assert (found.harmfulness_from, found.refusal_from) == (behaviors, harms)
    assert _cosine(found.harmfulness, HARM) > 0.9
    assert _cosine(found.refusal, REFUSAL) > 0.9
    if gone == (True, True):
        assert found.naive is None
        assert found.naive_refusal_cosine is None
    else:
        assert found.naive is not None
        torch.testing.assert_close(_sum(found), found.naive)


def test_the_diagonal_alone_says_neither(generator: torch.Generator) -> None:
    diagonal = {(True, True): 9, (False, False): 7}
    found = split(_cells(diagonal, generator), min_rows=2)
    assert (found.harmfulness, found.refusal, found.cosine, found.corrected_cosine) == (None,) * 4
    assert (found.harmfulness_from, found.refusal_from) == ((), ())
    assert found.naive is not None
    assert found.counts[True, False] == 0


def test_cells_that_do_not_differ_have_no_angle() -> None:
    # Equal but for the rounding of other batches: the cells are collected apart.
    same = {
        cell: (1 + 1e-7 * i) * torch.linspace(-0.3, 1, D).expand(3 + i, D)
        for i, cell in enumerate(CELLS)
    }
    found = split(same, min_rows=2)
    assert found.harmfulness is not None
    assert not found.harmfulness.any()
    assert (found.cosine, found.corrected_cosine, found.naive_harmfulness_cosine) == (None,) * 3


def test_cells_that_do_not_fit_are_refused(generator: torch.Generator) -> None:
    cells = _cells(USUAL, generator)
    with pytest.raises(SampleError, match="at least 0 rows"):
        split(cells, min_rows=0)
    with pytest.raises(ActivationError, match="NaN or infinity"):
        split({**cells, (True, False): torch.full((3, D), torch.nan)}, min_rows=2)
