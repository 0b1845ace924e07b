"""Rows of tables that every part of the study adds: an estimate, or the range of controls."""

from collections.abc import Mapping

from torch import Tensor

from mechsafety.core.result import Dimension, Table
from mechsafety.studies.samples import Estimates


def add_estimate(
    table: Table,
    metric: str,
    found: Estimates,
    cell: tuple[int, ...],
    unit: str,
    at: Mapping[str, Dimension],
) -> None:
    """One cell of an estimate with its interval."""
    table.add(
        metric,
        float(found.value[cell]),
        n=found.n,
        unit=unit,
        interval=found.interval(*cell),
        **at,
    )


def add_range(
    table: Table, metric: str, drawn: Tensor, unit: str, at: Mapping[str, Dimension]
) -> None:
    """Mean of a few controls; the interval is their range, as quantiles would be invented."""
    table.add(
        metric,
        float(drawn.mean()),
        n=drawn.numel(),
        unit=f"{unit} (controls)",
        interval=(float(drawn.min()), float(drawn.max())),
        **at,
    )
