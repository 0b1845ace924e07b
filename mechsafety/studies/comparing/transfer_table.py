"""The table of what carried directions do."""

from collections.abc import Mapping

from mechsafety.core.result import Dimension, Table
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.judges.rates import rates
from mechsafety.metrics.resampling import Resampling
from mechsafety.studies.cell_rows import add_added, add_cell, add_proxy, add_scores
from mechsafety.studies.comparing.measured import Transfers
from mechsafety.studies.comparing.settings import TransferMatrix
from mechsafety.studies.comparing.transferring import ScoreEffect, TransferCell, Transferred
from mechsafety.studies.refusal_proxy import VALID
from mechsafety.studies.rows import add_estimate, add_range
from mechsafety.studies.samples import estimates
from mechsafety.studies.words import EFFECT, EFFECT_UNIT


def transfer_table(transfers: Transfers, settings: TransferMatrix, judge: PhraseJudge) -> Table:
    """Every direction ablated and added in every target, with matched controls."""
    table = Table(
        "transfer",
        "The source's direction, carried into the target (via own: the target's own; same space: "
        "as it is; procrustes, ridge: by a map fitted on neutral prompts), at the layer "
        f"'{settings.layer}' of the target, on {transfers.n_words} held-out prompts of each class, "
        f"answers of up to {settings.max_new_tokens} tokens judged by {judge.name}. form none: "
        "unedited; zero: removed everywhere; affine: set to the target's harmless mean from the "
        "layer on; add: added at the norm of the target's own direction, so that all doses are "
        "equal. "
        f"Controls: {settings.score_draws} directions of the same energy (ablation) or norm "
        "(addition). effect: how far the refusal score falls on harmful prompts (ablation) or "
        f"rises on harmless ones (addition); effect_controls: their range. {transfers.sample.note} "
        f"refusal_score_auc: whether the score stands in for the judge (under {VALID:g} it does "
        "not).",
    )
    for target in transfers.targets.values():
        _add_baseline(table, target, transfers, judge)
        for cell in target.cells:
            _add(table, target, cell, transfers, judge)
    return table


def _add_baseline(
    table: Table, target: Transferred, transfers: Transfers, judge: PhraseJudge
) -> None:
    sample, baseline = transfers.sample, target.baseline
    at: dict[str, Dimension] = {"target": target.target, "source": "none", "form": "none"}
    for side, verdicts, clusters in (
        ("harmful", baseline.harmful, sample.harmful_clusters),
        ("harmless", baseline.harmless, sample.harmless_clusters),
    ):
        found = rates(verdicts, target.cells[0].added.answers.max_new_tokens, judge.name, clusters)
        found.add_to(table, prompts=side, **at)
    if target.clean is None or baseline.scores is None:
        return
    harmful, harmless = target.clean
    add_scores(table, "harmful", harmful, sample.harmful, at)
    add_scores(table, "harmless", harmless, sample.harmless, at)
    add_proxy(table, baseline.scores, baseline.verdicts, at)


def _add(
    table: Table,
    target: Transferred,
    cell: TransferCell,
    transfers: Transfers,
    judge: PhraseJudge,
) -> None:
    sample = transfers.sample
    where: dict[str, Dimension] = {
        "target": target.target,
        "source": cell.source.model,
        "via": cell.source.via,
    }
    for form, one in cell.ablated.items():
        at = {**where, "form": form}
        add_cell(table, one, sample, judge, at)
        _add_effect(table, target.fallen(one), sample.harmful, {"prompts": "harmful", **at})
    at = {**where, "form": "add"}
    add_added(table, cell.added, sample, judge, at)
    _add_effect(table, target.risen(cell.added), sample.harmless, {"prompts": "harmless", **at})


def _add_effect(
    table: Table, effect: ScoreEffect | None, sample: Resampling, at: Mapping[str, Dimension]
) -> None:
    if effect is None:
        return
    add_estimate(table, "effect", estimates(effect.by_prompt, sample), (), EFFECT_UNIT, at)
    if effect.controls is not None:
        add_range(table, "effect_controls", effect.controls, EFFECT, at)
