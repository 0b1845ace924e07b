"""The page in a real browser; skipped where there is none. `pip install playwright` suffices."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mechsafety.report.numbers import estimate
from mechsafety.report.page import render
from tests.report import fake_locality as locality
from tests.report.fake_record import hostile_record, record, second_record

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium to show the page in"),
]
DESKTOP, PHONE = 1280, 390


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "one.html").write_text(render([record()]))
    (folder / "two.html").write_text(render([record(), second_record()]))
    (folder / "locality.html").write_text(render([locality.record()]))
    (folder / "hostile.html").write_text(render([hostile_record()]))
    return folder


def _open(browser: Any, path: Path, width: int = DESKTOP) -> tuple[Any, list[str]]:
    """The page when its figures are drawn, and all that went wrong or was asked of a network."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(120_000)  # two cores may be shared with other tests
    faults: list[str] = []
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else faults.append(r.url),
    )
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]")
    return page, faults


@pytest.mark.parametrize("name", ["one.html", "two.html", "hostile.html", "locality.html"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_fits_its_screen_without_errors_or_requests(
    browser: Any, folder: Path, name: str, width: int
) -> None:
    page, faults = _open(browser, folder / name, width)
    assert page.evaluate("document.querySelectorAll('.plot .main-svg').length") > 0
    for details in page.query_selector_all("details"):
        details.evaluate("element => element.open = true")
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert faults == []
    page.close()


def test_a_drop_down_changes_what_is_drawn_and_hover_says_the_records_numbers(
    browser: Any, folder: Path
) -> None:
    page, faults = _open(browser, folder / "one.html")
    rows = record().metrics
    read = """() => { const plot = document.querySelector('#run1-figure-1 .plot');
        const lat = plot.data.find(t => t.legendgroup === 'lat' && t.customdata);
        return [lat.y[4], lat.customdata[4]]; }"""
    for number, centering in enumerate(("uncentered", "centered")):
        page.select_option("#run1-figure-1-choice-1", str(number))
        drawn, said = page.evaluate(read)
        row = rows[
            (rows["table"] == "spectra")
            & (rows["metric"] == "top2_share")
            & (rows["arm"] == "lat")
            & (rows["layer"] == 4)
            & (rows["position"] == "last")
            & (rows["centering"] == centering)
            & (rows["contrast"] == "harmful-harmless")
        ].iloc[0]
        assert drawn == pytest.approx(row["value"], rel=1e-4)
        # The script writes numbers by the rule of numbers.py; here the two are held together.
        assert said == f"{estimate(row['value'], row['ci_low'], row['ci_high'])}, n = 240"
    assert faults == []
    page.close()


def test_the_legend_hides_a_line_from_the_keyboard(browser: Any, folder: Path) -> None:
    page, _ = _open(browser, folder / "one.html")
    button = "#run1-figure-1 .legend button[data-name=ssft]"
    plot = "document.querySelector('#run1-figure-1 .plot')"
    shown = f"{plot}.data.filter(trace => trace.visible !== false).length"
    before = page.evaluate(shown)
    page.focus(button)
    page.keyboard.press("Space")
    assert page.get_attribute(button, "aria-pressed") == "false"
    assert page.evaluate(shown) == before - 4  # a line and a band in each of two facets
    assert page.evaluate("document.activeElement.dataset.name") == "ssft"
    page.close()


def test_a_table_is_searched_filtered_and_sorted_over_all_its_rows(
    browser: Any, folder: Path
) -> None:
    page, _ = _open(browser, folder / "one.html")
    page.click("#run1-table-1 summary")
    page.fill("#run1-table-1-search", "lat_strong place top2_share_null")
    assert page.inner_text("#run1-table-1 .count").startswith("28 of 28 matching rows shown")
    page.fill("#run1-table-1-search", "")
    page.select_option("#run1-table-1 .filters select >> nth=0", label="effective_rank")
    assert "of 672 matching rows shown" in page.inner_text("#run1-table-1 .count")
    page.click("#run1-table-1 th button:has-text('value')")
    cells = page.locator("#run1-table-1 tbody td.number:nth-child(7)").all_inner_texts()
    found = [float(text.split()[0]) for text in cells]
    assert len(found) == 40
    assert found == sorted(found)
    page.close()


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_figure_is_downloaded_with_its_title_and_legend(
    browser: Any, folder: Path, kind: str, tmp_path: Path
) -> None:
    page, faults = _open(browser, folder / "one.html")
    with page.expect_download() as download:
        page.click(f"#run1-figure-1 .downloads button:has-text('{kind.upper()}')")
    assert download.value.suggested_filename == f"shares_by_layer.{kind}"
    path = tmp_path / f"figure.{kind}"
    download.value.save_as(path)
    if kind == "svg":
        text = path.read_text()
        for words in ("Share of the first two components", "centering uncentered", "lat_strong"):
            assert words in text
    else:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert faults == []
    page.close()


PLOT = "document.querySelector('#run1-figure-{} .plot')"


def _hover(page: Any, figure: int, across: float, down: float) -> str:
    """What hovering says at a place of the figure's first facet, given as shares of it."""
    box = page.locator(f"#run1-figure-{figure} .plot .nsewdrag").first
    box.scroll_into_view_if_needed()
    at = box.bounding_box()
    page.mouse.move(at["x"] + at["width"] * across, at["y"] + at["height"] * down)
    page.wait_for_selector(f"#run1-figure-{figure} .hoverlayer .hovertext")
    return page.text_content(f"#run1-figure-{figure} .hoverlayer")


def test_a_cell_of_a_map_says_its_interval_n_and_the_other_metrics(
    browser: Any, folder: Path
) -> None:
    page, faults = _open(browser, folder / "locality.html")
    rows = locality.record().metrics
    at = rows[
        (rows["layer"] == 3) & (rows["position"] == "eoi[-2]") & (rows["stream"] == "resid_pre")
    ].set_index("metric")
    number = {
        metric: estimate(*at.loc[metric, ["value", "ci_low", "ci_high"]]) for metric in at.index
    }
    for option, shown in enumerate(("bypass", "induce", "kl", "auc")):
        page.select_option("#run1-figure-3-choice-0", str(option))
        others = "".join(f"{m}: {text}" for m, text in number.items() if m != shown)
        expected = f"position eoi[-2], layer 3{shown} {number[shown]}, n = 96{others}"
        assert _hover(page, 3, 3.5 / 7, 0.5) == expected
        page.mouse.move(0, 0)
    assert faults == []
    page.close()


def test_a_cell_that_was_not_measured_is_hatched_and_says_so_and_one_without_a_row_is_blank(
    browser: Any, folder: Path
) -> None:
    page, _ = _open(browser, folder / "locality.html")
    assert "not measured" in page.inner_text("#run1-figure-3 .legend")
    assert "bypass not measured, n = 0induce: not measured" in _hover(page, 3, 0.07, 0.16)
    hatched = page.evaluate(PLOT.format(3) + ".layout.shapes.map(s => s.path.match(/Z/g)?.length)")
    assert hatched == [1, None, 1, None]  # one cell in each facet, and its slanted lines
    gaps = page.evaluate(
        PLOT.format(3) + ".data.map(t => t.z.flat().filter(v => v === null).length)"
    )
    assert gaps == [1, 20, 1 + 3, 20]  # resid_mid has a layer less, which is not hatched
    # A map of windows has half of its cells, and none of them missing.
    assert "not measured" not in page.inner_text("#run1-figure-4 .legend")
    assert page.evaluate(PLOT.format(4) + ".layout.shapes.length") == 0
    page.click("#run1-figure-4 details.numbers summary")
    assert "28 rows" in page.inner_text("#run1-figure-4 details.numbers")
    page.close()


def test_a_signed_metric_that_a_reader_chooses_turns_its_hue_at_zero(
    browser: Any, folder: Path
) -> None:
    page, _ = _open(browser, folder / "locality.html")
    ends = PLOT.format(3) + ".layout.coloraxis"
    for metric, centered in (("induce", True), ("kl", False)):
        page.select_option("#run1-figure-3-choice-0", label=metric)
        low, high = page.evaluate(f"[{ends}.cmin, {ends}.cmax]")
        assert (low == -high) is centered
        assert page.evaluate(f"{ends}.colorscale.length") == (41 if centered else 5)
    page.close()


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_many_bars_lie_in_the_tables_order_each_beside_its_word(
    browser: Any, folder: Path, width: int
) -> None:
    page, _ = _open(browser, folder / "locality.html", width)
    rows = locality.record().metrics
    order = list(rows[rows["table"] == "writers"]["writer"])
    ticks = page.locator("#run1-figure-6 .plot .ytick text")
    at = ticks.evaluate_all("""all => all.map(e => {
        const box = e.getBoundingClientRect(); return [box.y, box.x, e.textContent]; })""")
    assert [word for _, _, word in sorted(at)] == order  # the first of the table on top
    assert all(left >= 0 for _, left, _ in at)
    (bars,) = {t["orientation"] for t in page.evaluate(PLOT.format(6) + ".data")}
    assert bars == "h"
    page.close()


def test_lines_of_layers_are_named_and_share_one_null_beneath_them(
    browser: Any, folder: Path
) -> None:
    page, _ = _open(browser, folder / "locality.html")
    names = page.locator("#run1-figure-5 .legend button").all_inner_texts()
    assert names == [f"layer {layer}" for layer in locality.DOSED_LAYERS]
    metas = page.evaluate(PLOT.format(5) + ".data.map(t => t.meta || 'line')")
    assert metas[0] == "null"
    assert metas.count("null") == 1
    assert metas.count("line") == len(locality.DOSED_LAYERS)
    page.close()


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_prompt_of_two_thousand_tokens_is_folded_and_scrolls_in_its_frame(
    browser: Any, folder: Path, width: int
) -> None:
    page, _ = _open(browser, folder / "locality.html", width)
    frame = page.locator("#run1-figure-2 .tokens")
    folds = frame.locator("details")
    assert folds.count() == 4
    assert frame.bounding_box()["height"] < 600
    folds.nth(0).locator("summary").click()
    assert folds.nth(0).locator(".token").count() == 881
    assert frame.bounding_box()["height"] < 600
    assert frame.evaluate(
        "e => e.scrollHeight > 2 * e.clientHeight && e.scrollWidth <= e.clientWidth"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()
