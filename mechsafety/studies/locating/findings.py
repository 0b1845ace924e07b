"""The claims of the study: each with interval, null and the choices that would flip it."""

import torch

from mechsafety.core.result import Finding
from mechsafety.studies.claims import (
    assembled,
    choice_key,
    unmeasured,
)
from mechsafety.studies.locating.claims import (
    CausalCell,
    Claim,
    SecondDirectionCell,
    SeparationCell,
    WindowCell,
    WinnerCell,
)
from mechsafety.studies.locating.map_findings import causal_claim, separation_claim
from mechsafety.studies.locating.measured import Causal, Measured
from mechsafety.studies.locating.winner_findings import (
    no_window,
    no_writers,
    second_claim,
    window_claim,
    winner_claim,
    writers_claim,
)
from mechsafety.studies.refusal_proxy import VALID, proxy_auc


def finding(claim: Claim, measured: Measured) -> Finding:
    """One declared claim as a finding."""
    cell = claim.cell
    if isinstance(cell, SeparationCell):
        read = [str(position) for position in measured.read.positions]
        if cell.position not in read:
            why = f"Position {cell.position} was not read; {', '.join(read)} were."
            return unmeasured(claim, why, ())
        if cell.versus == "base" and measured.base is None:
            return unmeasured(claim, "No base model was given (`base`).", ())
        return assembled(claim, separation_claim(cell, measured), (measured.held.note,))
    causal = measured.causal
    if causal is None or (causal.winner is None and not isinstance(cell, CausalCell)):
        return unmeasured(claim, measured.why_not, ())
    proxy = _proxy_notes(causal)
    if isinstance(cell, CausalCell):
        notes = (causal.map.sample.note, *proxy)
        return assembled(claim, causal_claim(cell, causal, measured), notes)
    winner = causal.winner
    assert winner is not None
    notes = (winner.evaluate.note, *proxy)
    if isinstance(cell, WinnerCell):
        doses = [added.dose for added in winner.evaluated.added]
        if cell.effect == "induce" and cell.dose not in doses:
            tried = ", ".join(f"{dose:g}" for dose in doses)
            return unmeasured(claim, f"Dose {cell.dose:g} was not tried; {tried} were.", notes)
        # What is not there cannot be taken away, which says nothing about the direction.
        nothing = cell.effect == "bypass" and not any(winner.evaluated.harmful.judged("refused"))
        notes += ("No harmful prompt was refused to begin with.",) if nothing else ()
        assessed = winner_claim(cell, winner, measured)
        return assembled(claim, assessed, notes, inconclusive=nothing)
    if isinstance(cell, WindowCell):
        assessed = window_claim(cell, winner, measured)
        if choice_key(assessed.primary) not in assessed.choices:
            return unmeasured(claim, no_window(cell, winner), notes)
        return assembled(claim, assessed, notes)
    if isinstance(cell, SecondDirectionCell):
        if winner.second.alone is None:
            why = "No refitted direction passes the filters once the first is ablated."
            return unmeasured(claim, why, notes)
        return assembled(claim, second_claim(winner), notes)
    assessed = writers_claim(cell, winner)
    if choice_key(assessed.primary) not in assessed.choices:
        return unmeasured(claim, no_writers(winner), notes)
    return assembled(claim, assessed, notes)


def _proxy_notes(causal: Causal) -> tuple[str, ...]:
    """Whether the refusal score stands in for the judge on the third split (evidence.md 14)."""
    if causal.winner is None:
        return ("The refusal score was not held against the judge: no direction was evaluated.",)
    done = causal.winner.evaluated
    conditions = {"clean": (done.scores.harmful, done.scores.harmless, done.harmful, done.harmless)}
    for cell in done.cells:
        harmful, harmless = cell.harmful.refusal_score, cell.harmless.refusal_score
        assert harmful is not None
        assert harmless is not None
        conditions[cell.form] = (harmful, harmless, cell.harmful.answers, cell.harmless.answers)
    for added in done.added:
        # Beside the clean harmful prompts, as only harmless ones are added to.
        conditions[f"add {added.dose:g}"] = (
            done.scores.harmful,
            added.scores,
            done.harmful,
            added.answers,
        )
    told: list[str] = []
    valid, unchecked = True, False
    for name, (harmful, harmless, first, second) in conditions.items():
        found, _ = proxy_auc(torch.cat([harmful, harmless]), [*first.verdicts, *second.verdicts])
        told.append(f"{name} {'one verdict only' if found is None else format(found, '.2f')}")
        valid &= found is None or found >= VALID
        unchecked |= found is None
    word = "" if valid else "Proxy unvalidated. "
    word += "Proxy unchecked where the judge gave one verdict only. " if unchecked else ""
    return (f"{word}AUC of the refusal score against the judge: {', '.join(told)}.",)
