"""Safety concept activation vector: the direction of a linear classifier.

Source: Xu et al. 2024, "Uncovering Safety Risks of Large Language Models through Concept
Activation Vector", arXiv:2404.12038.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import DegenerateDirectionError
from mechsafety.directions.difference_in_means import difference_in_means
from mechsafety.linalg.subspace import Subspace, orthonormal_basis
from mechsafety.linalg.typed import linalg

MAX_STEPS: Final = 100
"""Newton steps; activations of every size tried need at most 30."""
LAST_GAIN: Final = 1e-16
"""The step that lowers the objective by no more than this share of it is the last: Newton's steps
square what is left, so that after it the gradient is zero but for rounding."""


@dataclass(frozen=True)
class ConceptVector:
    """A linear classifier of activations, harmful against harmless, in float64."""

    w: Float[Tensor, " d_model"]
    """Log-odds of `harmful` per activation unit; its norm is a steepness and no activation size."""
    b: float
    """Log-odds at the origin."""

    def probability(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        r"""$\sigma(w^\top x + b)$: how harmful the classifier holds each activation to be."""
        return torch.sigmoid(rows.double() @ self.w.to(rows.device) + self.b)


def scav(
    harmful: Float[Tensor, "n_harmful d_model"],
    harmless: Float[Tensor, "n_harmless d_model"],
    c: float,
) -> ConceptVector:
    r"""The logistic regression of the label on the activation, with a penalty on w alone.

    $\min_{w, b} \tfrac12 \lVert w \rVert^2 + C \sum_i \log(1 + e^{-s_i (w^\top x_i + b)})$ with
    $s_i = 1$ for harmful rows and $-1$ for harmless ones. The minimum is the only one, and there
    $w = C \sum_i (y_i - p_i) x_i$ with $\sum_i (y_i - p_i) = 0$: w is a combination of the rows
    less their mean, and zero just where the two means are equal. So the problem is solved in
    their span, in coordinates from a QR decomposition, by Newton's method until the gradient is
    zero but for rounding. In float64; holds a few matrices of rows × d_model and of rows × rows.

    Channels are not standardized: w leans towards those with most spread, massive ones above all,
    because there a small weight separates. Standardizing would count each channel alike, and
    scaling all activations by s is the same as C → C s²: C has the unit of 1 / activation².

    Source: arXiv:2404.12038, with the objective of its code, whose C is 1 (the text also penalizes
    b). The code stops `saga` after a number of steps, so that its w depends on where it stopped.

    Args:
        harmful: One activation per prompt, at one site and one token position.
        harmless: As above. The two sets need not be the same size; b takes up what they differ in.
        c: Weight of the rows against the penalty; large ones separate with the widest margin.

    Raises:
        DegenerateDirectionError: No rows, equal means (template tokens at layer 0), or numbers
            too large for the search to end.
    """
    # Refuses rows without a direction: w would be zero there.
    difference_in_means(harmful, harmless)
    rows = torch.cat([harmful, harmless]).double()
    mean = rows.mean(dim=0)
    # The intercept is free, so the mean may be taken out: massive channels then cost no digits.
    Q, R = linalg.qr((rows - mean).T)
    sides = torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    sides[len(harmful) :] = -1
    found = _separating(R.T, sides, c)
    w = Q @ found[:-1]
    return ConceptVector(w, float(found[-1] - w @ mean))


def _separating(
    rows: Float[Tensor, "row k"], sides: Float[Tensor, " row"], c: float
) -> Float[Tensor, " n_weights"]:
    """Weights of the k columns, then the intercept, at the minimum: Newton with halved steps."""
    n, k = rows.shape
    wide = torch.cat([rows, rows.new_ones(n, 1)], dim=1)
    penalty = rows.new_ones(k + 1)
    penalty[-1] = 0

    def loss(at: Tensor) -> Tensor:
        return (penalty * at.square()).sum() / 2 - c * logsigmoid(sides * (wide @ at)).sum()

    at = rows.new_zeros(k + 1)
    at[-1] = torch.log((sides > 0).sum() / (sides < 0).sum())
    for _ in range(MAX_STEPS):
        # Of the wrong label, so that neither end is 1 - p with p near 1.
        wrong = torch.sigmoid(-sides * (wide @ at))
        gradient = penalty * at - c * wide.T @ (sides * wrong)
        curvature = c * (wide.T * (wrong * (1 - wrong))) @ wide + torch.diag(penalty)
        factor, failed = linalg.cholesky_ex(curvature)
        if failed:
            break
        step = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        before, slope = loss(at), gradient @ step
        share = 1.0
        # At the end the loss is level but for rounding, which must not shorten the last steps.
        while share > 1e-9 and not loss(at - share * step) <= (
            before - 1e-4 * share * slope + 1e-14 * before
        ):
            share /= 2
        at = at - share * step
        if slope <= LAST_GAIN * before:
            return at
    raise DegenerateDirectionError(
        f"scav: fitting {n} activations with C = {c:g} came to no end in {MAX_STEPS} steps; they "
        f"reach {float(rows.abs().max()):.3g} from their mean. Lower C, or divide the activations "
        "by their size."
    )


class Scav(FrozenConfig):
    """Settings for `scav`, as written in an experiment's YAML."""

    method: Literal["scav"] = "scav"
    """How directions are fitted."""

    c: PositiveFloat = 1.0
    """Weight of the rows against the penalty ½‖w‖², in 1 / activation²."""

    def fit(
        self,
        harmful: Float[Tensor, "n_harmful d_model"],
        harmless: Float[Tensor, "n_harmless d_model"],
    ) -> Subspace:
        """One dimension along w, as long as the mean difference is along it.

        The norm of w is no activation size. With this scale, adding `vector` to harmless rows
        gives them the mean projection of the harmful ones.
        """
        shift = difference_in_means(harmful, harmless)
        basis = orthonormal_basis(scav(harmful, harmless, self.c).w[None])
        return Subspace(basis=basis.to(shift.dtype), scale=(basis @ shift.double()).to(shift.dtype))
