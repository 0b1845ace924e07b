"""Gram matrices of one model's activations, made once for CKA with every other model."""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import ActivationError, SampleError
from mechsafety.metrics.deals import varying_layers
from mechsafety.metrics.spectral_intervals import LeaveOut
from mechsafety.metrics.spectrum import gram_matrix, refuse_non_finite

Estimator = Literal["biased", "unbiased"]

ROUNDING: Final = 1e-12
"""What centering may leave of a Gram matrix's squares and still be the rounding of equal rows."""


@dataclass(frozen=True, slots=True)
class ActivationGrams:
    """Gram matrices of one model's layers, to be centered on all prompts or without a group.

    A sample is all prompts, the first, or all but a group. No sample's centered matrix is held: the
    product of two is the sum over the entries between the sample's prompts, less what centering
    takes away.
    """

    entries: Float[Tensor, "n_layers n_entries"]
    """One for each two prompts, sorted by blocks, which samples hold undivided. Two equal entries
    of the matrix are one here, times √2."""
    prompts: Int[Tensor, "n_ends n_entries"]
    """Which two prompts an entry is of."""
    block_sizes: tuple[int, ...]
    """Entries of each block."""
    blocks: Float[Tensor, "n_samples n_blocks"]
    """One where a sample holds a block."""
    kept: Float[Tensor, "n_samples prompt"]
    """One where a sample holds a prompt."""
    sums: Float[Tensor, "n_samples n_layers prompt"]
    """Row sums of the matrix of each sample's prompts; zero at prompts that it lacks."""
    norms: Float[Tensor, "n_samples n_layers"]
    """Frobenius norm of each sample's centered matrix; NaN where its prompts do not differ."""
    fingerprint: str
    """Which prompts each group holds."""
    estimator: Estimator
    """How the matrices are centered."""


def activation_grams(
    rows: Float[Tensor, "prompt n_layers n_channels"],
    estimator: Estimator,
    leave_out: LeaveOut | None,
) -> ActivationGrams:
    r"""What `cka.layer_cka` needs of one model: made once, compared with every other.

    `biased`: $A = H K H$ of the Gram matrix K, $H = I - 11^\top / n$. `unbiased`: the diagonal,
    which holds each prompt's agreement with itself, is set to zero, and the rest is centered so
    that $\langle A, B \rangle / (n (n - 3))$ is the estimator of Song et al. without bias.

    Held, in float64: `4 · prompt² · (n_layers + 2) + 8 · prompt · n_layers · (groups + 1)` bytes,
    7 MB for 200 prompts, 33 layers and 20 groups; while it is made, also one layer's activations
    and some Gram matrices of one layer.

    Sources: Song et al. 2012, https://jmlr.org/papers/v13/song12a.html; in the form with one matrix
    a side, Székely & Rizzo 2014, arXiv:1310.2926, definition 2.

    Args:
        rows: One activation a prompt and layer.
        estimator: Which of the two (`cka.layer_cka` says when); name it beside the number.
        leave_out: Over the prompts, for intervals; pairs and clusters of prompts leave together.

    Raises:
        ActivationError: Fewer than 4 prompts, with or without a group, activations that are not
            finite, or groups of another number of prompts.
    """
    kept = _samples(len(rows), leave_out).to(rows.device)
    prompts, block_sizes, blocks = _layout(kept, estimator)
    i, j = prompts
    twice = (2 - (i == j).double()).sqrt()
    n_layers = rows.shape[1]
    entries = kept.new_zeros(n_layers, len(twice))
    sums = kept.new_zeros(len(kept), n_layers, len(rows))
    for layer in range(n_layers):
        refuse_non_finite(rows[:, layer], f"CKA, activations at index {layer} of the layers")
    for layer in varying_layers(rows):
        wide = rows[:, layer].double()
        # A shift changes nothing but the digits that a large one costs. The mean would bring the
        # size of one massive prompt into every entry, and so into the samples without it.
        gram = gram_matrix(wide - wide.median(dim=0).values)
        if estimator == "unbiased":
            gram = gram.fill_diagonal_(0)
        entries[layer] = gram[i, j] * twice
        sums[:, layer] = kept * (kept @ gram)
    parts = torch.split(entries, block_sizes, dim=1)
    squares = blocks @ torch.stack([part.square().sum(dim=1) for part in parts])
    left = centered(squares, sums.square().sum(dim=2), sums.sum(dim=2).square(), kept, estimator)
    return ActivationGrams(
        entries=entries,
        prompts=prompts,
        block_sizes=tuple(block_sizes),
        blocks=blocks,
        kept=kept,
        sums=sums,
        norms=left.where(left > ROUNDING * squares, torch.nan).sqrt(),
        fingerprint="" if leave_out is None else leave_out.fingerprint,
        estimator=estimator,
    )


def refuse_other_samples(first: ActivationGrams, second: ActivationGrams) -> None:
    """Raise where two models' matrices cannot be compared, entry by entry.

    Raises:
        ActivationError: Other counts of prompts.
        SampleError: Another estimator, or other groups of prompts left out.
    """
    n_first, n_second = first.kept.shape[1], second.kept.shape[1]
    if n_first != n_second:
        raise ActivationError(
            f"CKA: {n_first} prompts on one side and {n_second} on the other. Row i of both "
            "must come from the same prompt; collect both models on one list."
        )
    if first.estimator != second.estimator:
        raise SampleError(
            f"CKA: Gram matrices centered for the {first.estimator} estimator on one side and the "
            f"{second.estimator} one on the other. Make both with one `estimator`."
        )
    if not torch.equal(first.kept, second.kept):
        raise SampleError(
            f"CKA: {len(first.kept) - 1} groups of prompts left out of one side and "
            f"{len(second.kept) - 1} of the other, not the same ones. Make both with one LeaveOut."
        )


def centered(
    products: Float[Tensor, "n_samples *cell"],
    of_sums: Float[Tensor, "n_samples *cell"],
    of_totals: Float[Tensor, "#n_samples *cell"],
    kept: Float[Tensor, "#n_samples prompt"],
    estimator: Estimator,
) -> Float[Tensor, "n_samples *cell"]:
    """Products of two centered matrices from those of the matrices as they are.

    Args:
        products: Of the entries between a sample's prompts.
        of_sums: Of the row sums.
        of_totals: Of the sums of all entries.
        kept: One where a sample holds a prompt.
        estimator: How the matrices are centered.
    """
    n = kept.sum(dim=1).reshape(-1, *[1] * (products.ndim - 1))
    if estimator == "biased":
        return products - 2 / n * of_sums + of_totals / n**2
    return products - 2 / (n - 2) * of_sums + of_totals / ((n - 1) * (n - 2))


def numbered(
    i: Int[Tensor, " n_found"], j: Int[Tensor, " n_found"], n: int
) -> Int[Tensor, "n_sides n_sides"]:
    """Where each two stand in a list, whichever comes first."""
    numbers = i.new_zeros(n, n)
    numbers[i, j] = numbers[j, i] = torch.arange(len(i), device=i.device)
    return numbers


def _samples(n_prompts: int, leave_out: LeaveOut | None) -> Float[Tensor, "n_samples prompt"]:
    """Ones for all prompts, then for those kept without each group."""
    kept = torch.ones(1, n_prompts, dtype=torch.float64)
    if leave_out is not None:
        if leave_out.kept.shape[1] != n_prompts:
            raise ActivationError(
                f"CKA with left-out groups: groups of {leave_out.kept.shape[1]} prompts for "
                f"activations of {n_prompts}. Make the groups for these prompts."
            )
        kept = torch.cat([kept, (leave_out.kept > 0).to(kept)])
    fewest = int(kept.sum(dim=1).min())
    if fewest < 4:
        without = "" if fewest == n_prompts else f" of {n_prompts} without a group"
        raise ActivationError(
            f"CKA: {fewest} prompts{without}; at least 4 are needed, and some dozens for a number "
            "that means anything. Give more prompts."
        )
    return kept


def _layout(
    kept: Float[Tensor, "n_samples prompt"], estimator: Estimator
) -> tuple[Int[Tensor, "n_ends n_entries"], list[int], Float[Tensor, "n_samples n_blocks"]]:
    """Two prompts of each entry, sizes of blocks, and which samples hold these: see the fields.

    Prompts that leave together make a set, and entries between the same two sets a block.
    """
    columns = [column.tobytes() for column in kept.T.cpu().numpy()]
    sets = {column: number for number, column in enumerate(dict.fromkeys(columns))}
    set_of_prompt = torch.tensor([sets[column] for column in columns], device=kept.device)
    held = kept[:, [columns.index(column) for column in sets]]
    low, high = torch.triu_indices(len(sets), len(sets), device=kept.device)
    diagonal = 0 if estimator == "biased" else 1
    prompts = torch.triu_indices(len(columns), len(columns), diagonal, device=kept.device)
    i, j = set_of_prompt[prompts]
    block = numbered(low, high, len(sets))[i, j]
    sizes = [int(size) for size in block.bincount(minlength=len(low)).cpu()]
    return prompts[:, block.argsort(stable=True)], sizes, held[:, low] * held[:, high]
