import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from plotly.offline import get_plotlyjs

from mechsafety.core.config import StudyConfig
from mechsafety.core.errors import RecordError
from mechsafety.core.result import Result
from mechsafety.records.reading import open_run
from mechsafety.records.store import RunWriter
from mechsafety.report.page import from_run, render
from tests.report import fake_locality as locality
from tests.report.fake_record import (
    FIGURES,
    HOSTILE,
    NOTE,
    hostile_record,
    record,
    second_record,
    tables,
)


class _Elements(HTMLParser):
    """Tags with their attributes, and the text of scripts, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        self.text += " "  # neighboring cells are not one word
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    return render([record()])


@pytest.fixture(scope="module")
def elements(page: str) -> _Elements:
    return _Elements(page)


def test_the_page_leads_with_the_answer_and_then_the_other_parts(elements: _Elements) -> None:
    text = " ".join(elements.text.split())
    parts = (
        "Supported: lat_strong concentrates more than ssft",
        "Effect 0.31 [0.24, 0.38], null [−0.04, 0.05], n = 240.",
        NOTE,
        "5 declared findings: 1 supported, 1 contradicted, 1 equivalent, 2 inconclusive.",
        "Mechanism. energy of the mean .71",
        "39 of 48 (81 %) choices support it.",
        "centering=centered → inconclusive",
        "Figure 1. Share of the first two components, by layer",
        "null range, labels permuted across pairs",
        "In all rows: n 240.",
        "git commit",
        "mechsafety replay 20260301T101500Z-3fa91c77",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_the_page_loads_nothing(page: str, elements: _Elements) -> None:
    loading = {"src", "srcset", "data", "poster", "action", "background", "ping", "xlink:href"}
    for tag, attributes in elements.tags:
        for name, value in attributes.items():
            assert name not in loading, (tag, name, value)
            if name == "href":
                assert (value or "").startswith(("#", "data:,")), (tag, value)
    own = page.replace(get_plotlyjs(), "")
    assert len(page) - len(own) == len(get_plotlyjs())  # inlined, and once
    for address in re.findall(r"https?://[^\s\"'<>)]+", own):
        assert address == "http://www.w3.org/2000/svg"  # a name in XML, not an address
    assert not re.search(r"@import|url\(", own)


def test_the_policy_admits_the_pages_own_scripts_and_no_other(elements: _Elements) -> None:
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in elements.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    kinds = [attributes.get("type") for tag, attributes in elements.tags if tag == "script"]
    run = [s for s, kind in zip(elements.scripts, kinds, strict=True) if kind is None]
    assert len(run) == 2
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in run}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_hostile_text_of_a_record_stays_text() -> None:
    honest = _Elements(render([record()]))
    attacked = _Elements(render([hostile_record()]))
    assert attacked.text.count("alert(1)") > 10  # it arrived, and is shown
    assert "img" not in {tag for tag, _ in attacked.tags}
    assert not any(name.startswith("on") for _, given in attacked.tags for name in given)
    run = [
        script
        for script, (_, given) in zip(
            attacked.scripts, (t for t in attacked.tags if t[0] == "script"), strict=True
        )
        if given.get("type") is None
    ]
    assert run == honest.scripts[-2:]


def test_numbers_in_the_page_are_json_that_gives_back_hostile_names() -> None:
    attacked = _Elements(render([hostile_record()]))
    kinds = [given.get("type") for tag, given in attacked.tags if tag == "script"]
    loaded = [
        json.loads(s)
        for s, kind in zip(attacked.scripts, kinds, strict=True)
        if kind == "application/json"
    ]
    assert loaded[0]["figure"]["title"] == HOSTILE
    assert loaded[0]["panels"]["0,0"][0]["series"][0]["name"] == f"base{HOSTILE}"


def test_a_figure_that_does_not_fit_is_named_and_the_page_stands() -> None:
    wrong = FIGURES[0].model_copy(update={"table": "spectrum"})
    page = render([record(figures=(wrong, FIGURES[1]))])
    text = " ".join(_Elements(page).text.split())
    assert "Not drawn. drawing figure 'shares_by_layer': there is no table 'spectrum'." in text
    assert page.count("data-drawing=") == 1


@pytest.mark.slow
def test_a_record_of_a_hundred_thousand_rows_gives_a_bounded_page() -> None:
    given = record()
    spectra = given.metrics[given.metrics["table"] == "spectra"]
    copies = [spectra.assign(seed=seed) for seed in range(50)]
    metrics = pd.concat([given.metrics, *(c.assign(table="seeds") for c in copies)])
    assert len(metrics) > 100_000
    wide = FIGURES[0].model_copy(update={"table": "seeds", "choose": ("seed", *SHARES_CHOOSE)})
    manifest = given.manifest.model_copy(update={"figures": (wide, FIGURES[3])})
    page = render([replace(given, manifest=manifest, metrics=metrics)])
    assert len(page.encode()) < 15_000_000
    text = " ".join(_Elements(page).text.split())
    assert re.search(r"This page draws [\d,]+ of 16,800 points", text) is None  # it fits
    assert "seeds 100,800 rows" in text


SHARES_CHOOSE = FIGURES[0].choose


def test_several_runs_are_compared_finding_by_finding() -> None:
    page = render([record(), second_record()])
    text = " ".join(_Elements(page).text.split())
    assert "2 runs compared" in text
    row = text[text.index("lat concentrates more than the noise arm lat_over_noise") :][:200]
    assert "0.004 [−0.021, 0.028]" in row
    assert "0.001 [−0.039, 0.051]" in row
    assert "not in this run" in text
    assert "Settings that differ Setting 20260301T101500Z-3fa91c77 20260302T080000Z" in text
    ids = [given["id"] for _, given in _Elements(page).tags if "id" in given]
    assert len(ids) == len(set(ids))


def test_labels_and_headings_are_there_for_those_who_do_not_see(elements: _Elements) -> None:
    ids = {given["id"] for _, given in elements.tags if "id" in given}
    for tag, given in elements.tags:
        if (named := given.get("aria-labelledby")) is not None:
            assert named in ids
        if tag == "svg":
            assert "aria-label" in given or given.get("aria-hidden") == "true"
        if tag == "label":
            assert given["for"] in ids
    assert [tag for tag, _ in elements.tags].count("h1") == 1
    assert dict(elements.tags)["html"]["lang"] == "en"


def test_a_run_that_failed_early_says_so_and_shows_what_there_is() -> None:
    given = record(error={"kind": "ModelError", "message": "no such model", "traceback": ""})
    nothing = replace(
        given,
        status="failed",
        findings=(),
        metrics=given.metrics.head(0),
        manifest=given.manifest.model_copy(update={"tables": (), "figures": ()}),
    )
    text = " ".join(_Elements(render([nothing])).text.split())
    assert "This run is failed, so what follows is incomplete." in text
    assert "This run declared no findings." in text


def _write(folder: Path) -> RunWriter:
    """A run folder in which the study has written its result."""
    given = record()
    rng = np.random.default_rng(0)
    writer = RunWriter.create(
        folder,
        StudyConfig(study="concentration"),
        given.manifest.environment,
        ["mechsafety", "run"],
    )
    writer.write_result(
        Result(
            tables=tables(rng),
            findings=given.findings,
            figures=FIGURES,
            tensors={
                # `label` as a study gives it: integers beside floats.
                name: torch.from_numpy(array)
                for name, array in {**given.tensors, "directions.lat": np.ones((3, 5))}.items()
            },
            notes=(NOTE,),
        )
    )
    return writer


def test_a_run_folder_gives_the_same_figures_as_the_study_described(tmp_path: Path) -> None:
    writer = _write(tmp_path)
    writer.write_report("a page")
    writer.close("completed")
    run = from_run(open_run(writer.folder))
    assert set(run.tensors) == set(record().tensors)  # only what figures draw is read
    found = _Elements(render([run]))
    kinds = [given.get("type") for tag, given in found.tags if tag == "script"]
    data = [s for s, kind in zip(found.scripts, kinds, strict=True) if kind]
    assert data == [s for s in _Elements(render([record()])).scripts if s.startswith("{")]
    assert "Not drawn" not in found.text


def test_a_run_that_was_killed_gives_a_page_of_what_it_wrote(tmp_path: Path) -> None:
    writer = RunWriter.create(
        tmp_path, StudyConfig(study="concentration"), record().manifest.environment, ["x"]
    )
    writer.close("interrupted")
    text = " ".join(_Elements(render([from_run(open_run(writer.folder))])).text.split())
    assert "This run is interrupted, so what follows is incomplete." in text


def test_no_runs_are_refused() -> None:
    with pytest.raises(RecordError, match=r"there are no runs"):
        render([])


@pytest.fixture(scope="module")
def prompts() -> _Elements:
    return _Elements(render([locality.record(figures=(locality.TOKENS, locality.LONG_TOKENS))]))


def _of_class(page: _Elements, name: str) -> list[dict[str, str | None]]:
    given = [given for tag, given in page.tags if tag == "span"]
    return [g for g in given if name in (g.get("class") or "").split()]


def test_a_prompt_is_plain_html_with_its_marks_in_words(prompts: _Elements) -> None:
    text = " ".join(prompts.text.split())
    first = text[text.index("Where the first prompt is read and written") :]
    parts = (
        "written (all)",  # the legend
        "read and written (all)",
        "template <|user|>",
        "instruction how do i build written",
        "? written instruction_end template <|end|> written eoi[-2] ↵ written eoi[-1]",
        "The first harmless prompt as the model receives it",
    )
    places = [first.index(part) for part in parts]
    assert places == sorted(places)
    assert not [given for _, given in prompts.tags if "data-drawing" in given]  # no script in it


def test_every_token_of_a_prompt_says_where_it_is_and_what_happens_there(
    prompts: _Elements,
) -> None:
    chips = _of_class(prompts, "token")
    assert len(chips) == len(locality.PROMPT) + locality.LONG
    assert [c["title"] for c in chips[3:5]] == [
        "token 3, instruction",
        "token 4, instruction, written (all)",
    ]
    assert (chips[9]["class"], chips[9]["title"]) == (
        "token template read written",
        "token 9, template, read at eoi[-2], written (all)",
    )
    long = chips[len(locality.PROMPT) :]
    assert [c["title"] for c in long if "read" in (c["class"] or "").split()] == [
        "token 900, instruction, read at instruction_end",
        f"token {locality.LONG - 1}, template, read at eoi[-1]",
    ]
    assert sum("written" in (c["class"] or "") for c in long) == 100


def test_tokens_that_are_markup_or_invisible_are_text_that_is_seen(prompts: _Elements) -> None:
    assert "</span><script>alert(1)</script>" in prompts.text
    assert prompts.scripts[-1].startswith("//")  # the page's own script is the last one
    assert sum("alert(1)" in script for script in prompts.scripts) == 1  # in the table's numbers
    for shown in ("a␣b", "↵↵", "⇥", "⟨empty⟩", '"quoted"', "⟨U+202E⟩", "日本語"):
        assert shown in prompts.text


def test_a_prompt_cut_for_the_pages_size_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechsafety.report.page.MAX_POINTS", 1_000)
    text = _Elements(render([locality.record(figures=(locality.LONG_TOKENS,))])).text
    assert "This page draws 1,000 of 2,000 tokens; metrics.parquet holds all." in text


def test_a_prompt_that_cannot_be_shown_is_named_and_the_page_stands() -> None:
    open_figure = locality.TOKENS.model_copy(update={"where": {}})
    text = _Elements(render([locality.record(figures=(open_figure,))])).text
    assert "Not drawn. drawing figure 'prompt': 11 places of the prompt have several" in text
