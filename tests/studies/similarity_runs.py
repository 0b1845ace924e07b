"""Small similarity studies, and models whose likeness is known: rotated copies of an organism."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mechsafety.core.config import apply_overrides, parse_config, read_yaml
from mechsafety.core.result import Finding, Result, Row, Table
from mechsafety.linalg.typed import linalg
from mechsafety.studies import similarity
from tests.studies.counting import Work
from tests.studies.test_concentration import InlineContext

YAML = Path(__file__).parents[2] / "experiments" / "similarity.yaml"
WIDER = 80
SMALL = (
    "prompts.preset=small",
    "prompts.n=48",
    "neutral.preset=small",
    "neutral.n_fit=96",
    "neutral.n_held_out=40",
    "cluster_by=null",
    "geometry.groups=6",
    "geometry.null_draws=40",
    "geometry.splits=10",
    "geometry.splits_left_out=2",
    "geometry.subspace_draws=20",
    "geometry.cka_shuffles=19",
    "maps.between=null",
    "maps.rows_per_dimension=1.0",
    "maps.shuffles=2",
    "maps.resamples=200",
    "transfer.n=12",
    "transfer.score_draws=4",
    "transfer.answer_draws=2",
    "transfer.max_new_tokens=12",
    "transfer.resamples=200",
    "answers_max_new_tokens=12",
)


def configured(models: str, *overrides: str) -> similarity.Config:
    """The experiment as it is, but small, on other models and without its claims."""
    raw = read_yaml(YAML)
    given = [*SMALL, "transfer.models=null", "findings=[]", *overrides]
    raw = apply_overrides({**raw, "models": {}}, [f"models={models}", *given])
    return parse_config(similarity.Config, raw, "test")


def rows(table: Table, metric: str, **where: object) -> list[Row]:
    """Those of one metric with these dimensions."""
    return [
        row
        for row in table
        if row.metric == metric
        and all(row.dimensions.get(key) == value for key, value in where.items())
    ]


@dataclass
class Ran:
    """A finished study."""

    config: similarity.Config
    result: Result
    kept: Mapping[str, list[Mapping[str, Any]]]
    work: Mapping[str, Work]
    """What it made models do, by what the jobs did."""

    def rows(self, table: str, metric: str, **where: object) -> list[Row]:
        (found,) = [one for one in self.result.tables if one.name == table]
        return rows(found, metric, **where)

    def row(self, table: str, metric: str, **where: object) -> Row:
        """The only one there is."""
        (row,) = self.rows(table, metric, **where)
        assert row.value is not None
        return row

    def value(self, table: str, metric: str, **where: object) -> float:
        found = self.row(table, metric, **where).value
        assert found is not None
        return found

    def finding(self, name: str) -> Finding:
        return next(one for one in self.result.findings if one.id == name)


def ran(config: similarity.Config, folders: Mapping[str, Path], tmp: Path) -> Ran:
    """Run the study."""
    context = InlineContext(tmp, {name: str(folder) for name, folder in folders.items()})
    return Ran(config, similarity.run(config, context), context.kept, context.work)


def rotated(organism: Path, folder: Path, width: int, seed: int) -> Path:
    """The same function in other coordinates: the residual stream times a random isometry.

    RMSNorm weights go into the matrices that read the stream, because only a norm without weights
    turns with it; in a wider stream its mean is over more channels, which a constant weight undoes.
    """
    old = LlamaForCausalLM.from_pretrained(organism, dtype=torch.float64)
    d = old.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(width, width, generator=generator, dtype=torch.float64)
    Q = linalg.qr(gaussian)[0][:d]
    settings = old.config.to_dict()
    settings |= {"hidden_size": width, "rms_norm_eps": old.config.rms_norm_eps * d / width}
    new = LlamaForCausalLM(LlamaConfig(**settings)).double()
    state: dict[str, Tensor] = dict(old.state_dict())
    scale = (d / width) ** 0.5
    for i in range(old.config.num_hidden_layers):
        at = f"model.layers.{i}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            weight = state[f"{at}{norm}.weight"]
            for name in readers:
                state[f"{at}{name}.weight"] = (state[f"{at}{name}.weight"] * weight) @ Q
            state[f"{at}{norm}.weight"] = torch.full((width,), scale, dtype=torch.float64)
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            state[f"{at}{name}.weight"] = Q.T @ state[f"{at}{name}.weight"]
    state["lm_head.weight"] = (state["lm_head.weight"] * state["model.norm.weight"]) @ Q
    state["model.norm.weight"] = torch.full((width,), scale, dtype=torch.float64)
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"] @ Q
    new.load_state_dict(state)
    new.float().save_pretrained(folder)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        shutil.copy(organism / name, folder)
    return folder
