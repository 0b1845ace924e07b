"""A run in words, on one screen of a terminal."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mechsafety.core.result import Finding
from mechsafety.records.compare import Compared, Comparison, Difference
from mechsafety.records.completions import AnswersCompared
from mechsafety.records.listing import RunSummary
from mechsafety.records.reading import Run

if TYPE_CHECKING:
    from mechsafety.execution.rejudging import Rejudged
    from mechsafety.models.probe_report import Probe

_WIDTH = 100
_SHOWN = 16
"""Differences of environments on a screen."""


def describe(run: Run, full: bool = False) -> str:
    """Status, findings and where everything lies; one line a finding unless `full`."""
    manifest = run.manifest
    took = "" if manifest.seconds is None else f", {manifest.seconds:.0f} s"
    lines = [f"{manifest.study} {manifest.run}: {run.status} ({manifest.opened}{took})"]
    lines.append(f"  config {manifest.config_sha256[:8]}, seed {manifest.seed}, {_code(run)}")
    lines += [_wrapped(line, "  ") for line in _circumstances(run)]
    lines.append("")
    if full or not run.findings:
        lines.append(describe_findings(run.findings))
    else:
        width = max(len(finding.id) for finding in run.findings)
        lines += [_finding_line(finding, width) for finding in run.findings]
        lines.append("--full says what each claims, and why its verdict is so.")
    if manifest.tables:
        lines.append("")
        named = ", ".join(f"{t.name} ({t.rows})" for t in manifest.tables)
        lines.append(_wrapped(f"tables: {named}", ""))
    lines += [_wrapped(note, "") for note in manifest.notes]
    lines.append(f"{run.folder if run.report is None else run.report}")
    return "\n".join(lines)


def _circumstances(run: Run) -> list[str]:
    """Models, machine, time, ancestry and what went wrong: a line each, where there is any."""
    manifest = run.manifest
    environment = manifest.environment
    lines = [f"models: {', '.join(manifest.models)}"] if manifest.models else []
    lines.append(
        f"on {environment.hardware.get('cpu', environment.platform)}, "
        f"{environment.threads.get('torch')} thread(s), torch {environment.packages.get('torch')}"
    )
    if manifest.stages:
        told = [f"{one.name} {one.seconds:.0f}" for one in manifest.stages if one.seconds >= 0.5]
        cached = sum(job.cached for stage in manifest.stages for job in stage.jobs)
        jobs = sum(len(stage.jobs) for stage in manifest.stages)
        done = f"; {cached} of {jobs} jobs were done before" if jobs else ""
        lines.append(f"seconds: {', '.join(told) or 'under 1'}{done}")
    if manifest.replay_of is not None:
        lines.append(f"replay of {manifest.replay_of.run}")
    if manifest.sessions:
        lines.append(f"resumed {len(manifest.sessions)} times")
    if manifest.private:
        lines.append(f"private: {', '.join(manifest.private)}")
    if manifest.error is not None:
        lines.append(f"{manifest.error.kind}: {manifest.error.message}")
    return lines


def _finding_line(finding: Finding, width: int) -> str:
    line = f"{finding.verdict.upper():<13} {finding.id:<{width}}"
    if finding.value is None:
        return f"{line}  not measured"
    return f"{line}  {_numbers(finding)}"


def _numbers(finding: Finding) -> str:
    ends = f"[{_number(finding.ci_low)}, {_number(finding.ci_high)}]"
    null = f"[{_number(finding.null_low)}, {_number(finding.null_high)}]"
    return f"{_number(finding.value)} {ends}, null {null}"


def describe_findings(findings: Sequence[Finding]) -> str:
    """Each finding: verdict, claim, numbers, and the sentence that explains them."""
    if not findings:
        return "no findings"
    return "\n".join(_finding(finding) for finding in findings)


def _finding(finding: Finding) -> str:
    lines = [f"{finding.verdict.upper():<13} {finding.id} [{finding.scope}]"]
    lines.append(_wrapped(finding.claim, "    "))
    if finding.value is not None:
        lines.append(
            f"    {_numbers(finding)}, margin {finding.margin:.4g}, n = {finding.n} "
            f"({finding.unit})"
        )
    lines.append(_wrapped(finding.explanation, "    "))
    if finding.specification is not None:
        curve = finding.specification
        lines.append(f"    {curve.supported} of {curve.total} legal choices support it")
    lines += [_wrapped(note, "    ") for note in finding.notes]
    return "\n".join(lines)


def _code(run: Run) -> str:
    git = run.manifest.environment.git
    if git.commit is None:
        return f"code {run.manifest.environment.code_sha256[:8]} (no git)"
    return f"commit {git.commit[:8]}{' with uncommitted changes' if git.dirty else ''}"


def describe_runs(runs: Sequence[RunSummary]) -> str:
    """One line a run."""
    if not runs:
        return "no runs"
    return "\n".join(
        f"{run.status:<12} {run.opened[:19]:<19} "
        f"{'' if run.seconds is None else f'{run.seconds:.0f} s':>8}  {run.folder}"
        for run in runs
    )


def summary_json(run: Run) -> dict[str, Any]:
    """What `--json` says about a run: findings in full, the rest by name."""
    manifest = run.manifest
    return {
        "run": str(run.folder),
        "study": manifest.study,
        "status": run.status,
        "opened": manifest.opened,
        "seconds": manifest.seconds,
        "seed": manifest.seed,
        "config": manifest.config,
        "config_sha256": manifest.config_sha256,
        "declared_sha256": manifest.declared_sha256,
        "models": {name: used.model_dump(mode="json") for name, used in manifest.models.items()},
        "findings": [finding.model_dump(mode="json") for finding in run.findings],
        "tables": {entry.name: entry.rows for entry in manifest.tables},
        "notes": list(manifest.notes),
        "error": None if manifest.error is None else manifest.error.model_dump(mode="json"),
        "report": None if run.report is None else str(run.report),
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def describe_probes(probes: "Sequence[Probe]") -> str:
    """One line a probe, and what it found beneath."""
    width = max((len(probe.name) for probe in probes), default=0)
    return "\n".join(
        f"{'passed' if probe.passed else 'FAILED':<8}{probe.name:<{width}}  {probe.value:<10.3g} "
        f"at most {probe.tolerance:g}\n{_wrapped(probe.detail, '        ')}"
        for probe in probes
    )


def describe_comparison(found: Comparison) -> str:
    """Same or different; the first of each sort that differs; and what the environments explain."""
    lines = [_judgment(found)]
    for name, part in (
        ("job results", found.stages),
        ("rows", found.rows),
        ("tensors", found.tensors),
        ("findings", found.findings),
        ("facts beside numbers", found.described),
    ):
        lines += _compared(name, part)
    lines += _answers_compared(found.answers)
    if found.environment:
        lines.append("environments differ in:")
        lines += [
            _wrapped(f"{one.kind}: {one.name} was {_short(one.before)}, is {_short(one.now)}", "  ")
            for one in found.environment[:_SHOWN]
        ]
        if len(found.environment) > _SHOWN:
            lines.append(f"  and {len(found.environment) - _SHOWN} more (--json has all)")
    return "\n".join(lines)


def _judgment(found: Comparison) -> str:
    if not found.same:
        return "DIFFERENT" if found.exact else "DIFFERENT beyond what the study tolerates"
    return "SAME, bit for bit" if found.exact else "SAME within what the study tolerates elsewhere"


def _compared(name: str, part: Compared) -> list[str]:
    if not part.differences:
        return [f"  {part.n} {name}: equal"]
    beyond = sum(not one.allowed for one in part.differences)
    counts = f"{len(part.differences)} differences, {beyond} beyond tolerance"
    lines = [f"  {part.n} {name}: {counts}"]
    first: Difference | None = part.first
    if first is not None:
        told = f"first: {first.where}: {first.what} was {first.before}, is {first.now}"
        lines.append(_wrapped(told, "    "))
    return lines


def _answers_compared(found: AnswersCompared | None) -> list[str]:
    if found is None:
        return ["  answers: not kept by both (completions: local keeps them)"]
    lines = [
        f"  {found.n} answers: {len(found.diverged)} diverge, {len(found.flips)} verdicts flip"
        + (f", {found.only_in_one} are in one record only" if found.only_in_one else "")
    ]
    for one in found.diverged[:3]:
        where = ", ".join(f"{name}={value}" for name, value in one.at.items())
        token = "" if one.token is None else f" at new token {one.token}"
        lines.append(_wrapped(f"{where}: parts{token}; {one.before}, then {one.now}", "    "))
    return lines


def _short(value: object) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def describe_rejudged(found: "Rejudged") -> str:
    """How many verdicts flip, and the refusals of each group before and now."""
    lines = [
        f"{found.n} answers, judged in the run by {found.own_judge} and now by {found.judge}: "
        f"{len(found.flips)} verdicts flip"
    ]
    for group in found.groups:
        where = ", ".join(f"{name}={value}" for name, value in group.at.items())
        ends = f" [{_number(group.ci_low)}, {_number(group.ci_high)}]"
        lines.append(_wrapped(where, "  "))
        lines.append(
            f"    refused {group.refused_before}/{group.n}, now {group.refused}/{group.n}, "
            f"rate {_number(group.rate)}{ends}"
        )
    lines.append(str(found.path))
    return "\n".join(lines)
