"""How two runs' environments differ, in the order in which that is likely to matter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from mechsafety.records.schema import Manifest

Kind = Literal[
    "threads",
    "torch",
    "device",
    "dtype",
    "batch composition",
    "model revision",
    "prompts",
    "code",
    "other versions",
    "determinism",
    "other",
]

ELSEWHERE: Final[tuple[Kind, ...]] = (
    "threads",
    "torch",
    "device",
    "dtype",
    "batch composition",
    "code",
    "other versions",
    "determinism",
)
"""Kinds after which equal inputs need not give equal bits. Another model or other prompts are no
excuse of that sort: they make another run."""

_NUMERIC: Final = (
    "torch",
    "transformers",
    "transformer-lens",
    "tokenizers",
    "sentencepiece",
    "numpy",
    "scipy",
    "peft",
    "accelerate",
    "bitsandbytes",
    "triton",
)
ANOTHER_RUN: Final[tuple[Kind, ...]] = ("model revision", "prompts")
"""Kinds after which two runs did not measure the same, whatever they found."""

_IDENTITY: Final = (
    "revision",
    "adapter_revision",
    "weights",
    "tokenizer",
    "template",
    "architecture",
)
# The same model lies elsewhere on another machine.
_PLACES: Final = ("id", "adapter")
_PRECISION: Final = ("dtype", "quantization")


def decides_bits(distribution: str) -> bool:
    """Whether another version of this distribution may change the last bit of a result."""
    return distribution in _NUMERIC or distribution.startswith("nvidia-")


@dataclass(frozen=True, slots=True)
class EnvironmentDifference:
    """One thing that is not the same in both."""

    kind: Kind
    name: str
    """What it is, such as `OMP_NUM_THREADS` or `lat/weights`."""
    before: Any
    """None: not there."""
    now: Any


def environment_differences(before: Manifest, now: Manifest) -> tuple[EnvironmentDifference, ...]:
    """Everything in which two records' surroundings differ, ordered by kind."""
    old, new = _facts(before), _facts(now)
    found: list[EnvironmentDifference] = []
    for kind in old:
        for name in sorted(old[kind].keys() | new[kind].keys()):
            values = old[kind].get(name), new[kind].get(name)
            if values[0] != values[1]:
                found.append(EnvironmentDifference(kind, name, *values))
    return tuple(found)


def _facts(manifest: Manifest) -> dict[Kind, dict[str, Any]]:
    environment, runtime = manifest.environment, _nested(manifest.config, "runtime")
    packages = dict(environment.packages)
    hardware = environment.hardware
    models = _nested(manifest.provenance, "models")
    return {
        "threads": {**environment.threads, "runtime.threads": runtime.get("threads")},
        "torch": {"torch": packages.pop("torch", None)},
        "device": {
            **{f"runtime.{name}": runtime.get(name) for name in ("device", "device_map")},
            **{k: v for k, v in hardware.items() if k not in ("cores", "memory_gib")},
        },
        "dtype": _of_models(models, _PRECISION) | {"runtime.dtype": runtime.get("dtype")},
        "batch composition": _flat(_nested(manifest.provenance, "batches"))
        | {f"runtime.{name}": runtime.get(name) for name in ("batch_tokens", "pass_tokens")},
        "model revision": _of_models(models, _IDENTITY),
        "prompts": _flat(_nested(manifest.provenance, "prompts"))
        | _flat(_nested(manifest.provenance, "token_ids")),
        # Not the commit: where only pages changed, the code is the same, bit for bit.
        "code": {"sha256": environment.code_sha256},
        "other versions": {
            "python": environment.python,
            **{name: version for name, version in packages.items() if decides_bits(name)},
        },
        "determinism": dict(environment.determinism),
        "other": {
            "git commit": environment.git.commit,
            "platform": environment.platform,
            **_of_models(models, _PLACES),
            **{k: v for k, v in environment.variables.items() if k not in environment.threads},
            **{k: v for k, v in hardware.items() if k in ("cores", "memory_gib")},
            **{name: version for name, version in packages.items() if not decides_bits(name)},
        },
    }


def _nested(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def _of_models(models: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {
        f"{name}/{field}": _nested(models, name).get(field) for name in models for field in fields
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined with `/`."""
    flat: dict[str, Any] = {}
    for name, below in value.items():
        if isinstance(below, Mapping):
            flat |= _flat(cast("Mapping[str, Any]", below), f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = below
    return flat
