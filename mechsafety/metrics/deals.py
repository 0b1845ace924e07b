"""Deals of rows into two classes: as labeled, with rows left out, with permuted labels, by halves.

A statistic of two classes has an interval, a null and a reliability by being computed again on
other deals of the same rows. Models that share prompts are compared under the *same* deals, so a
plan is drawn once and every model is refitted by it.
"""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import ActivationError, DegenerateDirectionError, SampleError
from mechsafety.metrics.halving import half_marks
from mechsafety.metrics.matched_controls import label_permutations
from mechsafety.metrics.spectral_intervals import Groups
from mechsafety.metrics.spectrum import refuse_non_finite


@dataclass(frozen=True, slots=True)
class Deals:
    """Which rows are positive and which negative, once a deal. Row order: harmful, harmless."""

    weights: Float[Tensor, "deal row"]
    """Of each row in the mean of its class, float64: positives sum to 1 and negatives to −1; rows
    that are left out have 0. Weighted sums of rows are differences of class means."""
    order: Int[Tensor, "deal row"]
    """Order in which the members of a deal are listed. Member i of the positives and of the
    negatives are a pair of that deal: twins where labels are kept, random where they are not."""

    def __post_init__(self) -> None:
        sides = self.weights.clamp(min=0).sum(1), -self.weights.clamp(max=0).sum(1)
        # NaN, the mean of no rows, fails this too.
        if not all(bool(((side - 1).abs() < 1e-9).all()) for side in sides):
            raise SampleError(
                f"dealing {self.weights.shape[1]} rows: in one of {len(self)} deals a class has no "
                "rows left, or the weights of a class do not sum to 1. Use more rows or clusters, "
                "or more and so smaller groups of rows that are left out together: a group must "
                "not hold all that a half has of a class."
            )

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def n_rows(self) -> int:
        """Rows that are dealt."""
        return self.weights.shape[1]

    def members(self, deal: int) -> tuple[Int[Tensor, " n_positive"], Int[Tensor, " n_negative"]]:
        """Rows of the positive and of the negative class of one deal, in `order`."""
        listed = self.order[deal]
        weights = self.weights[deal, listed]
        return listed[weights > 0], listed[weights < 0]

    def first(self, n_deals: int) -> "Deals":
        """The first `n_deals` of them."""
        return Deals(self.weights[:n_deals], self.order[:n_deals])

    def leaving_out(self, groups: Groups) -> "Deals":
        """Every deal without each group in turn: all deals without group 0, then without 1, ...

        Raises:
            SampleError: Groups of other rows, or a class of which nothing is left.
        """
        group_of_row = torch.cat([groups.harmful, groups.harmless])
        if len(group_of_row) != self.n_rows:
            raise SampleError(
                f"leaving out groups: groups of {len(groups.harmful)} + {len(groups.harmless)} "
                f"rows for deals of {self.n_rows}. Make the groups for these rows."
            )
        left = self.weights * groups.kept(group_of_row)[:, None, :]
        weights = _balanced(left.clamp(min=0), -left.clamp(max=0)).flatten(0, 1)
        return Deals(weights, self.order.repeat(groups.n_groups, 1))


@dataclass(frozen=True, slots=True)
class Plan:
    """Every deal by which models are refitted before they are compared."""

    whole: Deals
    """One deal: as labeled."""
    left_out: Deals
    """As labeled, without each jackknife group."""
    permuted: Deals
    """All rows dealt anew, across pairs."""
    halves: tuple[Deals, Deals]
    """As labeled, on half A and on half B of each split: deal i of both is split i."""
    few_halves_left_out: tuple[Deals, Deals]
    """The first few splits without each group; group-major."""
    groups: Groups
    """What is left out together."""
    paired: bool
    """Row i of both classes is a pair, and goes into one half."""

    @property
    def n_few_splits(self) -> int:
        """Splits behind each replicate of a statistic of halves."""
        return len(self.few_halves_left_out[0]) // self.groups.n_groups

    @property
    def fingerprint(self) -> str:
        """Equal for the same deals: what is refitted under others cannot be compared."""
        digest = hashlib.sha256()
        for deals in (self.left_out, self.permuted, *self.halves):
            digest.update(deals.weights.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def plan(
    n_harmful: int,
    n_harmless: int,
    paired: bool,
    groups: Groups,
    n_draws: int,
    n_splits: int,
    n_few_splits: int,
    generator: torch.Generator,
    clusters: Sequence[Hashable] | None = None,
    harmless_clusters: Sequence[Hashable] | None = None,
) -> Plan:
    """All deals of a comparison; the same generator state gives the same plan.

    Holds `16 · rows · (n_draws + 2 · n_splits + groups · (1 + 2 · n_few_splits))` bytes.

    Args:
        n_harmful: Rows of the positive class.
        n_harmless: Rows of the negative class.
        paired: Row i of one class and of the other is a pair.
        groups: What is left out together (`jackknife_groups`).
        n_draws: Permuted deals; at least 200 for a range with two digits.
        n_splits: Random halvings; at least 50.
        n_few_splits: How many of them are repeated without each group. 8 are enough: estimate and
            replicates use the same ones, so that their randomness cancels.
        generator: Draws the permuted deals, then the halves.
        clusters: Cluster of each harmful row, the same as of `groups`: dealt whole into halves.
        harmless_clusters: Cluster of each harmless row; those of the harmful rows where not given.

    Raises:
        SampleError: Classes of under 4 rows or (paired) of other counts, fewer than 2 draws or
            1 split, more few splits than splits, groups of other rows or with all that a half has
            of a class, or clusters that cannot be halved.
    """
    if n_draws < 2 or not 1 <= n_few_splits <= n_splits:
        raise SampleError(
            f"planning deals: {n_draws} draws, {n_splits} splits and {n_few_splits} of them "
            "without each group; expected at least 2 draws (some hundreds for a range) and 1 "
            "split, and no more few splits than splits."
        )
    labeled = as_labeled(n_harmful, n_harmless)
    drawn = permuted(n_harmful, n_harmless, n_draws, generator)
    a, b = halved(
        *half_marks(n_harmful, n_harmless, paired, n_splits, generator, clusters, harmless_clusters)
    )
    few = tuple(half.first(n_few_splits).leaving_out(groups) for half in (a, b))
    return Plan(
        whole=labeled,
        left_out=labeled.leaving_out(groups),
        permuted=drawn,
        halves=(a, b),
        few_halves_left_out=(few[0], few[1]),
        groups=groups,
        paired=paired,
    )


def as_labeled(n_harmful: int, n_harmless: int) -> Deals:
    """One deal, by the labels."""
    harmful, harmless = torch.ones(1, n_harmful), torch.ones(1, n_harmless)
    return _by_class(harmful, harmless)


def leaving_out(groups: Groups) -> Deals:
    """By the labels, without each group in turn.

    Raises:
        SampleError: A group holds the whole of a class.
    """
    return as_labeled(len(groups.harmful), len(groups.harmless)).leaving_out(groups)


def permuted(n_harmful: int, n_harmless: int, n_draws: int, generator: torch.Generator) -> Deals:
    """All rows dealt anew into classes of the same sizes, across pairs.

    Labels that are swapped only within pairs would leave every uncentered second moment as it is.
    """
    place = label_permutations(n_harmful + n_harmless, n_draws, generator).cpu()
    weights = as_labeled(n_harmful, n_harmless).weights[0][place]
    return Deals(weights, place.argsort(dim=1))


def halved(
    harmful: Float[Tensor, "split n_harmful"], harmless: Float[Tensor, "split n_harmless"]
) -> tuple[Deals, Deals]:
    """Halves A and B of both classes, by the labels: of the rows with and without a mark."""
    return _by_class(harmful, harmless), _by_class(1 - harmful, 1 - harmless)


def mean_differences(
    rows: Float[Tensor, "row layer d"], deals: Deals
) -> Float[Tensor, "deal layer d"]:
    """Mean of the positive rows less that of the negative ones, for each deal and layer.

    In float64, and exactly zero where only rounding is left, as at the template tokens of layer 0,
    which are the same for every prompt. Holds `8 · d · (deals · layers + 2 · rows)` bytes: 216 MB
    for 200 deals of 33 layers of 4096 channels.

    Raises:
        ActivationError: Rows that are not finite, or of another count than the deals'.
    """
    _refuse_other_rows(rows, deals, "mean differences")
    weights = deals.weights.to(rows.device)
    by_layer: list[Tensor] = []
    for layer in range(rows.shape[1]):
        wide = rows[:, layer].double()
        refuse_non_finite(wide, f"mean differences at index {layer} of the layers")
        # Contrasts do not see a common shift, but sums lose digits to a large one.
        centered = wide - wide.mean(dim=0)
        shifts = weights @ centered
        nothing = shifts.square().sum(1, keepdim=True) <= 1e-14 * _mean_square(centered)
        by_layer.append(shifts.masked_fill(nothing, 0.0))
    return torch.stack(by_layer, dim=1)


def refit_each(
    fit: Callable[[Float[Tensor, "n_positive d"], Float[Tensor, "n_negative d"]], Tensor],
    rows: Float[Tensor, "row layer d"],
    deals: Deals,
) -> Float[Tensor, "deal layer d"]:
    """Fit any direction method again to the members of each deal, at each layer.

    Zero where `fit` finds no direction. Time: deals · layers · that of one fit.

    Args:
        fit: Positive rows and negative rows to a vector, such as `method.fit(x, y).vector`.
        rows: Harmful first, then harmless.
        deals: Of these rows.

    Raises:
        ActivationError: Rows that are not finite, or of another count than the deals'.
    """
    _refuse_other_rows(rows, deals, "refitting")
    found = rows.new_zeros(
        len(deals), *rows.shape[1:], dtype=torch.promote_types(rows.dtype, torch.float32)
    )
    for layer in range(rows.shape[1]):
        refuse_non_finite(rows[:, layer], f"refitting at index {layer} of the layers")
        for deal in range(len(deals)):
            positive, negative = (part.to(rows.device) for part in deals.members(deal))
            try:
                vector = fit(rows[positive, layer], rows[negative, layer])
            except DegenerateDirectionError:
                # Zero is how a stack of directions says that there is none.
                continue
            found[deal, layer] = vector.to(found)
    return found


def varying_layers(rows: Float[Tensor, "row layer d"]) -> list[int]:
    """Indices of the layers at which rows differ by more than the rounding of their mean."""
    varying: list[int] = []
    for layer in range(rows.shape[1]):
        wide = rows[:, layer].double()
        spread = _mean_square(wide - wide.mean(dim=0))
        # Rows that are not finite are for the fit to refuse by name.
        if not spread <= 1e-26 * _mean_square(wide):
            varying.append(layer)
    return varying


def _mean_square(rows: Tensor) -> Tensor:
    return rows.square().sum() / len(rows)


def _by_class(harmful: Tensor, harmless: Tensor) -> Deals:
    """Deals that keep the labels, of the rows marked by ones."""
    nothing_harmful, nothing_harmless = torch.zeros_like(harmful), torch.zeros_like(harmless)
    weights = _balanced(
        torch.cat([harmful, nothing_harmless], dim=1), torch.cat([nothing_harmful, harmless], dim=1)
    )
    return Deals(weights, torch.arange(weights.shape[1]).repeat(len(weights), 1))


def _balanced(positive: Tensor, negative: Tensor) -> Tensor:
    x, y = positive.double(), negative.double()
    return x / x.sum(-1, keepdim=True) - y / y.sum(-1, keepdim=True)


def _refuse_other_rows(rows: Tensor, deals: Deals, doing: str) -> None:
    if len(rows) != deals.n_rows:
        raise ActivationError(
            f"{doing}: {len(rows)} rows for deals of {deals.n_rows}. Give all rows of both "
            "classes, harmful first, then harmless, as the plan was made for."
        )
