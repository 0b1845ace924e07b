"""What is wrong with settings, in the words of the YAML that they were written in."""

import datetime
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

from pydantic import BaseModel, ValidationError

from mechsafety.core.errors import did_you_mean, nearest, printable, shown

MAX_FAULTS: Final = 8
"""Faults that one error tells; the rest are counted."""

MAX_WORDS: Final = 500
"""Characters of one fault; the lists of what is legal are shorter."""


def describe_faults(
    cls: type[BaseModel], raw: Mapping[str, Any], error: ValidationError
) -> list[str]:
    """One line a fault: the key, what arrived, what was expected, and the key that was meant."""
    # A default that follows from a wrong value is no fault of its own.
    faults = [
        fault
        for fault in error.errors(include_url=False)
        if fault["type"] != "default_factory_not_called"
    ]
    told = [_describe(cls, raw, dict(fault)) for fault in faults[:MAX_FAULTS]]
    more = len(faults) - len(told)
    return [*told, f"… and {more} more"] if more else told


def values_read_as_others(config: object, raw: object, path: tuple[object, ...] = ()) -> list[str]:
    """Faults that pydantic lets pass: it reads `workers: yes` as 1, and `seed: '3'` as 3.

    Args:
        config: As filled in.
        raw: As written.
        path: Where in the whole they are.
    """
    if told := _read_as_another(config, raw):
        return [f"key '{_dotted(path)}': {told}"]
    here: object = config
    steps: list[object] = []
    if isinstance(raw, Mapping):
        here = dict(config) if isinstance(config, BaseModel) else config
        steps += list(cast("Mapping[object, object]", raw))
    elif isinstance(raw, list) and isinstance(config, tuple | list):
        here = list(cast("Sequence[object]", config))
        steps += range(len(cast("list[object]", raw)))
    return [
        fault
        for step in steps
        for fault in values_read_as_others(
            _item(here, step), _item(cast("object", raw), step), (*path, step)
        )
    ]


def _read_as_another(config: object, raw: object) -> str | None:
    """Why what is written may not be read as this value, if it was."""
    if isinstance(config, bool):
        if isinstance(raw, bool):
            return None
        return f"expected true or false. Got {shown(raw)}. Write one of them, without quotes."
    if isinstance(config, int | float) and isinstance(raw, bool):
        return (
            f"expected a number. Got {raw}, which is what YAML reads yes, no, on and off as, too."
        )
    if isinstance(config, int | float) and isinstance(raw, str):
        return f"expected a number. Got the text {shown(raw)}. Leave out the quotes."
    if isinstance(config, datetime.date) and isinstance(raw, int | float):
        return f"expected a date such as 2026-01-31. Got {shown(raw)}."
    return None


def _describe(cls: type[BaseModel], raw: Mapping[str, Any], fault: dict[str, Any]) -> str:
    path = _written_path(raw, fault["loc"])
    key = _dotted(path)
    context = fault.get("ctx", {})
    match fault["type"]:
        case "extra_forbidden":
            return _unknown(cls, raw, path)
        case "missing":
            return f"key '{key}' is missing and has no default."
        case "union_tag_not_found":
            return _untagged(cls, raw, path, context["discriminator"].strip("'"))
        case "union_tag_invalid":
            tagged = _dotted([*path, context["discriminator"].strip("'")])
            tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            hint = did_you_mean(context["tag"], tags)
            return f"key '{tagged}': unknown '{printable(context['tag'])}'. {hint}"
        case "dict_type":
            told = "expected keys and values below it"
        case "model_type" | "model_attributes_type":
            legal = ", ".join(sorted(_legal_keys(cls, raw, path)))
            told = f"expected keys and values below it ({legal})"
        case _:
            # Errors of our own validators are sentences already.
            told = printable(fault["msg"].removeprefix("Value error, "), MAX_WORDS).rstrip(".")
    if not path:
        return f"{told}."
    return f"key '{key}': {told}. Got {shown(fault.get('input'))}."


def _dotted(path: Sequence[object]) -> str:
    """A path of keys as `--set` writes it."""
    return ".".join(printable(str(part), 60) for part in path)


def _unknown(cls: type[BaseModel], raw: object, path: Sequence[object]) -> str:
    legal = _legal_keys(cls, raw, path[:-1])
    hint = did_you_mean(str(path[-1]), legal) if legal else ""
    return f"unknown key '{_dotted(path)}'. {hint}".rstrip()


def _untagged(cls: type[BaseModel], raw: object, path: Sequence[object], tag: str) -> str:
    """The key that tells the members of a union apart is not there, or is misspelt."""
    at = raw
    for part in path:
        at = _item(at, part)
    given = list(cast("Mapping[str, object]", at)) if isinstance(at, Mapping) else []
    legal = _legal_keys(cls, raw, path)
    strays = sorted(name for name in given if name not in legal)
    meant = [name for name in strays if nearest(name, legal) == tag]
    stray = "".join(f"unknown key '{_dotted([*path, name])}'. " for name in (meant or strays)[:1])
    hint = f"Did you mean '{tag}'? " if meant else ""
    tags = ", ".join(_tags(cls, raw, path, tag))
    return (
        f"{stray}{hint}key '{_dotted([*path, tag])}' is missing; it says which kind "
        f"'{_dotted(path)}' is. One of: {tags}."
    )


def _written_path(raw: object, loc: Sequence[str | int]) -> list[str | int]:
    """`loc` without the names of union members, which pydantic adds and nobody wrote."""
    path: list[str | int] = []
    at = raw
    for depth, part in enumerate(loc):
        is_last = depth == len(loc) - 1
        if isinstance(at, Mapping) and part in at:
            at = cast("Mapping[Any, object]", at)[part]
        elif isinstance(at, list) and isinstance(part, int) and part < len(cast("list[Any]", at)):
            at = cast("list[object]", at)[part]
        elif not is_last:
            continue
        elif not isinstance(at, Mapping):
            # A value that fits no member of a union: the last part names a member or a type.
            continue
        path.append(part)
    return path


def _legal_keys(cls: type[BaseModel], raw: object, path: Sequence[object]) -> set[str]:
    """Keys of the settings class that lies at `path`, or of all where the input selects none."""
    return {name for model in _models_at(cls, raw, path) for name in model.model_fields}


def _tags(cls: type[BaseModel], raw: object, path: Sequence[object], tag: str) -> list[str]:
    """What the key `tag` may say at `path`, in the order of the union's members."""
    fields = [model.model_fields[tag] for model in _models_at(cls, raw, path)]
    return [str(value) for field in fields for value in typing.get_args(field.annotation)]


def _models_at(cls: type[BaseModel], raw: object, path: Sequence[object]) -> list[type[BaseModel]]:
    here, at = [cls], raw
    for part in path:
        fields = [model.model_fields.get(str(part)) for model in here]
        below = [m for f in fields if f is not None for m in _models_in(f.annotation)]
        at = _item(at, part)
        # A list index or a mapping's key names no field: the models stay the same.
        below = list(dict.fromkeys(below or here))
        here = [model for model in below if _is_selected(model, at)] or below
    return here


def _item(at: object, part: object) -> object:
    if isinstance(at, Mapping):
        return cast("Mapping[object, object]", at).get(part)
    if isinstance(at, list) and isinstance(part, int) and part < len(cast("list[object]", at)):
        return cast("list[object]", at)[part]
    return None


def _is_selected(model: type[BaseModel], at: object) -> bool:
    """Whether no `Literal` key of `at`, such as `source: files`, says that it is another class."""
    if not isinstance(at, Mapping):
        return True
    given = cast("Mapping[object, object]", at)
    return all(
        given[name] in typing.get_args(field.annotation)
        for name, field in model.model_fields.items()
        if name in given and typing.get_origin(field.annotation) is Literal
    )


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
