"""Small locality studies, run once for many tests, and what they measured on the way."""

import csv
import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mechsafety.core.config import apply_overrides, parse_config, read_yaml
from mechsafety.core.result import Finding, Result, Row, Table
from mechsafety.models.model import Model
from mechsafety.organisms.prompts import twins
from mechsafety.records.metrics_table import to_parquet
from mechsafety.studies import arms, locality
from mechsafety.studies.locating.frame import Frame
from mechsafety.studies.locating.measured import Causal, Measured, Winner
from tests.models.families import GROUPED, tiny
from tests.studies.counting import Work
from tests.studies.test_concentration import InlineContext

YAML = Path(__file__).parents[2] / "experiments" / "locality.yaml"
SMALL = (
    "prompts.preset=small",
    "prompts.n=48",
    "cluster_by=null",
    "maps.permutations=20",
    "maps.resamples=200",
    "maps.controls=4",
    "selection.refits=3",
    "localize.doses=[0.0, 0.4]",
    "localize.controls=3",
    "localize.dose_controls=2",
    "localize.two_by_two_n=10",
    "localize.two_by_two_min=4",
    "evaluate.score_draws=3",
    "evaluate.answer_draws=2",
)
OPENED_FILTERS = (
    "selection.only_behaving=false",
    "selection.filters.kl_threshold=null",
    "selection.filters.induce_threshold=null",
)
"""Whatever a model does, its directions are asked."""
BRIEF = (
    "prompts.n=32",
    "maps.controls=2",
    "localize.controls=2",
    "localize.dose_controls=1",
    "localize.two_by_two_n=0",
    "answers_max_new_tokens=4",
    "selection.refits=2",
    "evaluate.max_new_tokens=4",
    "evaluate.score_draws=2",
    "evaluate.answer_draws=1",
)
"""For models that say nothing of interest."""
ALL_TABLES = (
    "prompt", "behavior", "separation", "two_by_two", "causal_map", "selection", "decay", "winner",
    "windows", "positions", "doses", "writers", "second_direction",
)  # fmt: skip
N_HARMFUL, N_HARMLESS = 48, 41
"""Prompts of `prompt_files`."""


def configured(*overrides: str) -> locality.Config:
    """The experiment as it is, but small."""
    raw = apply_overrides(read_yaml(YAML), [*SMALL, *overrides])
    return parse_config(locality.Config, raw, "test")


@dataclass
class Ran:
    """A finished study."""

    config: locality.Config
    result: Result
    frame: Frame
    separated: Measured
    """Before anything causal was asked."""
    measured: Measured
    kept: Mapping[str, list[Mapping[str, Any]]]
    """Completions that a run could keep."""
    work: Mapping[str, Work]
    """What it made models do, by what the jobs did."""
    opened: list[Model] = field(default_factory=list[Model])
    """Models that were opened in this process, in order."""

    @property
    def causal(self) -> Causal:
        assert self.measured.causal is not None
        return self.measured.causal

    @property
    def winner(self) -> Winner:
        assert self.causal.winner is not None
        return self.causal.winner

    @property
    def metrics(self) -> pd.DataFrame:
        """The tables as the report reads them."""
        return pd.read_parquet(io.BytesIO(to_parquet(self.result.tables)))

    def table(self, name: str) -> Table:
        return next(table for table in self.result.tables if table.name == name)

    def rows(self, table: str, metric: str, **where: object) -> list[Row]:
        return [
            row
            for row in self.table(table)
            if row.metric == metric
            and all(row.dimensions.get(key) == value for key, value in where.items())
        ]

    def value(self, table: str, metric: str, **where: object) -> float:
        """Of the only row there is."""
        (row,) = self.rows(table, metric, **where)
        assert row.value is not None
        return row.value

    def finding(self, name: str) -> Finding:
        return next(finding for finding in self.result.findings if finding.id == name)


def ran(config: locality.Config, folders: Mapping[str, Path], tmp: Path) -> Ran:
    """Run the study, and keep what it measured."""
    kept: dict[str, Any] = {}
    opened: list[Model] = []
    real_causes, real_open = locality.causes, arms.open_arm

    def causes(frame: Frame, measured: Measured) -> Measured:
        kept["frame"], kept["separated"] = frame, measured
        kept["measured"] = real_causes(frame, measured)
        return kept["measured"]

    def open_arm(*given: Any) -> Model:
        opened.append(real_open(*given))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locality, "causes", causes)
        patch.setattr(arms, "open_arm", open_arm)
        context = InlineContext(tmp, {name: str(folder) for name, folder in folders.items()})
        result = locality.run(config, context)
    studied = kept["frame"], kept["separated"], kept["measured"]
    return Ran(config, result, *studied, context.kept, context.work, opened)


def numbers(result: Result) -> list[tuple[object, ...]]:
    """Every number of every table, with its interval and place."""
    return [
        (table.name, row.metric, row.value, row.ci_low, row.ci_high, row.n, *row.dimensions.items())
        for table in result.tables
        for row in table
    ]


def random_folder(family: str, organism: Path, folder: Path) -> Path:
    """A random model of a family with an organism's tokenizer and chat template."""
    model = one_block() if family == "one block" else tiny(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(265, mean_resizing=False)
    model.config.eos_token_id = model.generation_config.eos_token_id = 4
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(organism / name, folder)
    return folder


def one_block() -> PreTrainedModel:
    """A random Llama of a single layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return LlamaForCausalLM(LlamaConfig(**{**GROUPED, "num_hidden_layers": 1})).eval()


def prompt_files(folder: Path, edit: Callable[[str], str] = str) -> tuple[str, ...]:
    """Two lists of unequal length in CSV files, three rows a group, as overrides."""
    both = twins(N_HARMFUL, 0, "fit", preset="small")
    for side, n in ((both.first, N_HARMFUL), (both.second, N_HARMLESS)):
        with (folder / f"{side.name}.csv").open("w", newline="") as file:
            written = csv.writer(file)
            written.writerow(("instruction", "topic"))
            for row, prompt in enumerate(side.prompts[:n]):
                written.writerow((edit(prompt.instruction), f"topic {row // 3}"))
    names = [folder / f"{side.name}.csv" for side in both.sets]
    source = f"{{source: files, harmful: '{names[0]}', harmless: '{names[1]}', group: topic}}"
    return f"prompts={source}", "prompts.n=null"
