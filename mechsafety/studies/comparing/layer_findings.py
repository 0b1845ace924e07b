"""Claims about which layers of two models match."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mechsafety.metrics.intervals import Interval
from mechsafety.metrics.spectral_intervals import Jackknifed
from mechsafety.studies.claims import Assessed, Effect, choice_key, null_range, span
from mechsafety.studies.comparing.claims import MatchingCell
from mechsafety.studies.comparing.measured import Measured
from mechsafety.studies.comparing.settings import Pair
from mechsafety.studies.comparing.words import left_out, names
from mechsafety.studies.intervals import ends


def matching_claim(cell: MatchingCell, pair: Pair, measured: Measured) -> Assessed | str:
    """Mean over layers of equal depth less the mean over all others."""
    same = measured.frame.job.one_space(pair)
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    for by in ("cosine", "cka"):
        found = (
            _cosine_matching(pair, measured) if by == "cosine" else _cka_matching(pair, measured)
        )
        # Channel by channel, other bases have nothing to match.
        if found is not None and (same or by == "cka"):
            choices |= {choice_key({"by": by, **settings}): e for settings, e in found}
    primary = {"by": cell.by, "channels": "all"}
    groups = measured.frame.job.plan.groups.n_groups
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
        null="95 % range under permuted labels (cosine), or range over all other depths that the "
        "second model's layers can be turned to (cka)",
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
        turned = (one.first, one.second) != pair
        matched = _equal_depth(pair, turned, usable.shape, measured) & usable
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
                    words=f"{names(one)}: cosines of layers of equal depth exceed those of others "
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
        stored = (one.first, one.second)
        shape = [measured.frame.views[name].dims.n_layers + 1 for name in stored]
        equal = _equal_depth(pair, stored != pair, shape, measured)
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
        # Shuffled prompts would lose all likeness; the question is which layers are alike.
        second = 0 if stored != pair else 1
        n_layers = one.cka.value.shape[second]
        null = torch.stack(
            [(one.cka.value.roll(k, dims=second) * weights).sum() for k in range(1, n_layers)]
        )
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
                    f"{high:.3f}]; matched to other depths, by {span(ends(null))}.",
                ),
            )
        )
    return found or None


def _equal_depth(pair: Pair, turned: bool, shape: Sequence[int], measured: Measured) -> Tensor:
    """Cells at the same fraction of depth, as the claim's first model sees it."""
    mask = torch.zeros(tuple(shape[::-1] if turned else shape), dtype=torch.bool)
    for place in measured.places[pair]:
        if place.match == "depth":
            mask[place.first, place.second] = True
    return mask.T if turned else mask


def _best_words(frequency: Tensor, matched: Tensor) -> str:
    rows = matched.any(1) & frequency.isfinite().all(1)
    if not bool(rows.any()):
        return ""
    hits = (frequency * matched)[rows].sum(1)
    return (
        f"The best match, chosen on half of the prompts, is the layer of equal depth in "
        f"{float(hits.mean()):.0%} of choices."
    )
