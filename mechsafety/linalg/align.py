"""Maps between two models' spaces, fitted on prompts that both have read.

Fit on neutral prompts, judge by `held_out_r2` on others, and only then carry a direction over. A
map fitted on the prompts that define a direction carries that direction whatever the models share.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ActivationError, SampleError
from mechsafety.linalg.typed import linalg

ROUNDING: Final = 1e-12
"""Singular values below this share of the largest are rounding: no row determines them."""


@dataclass(frozen=True, slots=True)
class LinearMap:
    r"""$y \approx (x - \bar x) W + \bar y$."""

    matrix: Float[Tensor, "n_source n_target"]
    """W, float64."""
    source_mean: Float[Tensor, " n_source"]
    """Mean of the rows that it was fitted on."""
    target_mean: Float[Tensor, " n_target"]
    """As above, in the target's space."""
    penalty: float | None
    """Of the ridge, as a multiple of the mean eigenvalue; None: not a ridge."""
    rank: int
    """Dimensions of the source that the rows determined; W is zero on the others."""

    def carry(
        self, vectors: Float[Tensor, "*batch {self.n_source}"]
    ) -> Float[Tensor, "*batch {self.n_target}"]:
        """Directions, which are differences of activations: W alone, no means; float64.

        A vector that lies outside what the rows determined comes out short, and one orthogonal to
        it as zero: look at the norm before the cosine.
        """
        return vectors.double() @ self.matrix

    def apply(
        self, rows: Float[Tensor, "row {self.n_source}"]
    ) -> Float[Tensor, "row {self.n_target}"]:
        """Activations; float64."""
        return (rows.double() - self.source_mean) @ self.matrix + self.target_mean

    @property
    def n_source(self) -> int:
        """Width of the space it comes from."""
        return self.matrix.shape[0]

    @property
    def n_target(self) -> int:
        """Width of the space it goes to."""
        return self.matrix.shape[1]


def procrustes(
    source: Float[Tensor, "n_rows n_source"],
    target: Float[Tensor, "n_target_rows n_target"],
    scaled: bool = False,
) -> LinearMap:
    r"""The rotation that brings the centered source rows nearest to the target's.

    $W = U V^\top$ from the thin SVD of $X^\top Y$, which minimizes $\lVert X W - Y \rVert_F$. To
    a space of at least the same width it is semi-orthogonal, $W W^\top = I$ (to a narrower one
    $W^\top W = I$), once the rows span the narrower space. With fewer rows they determine only
    `rank` dimensions; there W is a rotation, and elsewhere it is zero, because any completion
    would be an invention.

    Works on thin SVDs of both sides, so that 100 rows of width 4096 take seconds. Holds
    `8 · (n_rows · (n_source + n_target) + n_source · n_target)` bytes, 134 MB at 4096 twice.

    Source: Schönemann 1966, doi:10.1007/BF02289451.

    Args:
        source: One activation a row.
        target: The same prompts in the same order; any width.
        scaled: Multiply W by the one factor that fits best. Without it the held-out R² of two
            models of different activation norm is low however well their shapes agree; cosines
            of carried directions are the same.

    Raises:
        ActivationError: Other counts of rows, fewer than 4, or rows that are not finite, do not
            vary, or have no product with the other side's.
    """
    x, y = _centered(source, target, "Procrustes map")
    of_x, of_y = _Thin.of(x), _Thin.of(y)
    P, agreement, Q = linalg.svd(
        (of_x.S[:, None] * of_x.U.T) @ (of_y.U * of_y.S), full_matrices=False
    )
    rank = int((agreement > ROUNDING * of_x.S[0] * of_y.S[0]).sum())
    if rank == 0:
        raise ActivationError(
            f"Procrustes map: over {len(x)} rows no source direction goes with any target "
            "direction, so no rotation is better than another. Check that the rows are matched."
        )
    W = (of_x.Vh.T @ P[:, :rank]) @ (Q[:rank] @ of_y.Vh)
    factor = agreement[:rank].sum() / (x @ W).square().sum() if scaled else 1.0
    means = source.double().mean(dim=0), target.double().mean(dim=0)
    return LinearMap(W * factor, *means, None, rank)


def ridge(
    source: Float[Tensor, "n_rows n_source"],
    target: Float[Tensor, "n_target_rows n_target"],
    penalties: Sequence[float],
    n_folds: int,
    generator: torch.Generator,
    groups: Sequence[Hashable] | None = None,
) -> LinearMap:
    r"""The linear map of least squared error under a penalty chosen by cross-validation.

    $W = (X^\top X + \lambda I)^{-1} X^\top Y$ of centered rows, with $\lambda$ = penalty · mean
    eigenvalue of $X^\top X$ (over the dimensions that the rows determine), so that one grid serves
    models of any activation norm and any number of rows. The penalty of least squared error on
    held-out rows wins, the larger of equal ones; a winner at an end of `penalties` says that the
    grid was too short.

    Held: as `procrustes`; the d × d matrix is never inverted.

    Source: Hoerl & Kennard 1970, doi:10.1080/00401706.1970.10488634.

    Args:
        source: One activation a row.
        target: The same prompts in the same order; any width.
        penalties: Candidates above 0, such as powers of ten from 1e-4 to 1e4.
        n_folds: Parts of the rows that are held out in turn.
        generator: Deals rows, or groups, into folds.
        groups: Group of each row, such as the template a prompt was made from; groups are never
            divided, or the penalty is chosen too small.

    Raises:
        ActivationError: As `procrustes`.
        SampleError: No penalties or one that is not above 0, or more folds than rows or groups.
    """
    x, y = _centered(source, target, "ridge map")
    candidates = sorted(penalties, reverse=True)
    if not candidates or not all(0 < each < float("inf") for each in candidates):
        raise SampleError(
            f"ridge map: penalties {list(penalties)}; expected finite numbers above 0, such as "
            "powers of ten from 1e-4 to 1e4."
        )
    errors = torch.zeros(len(candidates), dtype=torch.float64)
    folds = _folds(len(x), n_folds, generator, groups)
    # Nothing to choose between costs no cross-validation.
    for held in folds if len(candidates) > 1 else ():
        mean_x, mean_y = x[~held].mean(dim=0), y[~held].mean(dim=0)
        thin = _Thin.of(x[~held] - mean_x)
        onto, seen = (x[held] - mean_x) @ thin.Vh.T, thin.U.T @ (y[~held] - mean_y)
        left = y[held] - mean_y
        for i, penalty in enumerate(candidates):
            errors[i] += (left - (onto * thin.shrunk(penalty)) @ seen).square().sum().cpu()
    penalty = candidates[int(errors.argmin())]
    thin = _Thin.of(x)
    W = (thin.Vh.T * thin.shrunk(penalty)) @ (thin.U.T @ y)
    means = source.double().mean(dim=0), target.double().mean(dim=0)
    return LinearMap(W, *means, penalty, len(thin.S))


def held_out_r2(
    fitted: LinearMap,
    source: Float[Tensor, "n_rows n_source"],
    target: Float[Tensor, "n_target_rows n_target"],
) -> float:
    r"""Share of the target's squared deviation that the map predicts, on rows it has not seen.

    $1 - \sum \lVert y - \hat y \rVert^2 / \sum \lVert y - \bar y_\text{fit} \rVert^2$, summed over
    rows and channels, so large channels weigh most. The deviation is about the mean of the rows
    that the map was *fitted* on: a map that ignores its input scores 0, and a worse one less.

    Raises:
        ActivationError: Rows or widths that do not fit, not finite, or a target equal to the mean
            of the fit rows.
    """
    _check(source, target, 1, "held-out R² of a map")
    if (source.shape[1], target.shape[1]) != (fitted.n_source, fitted.n_target):
        raise ActivationError(
            f"held-out R² of a map from {fitted.n_source} to {fitted.n_target} channels: rows of "
            f"{source.shape[1]} and {target.shape[1]}. Take both from the models it was fitted on."
        )
    total = (target.double() - fitted.target_mean).square().sum()
    if not total > 0:
        raise ActivationError(
            "held-out R² of a map: every target row is the mean of the fit rows; nothing varies "
            "that could be predicted."
        )
    return float(1 - (target.double() - fitted.apply(source)).square().sum() / total)


class _Thin(NamedTuple):
    """Thin SVD without the dimensions that only rounding fills."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    @staticmethod
    def of(rows: Tensor) -> "_Thin":
        U, S, Vh = linalg.svd(rows, full_matrices=False)
        rank = int((S / S[0] > ROUNDING).sum())
        return _Thin(U[:, :rank], S[:rank], Vh[:rank])

    def shrunk(self, penalty: float) -> Tensor:
        """S / (S² + λ)."""
        return self.S / (self.S**2 + penalty * (self.S**2).mean())


def _centered(source: Tensor, target: Tensor, doing: str) -> tuple[Tensor, Tensor]:
    _check(source, target, 4, doing)
    x, y = (rows.double() - rows.double().mean(dim=0) for rows in (source, target))
    if not (bool(x.any()) and bool(y.any())):
        raise ActivationError(
            f"{doing}: the {len(x)} activations of one side are the same for every prompt. Check "
            "that the site is read where the prompts differ."
        )
    return x, y


def _check(source: Tensor, target: Tensor, at_least: int, doing: str) -> None:
    if len(source) != len(target) or len(source) < at_least:
        raise ActivationError(
            f"{doing}: {len(source)} source and {len(target)} target rows; expected the same "
            f"prompts on both sides, at least {at_least}. Collect both models on one list."
        )
    if not bool(source.isfinite().all() & target.isfinite().all()):
        raise ActivationError(
            f"{doing}: of {len(source)} rows some are not finite. Find the prompt that gave them "
            "and leave it out on both sides."
        )


def _folds(
    n_rows: int, n_folds: int, generator: torch.Generator, groups: Sequence[Hashable] | None
) -> list[Tensor]:
    """For each fold, which rows it holds out."""
    names = list(range(n_rows)) if groups is None else list(groups)
    distinct = list(dict.fromkeys(names))
    if len(names) != n_rows or not 2 <= n_folds <= len(distinct):
        raise SampleError(
            f"ridge map: {n_folds} folds of {len(distinct)} rows or groups ({len(names)} named for "
            f"{n_rows} rows). Name a group for each row, and take 2 folds or more, at most one a "
            "group."
        )
    order = torch.randperm(len(distinct), generator=generator, device=generator.device)
    fold = {distinct[int(place)]: i % n_folds for i, place in enumerate(order)}
    of_row = torch.tensor([fold[name] for name in names])
    return [of_row == i for i in range(n_folds)]
