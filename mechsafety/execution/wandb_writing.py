# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# wandb comes without complete types.
"""What a mirror holds: a record's config, numbers, findings, figures, directions and report.

Runs in a process of its own, `python -m mechsafety.execution.wandb_writing RUN SECONDS`.
"""

import os
import re
import signal
import sys
from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from mechsafety.core.errors import RecordError
from mechsafety.core.progress import say
from mechsafety.execution.wandb_directions import (
    artifact_name,
    directions_of,
    excerpt,
    may_upload,
    metadata,
    methods_of,
)
from mechsafety.execution.wandb_figures import plotly_figures
from mechsafety.execution.wandb_mirror import LEFT_OUT
from mechsafety.execution.wandb_tables import (
    finding_scalars,
    findings_table,
    metrics_table,
    scalars,
)
from mechsafety.records.reading import Run, open_run
from mechsafety.records.schema import TENSORS

if TYPE_CHECKING:
    import wandb

_LONGEST_TAG: Final = 64
"""Characters; wandb refuses longer ones, and with them the whole run."""
_LONGEST_KEY: Final = 120
"""Of a figure's name, which becomes part of a file name."""


def write_mirror(run: Run) -> None:
    """Write the mirror of a run, as the environment's WANDB_* variables say."""
    import wandb

    manifest = run.manifest
    session = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or manifest.study,
        group=os.environ.get("WANDB_RUN_GROUP") or manifest.config["wandb"].get("group"),
        job_type=os.environ.get("WANDB_JOB_TYPE") or _job_type(run),
        tags=_tags(run),
        name=os.environ.get("WANDB_NAME") or manifest.run,
        id=os.environ.get("WANDB_RUN_ID") or artifact_name(f"{manifest.study}-{manifest.run}"),
        config=_config(run),
        dir=os.environ["WANDB_DIR"],
        save_code=False,
    )
    summary: dict[str, Any] = {"status": run.status, **finding_scalars(run.findings)}
    logged: dict[str, Any] = {"findings": findings_table(run.findings)}
    if manifest.tables:
        frame = run.metrics()
        summary |= scalars(frame)
        logged["metrics"] = metrics_table(frame)
    session.summary.update(summary)
    session.log(logged | dict(_figures(run)))
    for artifact in _artifacts(run, session.id):
        # Versions of one name are the same model's directions in other runs.
        session.log_artifact(artifact, aliases=["latest", manifest.run])
    session.finish(exit_code=0 if run.status == "completed" else 1)


def _job_type(run: Run) -> str:
    return "run" if run.manifest.replay_of is None else "replay"


def _tags(run: Run) -> list[str]:
    """The environment's own tags, then study, models and direction methods."""
    given = os.environ.get("WANDB_TAGS", "").split(",")
    tags = [*given, run.manifest.study, *run.manifest.models, *methods_of(run)]
    # The end of a path or of `org/name@revision` tells more than its beginning.
    return list(dict.fromkeys(tag.strip()[-_LONGEST_TAG:] for tag in tags if tag.strip()))


def _config(run: Run) -> dict[str, Any]:
    """The record's config, and where it was made: not the machine that writes the mirror."""
    manifest = run.manifest
    environment = manifest.environment
    record = {
        "run": manifest.run,
        "replay_of": None if manifest.replay_of is None else manifest.replay_of.run,
        "opened": manifest.opened,
        "seconds": manifest.seconds,
        "seal": manifest.seal,
        "command_line": list(manifest.command_line),
        "python": environment.python,
        "platform": environment.platform,
        "code_sha256": environment.code_sha256,
        "git_commit": environment.git.commit,
        "git_dirty": environment.git.dirty,
    }
    return {**manifest.config, "config_sha256": manifest.config_sha256, "record": record}


def _figures(run: Run) -> Iterator[tuple[str, "wandb.Plotly"]]:
    """Plotly figures by name; one that cannot be drawn is named in the log and left out."""
    if not run.manifest.figures:
        return
    import wandb

    from mechsafety.report.figures import drawing
    from mechsafety.report.page import from_run

    given = from_run(run)
    for described in run.manifest.figures:
        try:
            panels = plotly_figures(drawing(described, given.metrics, given.tensors))
        except RecordError as error:
            say(f"{LEFT_OUT}figure {described.id} ({' '.join(str(error).split())})")
            continue
        for options, figure in panels.items():
            parts = [_file_name(part) for part in (described.id, options) if part]
            yield "/".join(["figure", *parts]), wandb.Plotly(figure)


def _file_name(text: str) -> str:
    """The text as wandb can use it for a file: options may hold any word of the record."""
    clean = re.sub(r"[/\\\x00-\x1f\x7f]|^\.+", "_", text)
    if clean == text and len(text) <= _LONGEST_KEY:
        return text
    return f"{clean[:_LONGEST_KEY]}~{sha256(text.encode()).hexdigest()[:8]}"


def _artifacts(run: Run, session: str) -> Iterator["wandb.Artifact"]:
    import wandb

    if run.report is not None:
        page = wandb.Artifact(f"{session}-report", type="report")
        page.add_file(str(run.report))
        yield page
    if not may_upload(run):
        return
    for directions in directions_of(run):
        content, hashes = excerpt(run.folder / TENSORS, directions.tensors)
        about = metadata(run, directions, hashes)
        artifact = wandb.Artifact(directions.name, type="direction", metadata=about)
        with artifact.new_file("directions.safetensors", mode="wb") as file:
            file.write(content)
        yield artifact


if __name__ == "__main__":
    # Should whoever started this die, nobody else is left to end it.
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
    write_mirror(open_run(sys.argv[1]))
