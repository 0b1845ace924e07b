"""Rows of what one edit does to one model: rates, scores, divergence, content and controls."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mechsafety.core.result import Dimension, Table
from mechsafety.effects.ablation_matrix import Cell
from mechsafety.effects.added_in import Added
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.judges.rates import rates
from mechsafety.metrics.resampling import Resampling
from mechsafety.studies.refusal_proxy import proxy_auc, proxy_word
from mechsafety.studies.rows import add_estimate, add_range
from mechsafety.studies.samples import Sample, estimates
from mechsafety.studies.words import SCORE, SCORE_UNIT


def add_cell(
    table: Table, cell: Cell, sample: Sample, judge: PhraseJudge, at: Mapping[str, Dimension]
) -> None:
    """One ablation of one model, on both classes of held-out prompts, with its controls."""
    scores: list[Tensor] = []
    for side, outcome, resampling, clusters in (
        ("harmful", cell.harmful, sample.harmful, sample.harmful_clusters),
        ("harmless", cell.harmless, sample.harmless, sample.harmless_clusters),
    ):
        answers = outcome.answers
        found = rates(answers.verdicts, answers.max_new_tokens, judge.name, clusters)
        found.add_to(table, prompts=side, **at)
        if outcome.refusal_score is not None:
            add_scores(table, side, outcome.refusal_score, resampling, at)
            scores.append(outcome.refusal_score)
        add_mean(table, "kl", outcome.kl, resampling, "nats", side, at)
        if not outcome.content_is_cross_entropy:
            add_mean(table, "content", outcome.content, resampling, "share", side, at)
    if scores:
        verdicts: list[Verdict] = [*cell.harmful.answers.verdicts, *cell.harmless.answers.verdicts]
        add_proxy(table, torch.cat(scores), verdicts, at)
    controls = cell.controls
    if controls is None:
        return
    tokens = cell.harmful.answers.max_new_tokens
    for metric, side, drawn in (
        ("refusal_score_controls", "harmful", controls.harmful_score),
        (f"refusal_rate@{tokens}tok_controls", "harmful", controls.harmful_rate),
        (f"refusal_rate@{tokens}tok_controls", "harmless", controls.harmless_rate),
        ("energy_ratio_controls", "harmful", controls.energy_ratio),
        ("overlap_controls", "harmful", controls.overlap),
    ):
        if drawn is None or not len(drawn):
            continue
        add_range(
            table,
            metric,
            drawn,
            "mean over controls; the interval is their range",
            {"prompts": side, **at},
        )


def add_added(
    table: Table, added: Added, sample: Sample, judge: PhraseJudge, at: Mapping[str, Dimension]
) -> None:
    """One addition to one model's harmless prompts, with its controls."""
    at = {"prompts": "harmless", **at}
    tokens = added.answers.max_new_tokens
    found = rates(added.answers.verdicts, tokens, judge.name, sample.harmless_clusters)
    found.add_to(table, **at)
    scores = estimates(added.scores, sample.harmless)
    add_estimate(table, "refusal_score", scores, (), SCORE_UNIT, at)
    for metric, drawn, unit in (
        ("refusal_score_controls", added.control_scores, SCORE),
        (f"refusal_rate@{tokens}tok_controls", added.control_rates, "share of answers"),
    ):
        if len(drawn):
            add_range(table, metric, drawn, unit, at)


def add_mean(
    table: Table,
    metric: str,
    values: Tensor,
    sample: Resampling,
    unit: str,
    side: str,
    at: Mapping[str, Dimension],
) -> None:
    """The mean of one number a prompt."""
    found = estimates(values, sample)
    add_estimate(table, metric, found, (), f"{unit} (prompts)", {"prompts": side, **at})


def add_scores(
    table: Table, side: str, scores: Tensor, sample: Resampling, at: Mapping[str, Dimension]
) -> None:
    """The mean refusal score of one class."""
    add_mean(table, "refusal_score", scores, sample, SCORE, side, at)


def add_proxy(
    table: Table, scores: Tensor, verdicts: Sequence[Verdict], at: Mapping[str, Dimension]
) -> None:
    """How well the refusal score ranks what the judge calls refused (evidence.md 14)."""
    found, n = proxy_auc(scores, verdicts)
    table.add(
        "refusal_score_auc",
        found,
        n=n,
        unit="AUC against the judge (prompts)",
        prompts="both",
        proxy=proxy_word(found),
        interval=None,
        **at,
    )
