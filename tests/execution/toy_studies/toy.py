"""Does a tiny study go through the whole of the runner? Its modes are ways to end."""

import os
import time
from typing import Literal

import torch

from mechsafety.core.config import StudyConfig
from mechsafety.core.context import Context
from mechsafety.core.errors import PromptError
from mechsafety.core.result import DeclaredFinding, Figure, Finding, Result, Table
from tests.execution.toy_jobs import sleep, square

Mode = Literal["fine", "fail", "bad_input", "sleep", "sleep_in_workers", "excluded", "nothing"]


class Config(StudyConfig):
    """A made-up measurement."""

    mode: Mode = "fine"
    """How the run ends."""
    size: int = 6
    """Rows of the table."""
    findings: tuple[DeclaredFinding, ...] = ()


def run(config: Config, context: Context) -> Result:
    table = Table("squares", "Squares; no null, a toy.")
    # What no record says: a replay with another shift is another run.
    hidden = float(os.environ.get("TOY_SHIFT", "0"))
    with context.stage("measure"):
        with context.stage("draw"):
            noise = torch.randn(config.size, generator=context.generator("noise", 3))
        squares = context.map(square, list(range(config.size)), "squares")
        for layer, (value, drawn) in enumerate(zip(squares, noise.tolist(), strict=True)):
            shift = drawn + hidden
            table.add(
                "square",
                value + shift,
                n=7,
                unit="units (rows)",
                interval=(value + shift - 1, value + shift + 1),
                layer=layer,
                arm="toy",
            )
        context.event("news", detail="half way")
    (context.scratch / "large").write_text("x")
    if config.mode == "sleep":
        print("sleeping", flush=True)
        time.sleep(60)
    if config.mode == "sleep_in_workers":
        context.map(sleep, [1, 2], "sleeping")
    if config.mode == "fail":
        raise ValueError("the toy broke")
    if config.mode == "bad_input":
        raise PromptError("reading toy.csv: it is empty.")
    ends = (3.0, 4.0) if config.mode == "excluded" else (1.5, 2.5)
    declared = config.findings[0].id if config.findings else "squares_grow"
    finding = Finding(
        id=declared,
        claim="Squares grow.",
        scope="checkpoint",
        value=2.0,
        ci_low=ends[0],
        ci_high=ends[1],
        null_low=-0.5,
        null_high=0.5,
        null="signs flipped at random, 100 draws",
        n=7,
        unit="units (rows)",
        verdict="supported",
        margin=1.0,
        explanation="Squares grow by 2.0 [1.5, 2.5] units a row.",
        cell={"layer": 3},
    )
    return Result(
        tables=(table,),
        findings=() if config.mode == "nothing" else (finding,),
        figures=(
            Figure(
                id="squares",
                title="Squares",
                caption="n = 7; interval ± 1; no null.",
                kind="lines",
                table="squares",
                metric="square",
                x="layer",
                color="arm",
            ),
        ),
        tensors={"noise": noise, "view": noise[::2]},
        notes=("A toy shows the runner, not the world.",),
        provenance={"prompts": {"toy": "0" * 64}},
    )
