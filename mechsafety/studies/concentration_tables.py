"""Tables, figures and stored projections of the concentration study."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mechsafety.core.positions import Position
from mechsafety.core.result import Dimension, Figure, Table
from mechsafety.core.seeding import named_generator
from mechsafety.directions.difference_in_means import difference_in_means
from mechsafety.effects.ablation_matrix import Cell, Controls, Outcome
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.judges.rates import rate_name, rates
from mechsafety.linalg.svd import oriented_svd
from mechsafety.metrics.intervals import Interval, bootstrap_mean
from mechsafety.studies.arms import Arm, ArmView
from mechsafety.studies.attack import Attacked
from mechsafety.studies.concentration_findings import Measured, source_layer
from mechsafety.studies.refusal_proxy import VALID, proxy_auc, proxy_word
from mechsafety.studies.spectra import HARM

_RESAMPLES = 1000


def ablation_table(attacked: Sequence[Attacked], measured: Measured, judge: PhraseJudge) -> Table:
    """Every source ablated in every target, with its energy-matched controls."""
    matrix = measured.matrix
    table = Table(
        "ablation",
        "Arm `source`'s direction (rank 1: mean difference; rank k: top components) ablated in arm "
        f"`target`, on {matrix.n} held-out harmful and harmless prompts each, answers of up to "
        f"{matrix.max_new_tokens} tokens judged by {judge.name}. form zero: removed at every block "
        "input, attention and MLP output; affine: set to the target's harmless mean at block "
        "inputs from the source layer on. Intervals are 95 %, clusters undivided. Rows named "
        f"controls are the range of {matrix.score_draws} (scores) or {matrix.answer_draws} "
        "(rates, diagonal) random subspaces whose ablation removes the same energy; a p-value "
        f"from them resolves no finer than 1/{matrix.score_draws + 1}. form none: the unedited "
        "arm. refusal_score_auc: of the score against the judge's refused, over harmful and "
        "harmless prompts, for the unedited arm and its own ablations, without an interval; the "
        f"column proxy says `proxy unvalidated` below {VALID:g}.",
    )
    for one in attacked:
        at: dict[str, Dimension] = {
            "target": one.arm,
            "source": "none",
            "layer": None,
            "form": "none",
            "rank": None,
        }
        for side, refused in (
            ("harmful", one.baseline.harmful),
            ("harmless", one.baseline.harmless),
        ):
            _add_answers(table, side, refused, measured, judge, at)
        _add_proxy(table, one.baseline.scores, one.baseline.verdicts, at)
        for cell in one.cells:
            _add_cell(table, one.arm, cell, measured, judge)
    return table


def _add_cell(
    table: Table, target: str, cell: Cell, measured: Measured, judge: PhraseJudge
) -> None:
    at: dict[str, Dimension] = {
        "target": target,
        "source": cell.source.arm,
        "layer": source_layer(cell),
        "form": cell.form,
        "rank": cell.source.subspace.k,
    }
    for side, outcome in (("harmful", cell.harmful), ("harmless", cell.harmless)):
        _add_outcome(table, side, outcome, measured, judge, at)
    if cell.controls is not None:
        _add_controls(table, cell.controls, cell.harmful.answers.max_new_tokens, at)
    if cell.source.arm == target:
        sides = (cell.harmful, cell.harmless)
        scores = [side.refusal_score for side in sides if side.refusal_score is not None]
        _add_proxy(
            table,
            torch.cat(scores) if scores else None,
            [verdict for side in sides for verdict in side.answers.verdicts],
            at,
        )


def _add_proxy(
    table: Table,
    scores: Tensor | None,
    verdicts: Sequence[Verdict],
    at: Mapping[str, Dimension],
) -> None:
    """How well the refusal score ranks what the judge calls refused (evidence.md 14)."""
    if scores is None:
        return
    found, n = proxy_auc(scores, verdicts)
    table.add(
        "refusal_score_auc",
        found,
        n=n,
        unit="AUC against the judge's refused (prompts)",
        interval=None,
        proxy=proxy_word(found),
        **at,
    )


def _add_outcome(
    table: Table,
    side: str,
    outcome: Outcome,
    measured: Measured,
    judge: PhraseJudge,
    at: Mapping[str, Dimension],
) -> None:
    _add_answers(table, side, outcome.answers.verdicts, measured, judge, at)
    content = "cross_entropy_of_clean_answers" if outcome.content_is_cross_entropy else "content"
    unit = "nats per token (prompts)" if outcome.content_is_cross_entropy else "share (prompts)"
    numbers = [("kl", outcome.kl, "nats (prompts)"), (content, outcome.content, unit)]
    if outcome.refusal_score is not None:
        numbers.append(("refusal_score", outcome.refusal_score, "log-odds (prompts)"))
    for metric, values, words in numbers:
        known = values[values.isfinite()]
        names = [
            c for c, ok in zip(measured.clusters_of(side), values.isfinite(), strict=True) if ok
        ]
        table.add(
            f"{metric}_{side}",
            float(known.mean()) if len(known) else None,
            n=len(known),
            unit=words,
            interval=_mean_interval(known, names, measured.seed),
            **at,
        )


def _add_answers(
    table: Table,
    side: str,
    verdicts: Sequence[Verdict],
    measured: Measured,
    judge: PhraseJudge,
    at: Mapping[str, Dimension],
) -> None:
    found = rates(verdicts, measured.matrix.max_new_tokens, judge.name, measured.clusters_of(side))
    for rate in (found.refused, found.complied, found.degenerate, found.unparsed):
        table.add(
            f"{rate.name}_{side}",
            rate.value,
            n=rate.n,
            unit="share of answers (prompts)",
            interval=rate.interval,
            **at,
        )


def _add_controls(
    table: Table, controls: Controls, max_new_tokens: int, at: Mapping[str, Dimension]
) -> None:
    refused = rate_name("refused", max_new_tokens)
    drawn = [
        (f"{refused}_harmful_controls", controls.harmful_rate, "share of answers (controls)"),
        (f"{refused}_harmless_controls", controls.harmless_rate, "share of answers (controls)"),
        ("energy_ratio_controls", controls.energy_ratio, "energy over the ablation's (controls)"),
        ("overlap_controls", controls.overlap, "share of the ablated subspace (controls)"),
    ]
    if controls.harmful_score is not None:
        drawn.append(
            ("refusal_score_harmful_controls", controls.harmful_score, "log-odds (controls)")
        )
    for metric, values, unit in drawn:
        if len(values):
            table.add(
                metric,
                float(values.mean()),
                n=len(values),
                unit=unit,
                interval=(float(values.min()), float(values.max())),
                **at,
            )


def _mean_interval(values: Tensor, clusters: Sequence[str], seed: int) -> Interval | None:
    if len(set(clusters)) < 2:
        return None
    generator = named_generator(seed, "means")
    return bootstrap_mean(values, generator, _RESAMPLES, clusters=list(clusters))


def projections(
    views: Sequence[ArmView], layer: int, label_of: Mapping[str, str]
) -> dict[str, Tensor]:
    """The prompts of each arm in two dimensions: along its direction, and across it.

    x: along the mean difference; y: along the strongest component of the pooled activations
    orthogonal to it. In units of the mean activation norm.
    """
    tensors: dict[str, Tensor] = {}
    for view in views:
        at = view.positions.index(Position("last"))
        harmful, harmless = view.pairs.first[:, layer, at], view.pairs.second[:, layer, at]
        both = torch.cat([harmful, harmless]).double()
        unit = difference_in_means(harmful, harmless).double()
        unit = unit / unit.square().sum().sqrt()
        centered = both - both.mean(0)
        along = centered @ unit
        _, across = oriented_svd(centered - along[:, None] * unit, reference=unit)
        scale = both.square().sum(1).sqrt().mean()
        name = f"projection.{label_of[view.arm]}"
        tensors[name] = (torch.stack([along, centered @ across[0]], dim=1) / scale).float()
        tensors[f"{name}.label"] = torch.tensor([1] * len(harmful) + [0] * len(harmless))
    return tensors


def figures(
    measured: Measured, arms: Mapping[str, Arm], seeds: Sequence[int | None], n_pairs: int
) -> tuple[Figure, ...]:
    """The page's figures, as descriptions of the tables."""
    marks = {
        f"{name}: attacked": float(arm.attacked_layer)
        for name, arm in arms.items()
        if arm.attacked_layer is not None
    }
    by_layer = {f"attacked layer {layer:g}": layer for layer in sorted(set(marks.values()))}
    several = seeds[0] is not None
    seed_choice = ("training_seed",) if several else ()
    refusal = rate_name("refused", measured.matrix.max_new_tokens)
    pairing = measured.pairings[0]
    counted = f"{n_pairs} {'twins' if pairing == 'list' else 'prompts a class'}"
    primary = {"contrast": HARM, "rows": "all", "pairing": pairing}
    spectral = {"position": "last", "centering": "uncentered"}
    interval = "Bands are 95 % delete-group jackknife intervals."
    controls = () if not measured.massive else ("channels",)
    channels = {} if measured.massive else {"channels": "all"}
    drawn = [
        Figure(
            id="shares",
            title="Share of the energy in the first two components, by layer",
            caption=f"Harmful − harmless, {counted}, pairing {pairing}. {interval} In-sample is "
            "what papers print; "
            "cross-fitted is measured on held-out rows. Gray: the in-sample share with labels "
            "permuted across pairs, 2.5 % to 97.5 %.",
            kind="lines",
            table="spectra",
            metric="top2_share",
            where={
                **primary,
                **channels,
                "metric": ["top2_share", "cross_fitted_top2_share"],
            },
            null_metric="top2_share_permuted_labels",
            x="layer",
            color="arm",
            choose=("metric", "position", "centering", *controls, *seed_choice),
            start=spectral,
            marks=by_layer,
            limits=(0.0, 1.0),
            x_title="layer whose input is read",
            y_title="share of energy",
        ),
        Figure(
            id="specificity",
            title="Is the concentration about harm? The same share for unrelated contrasts",
            caption="Top-2 share of harmful − harmless beside contrasts that are not about harm: "
            f"as large there, it is not about harm. {interval}",
            kind="lines",
            table="spectra",
            metric="top2_share",
            where={
                "rows": "all",
                "channels": "all",
                "pairing": pairing,
            },
            x="layer",
            color="contrast",
            choose=("arm", "position", "centering", *seed_choice),
            start={**spectral, "arm": _latently_attacked(arms)},
            marks=by_layer,
            limits=(0.0, 1.0),
            x_title="layer whose input is read",
            y_title="share of energy",
        ),
        Figure(
            id="excess",
            title="Excess of the top-2 share over harmless − harmless",
            caption="What is left of the concentration once that between harmless prompts, paired "
            f"with each other at random, is taken off. {interval}",
            kind="lines",
            table="spectra",
            metric="excess_over_harmless_harmless",
            where={**primary, **channels},
            x="layer",
            color="arm",
            choose=("position", "centering", *controls, *seed_choice),
            start=spectral,
            marks=by_layer,
            reference={"not about harm": 0.0},
            x_title="layer whose input is read",
            y_title="difference of shares of energy",
        ),
        Figure(
            id="share_map",
            title="Top-2 share by arm and layer",
            caption=f"The first figure as a map: {counted}. Hover for intervals.",
            kind="heatmap",
            table="spectra",
            metric="top2_share",
            where={**primary, **channels},
            x="layer",
            y="arm",
            choose=("position", "centering", *controls, *seed_choice),
            start=spectral,
            limits=(0.0, 1.0),
            x_title="layer whose input is read",
            value_title="share of energy",
        ),
        Figure(
            id="components",
            title="The first ten components",
            caption=f"In-sample share of each leading component of harmful − harmless, {counted}. "
            "Intervals and nulls are those of the top-2 share above.",
            kind="lines",
            table="components",
            metric="share",
            where={"contrast": HARM, "pairing": pairing},
            x="component",
            color="arm",
            choose=("layer", "position", "centering", *seed_choice),
            start={**spectral, "layer": min(measured.attacked_layer.values())},
            x_title="component",
            y_title="share of energy",
        ),
        Figure(
            id="mechanism",
            title="Where the energy is: the mean shift's share",
            caption="Energy of the mean difference over all energy of the differences: the rest "
            "lies within the pairs. Concentration by a growing mean shift and by a few bursty rows "
            f"are different mechanisms. {counted}; a description, without interval or null.",
            kind="lines",
            table="spectra",
            metric="mean_energy_share",
            where={**primary, **channels, "centering": "uncentered"},
            x="layer",
            color="arm",
            choose=("position", *controls, *seed_choice),
            start={"position": "last"},
            marks=by_layer,
            limits=(0.0, 1.0),
            x_title="layer whose input is read",
            y_title="share of energy",
        ),
        Figure(
            id="ablation",
            title="Self- and cross-ablation: one arm's direction taken out of another",
            caption=f"Rates of {measured.matrix.n} held-out prompts a cell; intervals and "
            "energy-matched controls on hover and in the table `ablation`. A bypass lowers "
            "refusal of harmful prompts and leaves harmless ones alone: look at both.",
            kind="matrix",
            table="ablation",
            metric=f"{refusal}_harmful",
            where={
                "form": list(measured.matrix.forms),
                "metric": [
                    f"{refusal}_harmful",
                    f"{refusal}_harmless",
                    "kl_harmless",
                    *_content_metrics(measured),
                ],
            },
            x="target",
            y="source",
            facet="form",
            choose=("metric", "layer", "rank", *seed_choice),
            hover=(f"{refusal}_harmful_controls", f"{refusal}_harmless_controls", "kl_harmless"),
            x_title="arm that is ablated",
            y_title="arm whose direction it is",
            value_title="value",
        ),
        Figure(
            id="harmless_shift",
            title="Harmless prompts refused under self- and cross-ablation, by form",
            caption="Zero ablation of an arm whose harmless prompts lie far out along the "
            "direction moves them into refusal, which looks like robustness; affine ablation does "
            f"not. {measured.matrix.n} held-out harmless prompts; intervals are Wilson, 95 %.",
            kind="bars",
            table="ablation",
            metric=f"{refusal}_harmless",
            where={"form": list(measured.matrix.forms)},
            x="target",
            color="form",
            choose=("source", "layer", "rank", *seed_choice),
            start={"source": _latently_attacked(arms)},
            limits=(0.0, 1.0),
            x_title="arm that is ablated",
            y_title="share refused",
        ),
        Figure(
            id="projection",
            title="The prompts of each arm, along its direction and across it",
            caption="x: along the mean difference; y: strongest component orthogonal to it; both "
            "in units of the mean activation norm, at the attacked layer, last token. "
            f"{n_pairs} prompts a class; positions are data, without an interval.",
            kind="scatter",
            tensor="projection",
            facet="arm",
            x_title="along the mean difference (mean norms)",
            y_title="across it (mean norms)",
        ),
    ]
    return tuple(one for one in drawn if one.table != "ablation" or measured.attacked)


def _latently_attacked(arms: Mapping[str, Arm]) -> str:
    """The first arm attacked inside, whose specificity is the question; else the first arm."""
    inside = [name for name, arm in arms.items() if arm.attacked_layer]
    return (inside or list(arms))[0]


def _content_metrics(measured: Measured) -> tuple[str, ...]:
    cells = [cell for one in measured.attacked.values() for cell in one.cells]
    by_ce = any(cell.harmless.content_is_cross_entropy for cell in cells)
    return (
        ("cross_entropy_of_clean_answers_harmless",)
        if by_ce
        else (
            "content_harmful",
            "content_harmless",
        )
    )
