"""Linear CKA: how alike two models' activations of the same prompts are, whatever their widths.

Sources: Kornblith et al. 2019, arXiv:1905.00414; the unbiased form rests on the estimator of HSIC
by Song et al. 2012 (https://jmlr.org/papers/v13/song12a.html, eq. 5), as Nguyen et al. 2020
(arXiv:2010.15327) use it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ActivationError, SampleError
from mechsafety.metrics.activation_grams import (
    ActivationGrams,
    Estimator,
    activation_grams,
    centered,
    numbered,
    refuse_other_samples,
)
from mechsafety.metrics.matched_controls import label_permutations
from mechsafety.metrics.spectral_intervals import Jackknifed, LeaveOut


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
                "interval of a CKA that was measured without groups to leave out. Give "
                "`activation_grams` a LeaveOut over its prompts."
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


def layer_cka(first: ActivationGrams, second: ActivationGrams) -> LayerCka:
    r"""Cosine of the two centered Gram matrices, $\langle A, B \rangle / (\lVert A \rVert
    \lVert B \rVert)$, for every two layers.

    1 for activations that differ by a rotation, a shift and one scale; not invariant to other
    linear maps, so that few large channels decide it: show it without massive channels too.
    `biased` is $\lVert X^\top Y \rVert_F^2 / (\lVert X^\top X \rVert_F \lVert Y^\top Y \rVert_F)$
    of centered columns, from 0 to 1, and near 1 for *unrelated* activations of fewer prompts than
    channels. `unbiased` is near 0 for those, and from −1 to 1; take it wherever n < d.

    Args:
        first: From `activation_grams`.
        second: Of the same prompts in the same order; any width and number of layers.

    Raises:
        ActivationError: Other counts of prompts.
        SampleError: Another estimator, or other groups of prompts left out.
    """
    refuse_other_samples(first, second)
    x, y = (torch.split(one.entries, list(one.block_sizes), dim=1) for one in (first, second))
    by_block = torch.stack([part @ other.T for part, other in zip(x, y, strict=True)])
    products = centered(
        torch.einsum("sb,bij->sij", first.blocks, by_block),
        first.sums @ second.sums.mT,
        _of_totals(first, second),
        first.kept,
        first.estimator,
    )
    found = products / (first.norms[:, :, None] * second.norms[:, None])
    value, *replicates = found.clamp(-1, 1).cpu()
    return LayerCka(
        value=value,
        replicates=torch.stack(replicates) if replicates else value.new_zeros(0, *value.shape),
        left_out=(1 - first.kept[1:].mean(dim=1)).cpu(),
        fingerprint=first.fingerprint,
        estimator=first.estimator,
    )


def shuffled_layer_cka(
    first: ActivationGrams, second: ActivationGrams, n_draws: int, generator: torch.Generator
) -> Float[Tensor, "draw n_first_layers n_second_layers"]:
    """CKA with the second model's prompts in random order: what unmatched prompts give.

    A null of *no relation at all*, which two models of one base leave far behind: it says that a
    number is not its estimator's bias, not that training made the models alike.

    Holds the second model's entries once more, and 16 bytes for each two prompts.

    Args:
        first: As for `layer_cka`.
        second: As for `layer_cka`; one order of its prompts serves all layers.
        n_draws: At least 200 for a range with two digits.
        generator: Draws the orders.

    Raises:
        ActivationError: As `layer_cka`.
        SampleError: As `layer_cka`, or no draws.
    """
    if n_draws < 1:
        raise SampleError(f"CKA of shuffled prompts: {n_draws} draws; expected at least 1.")
    refuse_other_samples(first, second)
    n, (i, j) = first.kept.shape[1], first.prompts
    entry = numbered(i, j, n)
    # Entries by rows make an order one copy.
    y = second.entries.T.contiguous()
    orders = label_permutations(n, n_draws, generator).to(i.device)
    draws: list[Tensor] = []
    for order in orders:
        moved = entry.take(order.index_select(0, i) * n + order.index_select(0, j))
        draws.append(first.entries @ y.index_select(0, moved))
    products = centered(
        torch.stack(draws),
        first.sums[0] @ second.sums[0][:, orders].permute(1, 2, 0),
        _of_totals(first, second)[:1],
        first.kept[:1],
        first.estimator,
    )
    return (products / (first.norms[0, :, None] * second.norms[0])).clamp(-1, 1).cpu()


def cka(
    first: Float[Tensor, "prompt n_first"],
    second: Float[Tensor, "n_second_prompts n_second"],
    estimator: Estimator,
) -> float:
    """`layer_cka` of one layer of each model.

    Raises:
        ActivationError: As `layer_cka`, or activations of one side that do not vary.
    """
    value = float(_one_layer(first, second, estimator, None).value)
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
    return _one_layer(first, second, estimator, leave_out).jackknifed(0, 0)


def _of_totals(
    first: ActivationGrams, second: ActivationGrams
) -> Float[Tensor, "n_samples n_first_layers n_second_layers"]:
    return first.sums.sum(dim=2)[:, :, None] * second.sums.sum(dim=2)[:, None]


def _one_layer(
    first: Tensor, second: Tensor, estimator: Estimator, leave_out: LeaveOut | None
) -> LayerCka:
    return layer_cka(
        *(activation_grams(rows[:, None], estimator, leave_out) for rows in (first, second))
    )


def _nothing_varies() -> ActivationError:
    return ActivationError(
        "CKA: the activations of one side are the same for every prompt, so there is nothing to "
        "compare. Check that the site is read where the prompts differ."
    )
