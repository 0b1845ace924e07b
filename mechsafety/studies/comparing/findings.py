"""From the study's claims to its findings."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from mechsafety.core.layers import resolve_layer
from mechsafety.core.result import Finding
from mechsafety.metrics.intervals import Interval
from mechsafety.metrics.shared_null import LayerCosines
from mechsafety.metrics.spectral_intervals import Jackknifed
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
from mechsafety.studies.comparing.geometry import Likeness
from mechsafety.studies.comparing.map_notes import map_notes, map_of, sees_direction
from mechsafety.studies.comparing.measured import Measured
from mechsafety.studies.comparing.settings import Pair, seed_of, space_of
from mechsafety.studies.comparing.transfer_findings import transfer_claim
from mechsafety.studies.intervals import ends

SATURATED: Final = 0.9
"""Mean of the null above which an excess has no room."""
_SATURATED_WORDS: Final = (
    " The models are alike in everything, so that an excess has no room to show that they are "
    "alike in this: see the cosine without noise."
)

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
            return _at_layers(cell, pair, measured, _excess, _EXCESS_NULL, "cosine above its null")
        case CeilingCell():
            return _at_layers(
                cell, pair, measured, _shortfall, _HALVES_NULL, "cosine below the ceiling"
            )
        case AngleCell():
            return _at_layers(cell, pair, measured, _angle, _HALVES_NULL, "degrees")
        case MatchingCell():
            return _matching(cell, pair, measured)
        case TransferCell():
            return transfer_claim(cell, pair, measured)


def _seeds(claim: Claim, measured: Measured) -> list[tuple[int, ...]]:
    """Training seeds that enter each replication; a model whose seed is unknown is its own."""
    models = measured.frame.config.models
    unknown = {name: -1 - i for i, name in enumerate(models)}

    def seed(name: str) -> int:
        found = seed_of(name, models)
        return unknown[name] if found is None else found

    return [tuple(sorted({seed(name) for name in pair})) for pair in claim.cell.pairs()]


# --- claims about one place ----------------------------------------------------------------------

_EXCESS_NULL = (
    "95 % range of the cosine with the same permuted labels in both models, of activations about "
    "their class means, about its own mean"
)
_HALVES_NULL = (
    "95 % range over splits of what one model's own directions differ by between halves of the "
    "prompts"
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
    config = measured.frame.config
    first, second = pair
    n_layers = measured.frame.views[first].dims.n_layers
    layer = resolve_layer(cell.layer, n_layers, None)
    same = space_of(first, config.models) == space_of(second, config.models)
    methods: tuple[str, ...] = ("none",) if same else config.maps.methods
    via = "none" if same else (cell.via or _default_map(measured))
    if not methods:
        return f"{first} and {second} share no space, and `maps.methods` is empty."
    primary = {"layer": str(layer), "match": cell.match, "via": via, "channels": "all"}
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    further: dict[str, str] = {}
    for one in measured.likenesses:
        if (one.first, one.second) not in (pair, pair[::-1]) or one.via not in methods:
            continue
        turned = (one.first, one.second) != pair
        if turned and one.via != "none":
            continue
        for place in measured.places[pair]:
            if abs(place.first - layer) > 1 or place.match == "transfer":
                continue
            at = (place.second, place.first) if turned else (place.first, place.second)
            there = one.cells.get(at)
            if there is None or not _whole(one.cosines, there):
                continue
            settings = {
                "layer": str(place.first),
                "match": place.match,
                "via": one.via,
                "channels": one.channels,
            }
            found = effect(one.cosines, there, one)
            further = found[0][0]
            choices |= {choice_key({**settings, **more}): each for more, each in found}
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
            left_out(measured.frame.plan.groups.n_groups),
        ),
        agrees=fitted is None or sees_direction(fitted),
    )


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
            words=f"{_names(one)}: cosine {raw.value:.3f} [{low:.3f}, {high:.3f}]; the same "
            f"permuted labels in both models give {covered[0]:.3f} to {covered[1]:.3f}, mean "
            f"{mean:.3f}; on disjoint prompts {found.jackknifed('disjoint', *at).value:.3f} of a "
            f"ceiling of {_ceiling(found, at):.3f}, without noise {disattenuated.value:.3f}."
            + (_SATURATED_WORDS if mean > SATURATED else ""),
        )
        effects.append(({"null": name}, effect))
    return effects


def _shortfall(found: LayerCosines, at: tuple[int, int], one: Likeness) -> Effects:
    """One less the cosine without noise: what is missing from one model with itself."""
    number = found.jackknifed("disattenuated", *at)
    low, high = number.interval()
    covered = null_range(1 - _within(one, at))
    effect = Effect(
        value=1 - number.value,
        interval=Interval(1 - high, 1 - low),
        null=covered,
        n=one.n_rows,
        words=f"{_names(one)}: without noise the cosine is {number.value:.3f} [{low:.3f}, "
        f"{high:.3f}], where one model with itself has 1; on disjoint prompts it is "
        f"{found.jackknifed('disjoint', *at).value:.3f} of a ceiling of {_ceiling(found, at):.3f}.",
    )
    return [({}, effect)]


def _angle(found: LayerCosines, at: tuple[int, int], one: Likeness) -> Effects:
    """The angle without noise, in degrees."""
    number = found.jackknifed("disattenuated", *at)
    low, high = number.interval()
    covered = null_range(_degrees(_within(one, at)))
    value, nearest, farthest = (
        float(_degrees(torch.tensor(cosine, dtype=torch.float64)))
        for cosine in (number.value, high, low)
    )
    effect = Effect(
        value=value,
        interval=Interval(min(nearest, value), max(farthest, value)),
        null=covered,
        n=one.n_rows,
        words=f"{_names(one)}: {value:.1f}° [{nearest:.1f}°, {farthest:.1f}°] between the "
        f"directions without noise (cosine {number.value:.3f}); halves of one model's prompts "
        f"differ by up to {covered[1]:.1f}° about their mean.",
    )
    return [({}, effect)]


def _within(one: Likeness, at: tuple[int, int]) -> Tensor:
    """Cosine of halves A and B within a model, over its mean: of both models, split by split."""
    parts = [
        halves[:, index] / halves[:, index].mean()
        for halves, index in zip(one.within, at, strict=True)
    ]
    return torch.cat(parts).double()


def _degrees(cosine: Tensor) -> Tensor:
    return cosine.clamp(-1, 1).arccos() * (180 / math.pi)


def _ceiling(found: LayerCosines, at: tuple[int, int]) -> float:
    return float((found.reliability_first[at[0]] * found.reliability_second[at[1]]).sqrt())


def _names(one: Likeness) -> str:
    how = "" if one.via == "none" else f", carried by {one.via}"
    return f"{one.first} with {one.second}{how}"


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


# --- which layers match --------------------------------------------------------------------------


def _matching(cell: MatchingCell, pair: Pair, measured: Measured) -> Assessed | str:
    """Mean over layers of equal depth less the mean over all others."""
    config = measured.frame.config
    same = space_of(pair[0], config.models) == space_of(pair[1], config.models)
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    for by in ("cosine", "cka"):
        found = (
            _cosine_matching(pair, measured) if by == "cosine" else _cka_matching(pair, measured)
        )
        # Channel by channel, other bases have nothing to match.
        if found is not None and (same or by == "cka"):
            choices |= {choice_key({"by": by, **settings}): e for settings, e in found}
    primary = {"by": cell.by, "channels": "all"}
    groups = measured.frame.plan.groups.n_groups
    if cell.by == "cka":
        primary["prompts"] = "neutral"
        groups = next(
            len(one.cka.left_out) for one in measured.activations if one.prompts == "neutral"
        )
    if choice_key(primary) not in choices:
        return (
            f"{pair[0]} and {pair[1]} share no space, so their layers can be matched by `cka` only."
            if not same
            else f"{pair[0]} and {pair[1]} have too few layers with directions to match."
        )
    return Assessed(
        primary=primary,
        choices=choices,
        null="95 % range under permuted labels (cosine), or range over shuffled prompts (cka)",
        unit=f"{cell.by}, layers of equal depth less others (prompts)",
        notes=(left_out(groups),),
    )


Settled = list[tuple[dict[str, str], Effect]]


def _cosine_matching(pair: Pair, measured: Measured) -> Settled | None:
    found: Settled = []
    for one in measured.likenesses:
        if one.via != "none" or (one.first, one.second) not in (pair, pair[::-1]):
            continue
        usable = one.cosines.has_interval("raw")
        matched = _equal_depth((one.first, one.second), usable.shape, measured) & usable
        if not bool(matched.any() and (usable & ~matched).any()):
            return None
        weights = one.cosines.matched_weights("raw", matched)
        number, null = one.cosines.contrast("raw", weights)
        excess = number.value - float(null.mean())
        low, high = number.interval()
        mean = float(null.mean())
        covered = null_range(null)
        best = one.cosines.best_match()
        found.append(
            (
                {"channels": one.channels},
                Effect(
                    value=excess,
                    interval=Interval(low - mean, high - mean),
                    null=(covered[0] - mean, covered[1] - mean),
                    n=one.n_rows,
                    words=f"{_names(one)}: cosines of layers of equal depth exceed those of others "
                    f"by {number.value:.3f} [{low:.3f}, {high:.3f}], and by {mean:.3f} with "
                    f"permuted labels. {_best_words(best.frequency, matched)}",
                ),
            )
        )
    return found or None


def _cka_matching(pair: Pair, measured: Measured) -> Settled | None:
    found: Settled = []
    for one in measured.activations:
        if (one.first, one.second) not in (pair, pair[::-1]):
            continue
        rows, columns = (torch.tensor(list(layers)) for layers in one.layers)
        shape = tuple(
            measured.frame.views[name].dims.n_layers + 1 for name in (one.first, one.second)
        )
        equal = _equal_depth((one.first, one.second), shape, measured)
        matched = equal[rows][:, columns]
        if not bool(matched.any() and (~matched).any()):
            return None
        weights = matched.double() / matched.sum() - (~matched).double() / (~matched).sum()
        value = float((one.cka.value * weights).sum())
        number = Jackknifed(
            value=value,
            base=value,
            replicates=(one.cka.replicates * weights).sum((1, 2)),
            left_out=one.cka.left_out,
            fingerprint=one.cka.fingerprint,
        )
        null = (one.null * weights).sum((1, 2))
        low, high = number.interval()
        found.append(
            (
                {"prompts": one.prompts, "channels": one.channels},
                Effect(
                    value=number.value,
                    interval=Interval(low, high),
                    null=ends(null),
                    n=one.n,
                    words=f"{one.first} with {one.second}, {one.prompts} prompts: CKA of layers of "
                    f"equal depth exceeds that of others by {number.value:.3f} [{low:.3f}, "
                    f"{high:.3f}]; with shuffled prompts by {span(ends(null))}.",
                ),
            )
        )
    return found or None


def _equal_depth(pair: Pair, shape: Sequence[int], measured: Measured) -> Tensor:
    """Cells at the same fraction of depth."""
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    for place in measured.places[pair]:
        if place.match == "depth":
            mask[place.first, place.second] = True
    return mask


def _best_words(frequency: Tensor, matched: Tensor) -> str:
    rows = matched.any(1) & frequency.isfinite().all(1)
    if not bool(rows.any()):
        return ""
    hits = (frequency * matched)[rows].sum(1)
    return (
        f"The best match, chosen on half of the prompts, is the layer of equal depth in "
        f"{float(hits.mean()):.0%} of choices."
    )


def left_out(n_groups: int) -> str:
    """What an interval of likeness rests on."""
    return f"The interval leaves out {n_groups} groups of prompts in turn."


# --- notes ---------------------------------------------------------------------------------------


def _notes(measured: Measured) -> tuple[str, ...]:
    """What every finding of the run rests on."""
    frame = measured.frame
    notes: list[str] = []
    if frame.config.templates == "own":
        notes.append("Each model is read under its own chat template.")
    for what in ("dtype", "quantization"):
        values = {name: view.identity.get(what, "unknown") for name, view in frame.views.items()}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            notes.append(f"The models differ in {what}: {listed}.")
    return tuple(notes)
