"""The table of the chosen direction on the third split."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mechsafety.core.result import Dimension, Table
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.judges.rates import rates
from mechsafety.metrics.resampling import Resampling
from mechsafety.studies.cell_rows import add_added, add_cell, add_mean, add_proxy, add_scores
from mechsafety.studies.locating.map_tables import cosines
from mechsafety.studies.locating.measured import Causal, Winner
from mechsafety.studies.refusal_proxy import VALID


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
        add_mean(table, "content", done.clean_content, sample.harmless, "share", "harmless", none)
    add_proxy(
        table,
        torch.cat([done.scores.harmful, done.scores.harmless]),
        [*done.harmful.verdicts, *done.harmless.verdicts],
        none,
    )
    for cell in done.cells:
        at: dict[str, Dimension] = {"form": cell.form, "dose": None}
        add_cell(table, cell, sample, judge, at)
        _add_ce(table, done.cross_entropy[cell.form], sample.harmless, at)
    for i, scores in enumerate(done.refits):
        at = {"form": "zero", "dose": None, "refit": i}
        add_scores(table, "harmful", scores, sample.harmful, at)
        cosine = float(cosines(winner.refits[i][None], winner.vector[None])[0])
        table.add(
            "cosine_to_winner", cosine, n=1, unit="cosine", interval=None, prompts="harmful", **at
        )
    for added in done.added:
        add_added(table, added, sample, judge, {"form": "add", "dose": added.dose})
    return table


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
    add_mean(table, "cross_entropy", values, sample, unit, "harmless", at)
