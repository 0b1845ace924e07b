"""Which tokens of a prompt. Positions are named, and absolute once a prompt is tokenized."""

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, WithJsonSchema

from mechsafety.core.errors import PositionError, did_you_mean

PositionName = Literal["last", "eoi", "instruction_end", "prompt", "generated", "all"]
POSITION_NAMES: Final[tuple[PositionName, ...]] = get_args(PositionName)


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """Where the parts of one prompt lie among its token ids, without padding."""

    n_tokens: int
    """Number of tokens of the prompt, template included."""
    instruction: tuple[int, int]
    """First token of the instruction, and one past its last."""

    def __post_init__(self) -> None:
        start, stop = self.instruction
        if not 0 <= start <= stop <= self.n_tokens:
            raise PositionError(
                f"spans of a prompt of {self.n_tokens} tokens: the instruction cannot lie at "
                f"{start}:{stop}."
            )

    @property
    def eoi(self) -> tuple[int, int]:
        """The template tokens after the instruction (end of instruction)."""
        return self.instruction[1], self.n_tokens


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """A named position: `last`, `eoi`, one token of it as `eoi[-2]`, `instruction_end`, ...

    `eoi` counts −P..−1, so that `eoi[-1]` is `last`. `generated` has no token in a prompt:
    it can be edited in generation, not read from a prompt.
    """

    name: PositionName
    index: int | None = None

    def __post_init__(self) -> None:
        if self.name not in POSITION_NAMES:
            raise PositionError(
                f"unknown position '{self.name}'. {did_you_mean(self.name, POSITION_NAMES)}"
            )
        if self.index is not None and (self.name != "eoi" or self.index >= 0):
            raise PositionError(
                f"position '{self}': only 'eoi' is indexed, and it counts −P..−1, as in 'eoi[-2]'."
            )

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"

    @staticmethod
    def parse(text: str) -> "Position":
        """Read `last`, `eoi`, `eoi[-2]` and the other names.

        Raises:
            PositionError: Not a position; the message lists the names.
        """
        match = re.fullmatch(r"([a-z_]+)(?:\[([-−]?\d+)\])?", text)
        name = match[1] if match else text
        for known in POSITION_NAMES:
            if match and name == known:
                index = None if match[2] is None else int(match[2].replace("−", "-"))
                return Position(known, index)
        raise PositionError(f"unknown position '{text}'. {did_you_mean(name, POSITION_NAMES)}")

    def tokens(self, spans: TokenSpans) -> range:
        """The absolute token indices of this position in one prompt.

        Raises:
            PositionError: The prompt has no such token.
        """
        start, stop = spans.instruction
        found = {
            "last": range(spans.n_tokens - 1, spans.n_tokens),
            "eoi": range(stop, spans.n_tokens),
            "instruction_end": range(stop - 1, stop) if stop > start else range(0),
            "prompt": range(start, stop),
            "all": range(spans.n_tokens),
            "generated": range(0),
        }[self.name]
        if self.index is not None:
            at = spans.n_tokens + self.index
            found = range(at, at + 1) if at in found else range(0)
        if not found:
            raise PositionError(
                f"position '{self}': a prompt of {spans.n_tokens} tokens with its instruction at "
                f"{start}:{stop} has {spans.n_tokens - stop} template tokens after it and no such "
                "token. Read another position, or give the chat template that the model was "
                "trained with."
            )
        return found


def _checked(text: str) -> str:
    try:
        return str(Position.parse(text))
    except PositionError as error:
        raise ValueError(str(error)) from None


_WRITTEN: Final = rf"^({'|'.join(POSITION_NAMES)}|eoi\[[-−][1-9]\d*\])$"

PositionText = Annotated[
    str, AfterValidator(_checked), WithJsonSchema({"type": "string", "pattern": _WRITTEN})
]
"""A position as an experiment's YAML writes it; a misspelt one is found before the run."""
