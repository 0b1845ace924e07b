"""Frozen settings: read from YAML, checked by pydantic, hashed, and refused with advice."""

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue

from mechsafety.core.config_faults import describe_faults, values_read_as_others
from mechsafety.core.errors import ConfigError, printable
from mechsafety.core.plain_yaml import MAX_DEPTH, plain_yaml

MAX_YAML_BYTES: Final = 250_000
"""The longest experiment here has 8,000. Whatever they hold, as many are read in a second or so."""

MAX_NAME: Final = 100
"""Characters of a name: with what is appended to it, few enough for a file's."""

# Written so that Python and the editors' JavaScript read it alike.
_NAME: Final = r"^(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]+$"

MAX_PROCESSES: Final = 1024
"""Threads of a process, or processes of a run: of many more, systems start none."""

DAY: Final = 86_400.0
"""In seconds."""

CPU_PASS_TOKENS: Final = 2048
"""Most padded tokens of one forward pass on a CPU: larger passes are slower there (2 × at 16,384,
measured at d_model 128 and 256), because activations then fall out of its caches."""


def _checked_name(name: str) -> str:
    if not name.strip():
        raise ValueError("a name has at least one letter or digit")
    if len(name) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} characters, and this one has {len(name)}")
    if not re.search(_NAME, name) or not name.isprintable():
        raise ValueError(
            "names become names of files and tensors in the run folder, so that they hold no "
            "slash or backslash and no invisible characters, and are not '.' or '..'. Write a "
            "name such as lat_strong"
        )
    return name


Name = Annotated[
    str,
    AfterValidator(_checked_name),
    # Under `allOf`, a pattern stays one of the key where names are keys.
    WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": MAX_NAME, "allOf": [{"pattern": _NAME}]}
    ),
]
"""A name that an experiment gives: of a model, an arm, or a finding. It may become part of a name
inside the run folder, and leads nowhere else."""


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

    threads: PositiveInt = Field(default=1, le=MAX_PROCESSES)
    """CPU threads of each worker process, at most 1024. Results are bit-reproducible for equal
    counts."""
    workers: PositiveInt = Field(default=1, le=MAX_PROCESSES)
    """Processes that work side by side, one model each, at most 1024. More than 1 only where
    memory allows."""
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
    memory_gib: PositiveFloat = 4.0
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
    seconds: PositiveFloat = Field(default=90.0, le=DAY)
    """Time box of the mirror, in seconds, at most 86,400 (a day): it is given up afterwards, and
    the run is not."""


class StudyConfig(FrozenConfig):
    """What every study's YAML has beside its own keys."""

    study: Name
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


def with_short_form(full: JsonSchemaValue, short: str) -> JsonSchemaValue:
    """The JSON schema of settings that YAML may also write as one word, described by `short`."""
    return {"anyOf": [{"type": "string", "minLength": 1, "description": short}, full]}


ConfigT = TypeVar("ConfigT", bound=FrozenConfig)


def config_hash(config: FrozenConfig) -> str:
    """SHA-256 of the filled-in settings; equal settings have equal hashes across processes."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: Missing, too large, not YAML, not a mapping, or as `plain_yaml`.
    """
    try:
        # Of a pipe or a device the size is not known before it is read.
        with path.open("rb") as file:
            content = file.read(MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            raise ConfigError(f"more than {MAX_YAML_BYTES:,} bytes are no experiment.")
        loaded = plain_yaml(content.decode("utf-8"))
    except ConfigError as error:
        raise ConfigError(f"reading {path}: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"reading the experiment: there is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"reading the experiment {path}: byte {error.start + 1} is not UTF-8 "
            f"({error.reason}). Save the file as UTF-8."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"reading the experiment {path}: {error}") from None
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
    merged = dict(copy.deepcopy(raw))
    for override in overrides:
        key, equals, text = override.partition("=")
        told = f"--set {printable(override)}"
        *path, last = key.split(".")
        if not equals or not all((*path, last)):
            raise ConfigError(f"{told}: expected key=value, such as --set seed=1.")
        if len(path) >= MAX_DEPTH:
            raise ConfigError(f"{told}: goes down {len(path)} levels; no experiment has as many.")
        try:
            value = plain_yaml(text) if text else None
        except ConfigError as error:
            raise ConfigError(f"{told}: {error}") from None
        at = merged
        for name in path:
            step = at.setdefault(name, {})
            if not isinstance(step, dict):
                raise ConfigError(f"{told}: '{printable(name)}' holds a value, not further keys.")
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
        config = cls.model_validate(raw)
    except ValidationError as error:
        faults = describe_faults(cls, raw, error)
    else:
        faults = values_read_as_others(config, raw)
        if not faults:
            return config
    raise ConfigError(f"{source}: " + "\n  ".join(faults))
