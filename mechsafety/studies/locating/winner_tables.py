"""The table of the chosen direction on the third split."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mechsafety.core.result import Dimension, Table
from mechsafety.effects.ablation_matrix import Cell
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.judges.rates import rates
from mechsafety.metrics.resampling import Resampling
from mechsafety.studies.locating.map_tables import cosines
from mechsafety.studies.locating.measured import Causal, Winner
from mechsafety.studies.locating.words import SCORE
from mechsafety.studies.refusal_proxy import VALID, proxy_auc, proxy_word
from mechsafety.studies.rows import add_estimate, add_range
from mechsafety.studies.samples import estimates


def winner_table(causal: Causal, winner: Winner, judge: PhraseJudge) -> Table:
    """The chosen direction on prompts that neither fitted nor selected it."""
    done = winner.evaluated
    table = Table(
        "winner",
        f"The direction of {winner.position}, {winner.site}, on the third split, answers of up to "
        f"{done.harmful.max_new_tokens} tokens judged by {judge.name}. form none: unedited; zero: "
        "removed everywhere; affine: set to the harmless mean from its layer on; add: that "
        "multiple of the raw mean difference at its layer. Controls are the range of directions "
        "of the same energy. refit: directions of disjoint folds of the fit split. "
        f"refusal_score_auc says whether the score stands in for the judge (under {VALID:g} it "
        "does not). content: all facts right, where prompts carry facts.",
    )
    sample = winner.evaluate
    none: dict[str, Dimension] = {"form": "none", "dose": None}
    clusters = {"harmful": sample.harmful_clusters, "harmless": sample.harmless_clusters}
    for side, answers in (("harmful", done.harmful), ("harmless", done.harmless)):
        rates(answers.verdicts, answers.max_new_tokens, judge.name, clusters[side]).add_to(
            table, prompts=side, **none
        )
    add_scores(table, "harmful", done.scores.harmful, sample.harmful, none)
    add_scores(table, "harmless", done.scores.harmless, sample.harmless, none)
    _add_ce(table, done.cross_entropy["clean"], sample.harmless, none)
    if done.clean_content is not None:
        _add_mean(table, "content", done.clean_content, sample.harmless, "share", "harmless", none)
    _add_proxy(
        table,
        torch.cat([done.scores.harmful, done.scores.harmless]),
        [*done.harmful.verdicts, *done.harmless.verdicts],
        none,
    )
    for cell in done.cells:
        _add_cell(table, cell, winner, judge, clusters)
    for i, scores in enumerate(done.refits):
        at: dict[str, Dimension] = {"form": "zero", "dose": None, "refit": i}
        add_scores(table, "harmful", scores, sample.harmful, at)
        cosine = float(cosines(winner.refits[i][None], winner.vector[None])[0])
        table.add(
            "cosine_to_winner", cosine, n=1, unit="cosine", interval=None, prompts="harmful", **at
        )
    for added in done.added:
        at = {"form": "add", "dose": added.dose}
        add_scores(table, "harmless", added.scores, sample.harmless, at)
        found = rates(
            added.answers.verdicts, added.answers.max_new_tokens, judge.name, clusters["harmless"]
        )
        found.add_to(table, prompts="harmless", **at)
    return table


def _add_cell(
    table: Table,
    cell: Cell,
    winner: Winner,
    judge: PhraseJudge,
    clusters: Mapping[str, Sequence[str]],
) -> None:
    at: dict[str, Dimension] = {"form": cell.form, "dose": None}
    sample = winner.evaluate
    scores: list[Tensor] = []
    for side, outcome, resampling in (
        ("harmful", cell.harmful, sample.harmful),
        ("harmless", cell.harmless, sample.harmless),
    ):
        found = rates(
            outcome.answers.verdicts, outcome.answers.max_new_tokens, judge.name, clusters[side]
        )
        found.add_to(table, prompts=side, **at)
        if outcome.refusal_score is not None:
            add_scores(table, side, outcome.refusal_score, resampling, at)
            scores.append(outcome.refusal_score)
        _add_mean(table, "kl", outcome.kl, resampling, "nats", side, at)
        if not outcome.content_is_cross_entropy:
            _add_mean(table, "content", outcome.content, resampling, "share", side, at)
    _add_ce(table, winner.evaluated.cross_entropy[cell.form], sample.harmless, at)
    if scores:
        verdicts: list[Verdict] = [*cell.harmful.answers.verdicts, *cell.harmless.answers.verdicts]
        _add_proxy(table, torch.cat(scores), verdicts, at)
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


def _add_mean(
    table: Table,
    metric: str,
    values: Tensor,
    sample: Resampling,
    unit: str,
    side: str,
    at: Mapping[str, Dimension],
) -> None:
    found = estimates(values, sample)
    add_estimate(table, metric, found, (), f"{unit} (prompts)", {"prompts": side, **at})


def add_scores(
    table: Table, side: str, scores: Tensor, sample: Resampling, at: Mapping[str, Dimension]
) -> None:
    _add_mean(table, "refusal_score", scores, sample, SCORE, side, at)


def _add_ce(table: Table, values: Tensor, sample: Resampling, at: Mapping[str, Dimension]) -> None:
    known = values.isfinite()
    if not bool(known.all()):
        # A prompt without an answer has nothing to predict, in any condition alike.
        table.add(
            "cross_entropy",
            float(values[known].mean()) if bool(known.any()) else None,
            n=int(known.sum()),
            unit="nats per token of own clean answers (prompts)",
            prompts="harmless",
            interval=None,
            **at,
        )
        return
    unit = "nats per token of own clean answers"
    _add_mean(table, "cross_entropy", values, sample, unit, "harmless", at)


def _add_proxy(
    table: Table,
    scores: Tensor,
    verdicts: Sequence[Verdict],
    at: Mapping[str, Dimension],
) -> None:
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
