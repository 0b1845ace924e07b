# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# Reason: the stubs of PyYAML's loader leave its events and constructors untyped.
"""Frozen settings: read from YAML, checked by pydantic, hashed, and refused with advice."""

import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from mechsafety.core.errors import ConfigError, did_you_mean

MAX_YAML_BYTES: Final = 1_000_000

CPU_PASS_TOKENS: Final = 2048
"""Most padded tokens of one forward pass on a CPU: larger passes are slower there (2 × at 16,384,
measured at d_model 128 and 256), because activations then fall out of its caches."""


class FrozenConfig(BaseModel):
    """Base of every settings class: frozen, unknown keys refused, docstrings as descriptions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )


class Runtime(FrozenConfig):
    """Where and how a run computes; no field changes what is measured."""

    threads: PositiveInt = 1
    """CPU threads of each worker process. Results are bit-reproducible for equal counts."""
    workers: PositiveInt = 1
    """Processes that work side by side, one model each. More than 1 only where memory allows."""
    device: str = "cpu"
    """torch device of the models, such as `cpu` or `cuda:0`."""
    device_map: str | None = None
    """Passed to Hugging Face, such as `auto`, for models larger than one device."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Precision of the weights; `auto` takes the checkpoint's own."""
    batch_tokens: PositiveInt = 16_384
    """Most padded tokens of one batch."""
    pass_tokens: PositiveInt = Field(default_factory=lambda given: pass_tokens_of(given))
    """Most padded tokens of one forward pass without KV cache. Left out, it is what suits the
    device, and is written into the record, so that a replay elsewhere batches as this run did."""
    memory_gib: float = 4.0
    """Activations held in memory before they go to shards on disk, in GiB."""


def pass_tokens_of(given: Mapping[str, Any]) -> int:
    """Passes that suit the device: as large as batches may be, or smaller on a CPU."""
    batch_tokens = given.get("batch_tokens", CPU_PASS_TOKENS)
    on_cpu = given.get("device") == "cpu" and given.get("device_map") is None
    return min(batch_tokens, CPU_PASS_TOKENS) if on_cpu else batch_tokens


class Wandb(FrozenConfig):
    """The mirror of a run's record; the environment's WANDB_* variables win over it."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` writes the mirror into the run folder and needs no network."""
    group: str | None = None
    """wandb group; a sweep sets its own id."""
    upload_directions: bool = False
    """Directions of models that are not organisms leave the machine only if this is true."""
    seconds: PositiveFloat = 90.0
    """Time box of the mirror, in seconds: it is given up afterwards, and the run is not."""


class StudyConfig(FrozenConfig):
    """What every study's YAML has beside its own keys."""

    study: str
    """Name of the study: a file of `mechsafety/studies/`."""
    title: str | None = None
    """Heading of the report; None: the study's name."""
    seed: NonNegativeInt = 0
    """The run's one seed; every stage derives its own generator from it."""
    runtime: Runtime = Runtime()
    """Threads, processes, device and precision."""
    wandb: Wandb = Wandb()
    """The mirror of the record."""
    completions: Literal["none", "local"] = "none"
    """`local` keeps generated text in the run's `private/`; `none` cannot be re-judged."""
    token_ids: Literal["hash", "full"] = "hash"
    """The record holds the SHA-256 of every prompt set's token ids; `full` also keeps the ids
    themselves in `private/`."""


ConfigT = TypeVar("ConfigT", bound=FrozenConfig)


def config_hash(config: FrozenConfig) -> str:
    """SHA-256 of the filled-in settings; equal settings have equal hashes across processes."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases (a few bytes of them can expand to gigabytes) or repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise ConfigError(
                f"line {mark.line + 1}: YAML aliases (*name) are not read in experiments, because "
                "a few bytes of them can expand to gigabytes. Write the value out."
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: key '{key}' appears twice; YAML would "
                    "silently keep the last. Remove one."
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: Missing, too large, not YAML, not a mapping, or with aliases.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError(f"reading {path}: {path.stat().st_size} bytes is no experiment.")
        loaded: object = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except ConfigError as error:
        raise ConfigError(f"reading {path}: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"reading the experiment: there is no file {path}.") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"reading the experiment {path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"reading {path}: it is not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"reading {path}: expected keys and values such as 'study: concentration', and got "
            f"{type(loaded).__name__}."
        )
    return cast("dict[str, Any]", loaded)


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`raw` with every `a.b=value` of a command line set; values are read as YAML.

    Raises:
        ConfigError: An override without `=`, or one that goes through a value.
    """
    merged: dict[str, Any] = json.loads(json.dumps(raw, default=str))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: expected key=value, such as --set seed=1.")
        try:
            value: object = yaml.load(text, Loader=_PlainLoader) if text else None
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None
        *path, last = key.split(".")
        at = merged
        for name in path:
            step = at.setdefault(name, {})
            if not isinstance(step, dict):
                raise ConfigError(f"--set {override}: '{name}' holds a value, not further keys.")
            at = cast("dict[str, Any]", step)
        at[last] = value
    return merged


def parse_config(cls: type[ConfigT], raw: Mapping[str, Any], source: str) -> ConfigT:
    """`raw` as `cls`, filled in and checked.

    Raises:
        ConfigError: One line a fault: the key, what arrived, what was expected, and for an
            unknown key the nearest legal one.
    """
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        faults = [_describe(cls, raw, dict(fault)) for fault in error.errors()]
        shown = faults[:8]
        if len(faults) > len(shown):
            shown.append(f"… and {len(faults) - len(shown)} more")
        raise ConfigError(f"{source}: " + "\n  ".join(shown)) from None


def _describe(cls: type[BaseModel], raw: Mapping[str, Any], fault: dict[str, Any]) -> str:
    path = _written_path(raw, fault["loc"])
    key = ".".join(map(str, path))
    if fault["type"] == "extra_forbidden":
        legal = _legal_keys(cls, raw, path[:-1])
        hint = did_you_mean(str(path[-1]), legal) if legal else ""
        return f"unknown key '{key}'. {hint}".rstrip()
    if fault["type"] == "missing":
        return f"key '{key}' is missing and has no default."
    context = fault.get("ctx", {})
    if fault["type"] in ("union_tag_not_found", "union_tag_invalid"):
        # Pydantic quotes the key that tells the members of a union apart.
        tagged = f"{key}.{context['discriminator'].strip(chr(39))}"
        if fault["type"] == "union_tag_not_found":
            tags = ", ".join(_tags(cls, raw, path, tagged.rpartition(".")[2]))
            return f"key '{tagged}' is missing; it says which kind '{key}' is. One of: {tags}."
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return f"key '{tagged}': unknown '{context['tag']}'. {did_you_mean(context['tag'], tags)}"
    # Errors of our own validators are sentences already.
    told = fault["msg"].removeprefix("Value error, ")
    if not path:
        return f"{told}."
    arrived = repr(fault.get("input"))
    arrived = arrived if len(arrived) <= 80 else arrived[:77] + "…"
    return f"key '{key}': {told}. Got {arrived}."


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
    if isinstance(at, list) and isinstance(part, int):
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
