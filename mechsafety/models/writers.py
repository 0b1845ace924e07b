# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Reason: modules of transformers and transformer_lens are untyped where they are walked.
"""What each attention head adds to the residual stream: from z through W_O, and past a post-norm.

Nothing here goes by the name of a family. The output projection is a linear map, so its matrix is
its Jacobian, whatever class computes it (Linear, Conv1D, quantized, with an adapter); a norm
behind it multiplies by a gain and by one number per token, which are measured.
"""

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechsafety.core.errors import ModelError
from mechsafety.core.sites import HeadSite
from mechsafety.models.anatomy import blocks
from mechsafety.models.model import Model
from mechsafety.models.probes import TOLERANCES


@dataclass(frozen=True)
class AttentionWrites:
    """How the heads of one layer write into the residual stream. Float64, on the CPU."""

    layer: int
    weight: Float[Tensor, "head d_head d_model"]
    """W_O of each query head; times the gain of the post-norm, where there is one."""
    bias: Float[Tensor, " d_model"]
    """Bias of the output projection, zero where it has none; times the gain likewise."""
    normed: bool
    """A norm lies between the projection and the stream, so that every token has a scale."""
    tolerance: float
    """Largest relative gap to the real contribution that the model's precision explains."""


def attention_writes(model: Model, layer: int) -> AttentionWrites:
    r"""The map from the heads' z to what attention adds to the residual stream.

    $\text{attn\_out} = s \left( \sum_h z_h W_O^h + b_O \right) \odot g$ with $g = 1$ and $s = 1$
    where nothing lies behind the projection. Behind an RMS norm (Gemma-2, Gemma-3, OLMo-2), $g$
    is its gain, found by running it on a vector of ones, and $s$ is left to each token.

    Under grouped-query attention z and W_O belong to query heads. An adapter on the projection
    counts as part of it. Holds `8 · n_heads · d_head · d_model` bytes (134 MB at 4096).

    Raises:
        SiteError: The model has no such layer.
        ModelError: TransformerLens maps no output projection for it, or cannot make its twin.
    """
    dims = model.dims
    HeadSite(layer, 0).check(dims)
    # The bridge's own W_O reads the bare weight: it leaves adapters out and refuses 4-bit ones.
    attention = cast("Any", model.wiring.twin().bridge).blocks[layer].attn
    projection = getattr(getattr(attention, "o", None), "original_component", None)
    if not isinstance(projection, nn.Module):
        raise ModelError(
            f"finding what the heads of layer {layer} write: TransformerLens maps no output "
            f"projection in this architecture's {type(attention).__name__}. Attribute to attn_out "
            "and mlp_out as a whole, which need no heads."
        )
    matrix, bias = _linear_map(projection, dims.n_heads * dims.d_head, dims.d_model, model.dtype)
    gain = _gain(model, layer)
    weight = matrix.reshape(dims.n_heads, dims.d_head, dims.d_model)
    return AttentionWrites(
        layer=layer,
        weight=weight if gain is None else weight * gain,
        bias=bias if gain is None else bias * gain,
        normed=gain is not None,
        tolerance=TOLERANCES.get(model.dtype, 1e-4),
    )


def head_projections(
    writes: AttentionWrites,
    z: Float[Tensor, "row head d_head"],
    attn_out: Float[Tensor, "row d_model"],
    direction: Float[Tensor, " d_model"],
) -> tuple[Float[Tensor, "row head"], Float[Tensor, " row"]]:
    r"""What each head, and the bias, adds to the product of the stream with `direction`.

    $s\, \langle z_h W_O^h \odot g,\, r \rangle$ in float64. The heads and the bias add up to
    $\langle \text{attn\_out}, r \rangle$ up to the rounding of the model's own precision. With a
    post-norm $s = \langle a, y \rangle / \lVert y \rVert^2$ by least squares from the real
    contribution $a$ and $y = (\sum_h z_h W_O^h + b_O) \odot g$: it depends on all the heads, so
    what a head adds there is a share of the sum and not what its removal would change.

    Args:
        writes: Of the layer (`attention_writes`).
        z: The heads' outputs before W_O (`HeadSite`), one row per token.
        attn_out: What attention really added at the same tokens (`ResidualSite`, attn_out).
        direction: Products are with it as it is; give a unit vector for projections.

    Raises:
        ModelError: The map does not give `attn_out`, so its parts would mean nothing.
    """
    wide, added, r = z.double(), attn_out.double(), direction.double()
    written = wide.flatten(1) @ writes.weight.flatten(0, 1) + writes.bias
    scale = torch.ones(len(written), dtype=torch.float64)
    if writes.normed:
        # A token at which nothing is written has no scale, and needs none.
        squares = written.square().sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
        scale = (added * written).sum(-1) / squares
    gap = (added - scale[:, None] * written).norm(dim=-1).mean()
    size = added.norm(dim=-1).mean()
    # Written so that NaN fails it too.
    if not gap <= writes.tolerance * size:
        raise ModelError(
            f"writing attention of layer {writes.layer} as a sum over its heads: z W_O + b"
            f"{', through the norm behind it,' if writes.normed else ''} is off what attention "
            f"adds to the residual stream by {gap / size:.2g} of its norm, and may be by "
            f"{writes.tolerance:.2g}. Either an intervention at attn_out is installed (attribute "
            "outside it), or this architecture puts more between the heads and the stream than "
            "a projection and an RMS norm; then attribute to attn_out and mlp_out as a whole."
        )
    heads = torch.einsum("nhd,hd->nh", wide, writes.weight @ r) * scale[:, None]
    return heads, scale * (writes.bias @ r)


def _linear_map(
    projection: nn.Module, n_in: int, n_out: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The matrix `[n_in, n_out]` and bias of a module that computes x W + b, in float64."""
    device = next(projection.parameters()).device
    # A caller's inference mode would make tensors that no graph can hold.
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(n_out, n_in, dtype=dtype, device=device, requires_grad=True)
        y = projection(x)
        # Row i of the Jacobian alone in row i. Differencing outputs would round W by b's size.
        (rows,) = torch.autograd.grad(y, x, torch.eye(n_out, dtype=dtype, device=device))
    return rows.T.double().cpu(), y[0].detach().double().cpu()


def _gain(model: Model, layer: int) -> Tensor | None:
    """The gain of the norm behind attention, up to a factor; None where there is no norm."""
    parts = model.wiring.anatomy
    if not parts.post_norm or parts.attn_out is None:
        return None
    norm = blocks(model.hf)[layer].get_submodule(parts.attn_out)
    device = next(norm.parameters(), torch.empty(0)).device
    ones = torch.ones(1, model.dims.d_model, device=device)
    with torch.no_grad():
        # A copy, so that a half-precision gain is not rounded again; `forward`, so that
        # interventions that hang on this module do not run.
        return copy.deepcopy(norm).float().forward(ones)[0].double().cpu()
