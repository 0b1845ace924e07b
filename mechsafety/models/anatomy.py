# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Reason: transformers and transformer_lens are untyped where their modules are walked.
"""Which module of a Hugging Face model is which part: read from TransformerLens' own map."""

from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mechsafety.core.errors import ModelError
from mechsafety.core.sites import ModelDims


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Dotted names of the parts of one architecture; names only, so it never holds a model."""

    blocks: str
    """The list of blocks, from the model."""
    final_norm: str
    """The norm between the last block and the unembedding, from the model."""
    attn_out: str | None
    """From a block, the module whose output attention adds to the residual stream (after a
    post-norm where the family has one); None where no module's output is that tensor."""
    mlp_out: str | None
    """As `attn_out`, for the MLP."""
    projections: tuple[str, ...]
    """From a block, the linear maps whose outputs attention and MLP write; empty where one of
    them has none (a mixture of experts)."""
    parallel: bool
    """Attention and MLP read the same stream, so that there is no `resid_mid`."""
    post_norm: bool
    """The contributions pass a norm before they are added (Gemma-2, Gemma-3, OLMo-2)."""
    rotary: bool
    """Positions enter in attention only, so layer 0 sees nothing but the token."""
    blocks_return_tuples: bool
    """Blocks return `(hidden, ...)` rather than the hidden states alone."""
    dims: ModelDims


_known: "WeakKeyDictionary[nn.Module, Anatomy]" = WeakKeyDictionary()


def inner_model(hf: nn.Module) -> PreTrainedModel:
    """The Hugging Face model itself, out of any PEFT wrapper.

    Raises:
        ModelError: It is no Hugging Face model.
    """
    unwrap = getattr(hf, "get_base_model", None)
    inner = unwrap() if callable(unwrap) else hf
    if not isinstance(inner, PreTrainedModel):
        raise ModelError(
            f"opening a {type(hf).__name__} in memory: expected a Hugging Face causal language "
            "model, such as AutoModelForCausalLM gives, or one that PEFT wraps."
        )
    return inner


def architecture(hf: PreTrainedModel) -> str:
    """The architecture's name: the class, which a model made from a config knows too."""
    return type(hf).__name__


def anatomy(hf: nn.Module) -> Anatomy:
    """The parts of `hf`, found once per model and then remembered.

    Runs one token through the model to see what its blocks return; no state changes and no
    random number is drawn from a generator that others see.

    Raises:
        ModelError: TransformerLens has no map of this architecture.
    """
    model = inner_model(hf)
    found = _known.get(model)
    if found is None:
        found = _known[model] = _find(model)
    return found


def blocks(hf: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a Hugging Face causal language model (or a PEFT wrapper), in order.

    Raises:
        ModelError: TransformerLens has no map of this architecture.
    """
    listed = inner_model(hf).get_submodule(anatomy(hf).blocks)
    return list(cast("nn.ModuleList", listed))


def _find(model: PreTrainedModel) -> Anatomy:
    # Imported here: it costs a second and quietens transformers' logger for the whole process.
    from transformer_lens.factories.architecture_adapter_factory import (
        ArchitectureAdapterFactory,
    )
    from transformer_lens.model_bridge.sources._bridge_builder import (
        build_bridge_config_from_hf,
    )

    name = architecture(model)
    unembedding = model.get_output_embeddings()
    if unembedding is None:
        raise ModelError(
            f"opening a {name}: it has no unembedding, so it is no causal language model. Open it "
            "with AutoModelForCausalLM, or give its folder."
        )
    try:
        settings = build_bridge_config_from_hf(model.config, name, name, torch.float32)
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(settings)
        parts: dict[str, Any] = dict(adapter.component_mapping or {})
        block, final_norm = parts["blocks"], parts["ln_final"]
        listed = cast("nn.ModuleList", model.get_submodule(block.name))
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"looking for the blocks of a {name}: TransformerLens does not map this architecture "
            f"({error}). Expected a decoder-only language model that it supports, such as Llama, "
            "Mistral, Qwen2, Qwen3, Gemma-2, Gemma-3, GPT-2 or GPT-NeoX."
        ) from error
    cfg = adapter.cfg
    mlp = block.submodules.get("mlp")
    neurons = mlp is not None and "out" in (mlp.submodules or {})
    embedding = parts.get("rotary_emb")
    return Anatomy(
        blocks=str(block.name),
        final_norm=str(final_norm.name),
        attn_out=_contribution(block, "hook_attn_out"),
        mlp_out=_contribution(block, "hook_mlp_out"),
        projections=_projections(block),
        parallel="hook_resid_mid" not in block.hook_aliases,
        post_norm="ln1_post" in block.submodules,
        rotary=embedding is not None,
        blocks_return_tuples=_returns_tuple(model, listed[0]),
        dims=ModelDims(
            n_layers=len(listed),
            d_model=int(cfg.d_model),
            n_heads=int(cfg.n_heads),
            n_kv_heads=int(cfg.n_key_value_heads or cfg.n_heads),
            d_head=int(cfg.d_head),
            d_mlp=int(cfg.d_mlp) if neurons and cfg.d_mlp else None,
            d_vocab=int(cast("nn.Linear", unembedding).weight.shape[0]),
        ),
    )


def _contribution(block: Any, alias: str) -> str | None:
    """Where TransformerLens reads a contribution: the module whose output it is, if it is one."""
    target = block.hook_aliases.get(alias)
    if not isinstance(target, str) or not target.endswith(".hook_out"):
        return None
    part, names = block, list[str]()
    for step in target.removesuffix(".hook_out").split("."):
        part = (part.submodules or {}).get(step)
        if part is None or part.name is None:
            return None
        names.append(str(part.name))
    return ".".join(names)


def _projections(block: Any) -> tuple[str, ...]:
    """The maps that TransformerLens calls `attn.o` and `mlp.out`."""
    found: list[str] = []
    for part, last in (("attn", "o"), ("mlp", "out")):
        writer = block.submodules.get(part)
        if writer is None or writer.name is None or last not in (writer.submodules or {}):
            return ()
        found.append(f"{writer.name}.{writer.submodules[last].name}")
    return tuple(found)


def _returns_tuple(model: PreTrainedModel, block: nn.Module) -> bool:
    seen: list[bool] = []

    def look(_module: nn.Module, _args: object, output: object) -> None:
        seen.append(not isinstance(output, Tensor))

    weight = next(model.parameters())
    devices = [weight.device] if weight.device.type == "cuda" else []
    handle = block.register_forward_hook(look)
    try:
        # Dropout in a model that is being trained would otherwise move the global generator.
        with torch.no_grad(), torch.random.fork_rng(devices):
            one = torch.zeros((1, 1), dtype=torch.long, device=weight.device)
            model(input_ids=one, attention_mask=torch.ones_like(one), use_cache=False)
    finally:
        handle.remove()
    return seen[-1]
