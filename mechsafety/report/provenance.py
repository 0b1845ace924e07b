"""What a manifest says about a run, as sections of names and values."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from mechsafety.records.schema import Manifest, StageTiming
from mechsafety.report.numbers import label


@dataclass(frozen=True, slots=True)
class Section:
    """A group of facts that a reader opens together."""

    title: str
    rows: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class StageBar:
    """One stage on the run's time line."""

    name: str
    seconds: float
    left: float
    """Start, in percent of the time line."""
    width: float
    """Length, in percent."""
    memory: str
    """Most that one process held, such as `0.62 GiB`; empty in older records."""
    jobs: str
    """Such as `6 jobs, 2 done before`."""


def sections(manifest: Manifest) -> list[Section]:
    """Everything that decides what was computed, grouped; empty groups are left out."""
    found = manifest.environment
    git = found.git
    diff = f"{len(git.diff.splitlines()):,} lines, in manifest.json" if git.diff else ""
    run = {
        "run": manifest.run,
        "opened (UTC)": manifest.opened,
        "closed (UTC)": manifest.closed,
        "duration": None if manifest.seconds is None else f"{manifest.seconds:.1f} s",
        "command line": shlex.join(manifest.command_line),
        "experiment": manifest.experiment,
        "replay of": None if manifest.replay_of is None else manifest.replay_of.run,
        "resumed": f"{len(manifest.sessions)} times" if manifest.sessions else None,
    }
    code = {
        "git commit": git.commit or git.note or "unknown",
        "uncommitted changes": diff or ("yes" if git.dirty else "none"),
        "untracked files": len(git.untracked) or None,
        "sha256 of the package's code": found.code_sha256,
        "python": found.python,
    }
    hashes = {
        "config": manifest.config_sha256,
        "declared findings": manifest.declared_sha256,
        **{f"file {name}": entry.sha256 for name, entry in manifest.files.items()},
        "seal of the manifest": manifest.seal,
    }
    machine = {
        "platform": found.platform,
        **found.hardware,
        **{f"threads: {name}": value for name, value in found.threads.items()},
        **{f"determinism: {name}": value for name, value in found.determinism.items()},
        **found.variables,
    }
    models = {
        name: used.source + (" (trained by mechsafety)" if used.organism else "")
        for name, used in manifest.models.items()
    }
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Run", run),
        ("Configuration, filled in", manifest.config),
        ("Seeds", {"seed": manifest.seed, **manifest.seeds}),
        ("Code", code),
        ("Machine", machine),
        ("Models", models),
        ("Prompts, tokens, weights, templates", manifest.provenance),
        ("Hashes (SHA-256)", hashes),
        ("Sources of the methods", manifest.sources),
        ("Packages", found.packages),
    ]
    filled = (Section(title, list(flatten(values))) for title, values in groups)
    return [section for section in filled if section.rows]


def flatten(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as `outer.inner` and text; what is None or empty is left out."""
    if isinstance(value, Mapping):
        for name, inner in cast("Mapping[object, object]", value).items():
            yield from flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list | tuple):
        items = cast("list[object] | tuple[object, ...]", value)
        if any(isinstance(item, Mapping | list | tuple) for item in items):
            for number, item in enumerate(items):
                yield from flatten(item, f"{prefix}[{number}]")
        elif items:
            yield prefix, ", ".join(map(label, items))
    elif value is not None and value != "":
        yield prefix, label(value)


def stage_bars(manifest: Manifest) -> list[StageBar]:
    """Stages in the order of their start, on a line from the run's opening to the last end."""
    stages = sorted(manifest.stages, key=lambda stage: stage.started)
    end = max((stage.started + stage.seconds for stage in stages), default=0.0) or 1.0
    return [
        StageBar(
            name=stage.name,
            seconds=stage.seconds,
            left=100 * stage.started / end,
            width=100 * stage.seconds / end,
            memory="" if stage.peak_gib is None else f"{stage.peak_gib:.2f} GiB",
            jobs=_jobs(stage),
        )
        for stage in stages
    ]


def _jobs(stage: StageTiming) -> str:
    if not stage.jobs:
        return ""
    cached = sum(job.cached for job in stage.jobs)
    counted = f"{len(stage.jobs)} job{'s' if len(stage.jobs) > 1 else ''}"
    return f"{counted}, {cached} done before" if cached else counted


def commands(manifest: Manifest) -> list[str]:
    """The commands that run it again, and say whether it is the same."""
    git = manifest.environment.git
    lines = [f"git checkout {git.commit}"] if git.commit else []
    if git.dirty:
        lines.append("# uncommitted changes: apply environment.git.diff of manifest.json")
    return [*lines, "make install", f"mechsafety replay {shlex.quote(manifest.run)}"]


def differences(manifests: list[Manifest]) -> list[tuple[str, list[str]]]:
    """Settings in which runs differ: (key, its value in each run)."""
    settings = [dict(flatten(manifest.config)) for manifest in manifests]
    keys = dict.fromkeys(key for config in settings for key in config)
    rows = [(key, [config.get(key, "—") for config in settings]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
