"""Claims about the chosen direction, with planted effects in the place of measured ones."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mechsafety.effects.windows import windows
from mechsafety.metrics.resampling import Resampling
from mechsafety.studies.claims import Effect
from mechsafety.studies.locating.claims import WindowCell, WinnerCell, WritersCell
from mechsafety.studies.locating.measured import Windows, Winner
from mechsafety.studies.locating.winner_findings import (
    no_window,
    no_writers,
    window_claim,
    winner_claim,
    writers_claim,
)
from tests.studies.locality_runs import Ran

N_LAYERS, N_CONTROLS = 4, 3


def planted(winner: Winner, by_layer: Sequence[float], noise: float = 0.0) -> Winner:
    """Each layer carries its part; controls carry a tenth of the first layer's."""
    tried = windows(N_LAYERS, 1)
    effects = torch.tensor([sum(by_layer[a : b + 1]) for a, b in tried], dtype=torch.float64)
    n = len(winner.clean.harmful)
    sway = noise * torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
    each = (effects + sway)[None].repeat(1 + N_CONTROLS, 1, 1)
    each[1:] = 0.1 * by_layer[0]
    found = Windows(tuple(tried), each, each, (), torch.zeros(1 + N_CONTROLS, n, 0).double())
    return replace(winner, windows=found)


def claimed(run: Ran, winner: Winner, max_length: float = 0.5) -> Effect | None:
    assessed = window_claim(WindowCell(test="window", max_length=max_length), winner, run.measured)
    return assessed.choices.get((("max_length", f"{max_length:g}"),))


def test_a_local_effect_is_found_in_its_window(ssft: Ran) -> None:
    found = claimed(ssft, planted(ssft.winner, [0.0, 1.0, 3.0, 0.0]))
    assert found is not None
    assert found.value == pytest.approx(1)
    assert found.words.startswith("Layers 1 to 2")
    assert "smallest window with 90%: layers 1 to 2, 2 of 4" in found.words
    quarter = claimed(ssft, planted(ssft.winner, [0.0, 1.0, 3.0, 0.0]), 0.25)
    assert quarter is not None
    assert quarter.value == pytest.approx(0.75)


def test_an_effect_of_all_layers_alike_is_in_no_half_of_them(ssft: Ran) -> None:
    found = claimed(ssft, planted(ssft.winner, [1.0] * 4))
    assert found is not None
    assert found.value == pytest.approx(0.5)


def test_the_share_that_a_window_must_keep_is_the_one_in_the_settings(ssft: Ran) -> None:
    winner = replace(planted(ssft.winner, [0.0, 1.0, 3.0, 0.0]), share=0.7)
    found = claimed(ssft, winner)
    assert found is not None
    assert "smallest window with 70%: layers 2 to 2, 1 of 4" in found.words


def test_a_share_of_what_may_be_nothing_is_not_reported(ssft: Ran) -> None:
    # 0.02 on average, and anything from −1 to 1 in one prompt.
    loud = planted(ssft.winner, [0.0, 0.02, 0.0, 0.0], noise=1.0)
    assert claimed(ssft, loud) is None
    cell = WindowCell(test="window")
    assert "without an effect above 0 and beyond its controls" in no_window(cell, loud)
    quiet = planted(ssft.winner, [0.0, 0.02, 0.0, 0.0])
    assert claimed(ssft, quiet) is not None


def test_an_effect_that_controls_have_too_has_no_window(ssft: Ran) -> None:
    winner = planted(ssft.winner, [2.0, 0.0, 0.0, 0.0])
    each = winner.windows.evaluate.clone()
    each[2] = 2.5
    beaten = replace(winner, windows=replace(winner.windows, evaluate=each))
    assert claimed(ssft, winner) is not None
    assert claimed(ssft, beaten) is None
    assert "controls by +0.20 to +2.50" in no_window(WindowCell(test="window"), beaten)


def test_windows_longer_than_asked_for_are_not_taken_for_short_ones(ssft: Ran) -> None:
    winner = planted(ssft.winner, [0.0, 1.0, 3.0, 0.0])
    cell = WindowCell(test="window", max_length=0.1)
    assert claimed(ssft, winner, 0.1) is None
    assert no_window(cell, winner) == (
        "No window of at most 0.1 of the depth was tried; the shortest has 1 of 4 layers."
    )


# --- addition ------------------------------------------------------------------------------------


def test_an_addition_is_judged_by_answers_and_not_by_the_score(ssft: Ran) -> None:
    cell = WinnerCell(test="winner", effect="induce", dose=1.0)
    key = (("dose", "1"),)
    done = ssft.winner.evaluated
    added = next(one for one in done.added if one.dose == 1.0)
    n = len(added.answers.verdicts)
    found = winner_claim(cell, ssft.winner, ssft.measured).choices[key]
    before = sum(done.harmless.judged("refused")) / n
    assert found.value == pytest.approx(sum(added.answers.judged("refused")) / n - before)
    assert found.null == pytest.approx(
        (float(added.control_rates.min()) - before, float(added.control_rates.max()) - before)
    )
    # A model that only babbles refuses nothing, whatever its first token's odds.
    babble = replace(added.answers, verdicts=("degenerate",) * n)
    raised = replace(added, answers=babble, scores=added.scores + 100)
    winner = replace(ssft.winner, evaluated=replace(done, added=(raised,)))
    nothing = winner_claim(cell, winner, ssft.measured).choices[key]
    assert nothing.value <= 0
    assert f"({n} degenerate)" in nothing.words


# --- writers -------------------------------------------------------------------------------------


def test_writers_are_held_against_as_many_others(ssft: Ran) -> None:
    found = writers_claim(WritersCell(test="writers", form="zero"), ssft.winner)
    effect = found.choices[("form", "zero"),]
    gap = {form: ssft.value("writers", "score_gap", form=form) for form in ("none", "zero", "mean")}
    assert effect.value == pytest.approx(gap["none"] - gap["zero"])
    assert effect.n == len(ssft.winner.clean.harmful) + len(ssft.winner.clean.harmless)
    (controls,) = ssft.rows("writers", "score_gap_controls", form="zero")
    assert controls.ci_low is not None
    assert controls.ci_high is not None
    assert effect.null == pytest.approx(
        (gap["none"] - controls.ci_high, gap["none"] - controls.ci_low)
    )
    assert "cannot be ablated" not in effect.words
    for row in ssft.rows("writers", "score_gap"):
        assert row.ci_low is not None
        assert row.value is not None
        assert row.ci_low <= row.value


def test_the_smaller_class_sets_how_sure_a_difference_is(ssft: Ran) -> None:
    winner, cell = ssft.winner, WritersCell(test="writers", form="zero")
    few = replace(winner.evaluate.harmless, n_units=4)
    assert winner.evaluate.harmful.n_units > 4
    unsure = replace(winner, evaluate=replace(winner.evaluate, harmless=few))
    widths = [
        effect.interval.high - effect.interval.low
        for one in (winner, unsure)
        for effect in [writers_claim(cell, one).choices[("form", "zero"),]]
    ]
    assert widths[1] > widths[0]
    assert isinstance(few, Resampling)


def test_without_others_left_the_reader_is_told_so(ssft: Ran) -> None:
    found = ssft.winner.writers
    own = tuple(one for one in found.ablations if one.control is None)
    assert 0 < len(own) < len(found.ablations)
    alone = replace(ssft.winner, writers=replace(found, ablations=own))
    assert not writers_claim(WritersCell(test="writers"), alone).choices
    assert "no others are left" in no_writers(alone)
    none = replace(ssft.winner, writers=replace(found, ablated=(), ablations=()))
    assert "nothing ablates them" in no_writers(none)
