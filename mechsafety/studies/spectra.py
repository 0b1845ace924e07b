"""The spectral part of a study: every cell of one arm, with its controls and contrasts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import PositiveFloat
from torch import Tensor

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import DegenerateDirectionError
from mechsafety.core.result import Dimension, Table
from mechsafety.core.seeding import named_generator
from mechsafety.metrics.concentration import Concentration, ConcentrationSettings, concentration
from mechsafety.metrics.massive_channels import (
    CONTROLS,
    Control,
    controlled,
    kept_rows,
    ordinary_channels,
)
from mechsafety.metrics.pairing import Pairing
from mechsafety.metrics.spectral_intervals import Jackknifed
from mechsafety.studies.arms import ArmView, PairRows
from mechsafety.studies.massive import massive_of, massive_table

HARM: Final = "harmful-harmless"
CENTERINGS: Final[dict[str, bool]] = {"uncentered": False, "centered": True}


class CellKey(NamedTuple):
    """What indexes a spectrum within one arm; the words are those of the tables."""

    contrast: str
    """`harmful-harmless`, or a contrast that is not about harm."""
    rows: str
    """`all`, or `common`: pairs on which every refusing arm behaves the same."""
    pairing: Pairing
    channels: Control
    centering: str
    position: str
    layer: int
    """Layer whose input is read; the number of layers names the stream after the last."""


Cells = Mapping[CellKey, Concentration]


class SpectraSettings(FrozenConfig):
    """Settings of the spectra; see `ConcentrationSettings` for what each count costs."""

    cells: ConcentrationSettings
    """For the contrast that the study is about."""
    contrasts: ConcentrationSettings
    """For contrasts that are not about harm, and for the common-behavior pairs."""
    massive_threshold: PositiveFloat = 200.0
    """Size of a massive channel as a multiple of the layer's median |x| (evidence.md 3)."""


@dataclass(frozen=True)
class Exclusions:
    """What the controls take out; the same in every arm."""

    massive: tuple[int, ...]
    """Union over arms."""
    placebo: tuple[int, ...]
    keep_first: Bool[Tensor, " n_first"]
    """Harmful rows that no arm marks as affected."""
    keep_second: Bool[Tensor, " n_second"]
    common: Bool[Tensor, " n_pairs"] | None
    """Pairs refused and answered as they should be in every refusing arm; None if unpaired."""


@dataclass(frozen=True)
class SpectraJob:
    """All that a worker needs for the spectra of one arm."""

    arm: str
    pairs: PairRows
    contrasts: Mapping[str, PairRows]
    positions: tuple[str, ...]
    settings: SpectraSettings
    pairings: tuple[Pairing, ...]
    """The primary pairing first; further ones for the specification curve."""
    exclusions: Exclusions
    clusters: tuple[str, ...] | None
    """Cluster of each harmful row; None where every row is its own."""
    second_clusters: tuple[str, ...] | None
    contrast_clusters: Mapping[str, tuple[str, ...] | None]
    seed: int


def exclusions(
    views: Sequence[ArmView], settings: SpectraSettings, paired: bool, refusing: Sequence[str]
) -> tuple[Exclusions, Table]:
    """Massive channels, affected rows and common pairs: found in each arm, applied to all."""
    table = massive_table(settings.massive_threshold)
    massive: set[int] = set()
    affected: list[Tensor] = []
    pooled: list[Tensor] = []
    n_first = len(views[0].pairs.first)
    for view in views:
        both = torch.cat([view.pairs.first, view.pairs.second])
        found = massive_of(view.arm, both, settings.massive_threshold, table)
        massive |= set(found.channels)
        affected.append(found.affected())
        pooled.append(both.flatten(1, 2).mean(1))
    placebo = ordinary_channels(pooled, massive, len(massive))
    keep_first, keep_second = kept_rows(affected, n_first, paired)
    return (
        Exclusions(
            massive=tuple(sorted(massive)),
            placebo=placebo,
            keep_first=keep_first,
            keep_second=keep_second,
            common=_common(views, refusing) if paired else None,
        ),
        table,
    )


def _common(views: Sequence[ArmView], refusing: Sequence[str]) -> Bool[Tensor, " n_pairs"]:
    """Pairs whose harmful prompt every refusing arm refuses and whose twin every one answers."""
    kept = torch.ones(len(views[0].harmful.verdicts), dtype=torch.bool)
    for view in views:
        if view.arm in refusing:
            kept &= torch.tensor(view.harmful.judged("refused"))
            kept &= torch.tensor(view.harmless.judged("complied"))
    return kept


def spectra(job: SpectraJob) -> Cells:
    """Every cell of one arm. Cells without energy (template tokens at layer 0) are left out."""
    cells: dict[CellKey, Concentration] = {}
    for layer, p in _places(job.pairs):
        position = job.positions[p]
        first, second = job.pairs.first[:, layer, p], job.pairs.second[:, layer, p]
        for centering, pairing in _ways(job):
            settings = job.settings.cells.model_copy(
                update={"pairing": pairing, "centered": CENTERINGS[centering]}
            )
            done: dict[Control, Concentration | None] = {}
            for control in CONTROLS:
                key = CellKey(HARM, "all", pairing, control, centering, position, layer)
                if control != "all" and not job.exclusions.massive:
                    # Nothing is taken out, so the numbers are those of `all`.
                    done[control] = done["all"]
                else:
                    done[control] = _cell(job, control, first, second, settings)
                found = done[control]
                if found is not None:
                    cells[key] = found
            cells |= _common_cell(job, first, second, pairing, centering, position, layer)
        cells |= _contrast_cells(job, layer, p)
    return cells


def _places(pairs: PairRows) -> Iterator[tuple[int, int]]:
    for layer in range(pairs.first.shape[1]):
        for p in range(pairs.first.shape[2]):
            yield layer, p


def _ways(job: SpectraJob) -> Iterator[tuple[str, Pairing]]:
    for centering in CENTERINGS:
        for pairing in job.pairings:
            yield centering, pairing


def _generator(job: SpectraJob, contrast: str) -> torch.Generator:
    # One stream for every arm, layer and control: arms are compared under the same relabelings,
    # halves and groups (evidence.md 7 and 8).
    return named_generator(job.seed, "spectra", contrast)


def _cell(
    job: SpectraJob,
    control: Control,
    first: Float[Tensor, "n_first d_model"],
    second: Float[Tensor, "n_second d_model"],
    settings: ConcentrationSettings,
) -> Concentration | None:
    out = job.exclusions
    keep = {"first": out.keep_first, "second": out.keep_second}
    x = controlled(first, control, out.massive, out.placebo, keep["first"])
    y = controlled(second, control, out.massive, out.placebo, keep["second"])
    clusters, others = job.clusters, job.second_clusters
    if control in ("pairs_out", "both_out"):
        clusters = _kept(clusters, keep["first"])
        others = _kept(others, keep["second"])
        if not _enough(clusters, len(x)) or not _enough(others, len(y)):
            return None
    try:
        return concentration(x, y, settings, _generator(job, HARM), clusters, others)
    except DegenerateDirectionError:
        return None


def _common_cell(
    job: SpectraJob,
    first: Tensor,
    second: Tensor,
    pairing: Pairing,
    centering: str,
    position: str,
    layer: int,
) -> dict[CellKey, Concentration]:
    common = job.exclusions.common
    # Fewer pairs than the jackknife has groups give no interval worth printing.
    if common is None or pairing != job.pairings[0] or int(common.sum()) < 2 * _MIN_ROWS:
        return {}
    clusters = _kept(job.clusters, common)
    if not _enough(clusters, int(common.sum())):
        return {}
    settings = job.settings.contrasts.model_copy(
        update={"pairing": pairing, "centered": CENTERINGS[centering]}
    )
    try:
        cell = concentration(
            first[common],
            second[common],
            settings,
            _generator(job, "common"),
            clusters,
        )
    except DegenerateDirectionError:
        return {}
    return {CellKey(HARM, "common", pairing, "all", centering, position, layer): cell}


def _contrast_cells(job: SpectraJob, layer: int, p: int) -> dict[CellKey, Concentration]:
    cells: dict[CellKey, Concentration] = {}
    for contrast, rows in job.contrasts.items():
        for centering, centered in CENTERINGS.items():
            settings = job.settings.contrasts.model_copy(
                update={"pairing": "list", "centered": centered}
            )
            try:
                cell = concentration(
                    rows.first[:, layer, p],
                    rows.second[:, layer, p],
                    settings,
                    _generator(job, contrast),
                    job.contrast_clusters[contrast],
                )
            except DegenerateDirectionError:
                continue
            key = CellKey(contrast, "all", "list", "all", centering, job.positions[p], layer)
            cells[key] = cell
    return cells


def _enough(clusters: tuple[str, ...] | None, n_rows: int) -> bool:
    """Whether the rows that are left can be resampled: few clusters are no reason to fail a run."""
    return n_rows >= _MIN_ROWS and (clusters is None or len(set(clusters)) >= _MIN_ROWS)


def _kept(names: tuple[str, ...] | None, keep: Tensor) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(name for name, stays in zip(names, keep, strict=True) if bool(stays))


_MIN_ROWS: Final = 4

_CAPTION: Final = (
    "Spectra of activation differences. Shares are of the energy of the differences. Pairing and "
    "null stand in the columns; intervals are 95 % delete-group jackknife intervals of the "
    "expected share at this n, groups undivided by cluster. null: labels permuted across pairs."
)


def spectra_table(by_arm: Mapping[str, Cells]) -> Table:
    """Every number of every cell, one a row."""
    table = Table("spectra", _CAPTION)
    for arm, cells in by_arm.items():
        for key, cell in cells.items():
            _add_cell(table, arm, key, cell)
    return table


def components_table(by_arm: Mapping[str, Cells]) -> Table:
    """The leading shares of each cell, one component a row."""
    table = Table("components", "In-sample share of the energy of each leading component.")
    for arm, cells in by_arm.items():
        for key, cell in cells.items():
            if key.channels != "all" or key.rows != "all":
                continue
            for i, share in enumerate(cell.shares, start=1):
                table.add(
                    "share",
                    float(share),
                    n=cell.n_rows,
                    unit="share of energy (rows)",
                    interval=None,
                    component=i,
                    **_dimensions(arm, key),
                )
    return table


def _add_cell(table: Table, arm: str, key: CellKey, cell: Concentration) -> None:
    at = _dimensions(arm, key)

    def put(
        metric: str,
        value: float,
        unit: str,
        n: int = cell.n_rows,
        interval: tuple[float, float] | None = None,
    ) -> None:
        table.add(metric, value, n=n, unit=unit, interval=interval, **at)

    share, components = "share of energy (rows)", "components (rows)"
    jackknifed = {
        "top2_share": cell.top2,
        "cross_fitted_top2_share": cell.cross_fitted_top2,
        "spatial_sign_top2_share": cell.spatial_sign_top2,
        "excess_over_harmless_harmless": cell.excess,
        **{
            f"top2_share_{contrast.replace('-', '_')}_repaired": found
            for contrast, found in cell.unrelated.items()
        },
    }
    for metric, found in jackknifed.items():
        if isinstance(found, Jackknifed):
            put(metric, found.value, share, interval=found.interval())
        elif found is not None:
            put(metric, found, share)
    if cell.null is not None:
        put(
            "top2_share_permuted_labels",
            float(cell.null.median()),
            "share of energy (relabelings)",
            n=len(cell.null),
            interval=cell.null_range,
        )
    put("mean_energy_share", cell.mean_energy_share, share)
    put("within_class_energy_share", cell.within_energy_share, share)
    put("effective_rank", cell.effective_rank, components)
    put("energy_effective_rank", cell.energy_effective_rank, components)
    put("participation_ratio", cell.participation_ratio, components)
    put("stable_rank", cell.stable_rank, components)
    put("row_participation", cell.row_participation, "rows (rows)")


def _dimensions(arm: str, key: CellKey) -> dict[str, Dimension]:
    return {
        "arm": arm,
        "contrast": key.contrast,
        "rows": key.rows,
        "pairing": key.pairing,
        "channels": key.channels,
        "centering": key.centering,
        "position": key.position,
        "layer": key.layer,
    }
