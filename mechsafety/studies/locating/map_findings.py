"""Claims about the maps: where separation appears, and where it becomes causal."""

import math

import torch

from mechsafety.core.layers import resolve_layer
from mechsafety.metrics.max_statistic import first_beyond
from mechsafety.metrics.resampling import percentile_interval
from mechsafety.studies.claims import (
    Assessed,
    Effect,
    choice_key,
    null_range,
    span,
)
from mechsafety.studies.intervals import around
from mechsafety.studies.locating.claims import CausalCell, SeparationCell
from mechsafety.studies.locating.measured import Causal, Measured, Separated
from mechsafety.studies.words import EFFECT_UNIT, place


def separation_claim(cell: SeparationCell, measured: Measured) -> Assessed:
    read = measured.read
    layer = resolve_layer(cell.layer, read.dims.n_layers, None)
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    words = _onset_words(cell, measured)
    for source in dict.fromkeys(source for _, source in measured.separation):
        for s, site in enumerate(read.sites):
            at = place(site)
            if int(str(at["layer"])) < layer:
                continue
            for p, position in enumerate(read.positions):
                settings = {
                    "layer": str(at["layer"]),
                    "stream": str(at["stream"]),
                    "position": str(position),
                    "source": source,
                }
                choices[choice_key(settings)] = _separation_effect(
                    cell, measured, source, s, p, words
                )
    source = next(source for _, source in measured.separation)
    return Assessed(
        primary={
            "layer": str(layer),
            "stream": "resid_pre",
            "position": cell.position,
            "source": source,
        },
        choices=choices,
        null=_separation_null(cell, measured),
        unit="difference of AUC (prompts)",
    )


def _separation_null(cell: SeparationCell, measured: Measured) -> str:
    found = measured.separation["model", next(source for _, source in measured.separation)]
    n = len(found.null)
    if cell.versus == "chance":
        return (
            f"max-statistic band over all places of the map, {n} relabelings of fit and held-out "
            f"prompts (error {found.band.error:.3g} for the whole map)"
        )
    if cell.versus == "base":
        return f"the same difference under {n} relabelings that both models share; pointwise"
    return f"AUC less 0.5 under {n} relabelings, the words not refitted; pointwise"


def _separation_effect(
    cell: SeparationCell, measured: Measured, source: str, s: int, p: int, words: str
) -> Effect:
    found = measured.separation["model", source]
    value, draws = float(found.auc[s, p]), found.draws[:, s, p]
    against = (0.5, 0.5)
    if cell.versus == "chance":
        other, other_draws = 0.5, torch.full_like(draws, 0.5)
        null = (0.5 - found.band.high, found.band.high - 0.5)
    elif cell.versus == "lexical":
        baseline = measured.lexical[source]
        other, other_draws = baseline.auc, baseline.draws
        against = (baseline.low, baseline.high)
        null = null_range(found.null[:, s, p] - 0.5)
    else:
        base = measured.separation["base", source]
        other, other_draws = float(base.auc[s, p]), base.draws[:, s, p]
        against = (float(base.low[s, p]), float(base.high[s, p]))
        null = null_range(found.null[:, s, p] - base.null[:, s, p])
    own = (float(found.low[s, p]), float(found.high[s, p]))
    low, high = (float(end) for end in percentile_interval(draws - other_draws, found.n_units))
    if cell.versus == "chance" or low == high:
        # Two perfect maps leave nothing to resample. Their own intervals then combine as those
        # of independent numbers do (Zou & Donner 2008), which errs to the wide side.
        low = value - other - math.hypot(value - own[0], against[1] - other)
        high = value - other + math.hypot(own[1] - value, other - against[0])
    return Effect(
        value=value - other,
        interval=around(value - other, low, high),
        null=null,
        n=found.n,
        words=f"AUC {value:.2f} [{own[0]:.2f}, {own[1]:.2f}] "
        f"against {other:.2f} ({cell.versus}); null {span(null)}. {words}",
    )


def _onset_words(cell: SeparationCell, measured: Measured) -> str:
    """The first layer above the band at this position, and how often resampling agrees."""
    source = next(source for _, source in measured.separation)
    told: list[str] = []
    for model in ("model", "base"):
        found = measured.separation.get((model, source))
        if found is not None:
            told.append(f"{model}: {_onset(found, cell.position, measured)}")
    lexical = measured.lexical[source]
    return (
        f"First layer above the band at {cell.position}: {'; '.join(told)}. Words alone: AUC "
        f"{lexical.auc:.2f}."
    )


def _onset(found: Separated, position: str, measured: Measured) -> str:
    read = measured.read
    p = [str(one) for one in read.positions].index(position)
    columns = [s for s, site in enumerate(read.sites) if place(site)["stream"] == "resid_pre"]
    onset = first_beyond(found.auc[columns, p], found.band)
    if onset is None:
        return "none"
    beyond = found.draws[:, columns, p] > found.band.high
    agree = (beyond.int().argmax(1) == onset) & beyond.any(1)
    return f"{onset} (in {float(agree.double().mean()):.0%} of resamplings)"


# --- causal map --------------------------------------------------------------------------------


def causal_claim(cell: CausalCell, causal: Causal, measured: Measured) -> Assessed:
    found = causal.map
    layer = resolve_layer(cell.layer, measured.read.dims.n_layers, None)
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    effects = found.at_control_sites(cell.score)
    sample = found.sample.harmful if cell.score == "bypass" else found.sample.harmless
    draws = sample.means(effects)
    null = found.null(cell.score)
    search = found.searched(cell.score)
    layers = [int(str(place(site)["layer"])) for site in found.control_sites]
    first = "none" if search.onset is None else str(layers[search.onset])
    for column, at in enumerate(layers):
        if at < layer:
            continue
        low, high = percentile_interval(draws[:, column], sample.n_units)
        value = float(effects[:, column].mean())
        covered = (float(null[:, column].min()), float(null[:, column].max()))
        choices[choice_key({"layer": str(at)})] = Effect(
            value=value,
            interval=around(value, float(low), float(high)),
            null=covered,
            n=len(effects),
            words=f"At layer {at} the refusal score of "
            + ("harmful prompts falls" if cell.score == "bypass" else "harmless prompts rises")
            + f" by {value:.2f} [{float(low):.2f}, {float(high):.2f}]; controls change it by "
            f"{span(covered)}. Adjusted for the search over layers p = "
            f"{float(search.p[column]):.3f} (no finer than {search.band.resolution:.3f}). First "
            f"layer beyond the max-statistic band: {first}.",
        )
    return Assessed(
        primary={"layer": str(layer)},
        choices=choices,
        null=f"range over {len(null)} directions of the same "
        f"{'energy' if cell.score == 'bypass' else 'norm'} at that layer, "
        f"{found.control_position}",
        unit=EFFECT_UNIT,
        notes=("Select split, conditional on the fitted directions.",),
    )
