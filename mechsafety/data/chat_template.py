"""Chat templates with spans: which characters of a rendered prompt are the instruction.

A template is a program, and many change what they are given (Llama-2's strips white space,
others put spaces around it), so spans are measured: placeholders show what the template writes
before and after, and every real prompt is checked against that, character by character.
"""

import datetime
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast, runtime_checkable

import jinja2
from pydantic import field_validator, model_validator

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import PromptError, TemplateError, did_you_mean
from mechsafety.data.prompts import Prompt

Thinking = Literal["off", "on", "closed"]

THINK: Final = "<think>"
END_THINK: Final = "</think>"
EMPTY_THOUGHT: Final = f"{THINK}\n\n{END_THINK}\n\n"

# Two texts that no template holds, of different lengths and ends, so that a template that looks
# at its content gives itself away. No white space, because many templates strip it.
_PLACEHOLDERS: Final = (
    "Qf3" + hashlib.sha256(b"first placeholder").hexdigest() + "x",
    "z" + hashlib.sha512(b"second placeholder").hexdigest() + "7W",
)


@runtime_checkable
class ChatTokenizer(Protocol):
    """What rendering needs of a Hugging Face tokenizer."""

    @property
    def chat_template(self) -> Any:
        """The model's own template: its text, several by name, or None."""
        ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        chat_template: str,
        add_generation_prompt: bool,
        tokenize: bool,
        **variables: Any,
    ) -> Any:
        """The conversation as text, where `tokenize` is False."""
        ...


class ChatFormat(FrozenConfig):
    """How an instruction becomes a prompt; every rate is a rate under one such format."""

    chat_template: str | None = None
    """null: the model's own. `none`: the bare text, for models without chat training. Else the
    path of a file with a Jinja template."""
    system: str | None = None
    """The system prompt. null sends none, and a template's default (Qwen2.5 has one) stands."""
    thinking: Thinking = "off"
    """`off` and `on` set `enable_thinking` for templates that know it; `closed` makes the model
    begin after an empty thinking block, whether its template knows of thinking or not."""
    date: datetime.date = datetime.date(2024, 7, 26)
    """What a template that prints today's date is told, so that a run has the same tokens on
    every day. The default is what Llama-3.1's template prints by itself."""

    @field_validator("thinking", mode="before", json_schema_input_type=Thinking | bool)
    @classmethod
    def _off_and_on_are_words(cls, value: object) -> object:
        # YAML 1.1 reads a bare `off` as false and `on` as true.
        return {False: "off", True: "on"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _raw_text_has_no_parts(self) -> "ChatFormat":
        if self.chat_template == "none" and (self.system is not None or self.thinking != "off"):
            raise ValueError(
                "`chat_template: none` is the bare text of the instruction, with no place for a "
                "system prompt or a thinking block. Leave `system` and `thinking` out"
            )
        return self


@dataclass(frozen=True, slots=True)
class Rendered:
    """One prompt as the model receives it, up to where its answer begins."""

    text: str
    """The whole prompt."""
    instruction: tuple[int, int]
    """First character of the user's instruction in `text`, and one past its last."""
    system: tuple[int, int] | None
    """As above, of the system prompt that the format gives; None where it gives none."""
    add_special_tokens: bool
    """Whether the tokenizer must add its own (BOS): only for bare text. A template writes them
    itself, and a tokenizer that adds them again doubles BOS."""

    @property
    def eoi(self) -> str:
        """End of instruction: all that the template writes after the instruction."""
        return self.text[self.instruction[1] :]

    @property
    def thinking_open(self) -> bool:
        """Whether the model begins inside a thinking block that the prompt opened."""
        return _opens_thought(self.eoi)


def render(prompt: Prompt, tokenizer: ChatTokenizer, format: ChatFormat) -> Rendered:
    """One prompt in the format; for many use `render_all`, which studies the template once.

    Raises:
        TemplateError, PromptError: As `render_all`.
    """
    return render_all([prompt], tokenizer, format)[0]


def render_all(
    prompts: Iterable[Prompt], tokenizer: ChatTokenizer, format: ChatFormat
) -> tuple[Rendered, ...]:
    """Every prompt in the format, with the generation prompt at its end.

    White space at the ends of an instruction belongs to its span only where the template keeps
    it. Each span is exact: text before, span and text after are compared with the rendered text.

    Raises:
        TemplateError: No template, a damaged one, one that refuses the system prompt or the
            thinking state, or one that changes the instruction so that no span is exact.
        PromptError: An instruction of white space alone.
    """
    template = template_text(tokenizer, format)
    if template is None:
        return tuple(_bare(prompt) for prompt in prompts)
    dated = _with_fixed_date(template, format.date)

    def chat(instruction: str, system: str | None = format.system) -> str:
        return _apply(tokenizer, dated, format.thinking, instruction, system)

    before, after = _surroundings(chat, "instruction")
    _check_thinking(after, format.thinking)
    system = None
    if format.system and format.system.strip():
        around = _surroundings(lambda text: chat("Hello", text), "system prompt")
        system = _span(chat("Hello"), *around, format.system, "the system prompt")
        if system[1] > len(before):
            raise TemplateError(
                "rendering a chat: this template puts the system prompt after the instruction, "
                "where it cannot be told from the template's own words. Try `system: null`, or "
                "write the system prompt into a template file."
            )
    rendered: list[Rendered] = []
    for prompt in prompts:
        _check_not_blank(prompt)
        text = chat(prompt.instruction)
        span = _span(text, before, after, prompt.instruction, f"the instruction of {prompt.id}")
        rendered.append(Rendered(text, span, system, add_special_tokens=False))
    return tuple(rendered)


def template_text(tokenizer: ChatTokenizer, format: ChatFormat) -> str | None:
    """The Jinja text that the format selects, or None for bare text. Hash this for a record.

    Raises:
        TemplateError: The model has no template, several without a default, or the file cannot
            be read.
    """
    if format.chat_template == "none":
        return None
    if format.chat_template is not None:
        return _read_template(Path(format.chat_template))
    own: object = tokenizer.chat_template
    if isinstance(own, dict):
        named = cast("dict[str, object]", own)
        if "default" not in named:
            raise TemplateError(
                "rendering a chat: the model has several chat templates and none is called "
                f"'default' ({', '.join(named)}). Save the one you mean to a file and "
                "give `chat_template: FILE`."
            )
        own = named["default"]
    if not isinstance(own, str):
        raise TemplateError(
            "rendering a chat: the model has no chat template, so it is not known what its "
            "prompts look like. If it was not trained on chats, set `chat_template: none`, which "
            "sends the bare text; if it was, save its template to a file and set "
            "`chat_template: FILE`."
        )
    return own


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TemplateError(
            f"reading the chat template: there is no file '{path}'. `chat_template` is null (the "
            "model's own), 'none' (bare text) or the path of a Jinja file. "
            + did_you_mean(str(path), _jinja_files_beside(path) | {"none"})
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"reading the chat template '{path}': {error}. Expected a UTF-8 text file with a "
            "Jinja template."
        ) from None


def _jinja_files_beside(path: Path) -> set[str]:
    return {str(found) for found in path.parent.glob("*.jinja*")} if path.parent.is_dir() else set()


def _bare(prompt: Prompt) -> Rendered:
    _check_not_blank(prompt)
    span = (0, len(prompt.instruction))
    return Rendered(prompt.instruction, span, None, add_special_tokens=True)


def _check_not_blank(prompt: Prompt) -> None:
    if not prompt.instruction.strip():
        raise PromptError(
            f"rendering prompt {prompt.id}: its instruction is empty or white space, so there is "
            "nothing to read activations from. Remove the row."
        )


def _apply(
    tokenizer: ChatTokenizer,
    template: str,
    thinking: Thinking,
    instruction: str,
    system: str | None,
) -> str:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": instruction})
    thinks = thinking == "on"
    try:
        text: object = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
            # Qwen3, SmolLM3 and their kin ask for the first name, DeepSeek and Granite the second.
            enable_thinking=thinks,
            thinking=thinks,
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        where = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        roles = "a system prompt and an instruction" if system is not None else "an instruction"
        hint = "Many templates know no system prompt: try `system: null`. " if system else ""
        raise TemplateError(
            f"rendering a chat: the template fails on {roles}{where}: {error}. {hint}Check that "
            "the template belongs to this model, or give another with `chat_template: FILE`."
        ) from None
    if not isinstance(text, str):
        raise TemplateError(
            f"rendering a chat: expected text from the tokenizer's apply_chat_template, and got "
            f"{type(text).__name__}."
        )
    return text + (_closing(text) if thinking == "closed" else "")


def _with_fixed_date(template: str, date: datetime.date) -> str:
    """The template, with `strftime_now` (today's date) shadowed by a macro that knows one day."""
    if "strftime_now" not in template:
        return template
    # A template sees plain data only, so the function cannot be passed in. Longest code first.
    codes = {f"%{code}": date.strftime(f"%{code}") for code in "aAbBdjmUwWyYHIMSp"}
    codes = {"%-d": str(date.day), "%-m": str(date.month), **codes}
    steps = "".join(f"|replace('{code}','{value}')" for code, value in codes.items())
    # The newline is eaten by trim_blocks, so that the template still begins at a line's start.
    return f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}\n{template}"


def _opens_thought(text: str) -> bool:
    return text.rfind(THINK) > text.rfind(END_THINK)


def _closing(text: str) -> str:
    """What must follow a rendered chat for an empty thinking block to be closed at its end."""
    if re.search(rf"{END_THINK}\s*$", text):
        return ""
    if re.search(rf"{THINK}\s*$", text):
        return ("\n" if text.endswith("\n") else "\n\n") + f"{END_THINK}\n\n"
    return EMPTY_THOUGHT


def _check_thinking(after: str, thinking: Thinking) -> None:
    if thinking == "off" and _opens_thought(after):
        raise TemplateError(
            "rendering a chat with `thinking: off`: this template always opens a thinking block "
            "for the model. Set `thinking: closed` to begin after an empty one, or `thinking: on`."
        )
    if thinking == "on" and END_THINK in after and not _opens_thought(after):
        raise TemplateError(
            "rendering a chat with `thinking: on`: this template closes the thinking block before "
            "the model begins, so it cannot think. Set `thinking: closed`, which says so."
        )


def _surroundings(chat: Callable[[str], str], what: str) -> tuple[str, str]:
    """What the template writes before and after a part, whatever the part holds."""
    found: set[tuple[str, str]] = set()
    for placeholder in _PLACEHOLDERS:
        before, *after = chat(placeholder).split(placeholder)
        if len(after) != 1:
            raise TemplateError(
                f"rendering a chat: the template writes the {what} {len(after)} times as it was "
                "given, and exactly once was expected, so that its tokens can be found. "
                + ("Try `system: null`, or give" if what == "system prompt" else "Give")
                + " another template with `chat_template: FILE`."
            )
        found.add((before, after[0]))
    if len(found) > 1:
        raise TemplateError(
            f"rendering a chat: what the template writes around the {what} depends on the {what} "
            "itself, so its place is ambiguous. Give another template with `chat_template: FILE`."
        )
    return found.pop()


def _span(text: str, before: str, after: str, content: str, what: str) -> tuple[int, int]:
    """Where `content` lies in `text`, or the part of it left when a template strips its ends."""
    for form in (content, content.strip(), content.lstrip(), content.rstrip()):
        if text == before + form + after:
            return len(before), len(before) + len(form)
    raise TemplateError(
        f"rendering a chat: the template changes {what} by more than stripping white space, so "
        "its characters cannot be found in the prompt. Remove template markup from the text, or "
        "give another template with `chat_template: FILE`."
    )
