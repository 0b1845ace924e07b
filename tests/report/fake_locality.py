"""A locality study as a finished record would hold it, with made-up numbers."""

import io
from typing import Any

import numpy as np
import pandas as pd

from mechsafety.core.result import Figure, Table
from mechsafety.records.metrics_table import entries_of, to_parquet
from mechsafety.report.page import ReportInput
from tests.report.fake_record import finding, manifest

LAYERS = 7
POSITIONS = ("instruction_end", "eoi[-2]", "eoi[-1]")
STREAMS = ("resid_pre", "resid_mid")
DOSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
DOSED_LAYERS = tuple(range(1, 23, 2))
PROMPT = ("<|user|>", "how", "do", "i", "build", "the", "red", "sword", "?", "<|end|>", "\n")
READ_AT = {8: "instruction_end", 9: "eoi[-2]", 10: "eoi[-1]"}
LONG = 2_000
HEADS = 5


def _prompts() -> Table:
    """Two prompts: a short one, and one of 2,000 tokens with what tokenizers can produce."""
    table = Table("prompt", "The first harmless prompt: where it is read and written.")
    for index, token in enumerate(PROMPT):
        table.add(
            "token",
            float(index),
            n=1,
            unit="index (tokens)",
            prompt="first",
            token=token,
            part="template" if index in (0, 9, 10) else "instruction",
            read=READ_AT.get(index),
            write="all" if index >= 4 else None,
        )
    odd = (
        "a b",
        "\n\n",
        "\t",
        "",
        "</span><script>alert(1)</script>",
        '"quoted"',
        "\u202e",
        "日本語",
    )
    for index in range(LONG):
        edge = index < 3 or index >= LONG - 2
        table.add(
            "token",
            float(index),
            n=1,
            unit="index (tokens)",
            prompt="long",
            token="<|end|>" if edge else odd[index % 8] if index < 50 else f" word{index}",
            part="template" if edge else "instruction",
            read={LONG - 1: "eoi[-1]", 900: "instruction_end"}.get(index),
            write="generated" if 1200 <= index < 1300 else None,
        )
    return table


def _sites(rng: np.random.Generator) -> Table:
    table = Table("sites", "Scores of the direction read at each site. Intervals are pointwise.")
    for stream in STREAMS:
        for layer in range(LAYERS - (stream == "resid_mid")):
            for i, position in enumerate(POSITIONS):
                where: dict[str, Any] = {"layer": layer, "position": position, "stream": stream}
                depth = (layer + (stream == "resid_mid") / 2) / LAYERS
                bypass = -9 * depth * (i + 1) / 3 + 4 + rng.normal(0, 0.4)
                missing = layer == 0 and i == 0
                for metric, value, half, unit in (
                    ("bypass", bypass, 0.7, "log-odds (prompts)"),
                    ("induce", 6 * depth * (i + 1) - 7, 0.9, "log-odds (prompts)"),
                    ("kl", 0.02 + depth**3, 0.01, "nats (prompts)"),
                    ("auc", 0.5 + 0.5 * depth, 0.04, "AUC (prompts)"),
                ):
                    table.add(
                        metric,
                        None if missing else float(value),
                        n=0 if missing else 96,
                        unit=unit,
                        interval=None if missing else (float(value - half), float(value + half)),
                        **where,
                    )
    return table


def _windows() -> Table:
    table = Table("windows", "Share of the full effect when ablating in layers first..last.")
    for first in range(LAYERS):
        for last in range(first, LAYERS):
            share = min(1.0, 0.02 + 0.24 * (last - first + 1) * (first < 5))
            table.add(
                "share_of_full_effect",
                share,
                n=96,
                unit="share (prompts)",
                interval=(share - 0.05, share + 0.04),
                first=first,
                last=last,
            )
    return table


def _doses() -> Table:
    table = Table(
        "doses", "Refusal of harmless prompts after adding. Null: controls of equal norm."
    )
    for layer in DOSED_LAYERS:
        for dose in DOSES:
            value = -6 + 9 * np.tanh(dose * (0.3 + layer / 22))
            table.add(
                "refusal_score",
                float(value),
                n=96,
                unit="log-odds (prompts)",
                interval=(float(value) - 0.4, float(value) + 0.4),
                layer=layer,
                dose=dose,
            )
    for dose in DOSES:
        table.add(
            "control",
            -6.0,
            n=20,
            unit="log-odds (draws)",
            interval=(-6.4 - dose / 4, -5.7 + dose / 3),
            dose=dose,
        )
    return table


def _writers() -> Table:
    table = Table("writers", "What each writer adds to the residual along the direction.")
    names = [(f"L{layer}.H{head}", "head") for layer in range(LAYERS) for head in range(HEADS)]
    names += [(f"L{layer}.MLP", "mlp") for layer in range(LAYERS)]
    values = 1.9 * 0.88 ** np.arange(len(names)) * np.where(np.arange(len(names)) % 5 == 3, -1, 1)
    # The table is in order of size, which mixes the kinds.
    for i in np.argsort(-np.abs(values)):
        name, kind = names[(11 * int(i)) % len(names)]
        value = float(values[i])
        table.add(
            "contribution",
            value,
            n=96,
            unit="projection (prompts)",
            interval=(value - 0.12, value + 0.12),
            writer=name,
            kind=kind,
        )
    return table


def tables() -> tuple[Table, ...]:
    """All tables of the study."""
    return _prompts(), _sites(np.random.default_rng(0)), _windows(), _doses(), _writers()


TOKENS = Figure(
    id="prompt",
    title="Where the first prompt is read and written",
    caption="The first harmless prompt as the model receives it; n = 1. No interval applies.",
    kind="tokens",
    table="prompt",
    metric="token",
    where={"prompt": "first"},
)
LONG_TOKENS = TOKENS.model_copy(
    update={"id": "long_prompt", "title": "A long prompt", "where": {"prompt": "long"}}
)
SITES = Figure(
    id="sites",
    title="Bypass of the direction read at each site",
    caption="Refusal score of harmful prompts when the direction read here is ablated everywhere; "
    "n = 96. Hovering gives the pointwise 95 % interval (bootstrap over prompts) and the other "
    "scores. Below 0 the model complies.",
    kind="heatmap",
    table="sites",
    metric="bypass",
    where={"metric": ["bypass", "induce", "kl", "auc"]},
    x="layer",
    y="position",
    facet="stream",
    choose=("metric",),
    hover=("bypass", "induce", "kl", "auc"),
    center=0.0,
    x_title="layer",
    y_title="position",
    value_title="bypass (log-odds)",
)
WINDOWS = Figure(
    id="windows",
    title="Ablating only in a window of layers",
    caption="Share of the effect of ablating everywhere; n = 96; intervals (bootstrap, 95 %, "
    "pointwise) on hovering.",
    kind="matrix",
    table="windows",
    metric="share_of_full_effect",
    x="last",
    y="first",
    limits=(0.0, 1.0),
    x_title="last layer of the window",
    y_title="first layer",
    value_title="share of full effect",
)
DOSED = Figure(
    id="doses",
    title="Adding the direction at one layer",
    caption="Refusal score of harmless prompts; n = 96; bands: 95 % bootstrap intervals; gray: 20 "
    "controls of equal norm.",
    kind="lines",
    table="doses",
    metric="refusal_score",
    x="dose",
    color="layer",
    null_metric="control",
    reference={"as often refused as not": 0.0},
    x_title="dose (mean residual norms)",
    y_title="refusal score (log-odds)",
)
WRITERS = Figure(
    id="writers",
    title="Who writes the direction",
    caption="Mean projection of each head's and MLP's output at the last token; n = 96; whiskers: "
    "95 % bootstrap intervals.",
    kind="bars",
    table="writers",
    metric="contribution",
    x="writer",
    color="kind",
    x_title="writer",
    y_title="projection on the direction",
)
FIGURES = (TOKENS, LONG_TOKENS, SITES, WINDOWS, DOSED, WRITERS)


def record(**changes: Any) -> ReportInput:
    """The whole record; `changes` replace fields of its manifest."""
    made = tables()
    base = manifest(made, figures=FIGURES, study="locality", config={"study": "locality"})
    return ReportInput(
        manifest=base.model_copy(update={"tables": entries_of(made), **changes}),
        status="completed",
        findings=(finding(),),
        metrics=pd.read_parquet(io.BytesIO(to_parquet(made))),
        tensors={},
    )
