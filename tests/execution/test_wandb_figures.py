from mechsafety.execution.wandb_figures import plotly_figures
from mechsafety.report.figures import drawing
from tests.report import fake_locality as locality

METRICS = locality.record().metrics


def test_a_prompt_is_mirrored_as_a_table_in_which_nothing_is_markup() -> None:
    figures = plotly_figures(drawing(locality.TOKENS, METRICS, {}))
    assert list(figures) == [""]
    (table,) = figures[""].data
    index, text, part, marks = table.cells.values
    assert list(index) == [str(i) for i in range(len(locality.PROMPT))]
    assert (text[0], text[10]) == ("&lt;|user|&gt;", "↵")
    assert (part[0], part[1]) == ("template", "instruction")
    assert (marks[0], marks[4]) == ("", "written (all)")
    assert marks[8] == "read at instruction_end, written (all)"


def test_bars_of_several_colors_keep_the_tables_order() -> None:
    (figure,) = plotly_figures(drawing(locality.WRITERS, METRICS, {})).values()
    order = list(METRICS[METRICS["table"] == "writers"]["writer"])
    assert list(figure.layout.xaxis.categoryarray) == order
    assert order != [x for trace in figure.data for x in trace.x]  # the traces have another


def test_every_figure_of_a_locality_study_is_mirrored() -> None:
    for described in locality.FIGURES:
        figures = plotly_figures(drawing(described, METRICS, {}))
        assert len(figures) == (4 if described.choose else 1)
        assert all(figure.data for figure in figures.values())
