"""Zero ablation as an edited copy of the weights, inside a `with` block and nowhere else.

Where every contribution to the residual stream is the output of a linear map, projecting the map
does once per direction what hooks do for every token (arXiv:2406.11717, "Weight
orthogonalization"). Embeddings are not edited: they may be tied to the unembedding, scaled, or
have learned positions added, so one hook at the first block's input takes their part.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mechsafety.core.errors import ModelError
from mechsafety.core.sites import ResidualSite
from mechsafety.interventions.ablate import ablate
from mechsafety.models.anatomy import anatomy, blocks, inner_model
from mechsafety.models.hooking import intervene, locked
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenBatch, pad

TOLERANCE: Final = 1e-3
"""Most that logits under edited weights may differ from those under hooks, as a share of what the
ablation changes. Rounding gives about 1e-5; a norm behind the maps, about 1."""

_ENTRANCE: Final = ResidualSite(0, "resid_pre")

_known: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


@contextmanager
def ablated_weights(model: Model, basis: Float[Tensor, "k d_model"]) -> Generator[None]:
    r"""Remove the span of `basis` from all that enters the residual stream, without hooks.

    $W \leftarrow W - B^\top (B B^\top)^{-1} B W$ for the output projection of every attention and
    MLP, biases likewise. Equal, up to rounding, to ablation at every block input, attention and
    MLP output, where `ablates_by_weights(model)`. The weights come back bit for bit, and the model
    cannot be saved, pushed or merged meanwhile, nor give its `state_dict`. Holds one more copy of
    these projections.

    Source: arXiv:2406.11717, "Weight orthogonalization".

    Args:
        model: Edited while the block runs.
        basis: Rows of any length; only their span matters.

    Raises:
        ModelError: The model's contributions are no linear maps of float32; use hooks.
        HookError: At the end, if no forward pass ran.
    """
    writers = _projections(model)
    if not writers:
        raise ModelError(
            "ablating by edited weights: not every attention and MLP of this model ends in a "
            "float32 linear map. Ablate with hooks (`zero_ablation` with `intervene`)."
        )
    originals: list[tuple[Tensor, Tensor]] = []
    # Under hooks alone the weights are the model's own; here they are not.
    away = locked([model.hf], ["state_dict"])
    with intervene(model, {_ENTRANCE: partial(ablate, basis=basis)}), away:
        try:
            for writer in writers:
                for parameter, edited in _edited(writer, basis):
                    originals.append((parameter, parameter.data))
                    parameter.data = edited
            yield
        finally:
            for parameter, original in originals:
                parameter.data = original


def ablates_by_weights(model: Model) -> bool:
    """Whether `ablated_weights` does what hooks do: tried on the model, and then remembered.

    False where contributions pass a norm before they are added (Gemma-2, Gemma-3, OLMo-2), for
    mixtures of experts, adapters and quantized weights, and in half precision, where rounding of
    the edited weights would leave part of the direction in place.
    """
    hf = inner_model(model.hf)
    if hf not in _known:
        _known[hf] = _agrees_with_hooks(model)
    return _known[hf]


def _agrees_with_hooks(model: Model) -> bool:
    if not _projections(model):
        return False
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(1, model.dims.d_model, generator=generator)
    # No token may be masked as padding, and the first ids of a vocabulary are often special.
    ids = torch.randint(model.dims.d_vocab // 2, model.dims.d_vocab, (2, 5), generator=generator)
    batch = pad([[int(token) for token in row] for row in ids], [0, 1], 0, "left")
    sites = [
        _ENTRANCE,
        *(ResidualSite(layer, "attn_out") for layer in range(model.dims.n_layers)),
        *(ResidualSite(layer, "mlp_out") for layer in range(model.dims.n_layers)),
    ]
    with torch.inference_mode():
        clean = _logits(model, batch)
        with intervene(model, dict.fromkeys(sites, partial(ablate, basis=basis))):
            by_hooks = _logits(model, batch)
        with ablated_weights(model, basis):
            by_weights = _logits(model, batch)
    effect = (by_hooks - clean).abs().max()
    return bool((by_weights - by_hooks).abs().max() <= TOLERANCE * effect)


def _logits(model: Model, batch: TokenBatch) -> Tensor:
    return model.forward(batch).double().cpu()


def _projections(model: Model) -> list[nn.Linear | Conv1D]:
    """The maps that write to the stream; none at all if one of them is not a plain float32 map."""
    names = anatomy(model.hf).projections
    plain: list[nn.Linear | Conv1D] = []
    for block in blocks(model.hf):
        for name in names:
            projection = block.get_submodule(name)
            if not isinstance(projection, nn.Linear | Conv1D):
                return []
            weight = projection.weight
            if weight.is_meta or weight.dtype not in (torch.float32, torch.float64):
                return []
            plain.append(projection)
    return plain


def _edited(
    writer: nn.Linear | Conv1D, basis: Float[Tensor, "k d_model"]
) -> Iterator[tuple[Tensor, Tensor]]:
    weight = writer.weight
    rows = basis.to(weight.device)
    # A Conv1D holds its weight as [in, out], a Linear as [out, in].
    if isinstance(writer, Conv1D):
        yield weight, ablate(weight.data, rows)
    else:
        yield weight, ablate(weight.data.T, rows).T.contiguous()
    # A Linear without bias holds None there.
    bias = cast("Tensor | None", writer.bias)
    if bias is not None:
        yield bias, ablate(bias.data, rows)
