"""A prompt with its read and write positions marked, as text. Fast to import: no pandas."""

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mechsafety.report.drawing import Token

MAX_WHOLE: Final = 160
"""Tokens up to which a prompt is shown whole."""
_AROUND: Final = 8
"""Tokens shown on each side of a change of marks, and at both ends of a longer prompt."""
_GLYPHS: Final = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
_SUPERSCRIPTS: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def visible(text: str) -> str:
    """A token's text with a glyph for each character that would not be seen, such as `␣`.

    Control characters and those that turn the direction of text become their code, so that a
    token can neither drive a terminal nor reorder the page around it.
    """
    shown = (_GLYPHS.get(c) or (c if c.isprintable() else f"⟨U+{ord(c):04X}⟩") for c in text)
    return "".join(shown) or "⟨empty⟩"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighboring tokens of one part of the prompt, either shown or folded."""

    tokens: list[Token]
    folded: bool

    @property
    def part(self) -> str:
        """The part of the prompt that they belong to."""
        return self.tokens[0].part

    @property
    def write(self) -> str:
        """What is written at the first of them, and if folded at all."""
        return self.tokens[0].write

    def said(self) -> str:
        """What a folded stretch holds: `1,204 tokens of instruction, written (all)`."""
        of = f" of {visible(self.part)}" if self.part else ""
        return ", ".join([f"{len(self.tokens):,} tokens{of}", *said(self.tokens[0])])


def said(token: Token) -> list[str]:
    """What happens at a token, in words: `read at eoi[-1]`, `written (all)`."""
    marks = [f"read at {visible(token.read)}"] if token.read else []
    return [*marks, written(token.write)] if token.write else marks


def written(name: str) -> str:
    """`written (all)`, or `written` where what is written has no name."""
    return "written" if name == "true" else f"written ({visible(name)})"


def stretches(tokens: Sequence[Token]) -> list[Stretch]:
    """The prompt in stretches of one part; of a long one, the even middles are folded.

    Folded tokens all carry the marks of their neighbors, so that no position that is read or
    written alone is ever hidden.
    """
    if len(tokens) <= MAX_WHOLE:
        near = set(range(len(tokens)))
    else:
        marks = [(token.part, token.read, token.write) for token in tokens]
        changes = [0, *(i for i in range(1, len(tokens)) if marks[i] != marks[i - 1]), len(tokens)]
        near = {i + step for i in changes for step in range(-_AROUND, _AROUND)}
    runs = itertools.groupby(enumerate(tokens), lambda at: (at[1].part, at[0] not in near))
    return [Stretch([token for _, token in run], folded) for (_, folded), run in runs]


def tokens_text(tokens: Sequence[Token], width: int = 100) -> str:
    """The prompt for a terminal: `how ‹do «?»¹ «<|end|>»²›³`, and what the numbers mean.

    `«»` stand around a token that is read, `‹›` around all that is written; tokens are set apart
    by spaces, and spaces of their own are shown as `␣`.
    """
    numbers: dict[str, str] = {}

    def number(what: str) -> str:
        return numbers.setdefault(what, str(len(numbers) + 1).translate(_SUPERSCRIPTS))

    words: list[str] = []
    pieces = [
        piece
        for stretch in stretches(tokens)
        for piece in ([stretch] if stretch.folded else stretch.tokens)
    ]
    for name, run in itertools.groupby(pieces, lambda piece: piece.write):
        found = [
            f"… {piece.said()} …"
            if isinstance(piece, Stretch)
            else f"«{visible(piece.text)}»{number(said(piece)[0])}"
            if piece.read
            else visible(piece.text)
            for piece in run
        ]
        if name:
            found[0] = f"‹{found[0]}"
            found[-1] = f"{found[-1]}›{number(written(name))}"
        words += found
    filled = textwrap.fill(" ".join(words), width, break_long_words=False, break_on_hyphens=False)
    return "\n".join([filled, *(f"{mark} {what}" for what, mark in numbers.items())])
