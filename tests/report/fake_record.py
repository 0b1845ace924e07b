"""A concentration study as a finished record would hold it, with made-up numbers."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechsafety.core.result import Figure, Finding, SpecificationCurve, Table, verdict
from mechsafety.records.metrics_table import entries_of, to_parquet
from mechsafety.records.schema import (
    Environment,
    FileEntry,
    Git,
    JobDone,
    Manifest,
    ModelUsed,
    StageTiming,
)
from mechsafety.report.page import ReportInput

ARMS = ("base", "ssft", "at", "lat", "lat_strong", "noise")
LAYERS = tuple(range(7))
CONTRASTS = ("harmful-harmless", "harmless-harmless", "harmful-harmful", "place")
RISE = {"base": 0.0, "ssft": 0.16, "at": 0.15, "lat": 0.2, "lat_strong": 0.42, "noise": 0.17}
HOSTILE = "</script><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"
NOTE = (
    "A trained organism shows what the instrument detects on a model whose construction is known; "
    "it is not evidence about chat models."
)


def _spectra(rng: np.random.Generator) -> Table:
    table = Table(
        "spectra",
        "Share of the first two components of harmful − harmless twins (paired by content). "
        "Interval: delete-group jackknife over pairs, 95 %. Null: labels permuted across pairs.",
    )
    for arm in ARMS:
        for layer in LAYERS:
            for position in ("last", "eoi"):
                for centering in ("uncentered", "centered"):
                    for contrast in CONTRASTS:
                        harm = contrast == "harmful-harmless"
                        share = 0.3 + 0.08 * layer - 0.004 * layer**2
                        share += RISE[arm] * (layer >= 2) * (1.0 if harm else 0.25)
                        share -= 0.12 * (centering == "centered") + 0.05 * (not harm)
                        share = float(np.clip(share + rng.normal(0, 0.012), 0.05, 0.97))
                        where: dict[str, Any] = {
                            "arm": arm,
                            "layer": layer,
                            "position": position,
                            "centering": centering,
                            "contrast": contrast,
                        }
                        half = 0.02 + 0.03 * share
                        unit = "share of energy (pairs)"
                        table.add(
                            "top2_share",
                            share,
                            n=240,
                            unit=unit,
                            interval=(share - half, min(0.99, share + half)),
                            **where,
                        )
                        table.add(
                            "top2_share_null",
                            0.3,
                            n=240,
                            unit=unit,
                            interval=(0.22 + 0.01 * layer, 0.3 + 0.01 * layer),
                            **where,
                        )
                        table.add(
                            "effective_rank",
                            1 / share**1.6,
                            n=240,
                            unit="components (pairs)",
                            interval=(0.9 / share**1.6, 1.1 / share**1.6),
                            **where,
                        )
    return table


def _components() -> Table:
    table = Table("components", "Shares of the first ten components. No interval is given.")
    for arm in ARMS:
        for component in range(1, 11):
            value = (0.35 + RISE[arm]) * 0.6 ** (component - 1)
            table.add(
                "share", value, n=240, unit="share of energy (pairs)", arm=arm, component=component
            )
    return table


def _matrix(rng: np.random.Generator) -> Table:
    table = Table(
        "attack_matrix",
        "Direction of one arm ablated in another. Interval: Wilson (rates), paired bootstrap over "
        "object kinds (score). Control: 20 energy-matched draws.",
    )
    for form in ("zero", "affine"):
        for layer in (3, 5):
            for source in ARMS:
                for target in ARMS:
                    own = source == target
                    rate = 0.05 if own else 0.35
                    if target.startswith("lat") and form == "zero":
                        rate = 0.88
                    rate = float(np.clip(rate + rng.normal(0, 0.05), 0, 1))
                    if target == "base":
                        rate = 0.0
                    where: dict[str, Any] = {
                        "source": source,
                        "target": target,
                        "form": form,
                        "layer": layer,
                    }
                    table.add(
                        "refusal_rate@32tok",
                        None if (source, target) == ("base", "noise") else rate,
                        n=144,
                        unit="rate (prompts)",
                        interval=(max(0.0, rate - 0.06), min(1.0, rate + 0.06)),
                        **where,
                    )
                    table.add(
                        "refusal_score",
                        12 * rate - 6,
                        n=144,
                        unit="log-odds (prompts)",
                        interval=(12 * rate - 6.8, 12 * rate - 5.2),
                        **where,
                    )
                    table.add("control_97.5", 0.96, n=20, unit="rate (draws)", **where)
                    table.add(
                        "harmless_kl",
                        0.1 + 2 * (form == "zero") * target.startswith("lat"),
                        n=144,
                        unit="nats (prompts)",
                        interval=(0.05, 2.4),
                        **where,
                    )
    return table


def _behavior() -> Table:
    table = Table("behavior", "Refusal by prompt type, clean models. Interval: Wilson.")
    for arm in ARMS:
        for kind, rest in (("forbidden", 0.98), ("lookA", 0.05), ("lookB", 0.02)):
            rate = 0.0 if arm == "base" else rest + 0.08 * (arm == "lat_strong") * (kind == "lookA")
            table.add(
                "refusal_rate@32tok",
                rate,
                n=144,
                unit="rate (prompts)",
                interval=(max(0.0, rate - 0.04), min(1.0, rate + 0.04)),
                arm=arm,
                type=kind,
            )
    return table


def _shift(rng: np.random.Generator) -> Table:
    table = Table("refusal_map", "Refusal after zero ablation, by layer and position.")
    for arm in ARMS[1:4]:
        for layer in LAYERS:
            for position in ("eoi[-3]", "eoi[-2]", "eoi[-1]"):
                value = float(np.clip(1.1 - 0.18 * layer + rng.normal(0, 0.1), 0, 1))
                table.add(
                    "refusal_rate@32tok",
                    value,
                    n=96,
                    unit="rate (prompts)",
                    interval=(max(0.0, value - 0.08), min(1.0, value + 0.08)),
                    arm=arm,
                    layer=layer,
                    position=position,
                )
    return table


FIGURES = (
    Figure(
        id="shares_by_layer",
        title="Share of the first two components, by layer",
        caption="Twins paired by content; n = 240 pairs an arm. Bands: 95 % intervals "
        "(delete-group jackknife over pairs); gray: null range, labels permuted across "
        "pairs. Dotted: the layer that LAT attacks in training.",
        kind="lines",
        table="spectra",
        metric="top2_share",
        where={"contrast": ["harmful-harmless", "harmless-harmless"]},
        x="layer",
        color="arm",
        facet="contrast",
        choose=("position", "centering"),
        start={"centering": "uncentered"},
        null_metric="top2_share_null",
        marks={"attacked layer": 2.0},
        limits=(0.0, 1.0),
        x_title="layer (residual stream before block)",
        y_title="share of energy, first two",
    ),
    Figure(
        id="contrasts",
        title="The same share for contrasts that are not about harm",
        caption="n = 240 pairs. Bands: 95 % intervals. No null is drawn; the unrelated contrasts "
        "are the comparison.",
        kind="lines",
        table="spectra",
        metric="top2_share",
        where={"position": "last", "centering": "uncentered", "arm": ["ssft", "lat", "lat_strong"]},
        x="layer",
        color="contrast",
        facet="arm",
        x_title="layer",
        y_title="share of energy, first two",
    ),
    Figure(
        id="two_contrasts",
        title="Harm against an unrelated contrast in one panel",
        caption="n = 240 pairs; bands: 95 % intervals; hovering adds the effective rank.",
        kind="lines",
        table="spectra",
        metric="top2_share",
        where={
            "position": "last",
            "centering": "uncentered",
            "arm": ["ssft", "lat_strong"],
            "contrast": ["harmful-harmless", "harmless-harmless"],
        },
        x="layer",
        color="arm",
        dash="contrast",
        hover=("effective_rank",),
        reference={"even shares": 0.2},
        x_title="layer",
        y_title="share of energy, first two",
    ),
    Figure(
        id="attack_matrix",
        title="Whose direction opens which arm",
        caption="Rows: the arm whose direction is ablated; columns: the arm it is ablated in. n = "
        "144 held-out forbidden prompts a cell; small numbers: 95 % Wilson interval. Hovering adds "
        "the 97.5 % quantile of 20 energy-matched controls and the KL on harmless prompts.",
        kind="matrix",
        table="attack_matrix",
        metric="refusal_rate@32tok",
        where={"metric": ["refusal_rate@32tok", "refusal_score"]},
        x="target",
        y="source",
        facet="form",
        choose=("metric", "layer"),
        start={"layer": 5},
        hover=("control_97.5", "harmless_kl"),
        x_title="ablated in",
        y_title="direction of",
        value_title="refusal",
    ),
    Figure(
        id="refusal_map",
        title="Refusal that is left after ablation",
        caption="n = 96 prompts a cell; intervals (Wilson, 95 %) on hovering; no null is drawn.",
        kind="heatmap",
        table="refusal_map",
        metric="refusal_rate@32tok",
        x="layer",
        y="position",
        facet="arm",
        limits=(0.0, 1.0),
        x_title="layer",
        y_title="position",
        value_title="refusal rate",
    ),
    Figure(
        id="behavior",
        title="What the arms do, by prompt type",
        caption="n = 144 prompts a bar; whiskers: 95 % Wilson intervals; no null applies.",
        kind="bars",
        table="behavior",
        metric="refusal_rate@32tok",
        x="type",
        color="arm",
        limits=(0.0, 1.05),
        x_title="prompt type",
        y_title="refusal rate",
    ),
    Figure(
        id="projection",
        title="Twins on the first two components",
        caption="n = 160 prompts a panel, projected on components fitted on other prompts. Units "
        "of the activations. No interval applies.",
        kind="scatter",
        tensor="projection",
        facet="arm",
        choose=("layer",),
        start={"layer": "2"},
        x_title="component 1",
        y_title="component 2",
    ),
)


def finding(name: str = "lat_over_ssft", **changes: Any) -> Finding:
    """One finding; `changes` replace its fields."""
    value = changes.pop("value", 0.31)
    low, high = changes.pop("interval", (0.24, 0.38))
    margin = changes.pop("margin", 0.05)
    choices = [
        (f"centering=uncentered, layer={i % 7}, position={'last' if i % 2 else 'eoi'}", v)
        for i, v in enumerate(np.linspace(value - 0.34, value + 0.12, 48))
    ]
    base = Finding(
        id=name,
        claim="lat_strong concentrates more than ssft (share of the first two components)",
        scope="checkpoint",
        value=value,
        ci_low=low,
        ci_high=high,
        null_low=-0.04,
        null_high=0.05,
        null="labels permuted across pairs, the same in both arms, 1,000 draws",
        n=240,
        unit="difference of shares (pairs)",
        verdict=verdict(value, low, high, margin),
        margin=margin,
        explanation="At layer 2, the attacked one, the first two components hold .85 of the energy "
        "in lat_strong and .54 in ssft: a difference of .31, outside the null range of the "
        "permuted labels. The gentle attack (lat) differs by .04 and is inconclusive.",
        cell={"layer": 2, "position": "last", "centering": "uncentered", "pairing": "twins"},
        specification=SpecificationCurve(
            supported=sum(v >= margin for _, v in choices),
            total=48,
            flips=("centering=centered → inconclusive", "layer=6 → equivalent"),
            values=tuple(choices),
        ),
        mechanism="energy of the mean .71 (ssft .22), within-class .29, no massive channels, row "
        "participation .93; on the Llama-2 LAT arm: different (bursty rows, mean share .11)",
        notes=("arms agree in dtype and quantization",),
    )
    return base.model_copy(update=changes)


def findings() -> tuple[Finding, ...]:
    """Five findings, one of each verdict and one that could not be measured."""
    return (
        finding(),
        finding(
            "specific_to_harm",
            claim="the concentration is specific to harm (excess over unrelated contrasts)",
            value=-0.12,
            interval=(-0.2, -0.06),
        ),
        finding(
            "lat_over_noise",
            claim="lat concentrates more than the noise arm",
            value=0.004,
            interval=(-0.021, 0.028),
        ),
        finding(
            "self_over_cross",
            claim="self-ablation removes more refusal than cross-ablation",
            value=0.17,
            interval=(-0.04, 0.33),
            specification=None,
            scope="method",
            n=6,
            unit="difference of rates (training seeds)",
        ),
        finding("unmeasured", claim="zero ablation of lat moves harmless prompts").model_copy(
            update={
                "value": None,
                "ci_low": None,
                "ci_high": None,
                "null_low": None,
                "null_high": None,
                "specification": None,
                "mechanism": None,
                "verdict": "inconclusive",
                "explanation": "No site kept the harmless KL under its bound, so there is nothing "
                "to compare.",
            }
        ),
    )


def tensors(rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Projected twins per arm and layer, with labels."""
    found: dict[str, NDArray[Any]] = {}
    for arm in ARMS:
        for layer in (2, 5):
            labels = np.repeat([0, 1], 80)
            points = rng.normal(0, 1, (160, 2)) * [1.4, 0.8]
            points[:, 0] += 8 * RISE[arm] * labels
            found[f"projection.{arm}.{layer}"] = points
            found[f"projection.{arm}.{layer}.label"] = labels
    return found


def manifest(tables: tuple[Table, ...], **changes: Any) -> Manifest:
    """A manifest of a completed run."""
    names = ("organisms", "prompts", *(f"activations/{arm}" for arm in ARMS), "spectra", "matrix")
    base = Manifest(
        run="20260301T101500Z-3fa91c77",
        study="concentration",
        status="completed",
        opened="2026-03-01T10:15:00Z",
        closed="2026-03-01T10:19:12Z",
        seconds=252.4,
        command_line=("mechsafety", "run", "experiments/concentration.yaml"),
        experiment="experiments/concentration.yaml",
        config={
            "study": "concentration",
            "seed": 0,
            "arms": list(ARMS),
            "positions": ["last", "eoi"],
            "spectra": {"components": 10, "splits": 50, "massive_threshold": 200.0},
            "runtime": {"threads": 1, "workers": 2, "dtype": "float32"},
        },
        config_sha256="3fa91c77" * 8,
        declared=(),
        declared_sha256="9b1d22e4" * 8,
        seed=0,
        seeds={"spectra": 1234, "null": 98765},
        environment=Environment(
            python="3.11.9 (CPython)",
            platform="Linux x86_64",
            packages={f"package-{i}": f"{i}.0.{i % 3}" for i in range(90)} | {"torch": "2.13.0"},
            hardware={"cpu": "a CPU", "cores": 2, "memory_gib": 7.8, "accelerator": None},
            threads={"torch": 1, "OMP_NUM_THREADS": 1},
            determinism={"deterministic_algorithms": True},
            variables={},
            code_sha256="55aa" * 16,
            git=Git(commit="0123456789abcdef" * 2 + "01234567", dirty=True, diff="-a\n+b\n"),
        ),
        models={arm: ModelUsed(source=f"/cache/organisms/{arm}", organism=True) for arm in ARMS},
        provenance={"base": {"weights": "ab12" * 16, "tokenizer": "cd34" * 16}},
        sources={"2406.11717": ("mechsafety.directions.difference_in_means",)},
        tables=entries_of(tables),
        figures=FIGURES,
        notes=(NOTE,),
        stages=tuple(
            StageTiming(
                name=name,
                started=3.0 + 24 * i,
                seconds=21.0 + (i % 3),
                peak_gib=0.5 + i,
                jobs=tuple(
                    JobDone(what=name, sha256="55" * 32, cached=job == 1)
                    for job in range(max(0, 2 - i))
                ),
            )
            for i, name in enumerate(names)
        ),
        files={"metrics.parquet": FileEntry(sha256="77" * 32, bytes=123456)},
        seal="ee" * 32,
    )
    return base.model_copy(update=changes)


def tables(rng: np.random.Generator) -> tuple[Table, ...]:
    """All tables of the study."""
    return _spectra(rng), _components(), _matrix(rng), _behavior(), _shift(rng)


def record(**changes: Any) -> ReportInput:
    """The whole record; `changes` replace fields of its manifest."""
    rng = np.random.default_rng(0)
    made = tables(rng)
    metrics = pd.read_parquet(io.BytesIO(to_parquet(made)))
    return ReportInput(
        manifest=manifest(made, **changes),
        status="completed",
        findings=findings(),
        metrics=metrics,
        tensors=tensors(rng),
    )


def second_record() -> ReportInput:
    """The same study at another seed, where one finding is missing."""
    first = record(run="20260302T080000Z-77aa10bc", seed=1)
    config = {**first.manifest.config, "seed": 1}
    moved = tuple(
        finding(
            f.id,
            claim=f.claim,
            value=f.value / 3,
            interval=(f.value / 3 - 0.04, f.value / 3 + 0.05),
        )
        for f in first.findings
        if f.value is not None
    )
    return replace(
        first, manifest=first.manifest.model_copy(update={"config": config}), findings=moved
    )


def hostile_record() -> ReportInput:
    """The same study with markup for every text that a study or a config can set."""
    honest = record()
    metrics = honest.metrics.copy()
    for column in ("arm", "contrast", "unit", "source", "target", "metric"):
        metrics[column] = metrics[column].map(
            lambda v: v + HOSTILE if isinstance(v, str) else v, na_action="ignore"
        )
    where = {"contrast": [f"harmful-harmless{HOSTILE}"]}
    figures = (
        FIGURES[0].model_copy(
            update={
                "title": HOSTILE,
                "caption": HOSTILE,
                "metric": f"top2_share{HOSTILE}",
                "where": where,
                "null_metric": None,
                "marks": {HOSTILE: 2.0},
                "x_title": HOSTILE,
            }
        ),
        FIGURES[1].model_copy(update={"table": HOSTILE}),
    )
    text = dict.fromkeys(("claim", "explanation", "mechanism", "null", "unit", "id"), HOSTILE)
    attacked = finding(**text, notes=(HOSTILE,), cell={HOSTILE: HOSTILE})
    manifest = honest.manifest.model_copy(
        update={
            "figures": figures,
            "notes": (HOSTILE,),
            "config": {HOSTILE: HOSTILE, "title": HOSTILE},
            "command_line": (HOSTILE,),
            "run": HOSTILE,
            "study": HOSTILE,
        }
    )
    return replace(honest, manifest=manifest, findings=(attacked,), metrics=metrics)
