from typing import Any

import pandas as pd
import pytest

from mechsafety.core.errors import RecordError
from mechsafety.core.result import Figure
from mechsafety.report.figures import drawing
from mechsafety.report.palette import in_order
from tests.report import fake_locality as locality
from tests.report.fake_record import ARMS, FIGURES, LAYERS, record

RECORD = record()
SHARES, MATRIX = FIGURES[0], next(f for f in FIGURES if f.kind == "matrix")


def _row(**where: Any) -> pd.Series:
    rows = RECORD.metrics
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.id)
def test_every_figure_of_the_study_is_drawn(figure: Figure) -> None:
    drawn = drawing(figure, RECORD.metrics, RECORD.tensors)
    assert drawn.points == drawn.total_points > 0
    assert drawn.left_out == 0
    start = ",".join(str(choice.start) for choice in drawn.choices)
    assert next(iter(drawn.panels)) == start


def test_a_line_holds_the_rows_of_its_choices_and_no_others() -> None:
    drawn = drawing(SHARES, RECORD.metrics, RECORD.tensors)
    assert [c.options for c in drawn.choices] == [["last", "eoi"], ["uncentered", "centered"]]
    facets = drawn.panels["1,0"]  # position eoi, uncentered
    assert [facet.title for facet in facets] == ["harmful-harmless", "harmless-harmless"]
    assert [series.name for series in facets[1].series] == list(ARMS)
    at = facets[1].series[2]
    assert at.x == [float(layer) for layer in LAYERS]
    for layer in LAYERS:
        row = _row(
            table="spectra",
            metric="top2_share",
            arm="at",
            layer=layer,
            position="eoi",
            centering="uncentered",
            contrast="harmless-harmless",
        )
        assert at.y[layer] == pytest.approx(row["value"], rel=1e-4)
        assert at.low[layer] == pytest.approx(row["ci_low"], rel=1e-4)
        assert at.high[layer] == pytest.approx(row["ci_high"], rel=1e-4)
        assert at.n[layer] == row["n"]
        assert at.null_low[layer] == pytest.approx(0.22 + 0.01 * layer)
        assert at.null_high[layer] == pytest.approx(0.3 + 0.01 * layer)


def test_a_cell_of_the_matrix_holds_its_row_and_hover_the_other_metrics() -> None:
    drawn = drawing(MATRIX, RECORD.metrics, RECORD.tensors)
    metric, layer = drawn.choices
    assert (metric.options, layer.options) == (["refusal_rate@32tok", "refusal_score"], ["3", "5"])
    affine = drawn.panels["1,0"][1]
    assert affine.title == "affine"
    grid = affine.grid
    assert grid is not None
    assert grid.x == grid.y == list(ARMS)
    row = _row(
        table="attack_matrix",
        metric="refusal_score",
        source="lat",
        target="ssft",
        form="affine",
        layer=3,
    )
    assert grid.value[3][1] == pytest.approx(row["value"], rel=1e-4)
    assert grid.value[1][3] != grid.value[3][1]  # so the axes could have been swapped
    assert grid.extra[3][1] == ["0.96", "0.1 [0.1, 2.4]"]
    rate = drawn.panels["0,0"][1].grid
    assert rate is not None
    assert rate.value[0][5] is None  # not measured


def test_rows_that_would_lie_on_one_another_are_refused_with_the_dimension() -> None:
    open_figure = SHARES.model_copy(update={"choose": ("centering",), "start": {}})
    with pytest.raises(RecordError, match=r"one on another.*differ in: position.*'where'"):
        drawing(open_figure, RECORD.metrics, RECORD.tensors)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": "spectrum"}, r"no table 'spectrum'. Tables: spectra, components"),
        ({"color": "model"}, r"no dimension 'model'. Dimensions: arm, layer"),
        ({"metric": "top3"}, r"no rows of metric 'top3'"),
        ({"where": {"contrast": "none"}}, r"no rows of metric 'top2_share' where"),
        ({"start": {"position": "first"}}, r"position 'first', which is not among last, eoi"),
        ({"y": "position"}, r"y stays out"),
        ({"x": None}, r"needs table, metric and x"),
    ],
)
def test_a_description_that_does_not_fit_the_record_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecordError, match=said):
        drawing(SHARES.model_copy(update=changes), RECORD.metrics, RECORD.tensors)


def test_a_figure_beyond_the_page_keeps_the_panel_shown_first_and_counts_the_rest() -> None:
    second = SHARES.model_copy(update={"start": {"position": "eoi", "centering": "centered"}})
    drawn = drawing(second, RECORD.metrics, RECORD.tensors, max_points=100)
    assert list(drawn.panels) == ["1,1"]
    assert drawn.left_out == 3
    assert drawn.points * 4 == drawn.total_points


def test_an_arm_has_one_color_whatever_else_a_figure_shows() -> None:
    few = SHARES.model_copy(
        update={"where": {**SHARES.where, "arm": ["noise", "lat"]}, "null_metric": None}
    )
    color = {
        s.name: s.color
        for figure in (SHARES, few, FIGURES[5])
        for facets in drawing(figure, RECORD.metrics, RECORD.tensors).panels.values()
        for facet in facets
        for s in facet.series
    }
    again = drawing(few, RECORD.metrics, RECORD.tensors).panels["0,0"][0].series
    assert {s.name: s.color for s in again} == {name: color[name] for name in ("lat", "noise")}
    assert len(set(color.values())) == len(ARMS)


def test_the_null_belongs_to_the_figures_own_metric() -> None:
    both = SHARES.model_copy(
        update={
            "choose": (*SHARES.choose, "metric"),
            "where": {**SHARES.where, "metric": ["top2_share", "effective_rank"]},
        }
    )
    panels = drawing(both, RECORD.metrics, RECORD.tensors).panels
    assert panels["0,0,0"][0].series[0].null_low
    assert not panels["0,0,1"][0].series[0].null_low


def test_a_null_that_stands_for_all_arms_is_found_for_each() -> None:
    rows = RECORD.metrics
    is_null = rows["metric"] == "top2_share_null"
    shared = pd.concat([rows[~is_null], rows[is_null & (rows["arm"] == "base")].assign(arm=None)])
    facet = drawing(SHARES, shared, RECORD.tensors).panels["0,0"][0]
    assert len(facet.series) == len(ARMS)
    assert all(series.null_low[0] == pytest.approx(0.22) for series in facet.series)


LOCALITY = locality.record()


@pytest.mark.parametrize("figure", locality.FIGURES, ids=lambda figure: figure.id)
def test_every_figure_of_a_locality_study_is_drawn(figure: Figure) -> None:
    drawn = drawing(figure, LOCALITY.metrics, LOCALITY.tensors)
    assert drawn.points == drawn.total_points > 0


def test_numbers_told_apart_by_color_are_named_and_colored_in_their_order() -> None:
    (facet,) = drawing(locality.DOSED, LOCALITY.metrics, {}).panels[""]
    names = [series.name for series in facet.series]
    assert names == [f"layer {layer}" for layer in locality.DOSED_LAYERS]
    shades = in_order([str(layer) for layer in locality.DOSED_LAYERS])
    assert [series.color for series in facet.series] == list(shades.values())
    assert len(set(shades.values())) == len(locality.DOSED_LAYERS)
    # One null for all layers, found for each.
    assert all(series.null_low == facet.series[0].null_low for series in facet.series)
    assert facet.series[0].null_high == pytest.approx([-5.7 + d / 3 for d in locality.DOSES], 1e-4)


def test_facets_of_a_grid_share_their_axes_and_a_cell_without_a_row_has_no_n() -> None:
    drawn = drawing(locality.SITES, LOCALITY.metrics, {})
    pre, mid = (facet.grid for facet in drawn.panels["0"])
    assert pre is not None
    assert mid is not None
    assert pre.x == mid.x == [str(layer) for layer in range(locality.LAYERS)]
    assert pre.y == mid.y == list(locality.POSITIONS)
    assert (mid.value[1][6], mid.n[1][6]) == (None, None)  # resid_mid has a layer fewer
    assert (mid.value[0][0], mid.n[0][0]) == (None, 0)  # looked for, and not measured
    assert (pre.value[1][6] is not None, pre.n[1][6]) == (True, 96)


def test_bars_keep_the_tables_order_across_their_colors() -> None:
    (facet,) = drawing(locality.WRITERS, LOCALITY.metrics, {}).panels[""]
    rows = LOCALITY.metrics[LOCALITY.metrics["table"] == "writers"]
    assert facet.order == list(rows["writer"])
    heads, mlps = facet.series
    assert [heads.name, mlps.name] == ["head", "mlp"]
    assert facet.order != [*heads.x, *mlps.x]  # so an order by color would be another
    assert min(v for v in heads.y if v is not None) < -1  # signs are kept
    negative = facet.order.index(str(heads.x[3]))
    assert heads.y[3] == pytest.approx(rows["value"].iloc[negative], rel=1e-4)


def test_bars_over_numbers_stand_on_words_in_the_order_of_size() -> None:
    counted = locality.DOSED.model_copy(
        update={"kind": "bars", "x": "layer", "color": "dose", "null_metric": None}
    )
    (facet,) = drawing(counted, LOCALITY.metrics, {}).panels[""]
    assert facet.order == facet.series[0].x == [str(layer) for layer in locality.DOSED_LAYERS]
    lines = drawing(locality.DOSED, LOCALITY.metrics, {}).panels[""][0]
    assert lines.order == []
    assert lines.series[0].x == list(locality.DOSES)
