"""What a concentration is compared with: shuffled labels, and contrasts that are not about harm.

Swapping labels *within* pairs multiplies rows of D by ±1 and leaves DᵀD as it is, so every
uncentered share: an identity, never a null. Here labels are permuted *across* pairs, and rows of
one class are taken from other rows of the same class.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import ActivationError
from mechsafety.metrics.pairing import Design, Pairing, pair_gram
from mechsafety.metrics.spectral_intervals import Jackknifed, LeaveOut
from mechsafety.metrics.spectrum import leading_share

PERMUTED_LABELS = (
    "labels permuted across pairs (all rows pooled, each class about its own mean, and dealt "
    "anew into the two classes)"
)


def permuted_label_shares(
    gram: Float[Tensor, "n_both n_both"],
    n_harmful: int,
    pairing: Pairing,
    centered: bool,
    k: int,
    n_draws: int,
    generator: torch.Generator,
) -> Float[Tensor, " draw"]:
    """Shares of the first `k` components after dealing all rows anew into the two classes.

    The classes keep their sizes and the pairing stays as named. What is left is the concentration
    of this model's activations when the label says nothing. Each class's mean is taken out before
    the rows are pooled (residuals are permuted): left in, the shift would count as variation within
    the relabeled classes, and the null of a model, and of a difference between models, would be
    larger the larger the shift that is tested. A p-value from it has a resolution of
    1/(n_draws + 1).

    Source: residuals as in Freedman and Lane 1983, doi:10.1080/07350015.1983.10509354.

    Args:
        gram: Inner products of the rows of both classes, harmful first (`pairing.design`).
        n_harmful: How many of them are harmful.
        pairing: As for the contrast itself.
        centered: As for the contrast itself.
        k: Components.
        n_draws: Relabelings.
        generator: Draws them.
    """
    n_both = len(gram)
    sides = gram.new_zeros(n_both, 2)
    sides[:n_harmful, 0] = 1
    sides[n_harmful:, 1] = 1
    to_mean = sides @ (sides / sides.sum(0)).T
    gram = gram - to_mean @ gram - gram @ to_mean + to_mean @ gram @ to_mean
    order = torch.rand(n_draws, n_both, generator=generator).argsort(dim=1).to(gram.device)
    if pairing == "all":
        designs = (Design(gram, sides[deal], centered) for deal in order)
        return torch.cat([leading_share(d.differences_gram(d.everything()), k) for d in designs])
    pairs = pair_gram(gram, order[:, :n_harmful], order[:, n_harmful:])
    return leading_share(_over(pairs, pairs.new_ones(pairs.shape[:2]), centered), k)


def unrelated_contrast(
    gram: Float[Tensor, "row row"],
    leave_out: LeaveOut,
    pairing: Pairing,
    centered: bool,
    k: int,
    n_pairings: int,
    n_interval_pairings: int,
    generator: torch.Generator,
) -> Jackknifed:
    r"""Share of the first `k` components between rows of *one* class: harmless from harmless.

    `list` and `first`: the mean over random derangements (cyclic orders, each row minus the
    next one) of the in-sample share. `all`: every pairing of the class with itself, whose second
    moment is $2\Sigma$, so the share of its centered rows; nothing is drawn then.

    Args:
        gram: Inner products of the rows of the class.
        leave_out: The jackknife of the contrast that this stands beside, over these rows, so that
            the difference of the two has an interval.
        pairing: As for that contrast.
        centered: As for that contrast.
        k: Components.
        n_pairings: Derangements behind the value.
        n_interval_pairings: Derangements behind each replicate; a few are enough, because the
            same ones serve every replicate.
        generator: Draws them.

    Raises:
        ActivationError: Fewer than 4 rows.
    """
    n = len(gram)
    if n < 4:
        raise ActivationError(
            f"unrelated contrast: {n} rows of one class cannot be paired with each other in more "
            "than one way; at least 4 are needed."
        )
    kept = leave_out.kept
    if pairing == "all":
        members = torch.cat([kept.new_ones(1, n), kept])
        shares = leading_share(_over(gram.expand(len(members), n, n), members, centered=True), k)
        return leave_out.share(float(shares[0]), float(shares[0]), shares[1:])
    order = torch.rand(n_pairings, n, generator=generator).argsort(dim=1).to(gram.device)
    shares = _cyclic_shares(gram, order, kept.new_ones(n_pairings, n), centered, k)
    few = order[:n_interval_pairings]
    by_group = _cyclic_shares(
        gram, few.repeat(len(kept), 1), kept.repeat_interleave(len(few), dim=0), centered, k
    )
    replicates = by_group.reshape(len(kept), len(few)).mean(1)
    return leave_out.share(float(shares.mean()), float(shares[: len(few)].mean()), replicates)


def _cyclic_shares(
    gram: Float[Tensor, "row row"],
    order: Int[Tensor, "draw row"],
    members: Float[Tensor, "draw row"],
    centered: bool,
    k: int,
) -> Float[Tensor, " draw"]:
    """Shares of the differences between each kept row and the next kept one of its cycle."""
    kept = members.gather(1, order)
    packed = kept.argsort(dim=1, descending=True, stable=True)
    first, keep = order.gather(1, packed), kept.gather(1, packed)
    place = torch.arange(first.shape[1], device=gram.device)
    following = (place[None, :] + 1) % keep.sum(1, keepdim=True).long()
    pairs = pair_gram(gram, first, first.gather(1, following))
    return leading_share(_over(pairs, keep, centered), k)


def _over(
    gram: Float[Tensor, "draw row row"], keep: Float[Tensor, "draw row"], centered: bool
) -> Float[Tensor, "draw row row"]:
    """Each Gram matrix over its kept rows, minus their mean where asked; other rows are zero."""
    if centered:
        weight = keep / keep.sum(1, keepdim=True)
        by_row = gram @ weight[:, :, None]
        center = weight[:, None, :] @ by_row
        gram = gram - by_row - by_row.mT + center
    return gram * keep[:, :, None] * keep[:, None, :]


def repaired_shares(
    gram: Float[Tensor, "n_both n_both"],
    centered: bool,
    k: int,
    n_pairings: int,
    generator: torch.Generator,
) -> Float[Tensor, " draw"]:
    """Shares when each harmful row is paired with another harmless row, at random.

    How far the result of a pairing by list order hangs on that order. `gram` holds n harmful rows,
    then n harmless ones.
    """
    n = len(gram) // 2
    partner = n + torch.rand(n_pairings, n, generator=generator).argsort(dim=1).to(gram.device)
    rows = torch.arange(n, device=gram.device).expand(n_pairings, n)
    pairs = pair_gram(gram, rows, partner)
    return leading_share(_over(pairs, pairs.new_ones(pairs.shape[:2]), centered), k)
