"""Tables of the causal map, the selection and the directions' likeness."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from mechsafety.core.result import Dimension, Table
from mechsafety.core.seeding import named_generator
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.matched_controls import label_permutations
from mechsafety.metrics.resampling import Resampling
from mechsafety.studies.locating.measured import Causal, Measured
from mechsafety.studies.rows import add_estimate, add_range
from mechsafety.studies.samples import estimates
from mechsafety.studies.words import EFFECT, EFFECT_UNIT, POINTWISE, SCORE_UNIT, place


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
        "output of the last block. adjusted_p: of the effect against the "
        "largest of any layer of each control, each layer in units of its spread; no finer than "
        f"{1 / (1 + len(found.controls.bypass[0])):.3g}.",
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
                add_estimate(
                    table, metric, estimate, (p, s), unit, {"position": position, **place(site)}
                )
    for score in ("bypass", "induce"):
        null, search = found.null(score), found.searched(score)
        for s, site in enumerate(found.control_sites):
            table.add(
                f"{score}_effect_adjusted_p",
                float(search.p[s]),
                n=len(null),
                unit="p-value, adjusted for the search over layers (controls)",
                interval=None,
                position=found.control_position,
                **place(site),
            )
            add_range(
                table,
                f"{score}_effect_controls",
                null[:, s],
                EFFECT,
                {"position": found.control_position, **place(site)},
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
                    cosines(null[:, p, here], null[:, p, there]),
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
                    cosines(null[:, p, column], null[:, p + 1, column]),
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
    value = float(cosines(first[None], second[None])[0])
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


def cosines(first: Tensor, second: Tensor) -> Tensor:
    a, b = first.double(), second.double()
    return (a * b).sum(-1) / (linalg.vector_norm(a, dim=-1) * linalg.vector_norm(b, dim=-1))
