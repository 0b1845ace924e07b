"""What the report draws is what Plotly gets, with intervals and nulls, and nothing is markup."""

from typing import Any

import pandas as pd
import pytest

from mechsafety.core.result import Figure
from mechsafety.execution.wandb_figures import MAX_PANELS, plotly_figures
from mechsafety.report.figures import drawing
from tests.report import fake_locality as locality
from tests.report import fake_record as concentration

METRICS = locality.record().metrics


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    common = {"table": "t", "metric": "m", "unit": "u", "n": 9, "ci_low": None, "ci_high": None}
    return pd.DataFrame([{**common, **row} for row in rows])


def figure(**given: Any) -> Figure:
    about = {"id": "f", "title": "F", "caption": "A caption.", "table": "t", "metric": "m"}
    return Figure.model_validate({**about, **given})


def test_a_prompt_is_mirrored_as_a_table_in_which_nothing_is_markup() -> None:
    figures = plotly_figures(drawing(locality.TOKENS, METRICS, {}))
    assert list(figures) == [""]
    (shown,) = figures[""].data
    index, text, part, marks = shown.cells.values
    assert list(index) == [str(i) for i in range(len(locality.PROMPT))]
    assert (text[0], text[10]) == ("&lt;|user|&gt;", "↵")
    assert (part[0], part[1]) == ("template", "instruction")
    assert (marks[0], marks[4]) == ("", "written (all)")
    assert marks[8] == "read at instruction_end, written (all)"


def test_bars_of_several_colors_keep_the_tables_order() -> None:
    (one,) = plotly_figures(drawing(locality.WRITERS, METRICS, {})).values()
    order = list(METRICS[METRICS["table"] == "writers"]["writer"])
    assert list(one.layout.xaxis.categoryarray) == order
    assert order != [x for trace in one.data for x in trace.x]  # the traces have another


@pytest.mark.parametrize("record", [locality, concentration], ids=["locality", "concentration"])
def test_every_figure_of_a_record_is_one_that_plotly_accepts(record: Any) -> None:
    given = record.record()
    assert given.manifest.figures
    for described in given.manifest.figures:
        drawn = drawing(described, given.metrics, given.tensors)
        figures = plotly_figures(drawn)
        assert len(figures) == min(MAX_PANELS, len(drawn.panels))
        assert all(one.data for one in figures.values())
        # Templates say nothing of the figure, and would be most of it.
        assert all(len(str(one.layout.template.to_plotly_json())) < 200 for one in figures.values())


def test_values_intervals_counts_and_nulls_are_those_of_the_table() -> None:
    rows = [
        {"layer": 0, "value": 1.0, "ci_low": 0.5, "ci_high": 2.0},
        {"layer": 1, "value": 3.0, "ci_low": 2.0, "ci_high": 3.5},
        {"metric": "null", "layer": 0, "value": 0.0, "ci_low": -0.25, "ci_high": 0.75},
        {"metric": "null", "layer": 1, "value": 0.0, "ci_low": -0.5, "ci_high": 0.5},
    ]
    described = figure(kind="lines", x="layer", null_metric="null")
    (one,) = plotly_figures(drawing(described, table(*rows), {})).values()
    null, line = one.data
    assert (list(line.x), list(line.y)) == ([0.0, 1.0], [1.0, 3.0])
    assert (list(line.error_y.array), list(line.error_y.arrayminus)) == ([1.0, 0.5], [0.5, 1.0])
    assert list(line.customdata) == [" [0.5, 2] (n = 9)", " [2, 3.5] (n = 9)"]
    ends = zip(null.y, null.error_y.array, null.error_y.arrayminus, strict=True)
    assert [(y - below, y + above) for y, above, below in ends] == [(-0.25, 0.75), (-0.5, 0.5)]


def test_a_grid_keeps_its_words_its_scale_and_its_gaps() -> None:
    rows = [
        {"layer": 0, "arm": "<b>", "value": 0.25, "ci_low": 0.0, "ci_high": 0.5},
        {"layer": 1, "arm": "<b>", "value": None},
        {"layer": 1, "arm": "2024-01-01", "value": 1.0},
    ]
    described = figure(kind="heatmap", x="layer", y="arm", limits=(0, 2), value_title="<share>")
    (one,) = plotly_figures(drawing(described, table(*rows), {})).values()
    (grid,) = one.data
    assert [list(row) for row in grid.z] == [[0.25, None], [None, 1.0]]
    assert list(grid.y) == ["&lt;b&gt;", "2024-01-01"]
    assert (grid.zmin, grid.zmax) == (0, 2)
    assert grid.colorbar.title.text == "&lt;share&gt;"
    assert (one.layout.xaxis.type, one.layout.yaxis.type) == ("category", "category")
    assert grid.customdata[0][0] == " [0, 0.5] (n = 9)"


def test_facets_stand_side_by_side_on_one_scale_with_marks_and_references() -> None:
    rows = [{"layer": i % 2, "arm": f"arm{i // 2}", "value": float(i)} for i in range(6)]
    described = figure(
        kind="lines", x="layer", facet="arm", marks={"attacked": 1}, reference={"chance": 0.5}
    )
    (one,) = plotly_figures(drawing(described, table(*rows), {})).values()
    layout = one.layout
    assert [trace.xaxis for trace in one.data] == ["x", "x2", "x3"]
    domains = [layout[name].domain for name in ("xaxis", "xaxis2", "xaxis3")]
    assert domains[0][0] == 0
    assert domains[2][1] == pytest.approx(1)
    assert domains[0][1] < domains[1][0] < domains[1][1] < domains[2][0]
    assert (layout.yaxis2.matches, layout.yaxis3.matches) == ("y", "y")
    assert len(layout.shapes) == 6
    texts = [note.text for note in layout.annotations]
    assert texts == ["arm0", "attacked", "chance", "arm1", "arm2"]


def test_limits_and_references_are_those_of_the_figures_own_metric() -> None:
    rows = [
        {"metric": metric, "layer": layer, "value": 0.5} for metric in "mo" for layer in range(2)
    ]
    described = figure(
        kind="lines",
        x="layer",
        choose=("metric",),
        where={"metric": ["m", "o"]},
        limits=(0, 1),
        reference={"chance": 0.5},
    )
    figures = plotly_figures(drawing(described, table(*rows), {}))
    own, other = figures["metric=m"].layout, figures["metric=o"].layout
    assert tuple(own.yaxis.range) == (0, 1)
    assert len(own.shapes) == 1
    assert other.yaxis.range is None
    assert not other.shapes
