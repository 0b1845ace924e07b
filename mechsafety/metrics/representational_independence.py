"""Representational independence: does ablating one direction change the other's activations?

Orthogonal directions need not be independent: later layers may write along v what they read
along u.

Source: Wollschläger et al. 2025, "The Geometry of Refusal in Large Language Models",
arXiv:2502.17420; layers and site as in its code.
"""

from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import DegenerateDirectionError, SampleError
from mechsafety.linalg.typed import linalg


def representational_independence(
    clean: Float[Tensor, "layer prompt d_model"],
    ablated: Float[Tensor, "layer prompt d_model"],
    v: Float[Tensor, " d_model"],
    share_of_layers: float = 0.9,
) -> float:
    r"""Mean of $[\cos(h_l, v) - \cos(h_l \mid \text{ablate } u, v)]^2$ over layers and prompts.

    0: ablating u leaves how activations lie along v alone. At most 4. Not symmetric: the paper
    takes both ways. It moves a little even where nothing along v does, because ablating u
    shortens the activations; compare with energy-matched controls in the place of u. In float64.

    Args:
        clean: `resid_pre` of every layer, in order, at the last token of harmful prompts.
        ablated: The same prompts and sites while u is ablated everywhere; at each site after
            the ablation there.
        v: Its length does not matter; its sign does not either.
        share_of_layers: The first `int(share · layers)` count. The last layers turn towards the
            next token, which an ablation is meant to change.

    Raises:
        SampleError: No prompts, or a share that leaves no layer or asks for more than all.
        DegenerateDirectionError: v or an activation has no length, or is not finite.
    """
    n_layers, n_prompts = clean.shape[:2]
    kept = int(share_of_layers * n_layers)
    if not 0 < kept <= n_layers or not n_prompts:
        raise SampleError(
            f"representational_independence: {share_of_layers} of {n_layers} layers is {kept} at "
            f"{n_prompts} prompts; expected at least one prompt and 1 to {n_layers} layers."
        )
    change = _cosines(clean[:kept], v) - _cosines(ablated[:kept], v)
    return float(change.square().mean())


def _cosines(
    activations: Float[Tensor, "layer prompt d_model"], v: Float[Tensor, " d_model"]
) -> Float[Tensor, "layer prompt"]:
    wide, direction = activations.double(), v.double()
    lengths = linalg.vector_norm(wide, dim=2) * linalg.vector_norm(direction)
    if not bool(((lengths > 0) & lengths.isfinite()).all()):
        raise DegenerateDirectionError(
            "representational_independence: the direction or an activation has no length or is "
            "not finite, so there is no angle between them. Check the direction's norm, and the "
            "first layers: a site where everything lies along u is empty once u is ablated."
        )
    return (wide @ direction) / lengths
