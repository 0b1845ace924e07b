"""The gallery runs: each notebook as users run it, in a process and an empty folder of its own."""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.py"))
REFERENCE = "MECHSAFETY_REFERENCE"
LINES_BY_HAND = 30
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER, tokenize.ENCODING,
}  # fmt: skip

Run = Callable[[str], "subprocess.CompletedProcess[str]"]


def in_process(notebook: str, folder: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """`python notebooks/NOTEBOOK.py` in a folder, without the published activations or a cache."""
    inherited = {name: value for name, value in os.environ.items() if name != REFERENCE}
    own = {"MECHSAFETY_STAGES": str(folder / "stages"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "notebooks" / f"{notebook}.py")],
        cwd=folder,
        env={**inherited, **own, "PYTHONDONTWRITEBYTECODE": "1", **more},
        capture_output=True,
        text=True,
        timeout=200,
    )


def files_here() -> set[Path]:
    """What lies where a notebook could leave something."""
    return {*ROOT.iterdir(), *(ROOT / "notebooks").rglob("*"), *(ROOT / "runs").rglob("*")}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Each notebook runs once for all tests."""

    @cache
    def run(notebook: str) -> "subprocess.CompletedProcess[str]":
        before = files_here()
        done = in_process(notebook, tmp_path_factory.mktemp(notebook))
        assert files_here() == before, "it left files in the repository"
        return done

    return run


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        line
        for token in tokens
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {
        "direction_by_hand", "reading_a_run", "lat_concentration",
    }  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_a_script_without_a_warning(path: Path, ran: Run) -> None:
    done = ran(path.stem)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    # That a run has begun is all that is said.
    assert all(line.startswith("recording into runs/") for line in done.stderr.splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_jupyter_and_says_what_it_does_not_show(path: Path) -> None:
    notebook = jupytext.read(path)
    written = nbformat.reads(jupytext.writes(notebook, fmt="ipynb"), as_version=4)
    nbformat.validate(written)
    texts = [cell.source for cell in written.cells if cell.cell_type == "markdown"]
    code = [cell.source for cell in written.cells if cell.cell_type == "code"]
    assert texts[0].startswith("# ")
    assert code
    assert any("does not show" in text for text in texts)
    # Jupyter shows the value of a cell's last line: that is where a picture stands.
    ends = [ast.parse(source).body[-1] for source in code]
    shown = [ast.unparse(end) for end in ends if isinstance(end, ast.Expr)]
    assert any(not text.startswith("print(") for text in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_no_absolute_path(path: Path) -> None:
    assert not re.findall(r"""["'](?:/|~|[A-Z]:\\)\w""", path.read_text(encoding="utf-8"))


def test_a_direction_by_hand_takes_thirty_lines_and_shows_an_effect_beside_its_controls(
    ran: Run,
) -> None:
    source = (ROOT / "notebooks" / "direction_by_hand.py").read_text(encoding="utf-8")
    assert 20 < len(code_lines(source)) <= LINES_BY_HAND
    out = ran("direction_by_hand").stdout
    assert "as it is: 48 of 48 0 of 48" in out
    ablated, added = re.findall(r"(\d+) of 48 refused, [\d.]+ to [\d.]+\nControlTest\((.*)\)", out)
    assert (ablated[0], added[0]) == ("0", "48")
    for _, test in (ablated, added):
        assert "p_value=0.05, resolution=0.05" in test
        assert "n_draws=19" in test
    # The text says that no control does what the direction does.
    assert "null_low=1.0" in ablated[1]
    assert 0 < float(re.findall(r"null_high=([\d.]+)", added[1])[0]) < 0.7


def test_two_runs_differ_in_the_key_that_was_changed_and_in_a_verdict(ran: Run) -> None:
    out = ran("reading_a_run").stdout
    differing = re.findall(
        r"^([\w.]+) +\S*organisms_small/ssft +\S*organisms_small/lat$", out, re.M
    )
    assert differing == ["model.id"]
    assert "same prompts: True" in out
    assert "same code and machine: True" in out
    both = int(re.findall(r"(\d+) rows in both", out)[0])
    equal = int(re.findall(r"(\d+) equal in each bit", out)[0])
    assert both > 1000
    assert equal < both / 10
    claim = "The model's top-2 share is larger for harm than between harmless prompts."
    assert f"ssft: inconclusive. {claim}" in out
    assert f"lat: supported. {claim}" in out
    assert "problems=()" in out
    assert "findings.json: differs" in out


def excess(out: str, arm: str) -> list[float]:
    """Value and interval."""
    found = re.findall(rf"^{arm}: two .*\n +excess over harmless−harmless (.*)$", out, re.M)
    return [float(number) for number in re.findall(r"-?\d+\.\d+", found[0])]


def test_the_claim_about_lat_runs_on_planted_data_and_says_so(ran: Run) -> None:
    out = ran("lat_concentration").stdout
    assert out.startswith("PLANTED DATA, NOT A LANGUAGE MODEL")
    assert "published" not in out
    assert "lat: massive [40, 90]" in out
    baseline, lat = excess(out, "baseline"), excess(out, "lat")
    assert lat[1] < 0 < lat[2]
    assert lat[2] < baseline[1]


@pytest.mark.reference
@pytest.mark.skipif(REFERENCE not in os.environ, reason=f"{REFERENCE} unset")
def test_the_claim_about_lat_is_that_of_the_published_activations(tmp_path: Path) -> None:
    done = in_process("lat_concentration", tmp_path, **{REFERENCE: os.environ[REFERENCE]})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = done.stdout
    assert "PLANTED" not in out
    agree, of = re.findall(r"(\d+) of (\d+) published numbers agree", out)[0]
    assert agree == of
    assert int(of) > 20
    # What the text says is seen.
    assert "lat: two components hold 0.746" in out
    assert "lat: massive [1415, 2533]" in out
    baseline, lat = excess(out, "baseline"), excess(out, "lat")
    assert lat[1] < 0 < lat[2]
    assert lat[2] < baseline[1]
    differences = re.findall(r"^(?:all|channels_out): share (.*), excess (.*)$", out, re.M)
    assert len(differences) == 2
    for _, specific in differences:
        assert float(re.findall(r"-?\d+\.\d+", specific)[2]) < 0
