"""The two forms of ablation as edits of a model's sites, written down once.

Zero form (`zero_ablation`): every block input, every attention and MLP output, all positions.
Affine form (`affine_ablation`): at block inputs from the source layer on. For models whose harmless
activations lie far out along the direction, as LAT models' do, the zero form moves *harmless*
prompts into refusal and looks like robustness; the affine form does not. Say which form a number
belongs to.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mechsafety.core.sites import ModelDims, ResidualSite, Site
from mechsafety.interventions.ablate import ablate, ablate_affine, ablate_each
from mechsafety.interventions.add import add
from mechsafety.interventions.intervention import Intervention
from mechsafety.models.editing import ablated_weights, ablates_by_weights
from mechsafety.models.hooking import intervene
from mechsafety.models.model import Model

AblationForm = Literal["zero", "affine"]


@dataclass(frozen=True, eq=False)
class ZeroAblation:
    """Zero ablation of a subspace everywhere: by edited weights where the model allows it.

    The same numbers as hooks on every block (`zero_ablation`), at the speed of the plain model.

    Source: arXiv:2406.11717, "Directional ablation".
    """

    basis: Float[Tensor, "k d_model"]


@dataclass(frozen=True, eq=False)
class RowwiseAblation:
    """Zero ablation of another direction in each row of one batch."""

    directions: Float[Tensor, "batch d_model"]


Hooks = Mapping[Site, Intervention]
Edits = Hooks | ZeroAblation | RowwiseAblation
"""What is done to a model while something is measured."""


@contextmanager
def under(model: Model, edits: Edits | None) -> Generator[None]:
    """Do something to a model inside a `with` block; None and no hooks leave it alone."""
    if isinstance(edits, ZeroAblation):
        if ablates_by_weights(model):
            with ablated_weights(model, edits.basis):
                yield
            return
        with intervene(model, zero_ablation(model.dims, edits.basis), tokenwise=True):
            yield
        return
    if isinstance(edits, RowwiseAblation):
        with intervene(model, _rowwise(model.dims, edits.directions), tokenwise=True):
            yield
        return
    if not edits:
        yield
        return
    with intervene(model, edits):
        yield


def zero_ablation(dims: ModelDims, basis: Float[Tensor, "k d_model"]) -> Hooks:
    """Remove the span of `basis` wherever the residual stream is read or written.

    At the first block's input, and wherever attention or an MLP adds to the stream: equivalent to
    ablating resid_pre, resid_mid and resid_post of every layer, since sums of ablated terms are
    ablated.

    Source: arXiv:2406.11717, "Directional ablation".
    """
    return dict.fromkeys(_entrances(dims), partial(ablate, basis=basis))


def _rowwise(dims: ModelDims, directions: Float[Tensor, "batch d_model"]) -> Hooks:
    edit = partial(ablate_each, directions=directions)
    return dict.fromkeys(_entrances(dims), edit)


def _entrances(dims: ModelDims) -> list[ResidualSite]:
    """Where anything enters the stream: the first block's input, and all that parts add."""
    added = [
        ResidualSite(layer, stream)
        for layer in range(dims.n_layers)
        for stream in ("attn_out", "mlp_out")
    ]
    return [ResidualSite(0, "resid_pre"), *added]


def affine_ablation(
    basis: Float[Tensor, "k d_model"],
    harmless_means: Mapping[ResidualSite, Float[Tensor, " d_model"]],
) -> Hooks:
    r"""Set the projection on `basis` to the target model's own harmless mean, site by site.

    $x \leftarrow x - B^\top(Bx - B\nu_s)$ with $\nu_s$ the harmless mean of site $s$.

    Source: Marshall et al. 2024, arXiv:2411.09003 (α = 0).

    Args:
        basis: Orthonormal rows.
        harmless_means: Mean harmless activation *of the model that is edited*, from the fit
            split, at each site to edit: block inputs from the source layer on.
    """
    return {
        site: partial(ablate_affine, basis=basis, target=(basis.double() @ mean.double()).float())
        for site, mean in harmless_means.items()
    }


def addition(site: ResidualSite, vector: Float[Tensor, " d_model"], coefficient: float) -> Hooks:
    """Add `coefficient * vector` at one site, all positions.

    Source: arXiv:2406.11717, "Activation addition".
    """
    return {site: partial(add, vector=vector, coefficient=coefficient)}
