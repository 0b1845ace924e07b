"""Errors that teach: what was being done, what arrived, what was expected, what to try.

`InputError` and its kinds are the caller's to mend (exit code 2); every other
`MechsafetyError` is a run that failed (exit code 1).
"""

import difflib
from collections.abc import Iterable


class MechsafetyError(Exception):
    """Base of every error that mechsafety raises on purpose."""


class InputError(MechsafetyError):
    """Something the caller gave is wrong; nothing was computed from it."""


class ConfigError(InputError):
    """An experiment's YAML, or a `--set`, does not fit its study's schema."""


class SiteError(InputError):
    """A place in the model that this model does not have, or that cannot be edited."""


class PositionError(InputError):
    """A token position that this prompt does not have."""


class PromptError(InputError):
    """A prompt file or set that is missing, empty, or not of the form that was asked for."""


class TemplateError(InputError):
    """A chat template that is missing, or that does not give the spans that were asked for."""


class ModelError(InputError):
    """A model that cannot be opened, or does not fit what it is used with."""


class ActivationError(InputError):
    """Activations that are damaged, non-finite, or do not fit together."""


class SubspaceError(InputError):
    """Rows that are no basis, or a direction that does not fit what it is used with."""


class SampleError(InputError):
    """Numbers from which a statistic cannot be computed: too few, non-finite or unmatched."""


class RecordError(InputError):
    """A run folder that is missing, damaged, or cannot be written."""


class ChangedInputError(InputError):
    """A replay found other prompts than its record names."""


class MissingExtraError(InputError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the optional dependencies of the extra '{extra}', which are not "
            f"installed. Install them with: pip install 'mechsafety[{extra}]'"
        )


class ProbeError(MechsafetyError):
    """A model whose inside does not agree with its own Hugging Face forward pass."""


class HookError(MechsafetyError):
    """A hook that was asked for and did not do what was asked."""


class DegenerateDirectionError(MechsafetyError):
    """The data define no direction: equal means, zero variance, or too few rows."""


class EditedModelError(MechsafetyError):
    """A model was to be saved, pushed or merged while an intervention is installed."""


class WorkerError(MechsafetyError):
    """A job in a worker process raised an error that is not of our family, or its worker died."""


class SelfCheckError(MechsafetyError):
    """A result that contradicts itself, such as an interval that excludes its own estimate."""


def did_you_mean(word: str, legal: Iterable[str]) -> str:
    """The clause that an error ends with: the nearest legal word, if any, and all of them."""
    words = sorted(set(legal))
    near = nearest(word, words)
    suggestion = f"Did you mean '{near}'? " if near is not None else ""
    return f"{suggestion}Expected one of: {', '.join(words)}."


def nearest(word: str, legal: Iterable[str]) -> str | None:
    """The legal word that was probably meant, if one was."""
    words = sorted(set(legal))
    # Comparing takes the product of the lengths, and what arrives may be a whole file.
    near = difflib.get_close_matches(word[:100], words, n=1, cutoff=0.6)
    # Of two letters, swapped ones have too little in common for a close match.
    swapped = [one for one in words if sorted(one) == sorted(word[:100])]
    return next(iter(near or swapped), None)


def shown(value: object, limit: int = 80) -> str:
    """What arrived, as an error quotes it: on one line, printable, at most `limit` characters."""
    return _cut(repr(value), limit)


def printable(text: str, limit: int = 80) -> str:
    """Text that a file or a user wrote, as a part of an error; `shown` without the quotes."""
    # The rest need not be escaped to be cut off.
    escaped = (c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return _cut("".join(escaped), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
