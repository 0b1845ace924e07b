"""From effects to findings: what a claim says with numbers, and what it says without."""

import pytest
import torch

from mechsafety.core.errors import SelfCheckError
from mechsafety.core.result import DeclaredFinding, Finding
from mechsafety.metrics.intervals import Interval, mcnemar
from mechsafety.studies.claims import (
    Assessed,
    Effect,
    assembled,
    choice_key,
    null_range,
    rate_difference,
    replicated,
    share_words,
    span,
    unmeasured,
)
from mechsafety.studies.locating.claims import CausalCell

CLAIM = DeclaredFinding[CausalCell](
    id="it_is_causal",
    claim="It is causal.",
    scope="checkpoint",
    margin=1.0,
    cell=CausalCell(test="causal", layer="depth:0.5"),
)


def effect(value: float, half: float = 0.5, null: tuple[float, float] = (-0.1, 0.1)) -> Effect:
    return Effect(value, Interval(value - half, value + half), null, n=7, words=f"It is {value}.")


def assessed(*by_layer: float, agrees: bool = True) -> Assessed:
    return Assessed(
        primary={"layer": "0"},
        choices={choice_key({"layer": str(i)}): effect(v) for i, v in enumerate(by_layer)},
        null="range over 3 directions",
        unit="log-odds (prompts)",
        notes=("Twice.", "Once."),
        agrees=agrees,
    )


def test_a_finding_is_the_primary_effect_and_its_curve_all_of_them() -> None:
    found = assembled(CLAIM, assessed(2.0, 3.0, 0.2), ["Twice."])
    assert (found.value, found.ci_low, found.ci_high) == (2.0, 1.5, 2.5)
    assert (found.null_low, found.null_high, found.n) == (-0.1, 0.1, 7)
    assert found.verdict == "supported"
    assert found.explanation == "It is 2.0."
    assert found.notes == ("Twice.", "Once.")
    assert found.cell == {"test": "causal", "layer": "0", "score": "bypass"}
    assert found.specification is not None
    assert (found.specification.supported, found.specification.total) == (2, 3)
    assert found.specification.flips == ("layer=2 → equivalent",)


def test_no_verdict_stands_where_forms_disagree_or_the_study_says_so() -> None:
    assert assembled(CLAIM, assessed(2.0), ()).verdict == "supported"
    assert assembled(CLAIM, assessed(2.0, agrees=False), ()).verdict == "inconclusive"
    assert assembled(CLAIM, assessed(2.0), (), inconclusive=True).verdict == "inconclusive"


def test_an_effect_that_its_controls_have_as_well_supports_nothing() -> None:
    key = choice_key({"layer": "0"})
    strong = Assessed({"layer": "0"}, {key: effect(2.0)}, "none", "log-odds")
    matched = Assessed({"layer": "0"}, {key: effect(2.0, null=(0.0, 2.2))}, "none", "log-odds")
    assert assembled(CLAIM, strong, ()).verdict == "supported"
    assert assembled(CLAIM, matched, ()).verdict == "inconclusive"


def test_a_primary_cell_that_was_not_measured_is_our_fault() -> None:
    elsewhere = Assessed({"layer": "1"}, assessed(2.0).choices, "none", "log-odds")
    with pytest.raises((SelfCheckError, KeyError)):
        assembled(CLAIM, elsewhere, ())


def test_a_claim_without_numbers_says_why() -> None:
    found = unmeasured(CLAIM, "The model was out.", ["A note."])
    assert isinstance(found, Finding)
    assert (found.value, found.n, found.verdict) == (None, 0, "inconclusive")
    assert found.explanation == "Not measured. The model was out."
    assert (found.margin, found.cell["layer"]) == (CLAIM.margin, "depth:0.5")


def method_claim() -> DeclaredFinding[CausalCell]:
    return CLAIM.model_copy(update={"scope": "method"})


def test_comparisons_of_the_same_training_runs_are_one_replication() -> None:
    alike = [assessed(2.0), assessed(4.0)]
    found = replicated(method_claim(), alike, [(0,), (0,)], ["A note."])
    assert (found.value, found.n, found.verdict) == (3.0, 1, "inconclusive")
    assert found.explanation.startswith("2 of 2 ")
    assert "+2.00, +4.00" in found.explanation
    # Beside other seeds they weigh as one.
    apart = replicated(method_claim(), [*alike, assessed(9.0)], [(0,), (0,), (1,)], [])
    assert (apart.value, apart.n) == (6.0, 2)
    assert apart.ci_low is not None
    assert apart.ci_low < 6 < apart.ci_high


def test_a_replication_that_is_measured_elsewhere_leaves_no_mean() -> None:
    here = assessed(2.0, 3.0)
    elsewhere = Assessed({"layer": "1"}, here.choices, "none", "log-odds")
    assert replicated(method_claim(), [here, here], [(0,), (1,)], []).value == 2.0
    found = replicated(method_claim(), [here, elsewhere], [(0,), (1,)], ["A note."])
    assert (found.value, found.verdict, found.notes) == (None, "inconclusive", ("A note.",))
    assert "layer 0 and 1" in found.explanation


def test_six_seeds_have_a_verdict_and_five_do_not() -> None:
    runs = [assessed(2.0 + i / 10) for i in range(6)]
    seeds = [(i,) for i in range(6)]
    found = replicated(method_claim(), runs, seeds, [])
    assert (found.value, found.n, found.verdict) == (pytest.approx(2.25), 6, "supported")
    assert "6 of 6 training seeds positive" in found.explanation
    assert replicated(method_claim(), runs[1:], seeds[1:], []).verdict == "inconclusive"
    blind = [*runs[:5], assessed(2.5, agrees=False)]
    assert replicated(method_claim(), blind, seeds, []).verdict == "inconclusive"


def test_the_order_of_settings_does_not_make_another_choice() -> None:
    assert choice_key({"a": "1", "b": "2"}) == choice_key({"b": "2", "a": "1"})


def test_a_difference_of_rates_lies_in_its_interval_and_clusters_widen_it() -> None:
    first = [True] * 12 + [False] * 4
    second = [i < 3 or i >= 12 for i in range(16)]
    value, alone = rate_difference(first, second, [str(i) for i in range(16)], seed=0)
    assert value == pytest.approx(12 / 16 - 7 / 16)
    assert alone.low <= value <= alone.high
    # The prompts that changed are those of whole clusters, so there are four and not sixteen.
    _, whole = rate_difference(first, second, [str(i // 4) for i in range(16)], seed=0)
    assert whole.high - whole.low > 1.2 * (alone.high - alone.low)


@pytest.mark.parametrize("clusters", [["a"] * 6, [f"{i // 2}" for i in range(6)]])
def test_equal_differences_have_an_interval_of_as_many_prompts_as_clusters(
    clusters: list[str],
) -> None:
    refused, complied = [True] * 6, [False] * 6
    value, interval = rate_difference(refused, complied, clusters, seed=0)
    n = len(set(clusters))
    expected = mcnemar(torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)).interval
    assert value == 1
    assert interval == Interval(expected.low, 1.0)
    assert interval.low < 0.9  # six prompts would show more than one cluster does
    nothing, around = rate_difference(refused, refused, clusters, seed=0)
    assert nothing == 0
    assert around.low < 0 < around.high


def test_words_and_ranges() -> None:
    assert share_words([True, False, True]) == "2/3"
    assert span((-0.123, 4.0)) == "-0.12 to +4.00"
    assert null_range(torch.arange(41.0)) == (1.0, 39.0)
