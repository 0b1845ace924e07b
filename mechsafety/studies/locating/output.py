"""All tables and tensors of the study, in the order in which they are shown."""

from torch import Tensor

from mechsafety.core.result import Table
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.models.tokens import TokenUse
from mechsafety.organisms.sources import StudyPrompts
from mechsafety.studies.locating.map_tables import decay_table, map_table, selection_table
from mechsafety.studies.locating.measured import Measured
from mechsafety.studies.locating.partial_tables import (
    doses_table,
    positions_table,
    second_table,
    windows_table,
    writers_table,
)
from mechsafety.studies.locating.reading_tables import (
    behavior_table,
    prompt_table,
    separation_table,
    two_by_two_table,
)
from mechsafety.studies.locating.winner_tables import winner_table


def token_use(measured: Measured) -> dict[str, dict[str, TokenUse]]:
    """Every prompt set that each model saw."""
    models = {"model": measured.read} | ({} if measured.base is None else {"base": measured.base})
    used = {name: dict(one.token_use) for name, one in models.items()}
    if measured.causal is not None and measured.causal.winner is not None:
        used["model"] |= measured.causal.winner.evaluated.token_use
    return used


def tables(
    measured: Measured, prompts: StudyPrompts, judge: PhraseJudge, min_rows: int
) -> tuple[Table, ...]:
    """Everything that was measured, as tidy rows."""
    found = [
        prompt_table(measured.read),
        behavior_table(measured, prompts, judge),
        separation_table(measured),
        two_by_two_table(measured, min_rows),
    ]
    causal = measured.causal
    if causal is not None:
        found += [map_table(causal), selection_table(causal), decay_table(measured, causal)]
        if causal.winner is not None:
            found += [
                winner_table(causal, causal.winner, judge),
                windows_table(causal.winner),
                positions_table(causal.winner),
                doses_table(causal.winner),
                writers_table(causal.winner),
                second_table(causal.winner),
            ]
    return tuple(found)


def tensors(measured: Measured) -> dict[str, Tensor]:
    """The directions, and per-prompt scores for anyone who wants another statistic."""
    causal = measured.causal
    if causal is None:
        return {}
    found = {
        "candidates": causal.map.candidates.vectors,
        "bypass": causal.map.scores.bypass,
        "induce": causal.map.scores.induce,
        "kl": causal.map.scores.kl,
        "clean.harmful": causal.map.clean.harmful,
        "clean.harmless": causal.map.clean.harmless,
        "controls.bypass": causal.map.controls.bypass,
        "controls.induce": causal.map.controls.induce,
    }
    if causal.winner is not None:
        found |= {
            "direction": causal.winner.vector,
            "direction.refits": causal.winner.refits,
            "windows": causal.winner.windows.evaluate,
            "positions": causal.winner.windows.by_position,
            "clean.evaluate.harmful": causal.winner.clean.harmful,
            "clean.evaluate.harmless": causal.winner.clean.harmless,
            "doses.harmless": causal.winner.induced.response,
            "doses.harmful": causal.winner.subtracted.response,
        }
    return found
