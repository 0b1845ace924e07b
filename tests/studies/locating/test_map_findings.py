"""Claims about maps: against chance, words and the base model, and where they begin."""

import math
from dataclasses import replace

import pytest
import torch

from mechsafety.metrics.intervals import wilson
from mechsafety.studies.claims import Effect
from mechsafety.studies.locating.claims import CausalCell, SeparationCell
from mechsafety.studies.locating.map_findings import causal_claim, separation_claim
from mechsafety.studies.locating.measured import Measured, Separated
from tests.studies.locality_runs import Ran

LAST, PLACE = 2, (4, 2)
"""Position `last`, and (site, position) of it at layer 2 of `resid_pre`."""
PRIMARY = {"layer": "2", "stream": "resid_pre", "position": "last", "source": "held-out pairs"}


def of(cell: SeparationCell, measured: Measured) -> Effect:
    assessed = separation_claim(cell, measured)
    assert dict(assessed.primary) == PRIMARY
    return assessed.choices[tuple(sorted(PRIMARY.items()))]


def perfect(found: Separated) -> Separated:
    """Every place separates perfectly."""
    edge = wilson(found.n_units, found.n_units).low
    ones = torch.ones_like(found.auc)
    draws = torch.ones_like(found.draws)
    return replace(found, auc=ones, draws=draws, low=ones * edge, high=ones)


def test_chance_words_and_base_are_subtracted_place_by_place(ssft: Ran) -> None:
    measured = ssft.measured
    model, base = (measured.separation[name, "held-out pairs"] for name in ("model", "base"))
    auc = float(model.auc[PLACE])
    others = {
        "chance": 0.5,
        "lexical": measured.lexical["held-out pairs"].auc,
        "base": float(base.auc[PLACE]),
    }
    assert len(set(others.values())) == 3
    for versus, other in others.items():
        found = of(SeparationCell(test="separation", layer=2, versus=versus), measured)
        assert found.value == pytest.approx(auc - other)
        assert found.interval.low <= found.value <= found.interval.high
        assert found.null[0] < 0 < found.null[1]
        assert f"against {other:.2f} ({versus})" in found.words
        assert found.n == model.n


def test_choices_are_all_later_places_of_every_source(ssft: Ran) -> None:
    cell = SeparationCell(test="separation", layer=3)
    assessed = separation_claim(cell, ssft.measured)
    layers = {dict(choice)["layer"] for choice in assessed.choices}
    # Layer 3 before and within the block, layer 4 behind it; 3 positions, 2 sources.
    assert layers == {"3", "4"}
    assert len(assessed.choices) == 3 * 3 * 2


def test_two_perfect_maps_do_not_differ_by_nothing_for_sure(ssft: Ran) -> None:
    separation = {key: perfect(found) for key, found in ssft.measured.separation.items()}
    measured = replace(ssft.measured, separation=separation)
    found = of(SeparationCell(test="separation", layer=2, versus="base"), measured)
    n_units = separation["model", "held-out pairs"].n_units
    half = 1 - wilson(n_units, n_units).low
    assert found.value == 0
    assert half > 0.1
    assert tuple(found.interval) == pytest.approx((-half, half))


def test_the_first_layer_above_the_band_is_named_with_how_sure_it_is(ssft: Ran) -> None:
    found = ssft.measured.separation["model", "held-out pairs"]
    auc = torch.full_like(found.auc, 0.5)
    # Sites in order: resid_pre and resid_mid of every block, then the last output.
    auc[6:, LAST] = 0.99
    draws = auc.expand_as(found.draws).clone()
    draws[: len(draws) // 4, 6, LAST] = 0.5
    onset = replace(found, auc=auc, draws=draws)
    measured = replace(
        ssft.measured,
        base=None,
        separation={("model", "held-out pairs"): onset},
        lexical={"held-out pairs": ssft.measured.lexical["held-out pairs"]},
    )
    words = of(SeparationCell(test="separation", layer=2), measured).words
    assert "First layer above the band at last: model: 3 (in 75% of resamplings)" in words
    flat = replace(onset, auc=torch.full_like(auc, 0.5))
    none = replace(measured, separation={("model", "held-out pairs"): flat})
    assert "model: none" in of(SeparationCell(test="separation", layer=2), none).words


def test_a_causal_claim_is_held_against_controls_of_its_own_layer(ssft: Ran) -> None:
    assessed = causal_claim(CausalCell(test="causal", layer=1), ssft.causal, ssft.measured)
    found = ssft.causal.map
    null = found.null("bypass")
    sites = [str(site) for site in found.control_sites]
    assert sites == ["resid_pre.0", "resid_pre.1", "resid_pre.2", "resid_pre.3", "resid_post.3"]
    assert len(assessed.choices) == 4
    for layer in (1, 2, 3, 4):
        effect = assessed.choices[("layer", str(layer)),]
        assert effect.null == (float(null[:, layer].min()), float(null[:, layer].max()))
        assert effect.n == len(found.clean.harmful)
        assert math.isfinite(effect.interval.low)
    # Layer 0 of a template token has no direction, so nothing is done there.
    assert not bool(null[:, 0].abs().max() > 1e-4)
