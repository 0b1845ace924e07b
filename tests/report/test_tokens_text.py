import subprocess
import sys

import pytest

from mechsafety.report.drawing import Token
from mechsafety.report.tokens import tokens
from mechsafety.report.tokens_text import MAX_WHOLE, said, stretches, tokens_text, visible
from tests.report.fake_locality import LONG, LONG_TOKENS, TOKENS, record

METRICS = record().metrics
LONG_PROMPT = tokens(LONG_TOKENS, METRICS)


def test_a_prompt_is_one_line_with_its_marks_and_what_they_mean() -> None:
    assert tokens_text(tokens(TOKENS, METRICS)) == (
        "<|user|> how do i ‹build the red sword «?»¹ «<|end|>»² «↵»³›⁴\n"
        "¹ read at instruction_end\n"
        "² read at eoi[-2]\n"
        "³ read at eoi[-1]\n"
        "⁴ written (all)"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" how", "␣how"),
        ("\r\n\t", "␍↵⇥"),
        ("", "⟨empty⟩"),
        ("\x1b[31m", "⟨U+001B⟩[31m"),  # a color code of terminals
        ("a\u202eb\u200b\u00a0", "a⟨U+202E⟩b⟨U+200B⟩⟨U+00A0⟩"),
        ("<|end|>", "<|end|>"),
        ("日本é", "日本é"),
    ],
)
def test_every_character_of_a_token_is_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_name_is_as_harmless_as_a_token() -> None:
    token = Token(0, "a", "part", "eoi\x1b", "all\u202e")
    assert said(token) == ["read at eoi⟨U+001B⟩", "written (all⟨U+202E⟩)"]
    assert said(Token(0, "a", "", "", "true")) == ["written"]


def test_a_long_prompt_folds_only_what_is_like_its_neighbors() -> None:
    parts = stretches(LONG_PROMPT)
    folded = [part for part in parts if part.folded]
    assert len(folded) == 4
    assert sum(len(part.tokens) for part in folded) > 0.9 * LONG  # there was much to fold
    assert [token for part in parts for token in part.tokens] == LONG_PROMPT
    for part in folded:
        assert len({(t.part, t.read, t.write) for t in part.tokens}) == 1
    shown = {t.index for part in parts if not part.folded for t in part.tokens}
    assert {900, 1199, 1200, 1299, 1300, LONG - 1} <= shown  # read, or an edge of writing
    assert folded[2].said() == "84 tokens of instruction, written (generated)"


def test_a_prompt_of_moderate_length_is_shown_whole() -> None:
    assert not any(part.folded for part in stretches(LONG_PROMPT[100 : 100 + MAX_WHOLE]))
    assert any(part.folded for part in stretches(LONG_PROMPT[100 : 101 + MAX_WHOLE]))


def test_the_text_of_a_long_prompt_is_short_and_keeps_its_marks() -> None:
    text = tokens_text(LONG_PROMPT, width=80)
    lines = text.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) <= 80
    assert "«␣word900»¹" in text
    assert "‹␣word1200" in text
    assert "␣word1299›²" in text
    assert "… 84 tokens of instruction," in " ".join(lines)


def test_an_empty_prompt_is_an_empty_text() -> None:
    assert tokens_text([]) == ""


def test_text_needs_no_pandas() -> None:
    code = "import sys, mechsafety.report.tokens_text; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
