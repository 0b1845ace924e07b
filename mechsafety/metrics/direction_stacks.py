"""One model's directions at many layers, fitted again on every deal of a plan.

What a comparison of models needs of each: directions on all rows, without each group, with
permuted labels, and on halves. Everything after that is cosines (`shared_null`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ActivationError, DegenerateDirectionError
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.deals import Deals, Plan, varying_layers

LOST: Final = 1e-7
"""Share of a direction's length times a map's that is rounding, where the map takes it to zero."""


@dataclass(frozen=True, slots=True)
class DirectionStack:
    """The directions of one model at many layers, refitted on every deal of a plan.

    A layer without a direction is zero in all of them. Held, for 33 layers of 4096 channels, 200
    draws, 60 splits and 20 groups with 8 splits each: 661 directions a layer, 357 MB in float32.
    """

    whole: Float[Tensor, "layer d"]
    """On all rows, as labeled, at its own norm and sign."""
    left_out: Float[Tensor, "group layer d"]
    """Without each jackknife group."""
    permuted: Float[Tensor, "draw layer d"]
    """Of residuals (each class about its own mean) with permuted labels, the same in every model:
    what the prompts alone give."""
    permuted_with_shift: Float[Tensor, "draw layer d"]
    """Of the rows themselves with permuted labels. Every relabeling keeps a random share of the
    shift between the classes, so that this grows with what is tested."""
    halves: tuple[Float[Tensor, "split layer d"], Float[Tensor, "split layer d"]]
    """On half A and on half B of each split."""
    left_out_halves: tuple[
        Float[Tensor, "n_replicates layer d"], Float[Tensor, "n_replicates layer d"]
    ]
    """On the halves of the first few splits without each group; group-major."""
    fingerprint: str
    """Of the plan (`Plan.fingerprint`): stacks of other plans cannot be compared."""

    def select(self, layers: Sequence[int]) -> "DirectionStack":
        """The stack at these layers, in this order (indices of its layer axis)."""
        chosen = torch.tensor(list(layers))
        return self.mapped(lambda vectors: vectors[..., chosen.to(vectors.device), :])

    def through(self, maps: Sequence[Float[Tensor, "n_source n_target"]]) -> "DirectionStack":
        """Carried into another space: directions of layer i times `maps[i]`.

        Layers are still those of the source. A layer whose direction the map takes to zero, or to
        its rounding, has none in the target.

        Args:
            maps: One matrix a layer, source channels × target channels (`LinearMap.matrix`).

        Raises:
            ActivationError: Another count of maps than layers, or of another width.
        """
        shapes = [tuple(matrix.shape) for matrix in maps]
        n_layers, d = self.whole.shape
        if (
            len(shapes) != n_layers
            or len({s[1] for s in shapes}) > 1
            or {s[0] for s in shapes} - {d}
        ):
            raise ActivationError(
                f"carrying directions of {n_layers} layers of {d} channels: maps of shapes "
                f"{shapes}. Give one map a layer, all into one space."
            )

        def carried(vectors: Tensor) -> Tensor:
            by_layer = [
                vectors[..., layer, :].double() @ matrix.to(vectors.device, torch.float64)
                for layer, matrix in enumerate(maps)
            ]
            return torch.stack(by_layer, dim=-2).to(vectors.dtype)

        found = self.mapped(carried)
        sizes = torch.stack([matrix.double().square().sum().sqrt() for matrix in maps])
        before = linalg.vector_norm(self.whole.double(), dim=1) * sizes.to(self.whole.device)
        after = linalg.vector_norm(found.whole.double(), dim=1)
        lost = (after <= LOST * before)[:, None]
        return found.mapped(lambda vectors: vectors.masked_fill(lost, 0.0))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "DirectionStack":
        """The stack with `change` applied to the directions of every deal, [..., layer, d]."""
        a, b = self.halves
        left_a, left_b = self.left_out_halves
        return replace(
            self,
            whole=change(self.whole),
            left_out=change(self.left_out),
            permuted=change(self.permuted),
            permuted_with_shift=change(self.permuted_with_shift),
            halves=(change(a), change(b)),
            left_out_halves=(change(left_a), change(left_b)),
        )


def refitted(
    fit: Callable[[Float[Tensor, "row layer d"], Deals], Float[Tensor, "deal layer d"]],
    rows: Float[Tensor, "row layer d"],
    plan: Plan,
) -> DirectionStack:
    """Fit one model's directions again on every deal of `plan`.

    Layers where the rows are the same for every prompt (the template tokens at layer 0) are not
    fitted; they, and those where `fit` gives zero for all rows, have no direction. Leave massive
    channels out of all models first: they are part of what models share. Stored in the dtype of
    the rows, at least float32.

    Args:
        fit: `mean_differences`, or `lambda rows, deals: refit_each(one_fit, rows, deals)`.
        rows: One activation a prompt and layer, harmful first, then harmless.
        plan: The same for every model that is to be compared.

    Raises:
        ActivationError: Rows of another count than the plan's, or rows or directions that are not
            finite.
        DegenerateDirectionError: A layer has a direction on all rows and none on some deal.
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)
    varying = varying_layers(rows)
    everywhere = len(varying) == rows.shape[1]

    def vectors(deals: Deals, of: Tensor = rows) -> Tensor:
        if everywhere:
            return fit(of, deals).to(dtype)
        found = rows.new_zeros(len(deals), *rows.shape[1:], dtype=dtype)
        if varying:
            found[:, varying] = fit(of[:, varying], deals).to(dtype)
        return found

    a, b = plan.halves
    left_a, left_b = plan.few_halves_left_out
    stack = DirectionStack(
        whole=vectors(plan.whole)[0],
        left_out=vectors(plan.left_out),
        permuted=vectors(plan.permuted, _residuals(rows, plan)),
        permuted_with_shift=vectors(plan.permuted),
        halves=(vectors(a), vectors(b)),
        left_out_halves=(vectors(left_a), vectors(left_b)),
        fingerprint=plan.fingerprint,
    )
    missing = ~stack.whole.any(dim=1)

    def checked(directions: Tensor) -> Tensor:
        """Without what a deal finds at layers that have no direction on all rows."""
        lacking = (~directions.any(dim=-1) & ~missing).reshape(-1, len(missing)).any(dim=0)
        if bool(lacking.any()):
            raise DegenerateDirectionError(
                "refitting directions: at indices "
                f"{[int(i) for i in lacking.nonzero()]} of the layers all rows give a direction, "
                "but some half or other deal of them gives none. Use more prompts, or leave these "
                "layers out."
            )
        if not bool(directions.isfinite().all()):
            raise ActivationError(
                "refitting directions: the fit gave numbers that are not finite. Look at its "
                "convergence, or leave the layer out."
            )
        return directions.masked_fill(missing[:, None], 0.0)

    return stack.mapped(checked)


def _residuals(rows: Float[Tensor, "row layer d"], plan: Plan) -> Float[Tensor, "row layer d"]:
    """Each class about its own mean, in at least float32."""
    centered = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
    for members in plan.whole.members(0):
        at = members.to(rows.device)
        centered[at] = (rows[at].double() - rows[at].double().mean(dim=0)).to(centered.dtype)
    return centered
