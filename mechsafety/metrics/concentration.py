"""How concentrated one contrast is: everything that one cell of the study reports, in one pass.

The rows' Gram matrix is computed once; the spectrum, its jackknife, the cross-fit with its own
jackknife and the permuted-label null are batches of its sub-matrices.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import SelfCheckError
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.cross_fitted import held_out_shares, random_halves
from mechsafety.metrics.effective_rank import (
    effective_rank,
    energy_effective_rank,
    participation_ratio,
    stable_rank,
    threshold_rank,
)
from mechsafety.metrics.nulls import permuted_label_shares, repaired_shares, unrelated_contrast
from mechsafety.metrics.pairing import Design, Pairing, Rows, design
from mechsafety.metrics.row_participation import row_energies, row_participation
from mechsafety.metrics.spatial_sign import sign_grams
from mechsafety.metrics.spectral_intervals import (
    Groups,
    Jackknifed,
    LeaveOut,
    jackknife_groups,
)
from mechsafety.metrics.spectrum import leading_share, shares_of

TOP: Final = 2
"""Components of the headline share, as in arXiv:2504.18872."""

Unrelated = Literal["harmless-harmless", "harmful-harmful"]


class ConcentrationSettings(FrozenConfig):
    """How a cell is computed. Counts of 0 leave that part out."""

    pairing: Pairing = "all"
    """`list` for content twins; `all` for independent lists; `first` to cut unequal lists."""
    centered: bool = False
    """False asks how concentrated the shift is; True how it varies between pairs."""
    components: PositiveInt = 10
    """Leading components whose shares are kept."""
    groups: int = Field(default=20, ge=4)
    """Groups of the delete-group jackknife; fewer where there are fewer rows or clusters."""
    splits: NonNegativeInt = 50
    """Random halvings of the cross-fit; at least 50 for a number that is reported."""
    interval_splits: PositiveInt = 4
    """Halvings that are repeated without each group; the same ones, so a few are enough."""
    null_draws: NonNegativeInt = 20
    """Relabelings of the permuted-label null."""
    repairings: NonNegativeInt = 0
    """Random re-pairings of the two lists, for the range that a pairing by list order hides."""
    unrelated_pairings: NonNegativeInt = 0
    """Derangements of each unrelated contrast; 30 for a number that is reported."""
    interval_pairings: PositiveInt = 3
    """Derangements that are repeated without each group."""
    spatial_sign: bool = False
    """Whether to add the spectrum of differences scaled to unit norm."""
    energy_threshold: float = Field(default=0.9, gt=0, le=1)
    """Share of the energy that the threshold rank counts components for."""


@dataclass(frozen=True)
class Concentration:
    """One contrast at one site, position and arm. Shares are of the energy of the differences."""

    pairing: Pairing
    """How rows were paired."""
    centered: bool
    """Whether the mean difference was taken out."""
    n_harmful: int
    """Rows of the first class that were used."""
    n_harmless: int
    """Rows of the second class that were used."""
    shares: Float[Tensor, " k"]
    """In-sample share of each leading component."""
    top2: Jackknifed
    """In-sample share of the first two. Its interval covers the expected in-sample share at
    this n, which lies above the population's."""
    cross_fitted_shares: Float[Tensor, " n_top"] | None
    """Held-out share of the first two components, each, mean over splits."""
    cross_fitted_top2: Jackknifed | None
    """Held-out share of the first two. Its interval covers the expected share on held-out rows of
    components fitted to half of n rows, which lies below the population's."""
    effective_rank: float
    """Roy and Vetterli, on singular values."""
    energy_effective_rank: float
    """The same entropy on energies."""
    participation_ratio: float
    """Inverse of the summed squared shares."""
    stable_rank: float
    """Inverse of the first share."""
    threshold_rank: int
    """Components that hold `energy_threshold` of the energy."""
    mean_energy_share: float
    """Energy of the mean difference over the uncentered energy, whether centered or not."""
    within_energy_share: float
    """The rest: energy of the differences about their mean."""
    row_participation: float
    """Rows that carry the first component, as a participation ratio; at most `n_rows`."""
    n_rows: int
    """Pairs, or for every pairing the rows of both classes."""
    null: Float[Tensor, " draw"] | None
    """In-sample top-2 share under labels permuted across pairs, one a relabeling. Cells that share
    groups share relabelings too, so that nulls of differences are differences of these."""
    repaired_low: float | None
    """Least in-sample top-2 share over random re-pairings of the two lists."""
    repaired_high: float | None
    """Greatest of the same."""
    unrelated: dict[Unrelated, Jackknifed]
    """In-sample top-2 share between rows of one class, mean over derangements."""
    spatial_sign_top2: Jackknifed | None
    """Top-2 share of the differences at unit norm."""
    groups: Groups
    """Jackknife groups; hand them to cells on the same rows that are to be compared."""

    @property
    def null_range(self) -> tuple[float, float] | None:
        """2.5 % and 97.5 % quantiles of `null`."""
        if self.null is None:
            return None
        return float(self.null.quantile(0.025)), float(self.null.quantile(0.975))

    @property
    def excess(self) -> Jackknifed | None:
        """In-sample top-2 share minus that between harmless prompts, with a paired interval."""
        other = self.unrelated.get("harmless-harmless")
        return None if other is None else self.top2 - other


def concentration(
    harmful: Float[Tensor, "n_harmful d"],
    harmless: Float[Tensor, "n_harmless d"],
    settings: ConcentrationSettings,
    generator: torch.Generator,
    clusters: Sequence[Hashable] | None = None,
    harmless_clusters: Sequence[Hashable] | None = None,
    groups: Groups | None = None,
) -> Concentration:
    """Spectrum, ranks, mechanism, intervals, cross-fit and null of one contrast.

    Everything is float64 on the Gram matrix of the rows; holds about `8 · draws · n²` bytes. The
    jackknife groups are drawn first, so cells that are given the rows of the same prompts and
    generators with the same seed have the same groups, and their `top2` can be subtracted.

    Args:
        harmful: One activation a prompt, at one site and position.
        harmless: As above; row i is the twin of row i where `settings.pairing` is `list`.
        settings: What to compute, and how often to resample.
        generator: Draws groups, halves, relabelings and derangements, in this order.
        clusters: Cluster of each harmful row (or pair), never divided by a resampling.
        harmless_clusters: Cluster of each harmless row, where it is not that of the same index.
        groups: Jackknife groups to use instead of drawing them.

    Raises:
        ActivationError: Counts that the pairing cannot use, too few rows, or NaN.
        DegenerateDirectionError: The differences are all zero.
        SelfCheckError: `groups` do not fit the rows.
    """
    cell, both = design(harmful, harmless, settings.pairing, settings.centered)
    n_harmful = int(cell.side[:, 0].sum())
    n_harmless = len(both) - n_harmful
    names = _names(clusters, harmless_clusters, n_harmful, n_harmless, settings.pairing)
    if groups is None:
        groups = jackknife_groups(n_harmful, n_harmless, settings.groups, generator, *names)
    if (len(groups.harmful), len(groups.harmless)) != (n_harmful, n_harmless):
        raise SelfCheckError(
            f"concentration: the jackknife groups are of {len(groups.harmful)} harmful and "
            f"{len(groups.harmless)} harmless rows, and the cell has {n_harmful} and {n_harmless}. "
            "Cells that share groups must have the same rows."
        )
    by_row = torch.cat([groups.harmful, groups.harmless])
    leave_out = LeaveOut.of(groups, by_row if cell.every_pairing else groups.harmful, cell.gram)

    values, vectors = linalg.eigh(cell.differences_gram(cell.everything())[0])
    spectrum = values.flip(0).clamp(min=0)
    shares = shares_of(spectrum, settings.components)
    top2 = float(shares_of(spectrum, TOP).sum())
    without = leading_share(cell.differences_gram(Rows.of(leave_out.kept)), TOP)
    held_out, held_out_top2 = _cross_fit(cell, settings, generator, names, leave_out)
    null = _null(both, n_harmful, settings, generator)
    repaired = _repaired(both, settings, generator)
    mean_share = cell.mean_energy_share()
    return Concentration(
        pairing=settings.pairing,
        centered=settings.centered,
        n_harmful=n_harmful,
        n_harmless=n_harmless,
        shares=shares,
        top2=leave_out.share(top2, top2, without),
        cross_fitted_shares=held_out,
        cross_fitted_top2=held_out_top2,
        effective_rank=effective_rank(spectrum),
        energy_effective_rank=energy_effective_rank(spectrum),
        participation_ratio=participation_ratio(spectrum),
        stable_rank=stable_rank(spectrum),
        threshold_rank=threshold_rank(spectrum, settings.energy_threshold),
        mean_energy_share=mean_share,
        within_energy_share=1 - mean_share,
        row_participation=row_participation(row_energies(cell, values[-1], vectors[:, -1])),
        n_rows=len(cell.side),
        null=null,
        repaired_low=None if repaired is None else float(repaired.min()),
        repaired_high=None if repaired is None else float(repaired.max()),
        unrelated=_unrelated(both, n_harmful, settings, generator, groups),
        spatial_sign_top2=_spatial_sign(cell, leave_out, settings),
        groups=groups,
    )


def mechanism_line(cell: Concentration, massive: Sequence[int]) -> str:
    """Why a cell is as concentrated as it is, in one sentence to stand beside its number.

    Equal shares can come from a mean shift that every prompt has or from a few bursty prompts.

    Args:
        cell: An uncentered cell with every channel and pair.
        massive: The massive channels of this arm.
    """
    channels = f"massive channels {', '.join(map(str, massive))}" if massive else "none massive"
    return (
        f"the mean shift holds {cell.mean_energy_share:.2f} of the energy of the differences and "
        f"variation about it {cell.within_energy_share:.2f}; {channels}; the first component is "
        f"carried by {cell.row_participation:.0f} of {cell.n_rows} rows"
    )


Names = Sequence[Hashable] | None


def _names(
    clusters: Names, harmless_clusters: Names, n_harmful: int, n_harmless: int, pairing: Pairing
) -> tuple[Names, Names]:
    """Cluster names of the rows in use. A pair has one cluster: that of its harmful row."""
    if clusters is None:
        return None, None
    if pairing != "all" or harmless_clusters is None:
        return clusters[:n_harmful], None
    return clusters[:n_harmful], harmless_clusters[:n_harmless]


def _cross_fit(
    cell: Design,
    settings: ConcentrationSettings,
    generator: torch.Generator,
    names: tuple[Names, Names],
    leave_out: LeaveOut,
) -> tuple[Float[Tensor, " n_top"] | None, Jackknifed | None]:
    if not settings.splits:
        return None, None
    of_rows = names[0]
    if of_rows is not None and cell.every_pairing:
        of_rows = [*of_rows, *(of_rows if names[1] is None else names[1])]
    fit = random_halves(cell, settings.splits, generator, of_rows)
    shares = held_out_shares(cell, fit, cell.everything_kept(settings.splits), TOP)
    few = fit[: settings.interval_splits]
    kept = leave_out.kept
    by_group = held_out_shares(
        cell, few.repeat(len(kept), 1), kept.repeat_interleave(len(few), dim=0), TOP
    )
    replicates = by_group.sum(1).reshape(len(kept), len(few)).mean(1)
    mean = shares.mean(0)
    return mean, leave_out.share(
        float(mean.sum()), float(shares[: len(few)].sum(1).mean()), replicates
    )


def _null(
    both: Float[Tensor, "n_both n_both"],
    n_harmful: int,
    settings: ConcentrationSettings,
    generator: torch.Generator,
) -> Float[Tensor, " draw"] | None:
    if not settings.null_draws:
        return None
    return permuted_label_shares(
        both, n_harmful, settings.pairing, settings.centered, TOP, settings.null_draws, generator
    )


def _repaired(
    both: Float[Tensor, "n_both n_both"],
    settings: ConcentrationSettings,
    generator: torch.Generator,
) -> Float[Tensor, " draw"] | None:
    if not settings.repairings or settings.pairing == "all":
        return None
    return repaired_shares(both, settings.centered, TOP, settings.repairings, generator)


def _unrelated(
    both: Float[Tensor, "n_both n_both"],
    n_harmful: int,
    settings: ConcentrationSettings,
    generator: torch.Generator,
    groups: Groups,
) -> dict[Unrelated, Jackknifed]:
    if not settings.unrelated_pairings:
        return {}
    classes: dict[Unrelated, tuple[Tensor, Tensor]] = {
        "harmless-harmless": (both[n_harmful:, n_harmful:], groups.harmless),
        "harmful-harmful": (both[:n_harmful, :n_harmful], groups.harmful),
    }
    return {
        name: unrelated_contrast(
            gram,
            LeaveOut.of(groups, of_row, gram),
            settings.pairing,
            settings.centered,
            TOP,
            settings.unrelated_pairings,
            settings.interval_pairings,
            generator,
        )
        for name, (gram, of_row) in classes.items()
    }


def _spatial_sign(
    cell: Design, leave_out: LeaveOut, settings: ConcentrationSettings
) -> Jackknifed | None:
    if not settings.spatial_sign:
        return None
    members = torch.cat([cell.everything_kept(1), leave_out.kept])
    shares = leading_share(sign_grams(cell, members), TOP)
    return leave_out.share(float(shares[0]), float(shares[0]), shares[1:])
