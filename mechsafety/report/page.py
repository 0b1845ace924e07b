# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pandas has no complete stubs.
"""Finished records as one self-contained HTML page that works offline and prints.

Everything comes from the records: no statistic is computed here, and what does not fit into a
page is named with the file that holds it. Texts of a record are untrusted: they are escaped, and
the page's policy lets no script run but its own (by hash) and loads nothing from anywhere.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import jinja2
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from mechsafety.core.errors import RecordError
from mechsafety.core.result import Figure, Finding, SpecificationCurve
from mechsafety.records.reading import Run
from mechsafety.records.schema import TENSORS, Manifest, Status
from mechsafety.report import numbers, provenance, sketches, tables, tokens_text
from mechsafety.report.drawing import Drawing, Token
from mechsafety.report.figures import drawing
from mechsafety.report.metric_tables import MetricTable, metric_table, table_names

MAX_POINTS: Final = 120_000
"""Points of all figures of a page together; about 5 MB."""
MAX_ROWS: Final = 40_000
"""Rows of all tables of a page together; about 2 MB."""
_SCRIPTS: Final = ("words.js", "traces.js", "layout.js", "figures.js", "tables.js")


@dataclass(frozen=True)
class ReportInput:
    """All that the page needs of one run; `from_run` reads it from a run folder."""

    manifest: Manifest
    """Study, config, captions, figures, notes and provenance."""
    status: Status
    """As its readers call it: a killed run is `interrupted`."""
    findings: tuple[Finding, ...]
    metrics: pd.DataFrame
    """One row a number, with a column `table`."""
    tensors: Mapping[str, NDArray[Any]]
    """Those that scatter figures draw."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A figure of the page, or why it cannot be drawn."""

    key: str
    """Id in the page."""
    figure: Figure
    drawing: Drawing | None
    fault: str = ""


def from_run(run: Run) -> ReportInput:
    """Read what the page needs; a run that failed early gives a page of what there is."""
    from safetensors import safe_open

    prefixes = tuple(f"{f.tensor}." for f in run.manifest.figures if f.tensor is not None)
    names = [name for name in run.tensor_names() if name.startswith(prefixes)] if prefixes else []
    found: dict[str, NDArray[Any]] = {}
    if names:
        # numpy, because a page of numbers should not take seconds to import torch.
        with safe_open(run.folder / TENSORS, framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in names}
    try:
        metrics = run.metrics()
    except RecordError:
        if run.status == "completed":
            raise
        metrics = pd.DataFrame(columns=["table", "metric", "value", "ci_low", "ci_high", "n"])
    return ReportInput(run.manifest, run.status, run.findings, metrics, found)


def render(runs: Sequence[ReportInput]) -> str:
    """One page of one run, or of several side by side with what differs between them.

    Raises:
        RecordError: No runs.
    """
    if not runs:
        raise RecordError("rendering a report: there are no runs. Give at least one run folder.")
    shown = [_run(run, number, len(runs)) for number, run in enumerate(runs)]
    scripts = [Markup(script) for script in _scripts()]
    return _template().render(
        runs=shown,
        title=shown[0]["title"] if len(shown) == 1 else f"{len(shown)} runs compared",
        comparison=_comparison(runs) if len(runs) > 1 else None,
        scripts=scripts,
        policy=_policy(scripts),
        style=Markup(_text("style.css")),
    )


def _run(run: ReportInput, number: int, of: int) -> dict[str, Any]:
    manifest = run.manifest
    prefix = f"run{number + 1}-"
    count = max(1, len(manifest.figures))
    figures = [
        _figure(figure, run, f"{prefix}figure-{i + 1}", MAX_POINTS // of // count)
        for i, figure in enumerate(manifest.figures)
    ]
    captions = {entry.name: entry.caption for entry in manifest.tables}
    names = table_names(run.metrics)
    per_table = MAX_ROWS // of // max(1, len(names))
    held = [metric_table(run.metrics, name, captions.get(name, ""), per_table) for name in names]
    lead = run.findings[0] if run.findings else None
    title = manifest.config.get("title") or manifest.study.replace("_", " ").capitalize()
    return {
        "prefix": prefix,
        "title": str(title),
        "manifest": manifest,
        "status": run.status,
        "lead": None if lead is None else _finding(lead, ""),
        "tally": tables.tally(run.findings),
        "findings": [
            _finding(finding, f"{prefix}finding-{i + 1}") for i, finding in enumerate(run.findings)
        ],
        "figures": figures,
        "tables": [(f"{prefix}table-{i + 1}", table) for i, table in enumerate(held)],
        "sections": provenance.sections(manifest),
        "stages": provenance.stage_bars(manifest),
        "commands": provenance.commands(manifest),
    }


def _finding(finding: Finding, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "finding": finding,
        "estimate": numbers.estimate(finding.value, finding.ci_low, finding.ci_high),
        "null": tables.null_range(finding),
        "cell": numbers.cell(finding.cell),
        "interval_plot": sketches.interval_plot(finding),
        "specification_plot": sketches.specification_plot(finding),
    }


def _figure(figure: Figure, run: ReportInput, key: str, max_points: int) -> _Shown:
    try:
        return _Shown(key, figure, drawing(figure, run.metrics, run.tensors, max_points))
    except RecordError as error:
        # The other figures and the findings stand; the reader sees which figure is missing, why.
        return _Shown(key, figure, None, str(error))


def _comparison(runs: Sequence[ReportInput]) -> dict[str, Any]:
    """The same findings of several runs, each row on one axis, and the settings that differ."""
    ids = dict.fromkeys(finding.id for run in runs for finding in run.findings)
    rows: list[dict[str, Any]] = []
    for name in ids:
        of_run = [next((f for f in run.findings if f.id == name), None) for run in runs]
        known = [finding for finding in of_run if finding is not None]
        cells = [
            None
            if f is None
            else {
                "finding": f,
                "estimate": numbers.estimate(f.value, f.ci_low, f.ci_high),
                "plot": sketches.interval_plot(f, beside=known),
            }
            for f in of_run
        ]
        rows.append({"id": name, "claim": known[0].claim, "cells": cells})
    return {
        "names": [run.manifest.run for run in runs],
        "rows": rows,
        "differences": provenance.differences([run.manifest for run in runs]),
    }


def _json(value: object) -> Markup:
    """JSON that cannot close its script element, and that every browser reads."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def _figure_json(shown: Drawing) -> Markup:
    return _json(
        {
            "figure": shown.figure.model_dump(mode="json"),
            "choices": [asdict(choice) for choice in shown.choices],
            "panels": {
                key: [asdict(facet) for facet in facets] for key, facets in shown.panels.items()
            },
        }
    )


def _table_json(table: MetricTable) -> Markup:
    return _json(table.packed())


def _marks(token: Token) -> str:
    """The classes of a token that say what happens there."""
    return " ".join(["read"] * bool(token.read) + ["written"] * bool(token.write))


def _text(name: str) -> str:
    return (resources.files("mechsafety.report") / "templates" / name).read_text("utf-8")


@cache
def _scripts() -> tuple[str, ...]:
    own = "\n".join(_text(name) for name in _SCRIPTS)
    return get_plotlyjs().replace("\r\n", "\n"), own


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts, inline styles (plotly's), and no network."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
    )


def _share(curve: SpecificationCurve) -> str:
    return numbers.share(curve.supported, curve.total)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mechsafety.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "figure_json": _figure_json,
        "table_json": _table_json,
        "number": numbers.number,
        "share": _share,
        "visible": tokens_text.visible,
        "said": tokens_text.said,
        "stretches": tokens_text.stretches,
        "marks": _marks,
    }
    environment.filters.update(filters)
    return environment.get_template("page.html")
