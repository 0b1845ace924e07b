"""From the study's claims to its findings."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mechsafety.core.layers import resolve_layer
from mechsafety.core.result import Finding
from mechsafety.metrics.intervals import Interval
from mechsafety.metrics.shared_null import LayerCosines
from mechsafety.studies.claims import (
    Assessed,
    Effect,
    assembled,
    choice_key,
    null_range,
    replicated,
    span,
    unmeasured,
)
from mechsafety.studies.comparing.claims import (
    AngleCell,
    CeilingCell,
    Claim,
    LikenessCell,
    MatchingCell,
    TransferCell,
)
from mechsafety.studies.comparing.geometry import Likeness, Via
from mechsafety.studies.comparing.layer_findings import matching_claim
from mechsafety.studies.comparing.map_notes import map_notes, map_of, sees_direction
from mechsafety.studies.comparing.measured import Measured
from mechsafety.studies.comparing.settings import Pair, seed_of
from mechsafety.studies.comparing.transfer_findings import transfer_claim
from mechsafety.studies.comparing.words import left_out, names
from mechsafety.studies.precision import precision_notes

Effects = list[tuple[dict[str, str], Effect]]
"""Effects of a cell under further choices of analysis, the primary one first."""
Of = Callable[[LayerCosines, tuple[int, int], Likeness], Effects]
"""The effects of one cell of cosines."""


def finding(claim: Claim, measured: Measured) -> Finding:
    """The claim with its numbers and verdict, or the reason why it could not be measured."""
    assessed = [_assessed(claim, pair, measured) for pair in claim.cell.pairs()]
    notes = _notes(measured)
    why = [one for one in assessed if isinstance(one, str)]
    if why:
        return unmeasured(claim, " ".join(why), notes)
    known = [one for one in assessed if isinstance(one, Assessed)]
    if claim.scope == "method":
        return replicated(claim, known, _seeds(claim, measured), notes)
    return assembled(claim, known[0], notes)


def _assessed(claim: Claim, pair: Pair, measured: Measured) -> Assessed | str:
    cell = claim.cell
    match cell:
        case LikenessCell():
            return _likeness(cell, pair, measured, claim.margin)
        case CeilingCell():
            return _at_layers(
                cell, pair, measured, _shortfall, _HALVES_NULL, "cosine below the ceiling"
            )
        case AngleCell():
            return _at_layers(cell, pair, measured, _angle, _HALVES_NULL, "degrees")
        case MatchingCell():
            return matching_claim(cell, pair, measured)
        case TransferCell():
            return transfer_claim(cell, pair, measured, claim.margin)


def _seeds(claim: Claim, measured: Measured) -> list[tuple[int, ...]]:
    """Training seeds that enter each replication; of unknown seeds, one number a replication."""
    models = measured.frame.config.models
    entered: list[tuple[int, ...]] = []
    for i, pair in enumerate(claim.cell.pairs()):
        known = {seed_of(name, models) for name in pair}
        seeds = sorted(seed for seed in known if seed is not None)
        entered.append((-1 - i,) if None in known else tuple(seeds))
    return entered


def _likeness(cell: LikenessCell, pair: Pair, measured: Measured, margin: float) -> Assessed | str:
    """An excess over a null that is itself nearly 1 has no room, and so no verdict."""
    found = _at_layers(cell, pair, measured, _excess, _EXCESS_NULL, "cosine above its null")
    if isinstance(found, str):
        return found
    room = min(
        1 - float(one.cosines.null[:, at[0], at[1]].mean())
        for settings, one, at in _cells(pair, measured)
        if all(found.primary.get(key, value) == value for key, value in settings.items())
    )
    notes = ("The interval takes the mean of the null as known.",)
    if room < margin:
        notes = (
            *notes,
            f"Relabelings leave a room of {room:.3f}, less than the margin: nearly every contrast "
            "of these prompts is as alike, so that an excess cannot show that this one is. See "
            "the cosine without noise.",
        )
    return replace(found, notes=(*notes, *found.notes), agrees=found.agrees and room >= margin)


# --- claims about one place ----------------------------------------------------------------------

_EXCESS_NULL = (
    "95 % range of the cosine with the same permuted labels in both models, of activations about "
    "their class means, about its own mean"
)
_HALVES_NULL = (
    "95 % range over splits of how far the agreement of halves of one model's prompts lies from "
    "its mean; through a map, 95 % range of other contrasts of the same prompts, carried by the "
    "same map, because what the map loses is in every number that went through it"
)


def _at_layers(
    cell: LikenessCell | CeilingCell | AngleCell,
    pair: Pair,
    measured: Measured,
    effect: Of,
    null: str,
    unit: str,
) -> Assessed | str:
    """The claim at its layer, and under every other legal choice."""
    first, second = pair
    n_layers = measured.frame.views[first].dims.n_layers
    layer = resolve_layer(cell.layer, n_layers, None)
    methods = _methods(pair, measured)
    if not methods:
        return f"{first} and {second} share no space, and `maps.methods` is empty."
    via = "none" if "none" in methods else (cell.via or _default_map(measured))
    primary = {"layer": str(layer), "match": cell.match, "via": via, "channels": "all"}
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    further: dict[str, str] = {}
    depth = {(p.first, p.second) for p in measured.places[pair] if p.match == "depth"}
    for settings, one, at in _cells(pair, measured):
        place = int(settings["layer"])
        if abs(place - layer) > 1 or not _whole(one.cosines, at):
            continue
        # The same layer twice is one way to analyze.
        again = settings["match"] == "best" and (place, int(settings["second_layer"])) in depth
        if again and cell.match != "best":
            continue
        found = effect(one.cosines, at, one)
        further = found[0][0]
        kept = {key: value for key, value in settings.items() if key != "second_layer"}
        choices |= {choice_key({**kept, **more}): each for more, each in found}
    primary |= further
    if choice_key(primary) not in choices:
        return _missing(pair, primary, measured)
    fitted = map_of(pair, primary, measured)
    return Assessed(
        primary=primary,
        choices=choices,
        null=null,
        unit=f"{unit} (prompts)",
        notes=(
            *(() if fitted is None else map_notes(fitted)),
            left_out(measured.frame.job.plan.groups.n_groups),
        ),
        agrees=fitted is None or sees_direction(fitted),
    )


def _methods(pair: Pair, measured: Measured) -> tuple[Via, ...]:
    """How the two are compared: channel by channel in one space, else through every map."""
    frame = measured.frame
    return ("none",) if frame.job.one_space(pair) else frame.config.maps.methods


def _cells(
    pair: Pair, measured: Measured
) -> Iterator[tuple[dict[str, str], Likeness, tuple[int, int]]]:
    """Every place at which the two are compared, in either order where no map is involved."""
    methods = _methods(pair, measured)
    places = [place for place in measured.places[pair] if place.match != "transfer"]
    for one, at, place in measured.compared(pair, *places):
        if one.via in methods:
            settings = {
                "layer": str(place.first),
                "second_layer": str(place.second),
                "match": place.match,
                "via": one.via,
                "channels": one.channels,
            }
            yield settings, one, at


def _whole(found: LayerCosines, at: tuple[int, int]) -> bool:
    return all(bool(found.has_interval(name)[at]) for name in ("raw", "disjoint", "disattenuated"))


def _excess(found: LayerCosines, at: tuple[int, int], one: Likeness) -> Effects:
    """Raw cosine less the mean of the shared null: of residuals, and of rows with their shift."""
    raw = found.jackknifed("raw", *at)
    low, high = raw.interval()
    disattenuated = found.jackknifed("disattenuated", *at)
    effects: Effects = []
    for name, null in (("residuals", found.null), ("labels", found.null_with_shift)):
        draws = null[:, at[0], at[1]]
        mean = float(draws.mean())
        covered = null_range(draws)
        effect = Effect(
            value=raw.value - mean,
            interval=Interval(low - mean, high - mean),
            null=(covered[0] - mean, covered[1] - mean),
            n=one.n_rows,
            words=f"{names(one)}: cosine {raw.value:.3f} [{low:.3f}, {high:.3f}]; the same "
            f"permuted labels in both models give {covered[0]:.3f} to {covered[1]:.3f}, mean "
            f"{mean:.3f}; on disjoint prompts {found.jackknifed('disjoint', *at).value:.3f} of a "
            f"ceiling of {_ceiling(found, at):.3f}, without noise {disattenuated.value:.3f}.",
        )
        effects.append(({"null": name}, effect))
    return effects


def _shortfall(found: LayerCosines, at: tuple[int, int], one: Likeness) -> Effects:
    """One less the cosine without noise: what is missing from one model with itself."""
    number = found.jackknifed("disattenuated", *at)
    low, high = number.interval()
    covered = null_range(1 - (_within(one, at) if one.via == "none" else _carried(found, at)))
    effect = Effect(
        value=1 - number.value,
        interval=Interval(1 - high, 1 - low),
        null=covered,
        n=one.n_rows,
        words=f"{names(one)}: without noise the cosine is {number.value:.3f} [{low:.3f}, "
        f"{high:.3f}], where one model with itself has 1; on disjoint prompts it is "
        f"{found.jackknifed('disjoint', *at).value:.3f} of a ceiling of {_ceiling(found, at):.3f}."
        + (
            ""
            if one.via == "none"
            else f" Other contrasts of these prompts, carried by the same map, fall short by "
            f"{span(covered)}."
        ),
    )
    return [({}, effect)]


def _angle(found: LayerCosines, at: tuple[int, int], one: Likeness) -> Effects:
    """The angle without noise, in degrees."""
    number = found.jackknifed("disattenuated", *at)
    low, high = number.interval()
    if one.via == "none":
        apart = [_degrees(halves[:, i]) for halves, i in zip(one.within, at, strict=True)]
        covered = null_range(torch.cat([angles - angles.mean() for angles in apart]))
    else:
        covered = null_range(_degrees(_carried(found, at)))
    value, nearest, farthest = (
        float(_degrees(torch.tensor(cosine, dtype=torch.float64)))
        for cosine in (number.value, high, low)
    )
    effect = Effect(
        value=value,
        interval=Interval(min(nearest, value), max(farthest, value)),
        null=covered,
        n=one.n_rows,
        words=f"{names(one)}: {value:.1f}° [{nearest:.1f}°, {farthest:.1f}°] between the "
        f"directions without noise (cosine {number.value:.3f}); "
        + (
            "angles between halves of one model's prompts lie "
            f"{covered[0]:+.1f}° to {covered[1]:+.1f}° about their mean."
            if one.via == "none"
            else f"other contrasts of these prompts, carried by the same map, {covered[0]:.1f}° to "
            f"{covered[1]:.1f}°."
        ),
    )
    return [({}, effect)]


def _within(one: Likeness, at: tuple[int, int]) -> Tensor:
    """Cosine of halves A and B within a model, over its mean: of both models, split by split."""
    parts = [
        halves[:, index] / halves[:, index].mean()
        for halves, index in zip(one.within, at, strict=True)
    ]
    return torch.cat(parts).double()


def _carried(found: LayerCosines, at: tuple[int, int]) -> Tensor:
    """Cosines of contrasts that are the same in both models and went through the same map.

    The residuals' relabelings: what is missing from them is what the map loses.
    """
    return found.null[:, at[0], at[1]]


def _degrees(cosine: Tensor) -> Tensor:
    return cosine.clamp(-1, 1).arccos() * (180 / math.pi)


def _ceiling(found: LayerCosines, at: tuple[int, int]) -> float:
    return float((found.reliability_first[at[0]] * found.reliability_second[at[1]]).sqrt())


def _default_map(measured: Measured) -> str:
    config = measured.frame.config
    if config.transfer is not None:
        return config.transfer.map
    return config.maps.methods[0] if config.maps.methods else "none"


def _missing(pair: Pair, primary: Mapping[str, str], measured: Measured) -> str:
    first, second = pair
    where = f"layer {primary['layer']} of {first}"
    if primary["via"] != "none" and pair not in measured.maps:
        return (
            f"{first} and {second} share no space, and no map between them was fitted: name the "
            "pair in `maps.between`."
        )
    return (
        f"At {where} one of {first} and {second} has no direction that halves of the prompts agree "
        "on."
    )


# --- notes ---------------------------------------------------------------------------------------


def _notes(measured: Measured) -> tuple[str, ...]:
    """What every finding of the run rests on."""
    frame = measured.frame
    own = frame.config.templates == "own"
    return (
        *(("Each model is read under its own chat template.",) if own else ()),
        *precision_notes("models", frame.views.items()),
    )
