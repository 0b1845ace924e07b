"""Linear CKA: how alike two models' activations of the same prompts are, whatever their widths.

Sources: Kornblith et al. 2019, arXiv:1905.00414; the unbiased form rests on the estimator of HSIC
by Song et al. 2012 (JMLR 13, eq. 5), as Nguyen et al. 2020 (arXiv:2010.15327) use it.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ActivationError
from mechsafety.metrics.spectral_intervals import Jackknifed, LeaveOut
from mechsafety.metrics.spectrum import centered_gram, gram_matrix, refuse_non_finite

Estimator = Literal["biased", "unbiased"]


def cka(
    first: Float[Tensor, "prompt n_first"],
    second: Float[Tensor, "n_second_prompts n_second"],
    estimator: Estimator,
) -> float:
    r"""Cosine of the two centered Gram matrices, $\langle A, B \rangle / (\lVert A \rVert
    \lVert B \rVert)$.

    1 for activations that differ by a rotation, a shift and one scale; not invariant to other
    linear maps, so that few large channels decide it: show it without massive channels too.
    `biased` is $\lVert X^\top Y \rVert_F^2 / (\lVert X^\top X \rVert_F \lVert Y^\top Y \rVert_F)$
    of centered columns, from 0 to 1, and near 1 for *unrelated* activations of fewer prompts than
    channels. `unbiased` is near 0 for those, and from −1 to 1; take it wherever n < d.

    Held: `8 · prompt · (n_first + n_second + 3 · prompt)` bytes; computed in float64.

    Args:
        first: One activation a prompt.
        second: The same prompts in the same order; any width.
        estimator: Which of the two; name it beside the number.

    Raises:
        ActivationError: Other counts of prompts, fewer than 4, or activations that are not finite
            or do not vary.
    """
    grams = _grams(first, second)
    return _cosine(hsic_gram(grams[0], estimator), hsic_gram(grams[1], estimator))


def jackknifed_cka(
    first: Float[Tensor, "prompt n_first"],
    second: Float[Tensor, "n_second_prompts n_second"],
    estimator: Estimator,
    leave_out: LeaveOut,
) -> Jackknifed:
    """`cka` with its delete-group replicates: an interval, and differences between cells.

    There is no bootstrap of it: a row drawn twice is a pair of prompts that agree exactly.

    Args:
        first: As for `cka`.
        second: As for `cka`.
        estimator: As for `cka`.
        leave_out: Over the prompts; pairs and clusters of prompts leave together.

    Raises:
        ActivationError: As `cka`, or groups of another number of prompts.
    """
    grams = _grams(first, second)
    kept = leave_out.kept
    if kept.shape[1] != len(first):
        raise ActivationError(
            f"CKA with left-out groups: groups of {kept.shape[1]} prompts for activations of "
            f"{len(first)}. Make the groups for these prompts."
        )
    subsets = [torch.ones_like(kept[0]) > 0, *(kept > 0)]
    values = [
        _cosine(*(hsic_gram(gram[keep][:, keep], estimator) for gram in grams)) for keep in subsets
    ]
    return Jackknifed(
        value=values[0],
        base=values[0],
        replicates=torch.tensor(values[1:], dtype=torch.float64),
        left_out=(1 - kept.double().mean(1)).cpu(),
        fingerprint=leave_out.fingerprint,
        lowest=0.0 if estimator == "biased" else -1.0,
        highest=1.0,
    )


def hsic_gram(
    gram: Float[Tensor, "prompt prompt"], estimator: Estimator
) -> Float[Tensor, "prompt prompt"]:
    r"""The Gram matrix whose products with another's are HSIC up to a factor.

    `biased`: $H K H$, $H = I - 11^\top / n$. `unbiased`: the diagonal, which holds each prompt's
    agreement with itself, is set to zero, and the rest is centered so that
    $\langle A, B \rangle / (n (n - 3))$ is the estimator of Song et al. without bias (the form
    with one matrix a side: Székely & Rizzo 2014, Annals of Statistics 42, definition 2).

    Raises:
        ActivationError: Fewer than 4 prompts.
    """
    n = len(gram)
    if n < 4:
        raise ActivationError(
            f"CKA: {n} prompts; at least 4 are needed, and some dozens for a number that means "
            "anything. Give more prompts."
        )
    wide = gram.double()
    if estimator == "biased":
        return centered_gram(wide)
    wide = wide - wide.diagonal().diag()
    by_row = wide.sum(dim=1, keepdim=True) / (n - 2)
    centered = wide - by_row - by_row.mT + wide.sum() / ((n - 1) * (n - 2))
    return centered - centered.diagonal().diag()


def _grams(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if len(first) != len(second):
        raise ActivationError(
            f"CKA: {len(first)} prompts on one side and {len(second)} on the other. Row i of both "
            "must come from the same prompt; collect both models on one list."
        )
    refuse_non_finite(first, "CKA, first activations")
    refuse_non_finite(second, "CKA, second activations")
    # A shift changes nothing but the digits that a large one costs.
    x, y = (rows.double() - rows.double().mean(dim=0) for rows in (first, second))
    return gram_matrix(x), gram_matrix(y)


def _cosine(first: Tensor, second: Tensor) -> float:
    sizes = first.square().sum().sqrt(), second.square().sum().sqrt()
    if not (sizes[0] > 0 and sizes[1] > 0):
        raise ActivationError(
            "CKA: the activations of one side are the same for every prompt, so there is nothing "
            "to compare. Check that the site is read where the prompts differ."
        )
    return float(((first / sizes[0]) * (second / sizes[1])).sum().clamp(-1, 1))
