"""Documentation runs: every Python block of the README and of docs/, and every YAML block reads.

Blocks of one page share their names and run in order, the README's in the clone and others in an
empty folder. Shell blocks are left to the checks of the Makefile.
"""

import re
from pathlib import Path

import pytest

from mechsafety.core.config import Name, StudyConfig, parse_config, read_yaml
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.pairs import OrganismPairs, PairsSource
from mechsafety.judges.phrases import PhraseJudge

ROOT = Path(__file__).parent.parent
PAGES = sorted(page for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")) if page.is_file())


class Excerpt(StudyConfig):
    """Keys of experiments that pages show by themselves."""

    study: Name = "any"
    prompts: PairsSource = OrganismPairs()
    chat: ChatFormat = ChatFormat()
    judge: PhraseJudge = PhraseJudge()


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, text) of each fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_there_are_pages_with_blocks_to_run() -> None:
    assert any(blocks(page, "python") for page in PAGES)
    assert any(blocks(page, "yaml") for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The README speaks to a reader inside a clone; other pages to one anywhere.
    monkeypatch.chdir(ROOT if page.parent == ROOT else tmp_path)
    names: dict[str, object] = {"__name__": "documentation"}
    for line, text in blocks(page, "python"):
        # Blank lines put the block where it stands in the page, so that a traceback points there.
        exec(compile("\n" * line + text, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_yaml_blocks_are_read_by_the_classes_that_read_experiments(
    page: Path, tmp_path: Path
) -> None:
    for line, text in blocks(page, "yaml"):
        file = tmp_path / "block.yaml"
        file.write_text(text, encoding="utf-8")
        raw = read_yaml(file)
        shown = {key: value for key, value in raw.items() if key in Excerpt.model_fields}
        parse_config(Excerpt, shown, f"{named(page)}, line {line}")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_says_its_language(page: Path) -> None:
    fences = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert all(fences[::2]), "an opening fence without a language"
    assert not any(fences[1::2]), "a closing fence is missing"
    assert set(fences[::2]) <= {"python", "yaml", "bash", "text", "json"}
