"""Adding vectors at a block's input: many of them share a pass, and only the blocks above run."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import DegenerateDirectionError
from mechsafety.core.progress import progress
from mechsafety.effects.scores import Halfway
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenBatch


def added_scores(
    model: Model,
    start: Halfway,
    vectors: Float[Tensor, "n_vectors d_model"],
    refusal_ids: Int[Tensor, " n_refusal"],
    batch_tokens: int,
) -> Float[Tensor, "prompt n_vectors"]:
    """Refusal score of each prompt with each vector added at `resid_pre` of `start`'s layer.

    At all positions, in float64. Vectors share forward passes up to `Model.pass_tokens`. A zero
    vector gives the unedited model's scores.

    Source: arXiv:2406.11717, "Activation addition".

    Args:
        start: Prompts that ran up to the layer (`run_halfway`).
        vectors: In activation units.
        refusal_ids: Tokens that open a refusal.
        batch_tokens: Most padded tokens of one pass.
    """
    n = sum(len(batch.rows) for batch, _ in start.batches)
    found = torch.empty(n, len(vectors), dtype=torch.float64)
    room = model.pass_tokens(batch_tokens)
    with torch.inference_mode():
        for batch, residual in start.batches:
            together = max(1, room // batch.ids.numel())
            for first in range(0, len(vectors), together):
                some = vectors[first : first + together]
                summed = _with_each(residual, some)
                logits = model.tail(summed, _repeated(batch, len(some)), start.layer)
                scores = refusal_score(logits.float().cpu(), refusal_ids)
                found[batch.rows, first : first + len(some)] = scores.reshape(len(some), -1).T
    return found


def dose_scores(
    model: Model,
    starts: Mapping[int, Halfway],
    direction: Float[Tensor, " d_model"],
    norms: Mapping[int, float],
    doses: Sequence[float],
    refusal_ids: Int[Tensor, " n_refusal"],
    batch_tokens: int,
) -> Float[Tensor, "prompt layer dose"]:
    r"""Refusal score with $\alpha \, m_l \, \hat r$ added at `resid_pre` of each layer l.

    $m_l$ is the mean norm of the residual stream there, so that a dose α means the same at every
    layer and in every model. Layers in the order of `starts`; `n_layers` adds to the output of the
    last block, which shows what the direction does to the logits by itself.

    Args:
        starts: Prompts that ran up to each layer.
        direction: Any length; only its direction counts.
        norms: Mean norm of the residual stream at each layer, in activation units.
        doses: In units of that norm; negative ones subtract.
        refusal_ids: Tokens that open a refusal.
        batch_tokens: Most padded tokens of one pass.

    Raises:
        DegenerateDirectionError: The direction is zero or not finite.
    """
    size = linalg.vector_norm(direction.double())
    if not 0 < float(size) < math.inf:
        raise DegenerateDirectionError(
            f"adding doses of a direction: its norm is {float(size):.3g}, so it points nowhere. "
            "Fit it where the two classes differ: template tokens at layer 0 are all the same."
        )
    unit = direction.double() / size
    by_layer: list[Tensor] = []
    for layer, start in progress(starts.items(), "adding doses", total=len(starts)):
        sizes = torch.tensor(list(doses), dtype=torch.float64) * norms[layer]
        vectors = (sizes[:, None] * unit[None, :]).float()
        by_layer.append(added_scores(model, start, vectors, refusal_ids, batch_tokens))
    return torch.stack(by_layer, dim=1)


def _with_each(
    residual: Float[Tensor, "batch pos d_model"], vectors: Float[Tensor, "n_vectors d_model"]
) -> Float[Tensor, "n_rows pos d_model"]:
    """The batch once for each vector, with the vector added at every token."""
    wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
    summed = wide[None] + vectors.to(wide)[:, None, None, :]
    return summed.flatten(0, 1).to(residual.dtype)


def _repeated(batch: TokenBatch, times: int) -> TokenBatch:
    """The same rows several times over, one copy after the other."""
    return TokenBatch(
        ids=batch.ids.repeat(times, 1),
        attention_mask=batch.attention_mask.repeat(times, 1),
        position_ids=batch.position_ids.repeat(times, 1),
        rows=batch.rows.repeat(times),
        offsets=batch.offsets.repeat(times),
    )
