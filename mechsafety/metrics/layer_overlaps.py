"""How much the leading components of harmful-minus-harmless differences overlap between models.

Components are taken again on every deal of a plan, as directions are, so that their overlap has an
interval and the null that the models' shared prompts call for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ActivationError, DegenerateDirectionError, SampleError
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.deals import Deals, Plan, varying_layers
from mechsafety.metrics.pairing import Pairing, difference_rows
from mechsafety.metrics.principal_angles import principal_angles
from mechsafety.metrics.spectral_intervals import Jackknifed
from mechsafety.metrics.spectrum import leading_components, refuse_non_finite

ROUNDING: Final = 1e-12
"""Energies below this share of the largest are rounding."""


@dataclass(frozen=True, slots=True)
class SubspaceStack:
    """One model's leading components at many layers, taken again on every deal of a plan.

    A layer that is the same for every prompt is zero in all of them. Held: `4 · k · d` bytes a deal
    and layer, 130 MB for 61 deals of 4 components at 33 layers of 4096 channels.
    """

    whole: Float[Tensor, "layer k d"]
    """Orthonormal rows on all prompts, as labeled, strongest first; a side is not meant."""
    left_out: Float[Tensor, "group layer k d"]
    """Without each jackknife group."""
    permuted: Float[Tensor, "draw layer k d"]
    """With permuted labels, the same in every model, after each class's mean was taken out."""
    left_out_share: Float[Tensor, " group"]
    """Share of the rows in each group."""
    groups_fingerprint: str
    """Which rows each group holds."""
    fingerprint: str
    """Of the plan: stacks of other plans cannot be compared."""


@dataclass(frozen=True, slots=True)
class LayerOverlaps:
    """Overlap of two models' subspaces at some pairs of layers, in the order asked for."""

    layers: tuple[tuple[int, int], ...]
    """Layer of the first and of the second model, one pair a cell."""
    value: Float[Tensor, " cell"]
    """Mean squared cosine of the principal angles, in [0, 1]; NaN at layers without components."""
    replicates: Float[Tensor, "group cell"]
    """Without each group of rows, the same in both models."""
    null: Float[Tensor, "draw cell"]
    """With the same permuted labels in both models, after each class's mean was taken out."""
    angles: Float[Tensor, "cell k"]
    """Principal angles in degrees, smallest first."""
    angle_replicates: Float[Tensor, "group cell k"]
    """As `replicates`."""
    angle_null: Float[Tensor, "draw cell k"]
    """As `null`."""
    left_out: Float[Tensor, " group"]
    """Share of the rows in each group."""
    fingerprint: str
    """Which rows each group holds."""

    @property
    def excess(self) -> Float[Tensor, " cell"]:
        """`value` less the mean of the null: the value of the finding."""
        return self.value - self.null.mean(dim=0)

    def jackknifed(self, cell: int) -> Jackknifed:
        """The overlap of one cell, with what its interval comes from.

        What the interval covers is the expected overlap at this number of prompts.

        Raises:
            DegenerateDirectionError: A model has no components at this layer.
        """
        self._refuse_nothing(cell)
        return self._cell(self.value[cell], self.replicates[:, cell], 1.0)

    def jackknifed_angle(self, cell: int, component: int) -> Jackknifed:
        """One principal angle of one cell, in degrees, 0 the smallest.

        Raises:
            DegenerateDirectionError: As `jackknifed`.
        """
        self._refuse_nothing(cell)
        replicates = self.angle_replicates[:, cell, component]
        return self._cell(self.angles[cell, component], replicates, 90.0)

    def _cell(self, value: Tensor, replicates: Tensor, highest: float) -> Jackknifed:
        return Jackknifed(
            value=float(value),
            base=float(value),
            replicates=replicates,
            left_out=self.left_out,
            fingerprint=self.fingerprint,
            lowest=0.0,
            highest=highest,
        )

    def _refuse_nothing(self, cell: int) -> None:
        if bool(self.value[cell].isnan()):
            raise DegenerateDirectionError(
                f"overlap of subspaces at layers {self.layers[cell]}: in one model the activations "
                "are the same for every prompt there. Leave out cells whose value is NaN."
            )


def top_subspaces(
    rows: Float[Tensor, "row layer d"], deals: Deals, k: int, pairing: Pairing
) -> Float[Tensor, "deal layer k d"]:
    r"""The first k uncentered components of the difference rows of each deal, at each layer.

    Rows are first written in their own $\min(n, d)$ principal axes, so that a deal costs the
    eigenvectors of the smaller of $R R^\top$ and $R^\top R$ and never touches d channels. The
    basis has no side and, among equal components, no order. Float64 throughout, returned in at
    least float32; holds `deals · layers · k · d` numbers.

    Args:
        rows: Harmful first, then harmless.
        deals: Of these rows.
        k: Components.
        pairing: `list` pairs member i with member i of each deal, twins where labels are kept;
            `all` takes every pairing within the deal.

    Raises:
        ActivationError: Rows that are not finite or of another count than the deals', or `list`
            where a deal has other counts of positives and negatives.
        DegenerateDirectionError: Differences of some deal span fewer than k dimensions.
    """
    if len(rows) != deals.n_rows or k < 1:
        raise ActivationError(
            f"{k} leading components: {len(rows)} rows for deals of {deals.n_rows}. Ask for at "
            "least 1, and give all rows of both classes as the plan was made for."
        )
    dtype = torch.promote_types(rows.dtype, torch.float32)
    found = rows.new_zeros(len(deals), rows.shape[1], k, rows.shape[2], dtype=dtype)
    for layer in range(rows.shape[1]):
        refuse_non_finite(rows[:, layer], f"leading components, index {layer} of the layers")
    for layer in varying_layers(rows):
        wide = rows[:, layer].double()
        # Differences do not see a common shift, which would cost digits.
        U, S, Vh = linalg.svd(wide - wide.mean(dim=0), full_matrices=False)
        coordinates = U * S
        for deal in range(len(deals)):
            positive, negative = (part.to(rows.device) for part in deals.members(deal))
            differences = difference_rows(coordinates[positive], coordinates[negative], pairing)
            basis = _leading(differences, k, f"index {layer} of the layers")
            found[deal, layer] = (basis @ Vh).to(dtype)
    return found


def subspace_stack(
    rows: Float[Tensor, "row layer d"], plan: Plan, k: int, pairing: Pairing, n_draws: int
) -> SubspaceStack:
    """One model's leading components on all rows, without each group, and with permuted labels.

    Permuted labels alone would be no null here: half of the random pairs are still of a harmful
    and a harmless prompt, and an uncentered component keeps their shift whatever its sign. So the
    null permutes rows whose class means were taken out: what is left is what the prompts share.
    Random pairs also differ in topic, where twins do not, so for twins it is a strict null.

    Args:
        rows: As for `top_subspaces`.
        plan: The same for every model that is to be compared.
        k: As for `top_subspaces`.
        pairing: As for `top_subspaces`.
        n_draws: How many of the plan's permuted deals to take; each costs eigenvectors a layer.

    Raises:
        ActivationError: As `top_subspaces`.
        DegenerateDirectionError: As `top_subspaces`.
        SampleError: More draws than the plan has, or none.
    """
    if not 1 <= n_draws <= len(plan.permuted):
        raise SampleError(
            f"subspaces with permuted labels: {n_draws} draws of a plan with {len(plan.permuted)}; "
            "expected 1 or more, and at most those of the plan."
        )
    return SubspaceStack(
        whole=top_subspaces(rows, plan.whole, k, pairing)[0],
        left_out=top_subspaces(rows, plan.left_out, k, pairing),
        permuted=top_subspaces(
            _within_classes(rows, plan.whole), plan.permuted.first(n_draws), k, pairing
        ),
        left_out_share=(plan.left_out.weights == 0).double().mean(1),
        groups_fingerprint=plan.groups.fingerprint,
        fingerprint=plan.fingerprint,
    )


def layer_overlaps(
    first: SubspaceStack, second: SubspaceStack, layers: Sequence[tuple[int, int]]
) -> LayerOverlaps:
    """Overlap and principal angles of two models' subspaces, with jackknife and shared null.

    Args:
        first: One model's.
        second: Another's of the same width, under the same plan.
        layers: Which layer of the first with which of the second, as indices.

    Raises:
        ActivationError: Other widths.
        SampleError: Other plans or numbers of draws, or no pair of layers.
    """
    if not layers:
        raise SampleError(
            "overlap of subspaces: no pair of layers to compare. Give at least one, at which the "
            "prompts differ in both models."
        )
    if first.whole.shape[-1] != second.whole.shape[-1]:
        raise ActivationError(
            f"overlap of subspaces: widths {first.whole.shape[-1]} and {second.whole.shape[-1]}. "
            "Spans of other widths have no angle between them."
        )
    if first.fingerprint != second.fingerprint or len(first.permuted) != len(second.permuted):
        raise SampleError(
            f"overlap of subspaces: taken under other plans, or with {len(first.permuted)} and "
            f"{len(second.permuted)} draws, so they do not share permuted labels. Take both under "
            "one plan, on one list of prompts."
        )

    def angles(of_first: Tensor, of_second: Tensor) -> Float[Tensor, "deal cell n_angles"]:
        by_deal = [
            torch.stack([_angles(x[i], y[j]) for i, j in layers])
            for x, y in zip(of_first, of_second, strict=True)
        ]
        return torch.stack(by_deal)

    whole = angles(first.whole[None], second.whole[None])[0]
    left_out = angles(first.left_out, second.left_out)
    permuted = angles(first.permuted, second.permuted)
    return LayerOverlaps(
        layers=tuple(layers),
        value=_overlap(whole),
        replicates=_overlap(left_out),
        null=_overlap(permuted),
        angles=whole,
        angle_replicates=left_out,
        angle_null=permuted,
        left_out=first.left_out_share,
        fingerprint=first.groups_fingerprint,
    )


def _within_classes(rows: Tensor, labeled: Deals) -> Tensor:
    """Rows less the mean of their own class."""
    wide = rows.double()
    left = torch.zeros_like(wide)
    for side in labeled.members(0):
        members = side.to(rows.device)
        left[members] = wide[members] - wide[members].mean(dim=0)
    return left.to(torch.promote_types(rows.dtype, torch.float32))


def _leading(differences: Tensor, k: int, where: str) -> Float[Tensor, "k n_axes"]:
    """Orthonormal leading components of a few rows."""
    n, width = differences.shape
    tall = n > width
    gram = differences.T @ differences if tall else differences @ differences.T
    values, vectors = leading_components(gram[None], k)
    if vectors.shape[2] < k or not bool(values[0, -1] > ROUNDING * values[0, 0]):
        raise DegenerateDirectionError(
            f"{k} leading components at {where}: {n} difference rows span fewer than {k} "
            "dimensions. Ask for fewer components, or give more prompts."
        )
    if tall:
        return vectors[0].T
    return vectors[0].T @ differences / values[0].sqrt()[:, None]


def _angles(first: Float[Tensor, "k d"], second: Float[Tensor, "n_second d"]) -> Tensor:
    """In degrees; NaN where one model has no components."""
    if not bool(first.any() & second.any()):
        return torch.full((min(len(first), len(second)),), torch.nan, dtype=torch.float64)
    return torch.rad2deg(principal_angles(first, second))


def _overlap(angles: Tensor) -> Tensor:
    return torch.deg2rad(angles).cos().square().mean(dim=-1)
