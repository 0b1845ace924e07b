"""Tables, figures and tensors of the locality study."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from mechsafety.core.result import Dimension, Figure, Table
from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation_matrix import Cell
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.judges.rates import rates
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.harm_and_refusal import split
from mechsafety.metrics.matched_controls import label_permutations
from mechsafety.metrics.resampling import Resampling
from mechsafety.organisms.sources import StudyPrompts
from mechsafety.studies.locality_jobs import Read
from mechsafety.studies.locality_measured import Causal, Measured, Winner, estimates
from mechsafety.studies.refusal_proxy import VALID, proxy_auc, proxy_word

SCORE_UNIT: Final = "log-odds of a refusal token (prompts)"
EFFECT_UNIT: Final = "change in log-odds of a refusal token (prompts)"
POINTWISE: Final = "Intervals are 95 %, pointwise, and conditional on the directions."


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


def place(site: ResidualSite) -> dict[str, Dimension]:
    """The dimensions of a place: the last output is layer `n_layers` of `resid_pre`."""
    if site.stream == "resid_post":
        return {"stream": "resid_pre", "layer": site.layer + 1}
    return {"stream": site.stream, "layer": site.layer}


def prompt_table(read: Read) -> Table:
    """The first harmless prompt, token by token."""
    table = Table(
        "prompt",
        "The first harmless prompt of the fit split as the model receives it. read: a position at "
        "which directions are read. write: ablation and addition edit every token.",
    )
    for index, token in enumerate(read.tokens):
        table.add(
            "token",
            float(index),
            n=1,
            unit="index of the token",
            token=token.text,
            part=token.part,
            read=token.read,
            write=True,
        )
    return table


def behavior_table(measured: Measured, prompts: StudyPrompts, judge: PhraseJudge) -> Table:
    """What the unedited model does."""
    table = Table(
        "behavior",
        f"Answers of the unedited model, judged by {judge.name}: the fit split, and wrapped "
        "prompts of the organisms' world. Intervals are Wilson, 95 %, prompts as independent.",
    )
    for name, answers in measured.read.answers.items():
        rates(answers.verdicts, answers.max_new_tokens, judge.name).add_to(table, prompts=name)
    return table


def separation_table(measured: Measured) -> Table:
    """AUC and d′ of every place, of the model and of its base, beside what words alone give."""
    first = next(iter(measured.separation.values()))
    table = Table(
        "separation",
        "AUC and d′ of held-out projections on the mean difference of the fit split. "
        f"{POINTWISE} band: the max-statistic band over all places of the map, from "
        f"{first.band.n_draws} relabelings, which keeps an error of {first.band.error:.3g} for the "
        "whole map. lexical: a bag of tokens on the same prompts, repeated at every place. Layer "
        "n is the output of the last block. Separation is not safety: words alone may do it.",
    )
    for (model, source), found in measured.separation.items():
        words = measured.lexical[source]
        for s, site in enumerate(measured.read.sites):
            for p, position in enumerate(measured.read.positions):
                at: dict[str, Dimension] = {
                    "model": model,
                    "source": source,
                    **place(site),
                    "position": str(position),
                }
                ends = (float(found.low[s, p]), float(found.high[s, p]))
                unit = "AUC (prompts)"
                table.add("auc", float(found.auc[s, p]), n=found.n, unit=unit, interval=ends, **at)
                table.add(
                    "d_prime",
                    float(found.d_prime[s, p]),
                    n=found.n,
                    unit="pooled standard deviations (prompts)",
                    interval=None,
                    **at,
                )
                table.add(
                    "auc_band",
                    found.band.high,
                    n=found.band.n_draws,
                    unit="AUC (relabelings)",
                    interval=(1 - found.band.high, found.band.high),
                    **at,
                )
                table.add(
                    "lexical_auc",
                    words.auc,
                    n=found.n,
                    unit=unit,
                    interval=(words.low, words.high),
                    **at,
                )
    return table


def two_by_two_table(measured: Measured, min_rows: int) -> Table:
    """Harmfulness and refusal taken apart at every block input."""
    read = measured.read
    table = Table(
        "two_by_two",
        "Harmful/harmless × refused/complied: harmfulness is harmful − harmless at equal behavior, "
        "refusal is refused − complied at equal harm. Cosines have no interval (angles have no "
        "bootstrap); corrected_cosine takes out what sampling noise adds. Wrapped prompts fill the "
        "off-diagonal, so that a contrast may hold their words too. A cell of fewer than "
        f"{min_rows} prompts is not used. Exploratory; last token.",
    )
    cells = _cells(read)
    for column, site in enumerate(read.sites):
        if site.stream not in ("resid_pre", "resid_post"):
            continue
        rows = {key: found[:, column] for key, found in cells.items()}
        found = split(rows, min_rows)
        at = place(site)
        for name, value in (
            ("cosine_harm_refusal", found.cosine),
            ("corrected_cosine_harm_refusal", found.corrected_cosine),
            ("cosine_naive_harm", found.naive_harmfulness_cosine),
            ("cosine_naive_refusal", found.naive_refusal_cosine),
        ):
            table.add(
                name,
                value,
                n=min(found.counts.values()),
                unit="cosine (prompts of the smallest cell)",
                harm_from=" and ".join(found.harmfulness_from) or "none",
                refusal_from=" and ".join(found.refusal_from) or "none",
                interval=None,
                **at,
            )
    for (harmful, refused), found in cells.items():
        table.add(
            "prompts_in_cell",
            float(len(found)),
            n=len(found),
            unit="prompts",
            harm="harmful" if harmful else "harmless",
            behavior="refused" if refused else "complied",
        )
    return table


def _cells(read: Read) -> dict[tuple[bool, bool], Tensor]:
    """Last-token activations [prompt, layer, d_model] by (harmful, refused)."""
    last = next(
        (i for i, p in enumerate(read.positions) if str(p) == "last"), len(read.positions) - 1
    )
    parts: dict[tuple[bool, bool], list[Tensor]] = {
        (harmful, refused): [] for harmful in (True, False) for refused in (True, False)
    }
    for name, answers in read.answers.items():
        harmful = name == "harmful" or name.startswith("forbidden")
        judged: tuple[tuple[bool, Verdict], ...] = ((True, "refused"), (False, "complied"))
        for refused, verdict in judged:
            rows = torch.tensor(answers.judged(verdict))
            parts[harmful, refused].append(read.rows[name][:, :, last][rows])
    return {key: torch.cat(found) for key, found in parts.items()}


# --- the map -----------------------------------------------------------------------------------


def map_table(causal: Causal) -> Table:
    """What the direction of every place causes, on the split that selects."""
    found = causal.map
    table = Table(
        "causal_map",
        "Every place's mean difference: ablated everywhere on harmful prompts (bypass: refusal "
        "score; bypass_effect: how much it falls), added at its place on harmless prompts (induce; "
        "induce_effect: how much it rises), and the KL of that ablation on harmless prompts. "
        f"Select split, {found.clean.harmful.shape[0]} harmful and "
        f"{found.clean.harmless.shape[0]} harmless prompts. {POINTWISE} controls: range over "
        f"{len(found.controls.bypass[0])} directions in its place that match it in energy "
        f"(ablation) or norm (addition), at position {found.control_position}. Layer n is the "
        "output of the last block.",
    )
    sides: tuple[tuple[str, Tensor, Resampling, str], ...] = (
        ("bypass", found.scores.bypass, found.sample.harmful, SCORE_UNIT),
        ("bypass_effect", found.bypass(), found.sample.harmful, EFFECT_UNIT),
        ("induce", found.scores.induce, found.sample.harmless, SCORE_UNIT),
        ("induce_effect", found.induce(), found.sample.harmless, EFFECT_UNIT),
        ("kl", found.scores.kl, found.sample.harmless, "nats (prompts)"),
    )
    for metric, scores, sample, unit in sides:
        estimate = estimates(scores, sample)
        for s, site in enumerate(found.candidates.sites):
            for p, position in enumerate(found.candidates.positions):
                table.add(
                    metric,
                    float(estimate.value[p, s]),
                    n=estimate.n,
                    unit=unit,
                    interval=estimate.interval(p, s),
                    position=position,
                    **place(site),
                )
    for score in ("bypass", "induce"):
        null = found.null(score)
        for s, site in enumerate(found.control_sites):
            table.add(
                f"{score}_effect_controls",
                float(null[:, s].mean()),
                n=len(null),
                unit="change in log-odds of a refusal token (controls)",
                interval=(float(null[:, s].min()), float(null[:, s].max())),
                position=found.control_position,
                **place(site),
            )
    return table


def selection_table(causal: Causal) -> Table:
    """Which candidates the filters keep, and how often each is chosen."""
    found, selection = causal.map, causal.selection
    choices = found.choices(selection)
    table = Table(
        "selection",
        f"The published rule, {selection.mode} search: {found.discarded(selection).explain()} "
        f"frequency: share of {len(choices)} resamplings of the select split's prompts in which "
        "the candidate is chosen, from stored per-prompt scores, conditional on the fitted "
        "directions.",
    )
    for p, position in enumerate(selection.candidates.positions):
        for layer in range(len(selection.candidates.sites)):
            share = ((choices[:, 0] == p) & (choices[:, 1] == layer)).double().mean()
            table.add(
                "frequency",
                float(share),
                n=found.sample.harmful.n_units,
                unit="share of resamplings (units)",
                position=position,
                layer=layer,
                chosen=selection.chosen == (p, layer),
            )
    table.add(
        "no_candidate_kept",
        float((choices[:, 0] < 0).double().mean()),
        n=found.sample.harmful.n_units,
        unit="share of resamplings (units)",
    )
    return table


def decay_table(measured: Measured, causal: Causal) -> Table:
    """How alike the directions of neighboring places are, beside the same under permuted labels."""
    vectors = causal.map.candidates.vectors
    null = _permuted_vectors(measured)
    table = Table(
        "decay",
        "Cosine between the mean differences of neighboring layers and positions (streams as "
        "read). controls: 95 % of the same cosines between mean differences under permuted labels "
        f"({len(null)} relabelings, the same at every place): neighbors share most of their "
        "activations, so these are far from 0. Cosines have no interval.",
    )
    sites, positions = causal.map.candidates.sites, causal.map.candidates.positions
    unit = "cosine"
    for stream in dict.fromkeys(place(site)["stream"] for site in sites):
        columns = [i for i, site in enumerate(sites) if place(site)["stream"] == stream]
        for here, there in pairwise(columns):
            for p, position in enumerate(positions):
                _add_cosine(
                    table,
                    "next_layer",
                    vectors[p, here],
                    vectors[p, there],
                    _cosines(null[:, p, here], null[:, p, there]),
                    unit,
                    {**place(sites[here]), "position": position},
                )
        for column in columns:
            for p, position in enumerate(positions[:-1]):
                _add_cosine(
                    table,
                    "next_position",
                    vectors[p, column],
                    vectors[p + 1, column],
                    _cosines(null[:, p, column], null[:, p + 1, column]),
                    unit,
                    {**place(sites[column]), "position": position},
                )
    return table


def _add_cosine(
    table: Table,
    metric: str,
    first: Tensor,
    second: Tensor,
    null: Tensor,
    unit: str,
    at: Mapping[str, Dimension],
) -> None:
    value = float(_cosines(first[None], second[None])[0])
    known = value == value  # a zero direction has no cosine
    table.add(f"cosine_{metric}", value if known else None, n=1, unit=unit, interval=None, **at)
    finite = null[null.isfinite()]
    if known and len(finite):
        low, high = finite.quantile(torch.tensor([0.025, 0.975]).double())
        table.add(
            f"cosine_{metric}_controls",
            float(finite.mean()),
            n=len(finite),
            unit="cosine (relabelings)",
            interval=(float(low), float(high)),
            **at,
        )


def _permuted_vectors(measured: Measured) -> Tensor:
    """Mean differences of the fit split under permuted labels: [draw, position, layer, d_model]."""
    read = measured.read
    pooled = torch.cat([read.rows["harmful"], read.rows["harmless"]]).double()
    n = len(read.rows["harmful"])
    generator = named_generator(measured.seed, "decay")
    drawn: list[Tensor] = []
    for order in label_permutations(len(pooled), 40, generator):
        difference = pooled[order[:n]].mean(0) - pooled[order[n:]].mean(0)
        drawn.append(difference.transpose(0, 1))
    return torch.stack(drawn)


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    a, b = first.double(), second.double()
    return (a * b).sum(-1) / (linalg.vector_norm(a, dim=-1) * linalg.vector_norm(b, dim=-1))


# --- the winner ----------------------------------------------------------------------------------


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
    _add_scores(table, "harmful", done.scores.harmful, sample.harmful, none)
    _add_scores(table, "harmless", done.scores.harmless, sample.harmless, none)
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
        _add_scores(table, "harmful", scores, sample.harmful, at)
        cosine = float(_cosines(winner.refits[i][None], winner.vector[None])[0])
        table.add(
            "cosine_to_winner", cosine, n=1, unit="cosine", interval=None, prompts="harmful", **at
        )
    for added in done.added:
        at = {"form": "add", "dose": added.dose}
        _add_scores(table, "harmless", added.scores, sample.harmless, at)
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
            _add_scores(table, side, outcome.refusal_score, resampling, at)
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
        table.add(
            metric,
            float(drawn.mean()),
            n=len(drawn),
            unit="mean over controls; the interval is their range (controls)",
            interval=(float(drawn.min()), float(drawn.max())),
            prompts=side,
            **at,
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
    table.add(
        metric,
        float(found.value),
        n=found.n,
        unit=f"{unit} (prompts)",
        interval=(float(found.low), float(found.high)),
        prompts=side,
        **at,
    )


def _add_scores(
    table: Table, side: str, scores: Tensor, sample: Resampling, at: Mapping[str, Dimension]
) -> None:
    _add_mean(table, "refusal_score", scores, sample, "log-odds of a refusal token", side, at)


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


def windows_table(winner: Winner) -> Table:
    """The direction ablated in one window of layers alone."""
    found = winner.windows
    table = Table(
        "windows",
        "Fall of the refusal score of harmful prompts when the direction is removed in layers "
        "first to last only (from what enters the window and from what its blocks add), on the "
        f"third split. {POINTWISE} controls: range over {len(found.evaluate) - 1} energy-matched "
        "directions. share: of the effect of ablating in all layers.",
    )
    direction = estimates(found.evaluate[0], winner.evaluate.harmful)
    controls = found.evaluate[1:].mean(1)
    full = float(direction.value[found.tried.index(_whole(found.tried))])
    for column, (first, last) in enumerate(found.tried):
        at: dict[str, Dimension] = {"first": first, "last": last}
        table.add(
            "effect",
            float(direction.value[column]),
            n=direction.n,
            unit=EFFECT_UNIT,
            interval=direction.interval(column),
            **at,
        )
        table.add(
            "share",
            float(direction.value[column]) / full if full > 0 else None,
            n=direction.n,
            unit="share of the effect of all layers (prompts)",
            interval=None,
            **at,
        )
        drawn = controls[:, column]
        table.add(
            "effect_controls",
            float(drawn.mean()),
            n=len(drawn),
            unit="change in log-odds of a refusal token (controls)",
            interval=(float(drawn.min()), float(drawn.max())),
            **at,
        )
    return table


def _whole(tried: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(first for first, _ in tried), max(last for _, last in tried)


def positions_table(winner: Winner) -> Table:
    """The direction ablated at one position's tokens alone."""
    found = winner.windows
    table = Table(
        "positions",
        "Fall of the refusal score of harmful prompts when the direction is removed in every layer "
        f"but at these tokens only, on the third split. {POINTWISE} `prompt` is the instruction.",
    )
    estimate = estimates(found.by_position, winner.evaluate.harmful)
    for column, position in enumerate(found.positions):
        table.add(
            "effect",
            float(estimate.value[column]),
            n=estimate.n,
            unit=EFFECT_UNIT,
            interval=estimate.interval(column),
            position=position,
        )
    return table


def doses_table(winner: Winner) -> Table:
    """Addition at every layer, over a range of doses."""
    n_controls = len(winner.induced.response) - 1
    table = Table(
        "doses",
        "Refusal score with the direction added at one layer's input, all tokens, third split: on "
        "harmless prompts (does it induce refusal?) and, with negative doses, on harmful ones "
        "(does it bypass?). Doses are in mean norms of that layer's residual stream. Layer n is "
        f"the output of the last block: final norm and unembedding alone. {POINTWISE} controls: "
        f"range over {n_controls} energy-drawn directions of the same norm. direct: each layer's "
        "own direction added to the output of the last block, as change of the refusal score.",
    )
    for side, found, sample, sign in (
        ("harmless", winner.induced, winner.evaluate.harmless, 1.0),
        ("harmful", winner.subtracted, winner.evaluate.harmful, -1.0),
    ):
        direction = estimates(found.response[0], sample)
        controls = found.response[1:].mean(1)
        for row, layer in enumerate(winner.dose_layers):
            for column, dose in enumerate(winner.doses):
                at: dict[str, Dimension] = {
                    "prompts": side,
                    "layer": layer,
                    "dose": sign * dose if dose else 0.0,
                }
                table.add(
                    "refusal_score",
                    float(direction.value[row, column]),
                    n=direction.n,
                    unit=SCORE_UNIT,
                    interval=direction.interval(row, column),
                    **at,
                )
                drawn = controls[:, row, column]
                table.add(
                    "refusal_score_controls",
                    float(drawn.mean()),
                    n=len(drawn),
                    unit="log-odds of a refusal token (controls)",
                    interval=(float(drawn.min()), float(drawn.max())),
                    **at,
                )
    direct = estimates(
        winner.induced.direct - winner.clean.harmless[:, None], winner.evaluate.harmless
    )
    for layer in range(winner.induced.direct.shape[1]):
        table.add(
            "direct_logit_effect",
            float(direct.value[layer]),
            n=direct.n,
            unit=EFFECT_UNIT,
            interval=direct.interval(layer),
            prompts="harmless",
            layer=layer,
            dose=winner.doses[len(winner.doses) // 2],
        )
    return table


def writers_table(winner: Winner) -> Table:
    """Which heads and MLPs write the direction, and what ablating the top ones does."""
    found = winner.writers
    table = Table(
        "writers",
        f"What each part adds to the difference of mean projections on the direction at "
        f"{winner.site}, {winner.position} (fit split, harmful − harmless): parts sum to the "
        "whole, direct effects only. Intervals are ±1.96 standard errors, prompts as independent. "
        f"top: the fewest that sum to the share asked for ({len(found.top)}). Rows with a form: "
        "refusal scores on the third split with the top writers ablated at every token (zero, or "
        "set to their harmless mean), and the range over as many other heads and MLPs (of any "
        "kind and with overlap, where the top ones leave too few).",
    )
    shares = found.shares.shares
    total = found.shares.total
    order = shares.sort(descending=True, stable=True).indices
    for i in (int(i) for i in order):
        writer = found.shares.writers[i]
        half = 1.96 * float(found.spread[i]) / abs(total)
        value = float(shares[i])
        table.add(
            "share",
            value,
            n=len(winner.evaluate.harmful_clusters),
            unit="share of the difference of projections (prompts)",
            interval=(value - half, value + half),
            writer=str(writer),
            kind=writer.kind,
            layer=writer.layer,
            top=writer in found.top,
        )
    clean = winner.clean
    gap = clean.harmful.mean() - clean.harmless.mean()
    table.add(
        "score_gap",
        float(gap),
        n=len(clean.harmful),
        unit="harmful − harmless refusal score (prompts)",
        form="none",
    )
    for form in ("zero", "mean"):
        drawn = [a for a in found.ablations if a.form == form]
        mine = [a for a in drawn if a.control is None]
        others = [a for a in drawn if a.control is not None]
        for one in mine:
            for side, scores, sample in (
                ("harmful", one.harmful, winner.evaluate.harmful),
                ("harmless", one.harmless, winner.evaluate.harmless),
            ):
                _add_scores(table, side, scores, sample, {"form": form})
            table.add(
                "score_gap",
                float(one.harmful.mean() - one.harmless.mean()),
                n=len(one.harmful),
                unit="harmful − harmless refusal score (prompts)",
                form=form,
            )
        if others:
            gaps = torch.stack([a.harmful.mean() - a.harmless.mean() for a in others])
            table.add(
                "score_gap_controls",
                float(gaps.mean()),
                n=len(gaps),
                unit="harmful − harmless refusal score (controls)",
                interval=(float(gaps.min()), float(gaps.max())),
                form=form,
            )
            shared = torch.tensor([a.overlap for a in others], dtype=torch.float64)
            table.add(
                "overlap_controls",
                float(shared.mean()),
                n=len(shared),
                unit="share of the top writers (controls)",
                interval=(float(shared.min()), float(shared.max())),
                form=form,
            )
    return table


def second_table(winner: Winner) -> Table:
    """The direction that is refitted in the model with the first one ablated."""
    found = winner.second
    table = Table(
        "second_direction",
        "With the first direction ablated the model runs again, mean differences are refitted "
        "everywhere, and the best by the same filters (without induce) is tried by itself: fall of "
        f"the refusal score on the third split. {POINTWISE} controls: range over directions of its "
        "energy. independence: mean squared change of activations' cosine with the one when the "
        "other is ablated (arXiv:2502.17420); 0 is independent.",
    )
    if found.alone is None or found.both is None or found.controls is None:
        table.add("effect_alone", None, n=0, unit="no refitted direction passes the filters")
        return table
    sample, clean = winner.evaluate.harmful, winner.clean.harmful
    zero = winner.evaluated.cells[0].harmful.refusal_score
    assert zero is not None  # refusal tokens are given
    first = clean - zero
    chosen = found.selection.chosen
    assert chosen is not None
    where: dict[str, Dimension] = {
        "position": found.selection.candidates.positions[chosen[0]],
        "layer": chosen[1],
    }
    for metric, effect in (
        ("effect_first", first),
        ("effect_alone", clean - found.alone),
        ("effect_both", clean - found.both),
    ):
        estimate = estimates(effect, sample)
        table.add(
            metric,
            float(estimate.value),
            n=estimate.n,
            unit=EFFECT_UNIT,
            interval=(float(estimate.low), float(estimate.high)),
            **where,
        )
    drawn = (clean[None] - found.controls).mean(1)
    table.add(
        "effect_controls",
        float(drawn.mean()),
        n=len(drawn),
        unit="change in log-odds of a refusal token (controls)",
        interval=(float(drawn.min()), float(drawn.max())),
        **where,
    )
    if found.independence is not None:
        for name, value in zip(
            ("first_from_second", "second_from_first"), found.independence, strict=True
        ):
            table.add(
                f"independence_{name}",
                value,
                n=len(clean),
                unit="squared change of cosine (prompts)",
                interval=None,
                **where,
            )
    return table


# --- figures and tensors -------------------------------------------------------------------------


def figures(measured: Measured) -> tuple[Figure, ...]:
    """What the page draws of this run."""
    return tuple(_figures(measured))


def _figures(measured: Measured) -> Iterator[Figure]:
    yield Figure(
        id="prompt",
        title="What is read and written",
        caption="The first harmless prompt as the model receives it.",
        kind="tokens",
        table="prompt",
        metric="token",
    )
    streams = list(dict.fromkeys(str(place(site)["stream"]) for site in measured.read.sites))
    sources = list(dict.fromkeys(source for _, source in measured.separation))
    yield Figure(
        id="separation",
        title="Where harmful and harmless prompts separate",
        caption="AUC of held-out projections on the mean difference, by place. Beside it in the "
        "menus: the base model, and words that safety training never saw.",
        kind="heatmap",
        table="separation",
        metric="auc",
        x="layer",
        y="position",
        choose=("model", "source", "stream"),
        start={"model": "model", "source": sources[0], "stream": streams[0]},
        hover=("d_prime", "lexical_auc", "auc_band"),
        limits=(0.5, 1.0),
        x_title="layer",
        y_title="position",
        value_title="AUC",
    )
    causal = measured.causal
    if causal is None:
        return
    yield Figure(
        id="causal_map",
        title="What the direction of each place causes",
        caption="Ablated everywhere (bypass, KL) or added at its place (induce), by where it was "
        "read. Pointwise intervals on hover.",
        kind="heatmap",
        table="causal_map",
        x="layer",
        y="position",
        where={"metric": ["bypass_effect", "induce_effect", "kl", "bypass", "induce"]},
        choose=("metric", "stream"),
        start={"metric": "bypass_effect", "stream": streams[0]},
        hover=("bypass_effect", "induce_effect", "kl"),
        x_title="layer",
        y_title="position",
        value_title="score",
    )
    yield Figure(
        id="causal_by_layer",
        title="Where the direction becomes causal",
        caption="Fall of the refusal score when the direction read at that layer is ablated, by "
        f"position, with the range of its controls ({causal.map.control_position}) in gray.",
        kind="lines",
        table="causal_map",
        metric="bypass_effect",
        where={"stream": "resid_pre", "position": causal.map.control_position},
        x="layer",
        null_metric="bypass_effect_controls",
        reference={"no effect": 0.0},
        x_title="layer",
        y_title="fall of the refusal score (log-odds)",
    )
    yield Figure(
        id="selection",
        title="How sure the choice is",
        caption="Share of resamplings in which each candidate is chosen.",
        kind="heatmap",
        table="selection",
        metric="frequency",
        x="layer",
        y="position",
        limits=(0.0, 1.0),
        x_title="layer",
        y_title="position",
        value_title="share of resamplings",
    )
    yield Figure(
        id="decay",
        title="How alike the directions of neighboring layers are",
        caption="Cosine with the next layer's direction; gray: the same under permuted labels.",
        kind="lines",
        table="decay",
        metric="cosine_next_layer",
        where={"stream": "resid_pre"},
        x="layer",
        choose=("position",),
        start={"position": str(measured.read.positions[-1])},
        null_metric="cosine_next_layer_controls",
        limits=(-1.0, 1.0),
        x_title="layer",
        y_title="cosine",
    )
    if causal.winner is not None:
        yield from _winner_figures(causal.winner)


def _winner_figures(winner: Winner) -> Iterator[Figure]:
    at = f"{winner.position}, {winner.site}"
    yield Figure(
        id="windows",
        title="Which layers carry the effect",
        caption=f"The direction of {at} ablated in layers first to last only, third split.",
        kind="heatmap",
        table="windows",
        x="last",
        y="first",
        where={"metric": ["effect", "share"]},
        choose=("metric",),
        start={"metric": "effect"},
        hover=("effect", "share", "effect_controls"),
        x_title="last layer of the window",
        y_title="first layer",
        value_title="fall of the refusal score",
    )
    yield Figure(
        id="positions",
        title="Which tokens carry the effect",
        caption="The direction ablated in every layer, at these tokens only, third split.",
        kind="bars",
        table="positions",
        metric="effect",
        x="position",
        x_title="position",
        y_title="fall of the refusal score (log-odds)",
    )
    for side, title in (
        ("harmless", "Adding it: how much refuses harmless prompts"),
        ("harmful", "Subtracting it: how much bypasses"),
    ):
        yield Figure(
            id=f"doses_{side}",
            title=title,
            caption="Refusal score by dose (mean norms of the residual stream), one line a layer; "
            "the last is the output of the last block. Third split.",
            kind="lines",
            table="doses",
            metric="refusal_score",
            where={"prompts": side},
            x="dose",
            color="layer",
            reference={"even odds": 0.0},
            x_title="dose",
            y_title="refusal score (log-odds)",
        )
    yield Figure(
        id="writers",
        title="Which parts write the direction",
        caption="Share of the harmful − harmless difference of projections that each head, MLP and "
        "the embeddings add.",
        kind="bars",
        table="writers",
        metric="share",
        x="writer",
        color="kind",
        x_title="",
        y_title="share of the difference",
    )


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
    }
    if causal.winner is not None:
        found |= {
            "direction": causal.winner.vector,
            "direction.refits": causal.winner.refits,
            "windows": causal.winner.windows.evaluate,
            "doses.harmless": causal.winner.induced.response,
            "doses.harmful": causal.winner.subtracted.response,
        }
    return found
