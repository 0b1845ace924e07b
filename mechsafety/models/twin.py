# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Reason: transformers and transformer_lens are untyped where their modules are walked.
"""A second module tree over the same parameters, for TransformerLens to wrap.

The bridge replaces submodules and recomputes attention eagerly; the Hugging Face model itself so
stays as it was loaded: fast attention, clean names, `save_pretrained` and training intact.

Source: TransformerLens, https://github.com/TransformerLensOrg/TransformerLens.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from mechsafety.core.errors import ModelError
from mechsafety.models.anatomy import architecture, inner_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Twin:
    """The bridged copy. It holds no parameter of its own, except on fused projections."""

    hf: nn.Module
    """The copy's Hugging Face model; calling it fires the bridge's hooks."""
    bridge: "TransformerBridge"
    """TransformerLens' view of the copy."""
    made_from: tuple[tuple[int, int], ...]
    """State of the parameters when the copy was made, by which a stale copy is known."""


def parameter_state(hf: nn.Module) -> tuple[tuple[int, int], ...]:
    """Storage and version of every parameter: changes with every in-place update."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in hf.parameters())


def make_twin(hf: nn.Module) -> Twin:
    """Copy the module tree, share every tensor, and bridge the copy. Costs no memory.

    GPT-NeoX is the exception: the bridge copies its fused query-key-value weights, so the twin
    must be made again when they change (`parameter_state`).

    Raises:
        ModelError: An 8-bit model, whose scales sit outside its parameters.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = inner_model(hf)
    if getattr(model, "is_loaded_in_8bit", False):
        raise ModelError(
            "making the TransformerLens twin of an 8-bit model: its scales sit outside its "
            "parameters, so a twin would compute something else. Heads, neurons and patterns "
            "need `quantization: 4bit` or none; residual-stream sites work as they are."
        )
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    name = architecture(model)
    bridge = build_bridge_from_module(copied, name, hf_config=copied.config)
    return Twin(copied, bridge, parameter_state(model))
