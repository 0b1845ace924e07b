"""The winner again on disjoint folds, and the tokens at which it is ablated alone."""

from dataclasses import replace

import pytest
import torch

from mechsafety.core.positions import Position
from mechsafety.studies.locating.localizing import _refits, _tokens_of
from tests.studies.locality_runs import Ran, configured


def test_refits_on_folds_of_equal_size_average_to_the_direction(ssft: Ran) -> None:
    read, winner = ssft.measured.read, ssft.winner
    column = read.sites.index(winner.site)
    position = [str(p) for p in read.positions].index(winner.position)
    n = len(ssft.frame.prompts.pairs["fit"].first)
    every = list(range(n))
    for k in (3, 4):
        assert n % k == 0
        config = configured(f"selection.refits={k}")
        folds = _refits(config, read, (every, every), column, position, seed=0)
        assert folds.shape == (k, read.dims.d_model)
        torch.testing.assert_close(folds.mean(0), winner.vector, atol=1e-5, rtol=1e-5)
        assert float((folds[0] - folds[1]).norm()) > 1e-3  # they are of different prompts


def test_a_fold_holds_whole_twins(ssft: Ran) -> None:
    read = ssft.measured.read
    rows = {name: torch.zeros_like(found) for name, found in read.rows.items()}
    n = len(rows["harmful"])
    marks = torch.arange(n)[:, None, None, None].float()
    # A twin's rows are the same number, so that a fold of whole twins has no difference.
    rows["harmful"], rows["harmless"] = rows["harmful"] + marks, rows["harmless"] + marks
    marked = replace(read, rows=rows)
    every = list(range(n))
    folds = _refits(configured(), marked, (every, every), 0, 0, seed=0)
    assert float(folds.abs().max()) < 1e-5
    shifted = _refits(configured(), marked, (every, every[1:]), 0, 0, seed=0)
    assert float(shifted.abs().max()) > 0.1


def test_there_are_no_more_folds_than_prompts(ssft: Ran) -> None:
    read = ssft.measured.read
    folds = _refits(configured("selection.refits=5"), read, ([0, 1, 2], [0, 1]), 0, 0, seed=0)
    assert len(folds) == 2


@pytest.mark.parametrize("run", ["ssft", "one_block"])
def test_all_template_tokens_behind_the_instruction_are_ablated_one_by_one(
    run: str, request: pytest.FixtureRequest
) -> None:
    read = request.getfixturevalue(run).measured.read
    found = [str(one) for one in _tokens_of(read, Position("eoi"))]
    assert found == ["eoi[-2]", "last"]
    assert _tokens_of(read, Position("prompt")) == (Position("prompt"),)
