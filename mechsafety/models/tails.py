# pyright: reportUnknownMemberType=false
# Reason: transformers' forward is untyped.
"""The upper part of a model, run again from a residual stream, at the cost of its blocks alone."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from mechsafety.core.errors import ModelError, SiteError
from mechsafety.models.anatomy import anatomy, blocks, inner_model
from mechsafety.models.wiring import Arrived

__all__ = ["blocks", "head_residual", "run_tail"]


class _Skip(nn.Module):
    """Stands for a block below the tail: what comes in goes out, and its hooks stay silent."""

    def __init__(self, block: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        # In a tuple, because a module assigned to a module would become its child.
        self._stands_for = (block,)
        self._as_tuple = as_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, None) if self._as_tuple else hidden

    def __getattr__(self, name: str) -> Any:
        if name == "_stands_for":
            raise AttributeError(name)
        # Some families ask a block which kind of attention it has before they call it.
        return getattr(self._stands_for[0], name)


class _Enter(_Skip):
    """Stands for the tail's first block: calls it, whole, on the given residual instead.

    Going through the block's own call (and not a hook on it) keeps gradient checkpointing
    right: what is computed again in the backward pass gets the same residual.
    """

    def __init__(self, block: nn.Module, residual: Tensor) -> None:
        super().__init__(block, as_tuple=False)
        self._residual = (residual,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("hidden_states", None)
        return self._stands_for[0](self._residual[0], *args[1:], **kwargs)


@contextmanager
def _entered_at(hf: nn.Module, layer: int, residual: Tensor) -> Generator[None]:
    parts = anatomy(hf)
    model = inner_model(hf)
    listed = cast("nn.ModuleList", model.get_submodule(parts.blocks))
    real = list(listed)
    parent, _, last = parts.final_norm.rpartition(".")
    norm = model.get_submodule(parts.final_norm)
    try:
        for index in range(layer):
            listed[index] = _Skip(real[index], parts.blocks_return_tuples)
        if layer < len(real):
            listed[layer] = _Enter(real[layer], residual)
        else:
            setattr(model.get_submodule(parent), last, _Enter(norm, residual))
        yield
    finally:
        for index in range(min(layer + 1, len(real))):
            listed[index] = real[index]
        setattr(model.get_submodule(parent), last, norm)


@contextmanager
def last_token_only(hf: nn.Module) -> Generator[None]:
    """Let the last block's output projection and MLP compute the last column alone.

    Nothing reads the other columns when one token's logits are kept, and what the block adds is
    then broadcast onto them. Saves three quarters of one block. Only for logits of the last
    column, with nothing else installed in that block.
    """
    parts = anatomy(hf)
    last = blocks(hf)[-1]
    names = dict.fromkeys((parts.projections[0], parts.mlp_out)) if parts.projections else {}
    handles = [
        last.get_submodule(name).register_forward_pre_hook(_narrowed, with_kwargs=True)
        for name in names
        if name is not None and not parts.post_norm
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _narrowed(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (args[0][:, -1:], *args[1:]), kwargs


def run_tail(
    hf: nn.Module,
    residual: Float[Tensor, "batch pos d_model"],
    *,
    layer: int,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    position_ids: Int[Tensor, "batch pos"],
    logits_to_keep: int | None = None,
) -> Float[Tensor, "batch kept vocab"]:
    """The logits that follow from `residual` as `resid_pre` of `layer`; blocks below do not run.

    Equal, bit for bit, to the full forward pass when `residual` is what it had there, since
    masks, rotary angles, final norm, softcap and unembedding stay Hugging Face's. Gradients flow
    to `residual` and to the parameters from `layer` on; gradient checkpointing works. Hooks on
    the blocks that are skipped do not fire. Holds what a forward pass of the blocks from `layer`
    on holds. Works on a model in training, and on a PEFT model.

    Args:
        hf: The Hugging Face model; nothing of it changes.
        residual: Any tensor of this shape, such as `head_residual(...) + delta`.
        layer: 0 replaces the embeddings (positions included where they are learned); the number
            of blocks runs the final norm and the unembedding alone.
        input_ids: Of the same prompts; only their shape matters above the embeddings.
        attention_mask: 1 for tokens, 0 for padding, on either side. Never left out: without it
            padded rows are silently wrong.
        position_ids: Counted from each row's first token; Hugging Face would count padding too.
        logits_to_keep: Only the last so many positions; all where None.

    Raises:
        SiteError: The model has no such layer.
        ModelError: The residual does not have the model's width.
    """
    dims = anatomy(hf).dims
    if not 0 <= layer <= dims.n_layers:
        raise SiteError(
            f"running the tail from layer {layer}: the model has {dims.n_layers} blocks, so the "
            f"tail may start at 0 to {dims.n_layers}."
        )
    if residual.shape[-1] != dims.d_model:
        raise ModelError(
            f"running the tail from layer {layer}: the residual is {residual.shape[-1]} wide and "
            f"the model {dims.d_model}. Collect it from this model, at resid_pre.{layer}."
        )
    keep: dict[str, Any] = {} if logits_to_keep is None else {"logits_to_keep": logits_to_keep}
    with _entered_at(hf, layer, residual):
        return inner_model(hf)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            **keep,
        ).logits


def head_residual(
    hf: nn.Module,
    *,
    layer: int,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    position_ids: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos d_model"]:
    """`resid_pre` of `layer`; the blocks from `layer` on do not run.

    Edits installed at that very site are left to the tail, so that none is applied twice.
    The graph is kept if gradients are enabled: the caller decides. `layer` equal to the number
    of blocks gives the last block's output, before the final norm.

    Raises:
        SiteError: The model has no such layer.
    """
    parts = anatomy(hf)
    model = inner_model(hf)
    n_layers = parts.dims.n_layers
    if not 0 <= layer <= n_layers:
        raise SiteError(
            f"reading resid_pre of layer {layer}: the model has {n_layers} blocks, counted 0 to "
            f"{n_layers - 1} ({n_layers} reads the output of the last)."
        )
    entered = blocks(hf)[layer] if layer < n_layers else model.get_submodule(parts.final_norm)
    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise Arrived

    handle = entered.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
    try:
        model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            logits_to_keep=1,
        )
    except Arrived:
        pass
    finally:
        handle.remove()
    return seen[0]
