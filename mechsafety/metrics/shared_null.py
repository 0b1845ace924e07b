"""Cosine between two models' mean differences, where the models share prompts and so share noise.

Two models of one base give nearly the same activation to the same prompt, so the differences of
*any* two sets of prompts point alike in both: on Llama-2-7B-chat the cosine of two arms is .96,
and .85 to .94 when the labels say nothing (layer 12, 100 + 100 prompts, two massive channels out).
Random vectors, or labels permuted in each model apart, would call the whole of it a finding.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ActivationError, DegenerateDirectionError, SampleError
from mechsafety.metrics.matched_controls import label_permutations
from mechsafety.metrics.spectral_intervals import Groups, Jackknifed
from mechsafety.metrics.spectrum import refuse_non_finite


@dataclass(frozen=True, slots=True)
class SharedCosine:
    """How alike two directions are, and how much of that the prompts alone explain."""

    raw: float
    """Cosine of the mean differences over all prompts, the same in both models."""
    disjoint: float
    """Cosine of half A of one model with half B of the other, mean over splits and both ways: the
    noise is not shared, and each direction has that of half the prompts."""
    disattenuated: float | None
    """`disjoint` / √(product of reliabilities), an estimate without noise that can pass 1; None
    where a reliability is not above 0, so that there is no direction to speak of."""
    reliability_first: float
    """Cosine of halves A and B within the first model, mean over splits: the ceiling of
    `disjoint` for a model compared with itself."""
    reliability_second: float
    """As above, of the second model."""
    null: Float[Tensor, " draw"]
    """`raw` with the same permuted labels in both models."""

    @property
    def excess(self) -> float:
        """`raw` less the mean of the null: the value of the finding."""
        return self.raw - float(self.null.mean())

    def null_range(self, confidence: float = 0.95) -> tuple[float, float]:
        """Quantiles of the null with this share of the draws between them."""
        tail = (1 - confidence) / 2
        return float(self.null.quantile(tail)), float(self.null.quantile(1 - tail))


def shared_cosines(
    first_harmful: Float[Tensor, "n_harmful d"],
    first_harmless: Float[Tensor, "n_harmless d"],
    second_harmful: Float[Tensor, "n_second_harmful n_width"],
    second_harmless: Float[Tensor, "n_second_harmless n_width"],
    paired: bool,
    n_draws: int,
    n_splits: int,
    generator: torch.Generator,
) -> SharedCosine:
    r"""Raw, disjoint and disattenuated cosine of two mean differences, with their shared null.

    The null deals all rows anew into two classes of the same sizes, across pairs, with the same
    deal in both models. A split halves each class by the same prompts in both models.
    Leave massive channels out of both models first: they are part of what the two share.

    Everything is a quadratic form of three Gram matrices, so neither draws nor splits touch the d
    channels. Held: `8 · n · (2 d + 3 n + n_draws)` bytes, n the prompts of both classes; float64.

    Args:
        first_harmful: One activation a prompt, one model.
        first_harmless: As above.
        second_harmful: The other model on the same prompts in the same order, of the same width;
            carry rows of another width over first (`linalg.align`).
        second_harmless: As above.
        paired: Row i of the classes is a pair, which goes into one half as a whole.
        n_draws: At least 200 for a range with two digits.
        n_splits: At least 50.
        generator: Draws deals and splits.

    Raises:
        ActivationError: Models of other counts or widths, classes of under 4 rows or (paired) of
            other counts, or rows that are not finite.
        SampleError: No draws or splits.
        DegenerateDirectionError: A model's two means are equal.
    """
    if min(n_draws, n_splits) < 1:
        raise SampleError(
            f"cosine with a shared null: {n_draws} draws and {n_splits} splits; expected at least "
            "one of each, and some hundreds of draws for a range."
        )
    grams = _grams(first_harmful, first_harmless, second_harmful, second_harmless, paired)
    n_harmful, n_harmless = len(first_harmful), len(first_harmless)
    labels = _contrast(torch.ones(n_harmful), torch.ones(n_harmless))
    order = label_permutations(len(labels), n_draws, generator).to(grams.across.device)
    null = grams.cosines(labels.to(grams.across)[order])
    a, b = _halves(n_harmful, n_harmless, paired, n_splits, generator, grams.across)
    reliability_first = float(_bilinear(grams.first, a, b).mean())
    reliability_second = float(_bilinear(grams.second, a, b).mean())
    both_ways = _bilinear_across(grams, a, b) + _bilinear_across(grams, b, a)
    disjoint = float(both_ways.mean()) / 2
    reliable = reliability_first > 0 and reliability_second > 0
    noise = (reliability_first * reliability_second) ** 0.5 if reliable else None
    return SharedCosine(
        raw=float(grams.cosines(labels.to(grams.across)[None])),
        disjoint=disjoint,
        disattenuated=None if noise is None else disjoint / noise,
        reliability_first=reliability_first,
        reliability_second=reliability_second,
        null=null.cpu(),
    )


def jackknifed_cosine(
    first_harmful: Float[Tensor, "n_harmful d"],
    first_harmless: Float[Tensor, "n_harmless d"],
    second_harmful: Float[Tensor, "n_second_harmful n_width"],
    second_harmless: Float[Tensor, "n_second_harmless n_width"],
    groups: Groups,
) -> Jackknifed:
    """The raw cosine with its delete-group replicates, the same rows left out of both models.

    Cells with the same groups can be subtracted. Cosines have no percentile bootstrap: repeated
    rows lengthen the noise that the two models share.

    Raises:
        ActivationError: As `shared_cosines`, or groups of other counts of rows.
        DegenerateDirectionError: As `shared_cosines`.
    """
    if (len(groups.harmful), len(groups.harmless)) != (len(first_harmful), len(first_harmless)):
        raise ActivationError(
            f"cosine with left-out groups: groups of {len(groups.harmful)} + "
            f"{len(groups.harmless)} rows for {len(first_harmful)} + {len(first_harmless)} "
            "activations. Make the groups for these rows."
        )
    grams = _grams(first_harmful, first_harmless, second_harmful, second_harmless, paired=False)
    kept_harmful, kept_harmless = groups.kept(groups.harmful), groups.kept(groups.harmless)
    all_rows = _contrast(torch.ones(len(first_harmful)), torch.ones(len(first_harmless)))
    weights = torch.cat([all_rows[None], _contrast(kept_harmful, kept_harmless)])
    values = grams.cosines(weights.to(grams.across)).cpu()
    kept = torch.cat([kept_harmful, kept_harmless], dim=1)
    return Jackknifed(
        value=float(values[0]),
        base=float(values[0]),
        replicates=values[1:],
        left_out=1 - kept.mean(1),
        fingerprint=groups.fingerprint,
        lowest=-1.0,
        highest=1.0,
    )


@dataclass(frozen=True, slots=True)
class _Grams:
    """Inner products of rows, harmful first, within each model and across the two."""

    first: Float[Tensor, "row row"]
    second: Float[Tensor, "row row"]
    across: Float[Tensor, "row row"]

    def cosines(self, weights: Float[Tensor, "draw row"]) -> Float[Tensor, " draw"]:
        """Cosine of the two models' weighted sums of rows, for each set of weights."""
        return _bilinear_across(self, weights, weights)


def _bilinear_across(grams: _Grams, of_first: Tensor, of_second: Tensor) -> Tensor:
    product = ((of_first @ grams.across) * of_second).sum(-1)
    return product / (_sizes(grams.first, of_first) * _sizes(grams.second, of_second))


def _bilinear(gram: Tensor, one: Tensor, other: Tensor) -> Tensor:
    product = ((one @ gram) * other).sum(-1)
    return product / (_sizes(gram, one) * _sizes(gram, other))


def _sizes(gram: Tensor, weights: Tensor) -> Tensor:
    squares = ((weights @ gram) * weights).sum(-1)
    # Rounding leaves about this much of a difference that is zero.
    if bool((squares <= 1e-14 * gram.diagonal().mean()).any()):
        raise DegenerateDirectionError(
            "cosine of mean differences: in one model the two classes, or two halves of them, have "
            "the same mean, so there is no direction. Check that the site is read after the prompt."
        )
    return squares.sqrt()


def _contrast(harmful: Tensor, harmless: Tensor) -> Tensor:
    """Weights of all rows for the mean of the marked harmful less that of the marked harmless."""
    x, y = harmful.double(), harmless.double()
    return torch.cat([x / x.sum(-1, keepdim=True), -y / y.sum(-1, keepdim=True)], dim=-1)


def _halves(
    n_harmful: int,
    n_harmless: int,
    paired: bool,
    n_splits: int,
    generator: torch.Generator,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """Weights of halves A and B for every split; of an odd count A has one row less."""

    def marks(n: int) -> Tensor:
        rank = torch.rand(n_splits, n, generator=generator, device=generator.device).argsort(1)
        return (rank < n // 2).to(like)

    harmful = marks(n_harmful)
    harmless = harmful if paired else marks(n_harmless)
    a = _contrast(harmful, harmless)
    return a, _contrast(1 - harmful, 1 - harmless)


def _grams(
    first_harmful: Tensor,
    first_harmless: Tensor,
    second_harmful: Tensor,
    second_harmless: Tensor,
    paired: bool,
) -> _Grams:
    n_harmful, n_harmless = len(first_harmful), len(first_harmless)
    if (n_harmful, n_harmless) != (len(second_harmful), len(second_harmless)):
        raise ActivationError(
            f"cosine with a shared null: {n_harmful} + {n_harmless} prompts in the first model and "
            f"{len(second_harmful)} + {len(second_harmless)} in the second. Row i of both must "
            "come from the same prompt; collect both models on one list."
        )
    if first_harmful.shape[1] != second_harmful.shape[1]:
        raise ActivationError(
            f"cosine with a shared null: widths {first_harmful.shape[1]} and "
            f"{second_harmful.shape[1]}. Directions of other widths have no cosine; fit a map on "
            "neutral prompts and carry one over (mechsafety.linalg.align)."
        )
    if min(n_harmful, n_harmless) < 4 or (paired and n_harmful != n_harmless):
        raise ActivationError(
            f"cosine with a shared null: {n_harmful} harmful and {n_harmless} harmless prompts"
            f"{' as pairs' if paired else ''}; expected at least 4 of each, and as many of one as "
            "of the other where they are pairs."
        )
    models: list[Tensor] = []
    for harmful, harmless in ((first_harmful, first_harmless), (second_harmful, second_harmless)):
        both = torch.cat([harmful.double(), harmless.double()])
        refuse_non_finite(both, "cosine with a shared null")
        # Contrasts do not see a common shift, but inner products lose digits to a large one.
        models.append(both - both.mean(dim=0))
    x, y = models
    return _Grams(x @ x.T, y @ y.T, x @ y.T)
