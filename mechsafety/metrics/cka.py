"""Linear CKA: how alike two models' activations of the same prompts are, whatever their widths.

Sources: Kornblith et al. 2019, arXiv:1905.00414; the unbiased form rests on the estimator of HSIC
by Song et al. 2012 (JMLR 13, eq. 5), as Nguyen et al. 2020 (arXiv:2010.15327) use it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ActivationError, SampleError
from mechsafety.metrics.deals import varying_layers
from mechsafety.metrics.matched_controls import label_permutations
from mechsafety.metrics.spectral_intervals import Jackknifed, LeaveOut
from mechsafety.metrics.spectrum import centered_gram, gram_matrix, refuse_non_finite

Estimator = Literal["biased", "unbiased"]


@dataclass(frozen=True, slots=True)
class LayerCka:
    """CKA of every layer of one model with every layer of another."""

    value: Float[Tensor, "n_first_layers n_second_layers"]
    """On all prompts; NaN at layers that are the same for every prompt."""
    replicates: Float[Tensor, "group n_first_layers n_second_layers"]
    """Without each group of prompts; no groups where none were given."""
    left_out: Float[Tensor, " group"]
    """Share of the prompts in each group."""
    fingerprint: str
    """Which prompts each group holds."""
    estimator: Estimator
    """Which of the two; it stands beside every number."""

    def jackknifed(self, first: int, second: int) -> Jackknifed:
        """One cell, with what its interval comes from; cells can be subtracted.

        There is no bootstrap of it: a row drawn twice is a pair of prompts that agree exactly.

        Raises:
            ActivationError: Activations of a layer are the same for every prompt.
            SampleError: No groups of prompts were given to leave out.
        """
        if not len(self.left_out):
            raise SampleError(
                "interval of a CKA that was measured without groups to leave out. Give `layer_cka` "
                "a LeaveOut over its prompts."
            )
        replicates = self.replicates[:, first, second]
        if not bool(self.value[first, second].isfinite() & replicates.isfinite().all()):
            raise _nothing_varies()
        return Jackknifed(
            value=float(self.value[first, second]),
            base=float(self.value[first, second]),
            replicates=replicates,
            left_out=self.left_out,
            fingerprint=self.fingerprint,
            lowest=0.0 if self.estimator == "biased" else -1.0,
            highest=1.0,
        )


def layer_cka(
    first: Float[Tensor, "prompt n_first_layers n_first"],
    second: Float[Tensor, "n_second_prompts n_second_layers n_second"],
    estimator: Estimator,
    leave_out: LeaveOut | None,
) -> LayerCka:
    r"""Cosine of the two centered Gram matrices, $\langle A, B \rangle / (\lVert A \rVert
    \lVert B \rVert)$, for every two layers.

    1 for activations that differ by a rotation, a shift and one scale; not invariant to other
    linear maps, so that few large channels decide it: show it without massive channels too.
    `biased` is $\lVert X^\top Y \rVert_F^2 / (\lVert X^\top X \rVert_F \lVert Y^\top Y \rVert_F)$
    of centered columns, from 0 to 1, and near 1 for *unrelated* activations of fewer prompts than
    channels. `unbiased` is near 0 for those, and from −1 to 1; take it wherever n < d.

    Held: `16 · prompt² · (n_first_layers + n_second_layers)` bytes, 42 MB for 200 prompts and 33
    layers twice, and one layer's activations in float64; computed in float64.

    Args:
        first: One activation a prompt and layer.
        second: The same prompts in the same order; any width and number of layers.
        estimator: Which of the two; name it beside the number.
        leave_out: Over the prompts, for intervals; pairs and clusters of prompts leave together.

    Raises:
        ActivationError: Other counts of prompts, fewer than 4, activations that are not finite, or
            groups of another number of prompts.
    """
    _refuse_other_prompts(first, second)
    grams = _grams(first, "first"), _grams(second, "second")
    kept = torch.zeros(0, len(first)) if leave_out is None else leave_out.kept
    if kept.shape[1] != len(first):
        raise ActivationError(
            f"CKA with left-out groups: groups of {kept.shape[1]} prompts for activations of "
            f"{len(first)}. Make the groups for these prompts."
        )
    subsets = (kept > 0).to(first.device)
    replicates = [
        _agreement(*(_unit(hsic_gram(gram[:, keep][:, :, keep], estimator)) for gram in grams))
        for keep in subsets
    ]
    value = _agreement(*(_unit(hsic_gram(gram, estimator)) for gram in grams))
    return LayerCka(
        value=value,
        replicates=torch.stack(replicates) if replicates else value.new_zeros(0, *value.shape),
        left_out=(1 - kept.double().mean(1)).cpu(),
        fingerprint="" if leave_out is None else leave_out.fingerprint,
        estimator=estimator,
    )


def shuffled_layer_cka(
    first: Float[Tensor, "prompt n_first_layers n_first"],
    second: Float[Tensor, "n_second_prompts n_second_layers n_second"],
    estimator: Estimator,
    n_draws: int,
    generator: torch.Generator,
) -> Float[Tensor, "draw n_first_layers n_second_layers"]:
    """CKA with the second model's prompts in random order: what unmatched prompts give.

    A null of *no relation at all*, which two models of one base leave far behind: it says that a
    number is not its estimator's bias, not that training made the models alike.

    Args:
        first: As for `layer_cka`.
        second: As for `layer_cka`; one order of its prompts serves all layers.
        estimator: As for `layer_cka`.
        n_draws: At least 200 for a range with two digits.
        generator: Draws the orders.

    Raises:
        ActivationError: As `layer_cka`.
        SampleError: No draws.
    """
    if n_draws < 1:
        raise SampleError(f"CKA of shuffled prompts: {n_draws} draws; expected at least 1.")
    _refuse_other_prompts(first, second)
    one, other = (
        _unit(hsic_gram(_grams(rows, side), estimator))
        for rows, side in ((first, "first"), (second, "second"))
    )
    n = len(first)
    # Both are symmetric, so half of the entries do; entries by rows make an order one copy.
    i, j = torch.triu_indices(n, n, device=first.device)
    half = (one[:, i, j] * (2 - (i == j).double())).contiguous()
    entries = other.flatten(1).T.contiguous()
    orders = label_permutations(n, n_draws, generator).to(first.device)
    draws = [half @ entries[order[i] * n + order[j]] for order in orders]
    return torch.stack(draws).clamp(-1, 1).cpu()


def cka(
    first: Float[Tensor, "prompt n_first"],
    second: Float[Tensor, "n_second_prompts n_second"],
    estimator: Estimator,
) -> float:
    """`layer_cka` of one layer of each model.

    Raises:
        ActivationError: As `layer_cka`, or activations of one side that do not vary.
    """
    value = float(layer_cka(first[:, None], second[:, None], estimator, None).value)
    if value != value:
        raise _nothing_varies()
    return value


def jackknifed_cka(
    first: Float[Tensor, "prompt n_first"],
    second: Float[Tensor, "n_second_prompts n_second"],
    estimator: Estimator,
    leave_out: LeaveOut,
) -> Jackknifed:
    """`layer_cka` of one layer of each model, with its interval.

    Raises:
        ActivationError: As `cka`, or groups of another number of prompts.
    """
    return layer_cka(first[:, None], second[:, None], estimator, leave_out).jackknifed(0, 0)


def hsic_gram(
    gram: Float[Tensor, "*batch prompt prompt"], estimator: Estimator
) -> Float[Tensor, "*batch prompt prompt"]:
    r"""The Gram matrix whose products with another's are HSIC up to a factor.

    `biased`: $H K H$, $H = I - 11^\top / n$. `unbiased`: the diagonal, which holds each prompt's
    agreement with itself, is set to zero, and the rest is centered so that
    $\langle A, B \rangle / (n (n - 3))$ is the estimator of Song et al. without bias (the form
    with one matrix a side: Székely & Rizzo 2014, Annals of Statistics 42, definition 2).

    Raises:
        ActivationError: Fewer than 4 prompts.
    """
    n = gram.shape[-1]
    if n < 4:
        raise ActivationError(
            f"CKA: {n} prompts; at least 4 are needed, and some dozens for a number that means "
            "anything. Give more prompts."
        )
    wide = gram.double()
    if estimator == "biased":
        return centered_gram(wide)
    wide = wide - _diagonal(wide)
    by_row = wide.sum(dim=-1, keepdim=True) / (n - 2)
    total = wide.sum(dim=(-2, -1), keepdim=True) / ((n - 1) * (n - 2))
    centered = wide - by_row - by_row.mT + total
    return centered - _diagonal(centered)


def _diagonal(matrices: Tensor) -> Tensor:
    return torch.diag_embed(matrices.diagonal(dim1=-2, dim2=-1))


def _refuse_other_prompts(first: Tensor, second: Tensor) -> None:
    if len(first) != len(second):
        raise ActivationError(
            f"CKA: {len(first)} prompts on one side and {len(second)} on the other. Row i of both "
            "must come from the same prompt; collect both models on one list."
        )


def _grams(rows: Tensor, side: str) -> Float[Tensor, "layer prompt prompt"]:
    """Of each layer; zero where all prompts have one activation but for rounding."""
    found = rows.new_zeros(rows.shape[1], len(rows), len(rows), dtype=torch.float64)
    for layer in range(rows.shape[1]):
        refuse_non_finite(rows[:, layer], f"CKA, {side} activations, index {layer} of the layers")
    for layer in varying_layers(rows):
        wide = rows[:, layer].double()
        # A shift changes nothing but the digits that a large one costs.
        found[layer] = gram_matrix(wide - wide.mean(dim=0))
    return found


def _unit(matrices: Tensor) -> Tensor:
    """Frobenius norm 1; NaN for zero."""
    return matrices / matrices.square().sum(dim=(-2, -1), keepdim=True).sqrt()


def _agreement(
    first: Float[Tensor, "n_first_layers prompt prompt"],
    second: Float[Tensor, "n_second_layers prompt prompt"],
) -> Float[Tensor, "n_first_layers n_second_layers"]:
    return (first.flatten(1) @ second.flatten(1).T).clamp(-1, 1).cpu()


def _nothing_varies() -> ActivationError:
    return ActivationError(
        "CKA: the activations of one side are the same for every prompt, so there is nothing to "
        "compare. Check that the site is read where the prompts differ."
    )
