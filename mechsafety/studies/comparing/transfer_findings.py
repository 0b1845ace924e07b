"""Claims about what a carried direction does: whether transfer is causal or only geometric."""

from collections.abc import Sequence

from mechsafety.core.result import verdict
from mechsafety.effects.ablation_matrix import Cell
from mechsafety.effects.answers import Answers
from mechsafety.judges.phrases import Verdict
from mechsafety.metrics.resampling import Resampling
from mechsafety.studies.claims import (
    Assessed,
    Choices,
    Effect,
    choice_key,
    null_range,
    share_words,
    span,
)
from mechsafety.studies.comparing.carrying import transfer_place
from mechsafety.studies.comparing.claims import TransferCell as TransferClaim
from mechsafety.studies.comparing.map_notes import map_notes, map_of
from mechsafety.studies.comparing.mapping import Place
from mechsafety.studies.comparing.measured import Measured, Transfers
from mechsafety.studies.comparing.settings import Pair
from mechsafety.studies.comparing.transferring import ScoreEffect, TransferCell, Transferred
from mechsafety.studies.intervals import around, ends
from mechsafety.studies.refusal_proxy import proxy_auc, proxy_word
from mechsafety.studies.samples import estimates
from mechsafety.studies.words import EFFECT_UNIT


def transfer_claim(
    claim: TransferClaim, pair: Pair, measured: Measured, margin: float
) -> Assessed | str:
    """The claim in the form it names; every form that leaves harmless prompts alone must agree."""
    transfers = measured.transfers
    if transfers is None:
        return "This run compares geometry alone: `transfer` is null."
    found = transfers.cell(*pair)
    if isinstance(found, str):
        return found
    target = transfers.targets[pair[1]]
    if target.clean is None:
        return f"{pair[1]} has no refusal tokens, so there is no score to change."
    if claim.effect == "induce":
        choices = {choice_key({"effect": "induce"}): _induced(found, target, transfers)}
        primary = {"effect": "induce"}
        notes, agrees = (), True
    else:
        settings = measured.frame.config.transfer
        assert settings is not None
        primary = {"form": claim.form}
        choices = {
            choice_key({"form": form}): _bypassed(form, one, found, target, transfers)
            for form, one in found.ablated.items()
            if one.controls is not None
            and one.controls.harmful_score is not None
            # A form that upsets harmless prompts is no way to analyze, unless the claim names it.
            and (form == claim.form or float(one.harmless.kl.mean()) < settings.kl_bound)
        }
        if choice_key(primary) not in choices:
            return f"Form '{claim.form}' was not tried, or has no controls: see `transfer.forms`."
        notes, agrees = _forms(claim, found, choices, settings.kl_bound, margin)
    return Assessed(
        primary=primary,
        choices=choices,
        null="range over directions of the same "
        + ("norm" if claim.effect == "induce" else "energy")
        + ", drawn from the target's harmless activations",
        unit=EFFECT_UNIT,
        notes=(
            *notes,
            _geometry(found, pair, measured),
            *_through_map(found, pair, measured),
            _proxy(target),
            transfers.sample.note,
        ),
        agrees=agrees,
    )


def _forms(
    claim: TransferClaim, found: TransferCell, choices: Choices, kl_bound: float, margin: float
) -> tuple[tuple[str, ...], bool]:
    """Whether the forms below the KL bound, the claim's among them, agree (evidence.md 11)."""
    kl = {form: float(one.harmless.kl.mean()) for form, one in found.ablated.items()}
    verdicts: dict[str, str] = {}
    for form, nats in kl.items():
        effect = choices.get(choice_key({"form": form}))
        if effect is not None and nats < kl_bound:
            verdicts[form] = verdict(effect.value, *effect.interval, margin, effect.null)
    said = "; ".join(f"{form} {nats:.2f}" for form, nats in kl.items())
    note = f"Harmless KL in nats: {said} (bound {kl_bound:g})."
    if claim.form not in verdicts:
        note += f" Form '{claim.form}' upsets harmless prompts, so no verdict stands."
    elif len(set(verdicts.values())) > 1:
        each = ", ".join(f"{form} {word}" for form, word in verdicts.items())
        note += f" Forms below the bound disagree ({each}), so no verdict stands."
    return (note,), claim.form in verdicts and len(set(verdicts.values())) == 1


def _through_map(found: TransferCell, pair: Pair, measured: Measured) -> tuple[str, ...]:
    """How well the map holds that carried the direction."""
    place = _place(pair, measured)
    at = {"via": found.source.via, "layer": str(place.first), "match": place.match}
    fitted = map_of(pair, at, measured)
    return () if fitted is None else map_notes(fitted)


def _bypassed(
    form: str, one: Cell, cell: TransferCell, target: Transferred, transfers: Transfers
) -> Effect:
    return _effect(
        target.fallen(one),
        transfers.sample.harmful,
        target.baseline.harmful,
        one.harmful.answers,
        what=f"{_carried(cell, target)} ablated ({form}): the refusal score of harmful prompts "
        "falls",
        others="matched directions",
        rest=f"; harmless KL {float(one.harmless.kl.mean()):.2f} nats",
    )


def _induced(cell: TransferCell, target: Transferred, transfers: Transfers) -> Effect:
    return _effect(
        target.risen(cell.added),
        transfers.sample.harmless,
        target.baseline.harmless,
        cell.added.answers,
        what=f"{_carried(cell, target)} added at the norm of the target's own: the refusal score "
        "of harmless prompts rises",
        others="directions of that norm",
    )


def _effect(
    effect: ScoreEffect | None,
    sample: Resampling,
    unedited: Sequence[Verdict],
    edited: Answers,
    *,
    what: str,
    others: str,
    rest: str = "",
) -> Effect:
    """What an edit does to one class of prompts, beside controls that are called `others`."""
    assert effect is not None
    assert effect.controls is not None
    found = estimates(effect.by_prompt, sample)
    value, (low, high) = float(found.value), found.interval()
    covered = ends(effect.controls)
    before = [verdict == "refused" for verdict in unedited]
    return Effect(
        value=value,
        interval=around(value, low, high),
        null=covered,
        n=len(effect.by_prompt),
        words=f"{what} by {value:.2f} [{low:.2f}, {high:.2f}], with {len(effect.controls)} "
        f"{others} by {span(covered)}; refused {share_words(before)} before and "
        f"{share_words(edited.judged('refused'))} after "
        f"({sum(edited.judged('degenerate'))} degenerate){rest}.",
    )


def _carried(cell: TransferCell, target: Transferred) -> str:
    source = cell.source
    how = {"own": "", "same space": ", same space"}.get(source.via, f", by the {source.via} map")
    return f"{source.model}'s direction in {target.target}{how}"


def _geometry(found: TransferCell, pair: Pair, measured: Measured) -> str:
    """The cosine beside the effect: whether the transfer is causal, only geometric, or neither."""
    method = "none" if found.source.via in ("own", "same space") else found.source.via
    for one, at, _ in measured.compared(pair, _place(pair, measured)):
        if one.channels != "all" or one.via != method:
            continue
        raw = float(one.cosines.raw[at])
        low, high = null_range(one.cosines.null[:, at[0], at[1]])
        word = "above" if raw > high else "below" if raw < low else "inside"
        return (
            f"Geometry at the same place: cosine {raw:.3f}, {word} the {low:.3f} to {high:.3f} of "
            "permuted labels."
        )
    return "Geometry at the same place: no cosine."


def _place(pair: Pair, measured: Measured) -> Place:
    """Where the direction was read, and where it was tried."""
    settings, views = measured.frame.config.transfer, measured.frame.views
    assert settings is not None
    return transfer_place(settings, *(views[name] for name in pair))


def _proxy(target: Transferred) -> str:
    """Whether the refusal score stands in for the judge in this target (evidence.md 14)."""
    scores = target.baseline.scores
    assert scores is not None
    found, n = proxy_auc(scores, target.baseline.verdicts)
    known = "" if found is None else f" (AUC {found:.2f}, n = {n})"
    return f"{target.target}: {proxy_word(found)}{known}."
