"""A wandb that a mirror's process finds first: it writes what it is given, or goes wrong.

`FAKE_WANDB=<stage>:<what>` says where (`import`, `init`, `log`, `finish`) and how: `raise`, or
`hang`, deaf to SIGTERM and with helpers that leave the session.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any


def _at(stage: str) -> None:
    where, _, what = os.environ.get("FAKE_WANDB", "").partition(":")
    if where != stage:
        return
    if what == "raise":
        raise RuntimeError(f"no luck at {stage}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helper = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    Path(os.environ["FAKE_WANDB_PROCESSES"]).write_text(f"{os.getpid()} {helper.pid}")
    time.sleep(60)


_at("import")


class Table:
    def __init__(self, columns: list[str], data: list[Any], **_: object) -> None:
        self.columns, self.data = columns, data


class Plotly:
    def __init__(self, figure: object) -> None:
        self.figure = figure


class Artifact:
    def __init__(self, name: str, type: str, metadata: object = None) -> None:
        self.folder = Path(os.environ["WANDB_DATA_DIR"]) / name
        self.folder.mkdir(parents=True)

    def add_file(self, path: str) -> None:
        (self.folder / Path(path).name).write_bytes(Path(path).read_bytes())

    def new_file(self, name: str, mode: str) -> IO[Any]:
        return (self.folder / name).open(mode)


class Run:
    def __init__(self, given: dict[str, Any]) -> None:
        self.id = given["id"]
        self.summary: dict[str, Any] = {}
        self.folder = Path(os.environ["WANDB_DIR"], "wandb", "offline-run-fake")
        self.folder.mkdir(parents=True)
        variables = {k: v for k, v in os.environ.items() if k.startswith("WANDB_")}
        told = {"given": given, "variables": variables}
        (self.folder / "told.json").write_text(json.dumps(told, default=str))

    def log(self, values: dict[str, Any]) -> None:
        _at("log")
        (self.folder / "logged").write_text(" ".join(values))

    def log_artifact(self, artifact: Artifact, aliases: list[str]) -> None:
        assert any(artifact.folder.iterdir())

    def finish(self, exit_code: int) -> None:
        _at("finish")
        (self.folder / "finished").write_text(str(exit_code))


def init(**given: Any) -> Run:
    _at("init")
    return Run(given)
