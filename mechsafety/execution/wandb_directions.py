"""The directions of a record as artifacts: one a model and method, found by their names."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from mechsafety.core.errors import RecordError
from mechsafety.core.sites import RESIDUAL_STREAMS
from mechsafety.records.reading import Run

_STREAMS: Final = "|".join(RESIDUAL_STREAMS)
_NAME: Final = re.compile(
    r"(?P<kind>directions?|candidates|subspace)"
    r"(?:\.(?P<arm>.+?))?"
    rf"(?:\.(?P<site>(?:{_STREAMS})\.\d+))?"
    r"(?:\.rank(?P<rank>\d+))?"
)
"""Tensors that are directions: `subspace.<arm>.<site>.rank<k>`, `directions.<arm>` with a row a
layer, and `direction`, `direction.refits` and `candidates` of the one model of a study."""
_OF_ONE_MODEL: Final = (None, "refits")
_WHERE: Final = {
    "directions": "every block's input, one a row, then the last block's output",
    "candidates": "position x site of the causal map",
    "direction": "the place that the table `selection` marks as chosen",
}
"""Where tensors were read whose names do not say it."""
_MEAN_SHIFT: Final = ("concentration", "locality")
"""Studies without the key `direction`: they read the mean difference, and as subspaces of more
than one dimension the first principal components."""
NOT_STATED: Final = "not_stated"
_LONGEST: Final = 100
"""Of an artifact's name; wandb takes 128."""


@dataclass(frozen=True)
class Directions:
    """All directions of one model by one method."""

    arm: str
    """What the study calls the model."""
    model: str
    """The model's id in the config; the arm's name where the config has none."""
    method: str
    """As in an experiment's YAML."""
    tensors: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name in the record → where it was read."""

    @property
    def name(self) -> str:
        """Of the artifact: the same for every run, whose directions are its versions."""
        return artifact_name(f"direction-{self.arm}-{self.method}")


def directions_of(run: Run) -> list[Directions]:
    """What the record holds, by model and method."""
    found: dict[tuple[str, str], Directions] = {}
    models = _models(run.manifest.config)
    for tensor in run.tensor_names():
        match = _NAME.fullmatch(tensor)
        if match is None:
            continue
        arm, model = _arm(match["arm"], models)
        method = _method(run, match["rank"])
        one = found.setdefault((arm, method), Directions(arm, model, method, {}))
        where = match["site"] or _WHERE.get(match["kind"], NOT_STATED)
        cast("dict[str, str]", one.tensors)[tensor] = where
    return list(found.values())


def methods_of(run: Run) -> list[str]:
    """The direction methods that the config names, or that the record's directions come from."""
    named = _named_method(run.manifest.config)
    found = [one.method for one in directions_of(run) if one.method != NOT_STATED]
    return list(dict.fromkeys([named] if named else found))


def may_upload(run: Run) -> bool:
    """Directions of models that mechsafety did not train stay local unless the config says so."""
    models = run.manifest.models.values()
    organisms_only = bool(models) and all(model.organism for model in models)
    return organisms_only or bool(run.manifest.config["wandb"].get("upload_directions"))


def metadata(run: Run, directions: Directions, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What a reader needs to use the tensors, or to refuse them.

    Args:
        hashes: Tensor → SHA-256 of its bytes.
    """
    manifest = run.manifest
    about = _mapping(manifest.provenance.get("models"))
    identity = _mapping(about.get(directions.arm) or about.get("model"))
    return {
        "study": manifest.study,
        "run": manifest.run,
        "config_sha256": manifest.config_sha256,
        "model": directions.model,
        "arm": directions.arm,
        "method": directions.method,
        "positions_read": manifest.config.get("position") or manifest.config.get("positions"),
        "site": dict(directions.tensors),
        "sha256": dict(hashes),
        **{name: identity.get(name) for name in ("weights", "tokenizer", "template")},
    }


def excerpt(path: Path, names: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """Some tensors of a safetensors file as one of their own, and the SHA-256 of each.

    Bytes are copied as they lie, so that no type of number is read and written again.

    Raises:
        RecordError: The file is damaged.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(size))
            parts: list[bytes] = []
            entries: dict[str, Any] = {}
            at = 0
            for name in names:
                start, end = header[name]["data_offsets"]
                file.seek(8 + size + start)
                parts.append(file.read(end - start))
                entries[name] = {**header[name], "data_offsets": [at, at := at + end - start]}
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(f"reading {path}: it is damaged ({error}).") from None
    text = json.dumps(entries, separators=(",", ":")).encode()
    # The format wants the numbers to begin at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    hashes = {n: hashlib.sha256(part).hexdigest() for n, part in zip(names, parts, strict=True)}
    return len(text).to_bytes(8, "little") + text + b"".join(parts), hashes


def artifact_name(name: str) -> str:
    """With the characters that wandb takes; names that were not so stay different."""
    clean = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    if clean == name and len(name) <= _LONGEST:
        return name
    return f"{clean[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _models(config: Mapping[str, Any]) -> dict[str, str]:
    """Arm → model id; the one model of a study under the empty name."""
    arms = {**_mapping(config.get("arms")), **_mapping(config.get("models"))}
    specs = {name: _mapping(_mapping(arm).get("model")) for name, arm in arms.items()}
    specs[""] = _mapping(config.get("model"))
    return {name: spec["id"] for name, spec in specs.items() if "id" in spec}


def _mapping(value: object) -> dict[str, Any]:
    """A part of a config that some studies have, and others have otherwise."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _arm(label: str | None, models: Mapping[str, str]) -> tuple[str, str]:
    """Name and id of the model that a tensor's name means."""
    if label in _OF_ONE_MODEL:
        only = models.get("", NOT_STATED)
        return only, only
    # Organisms of several training seeds are named `arm@seed`.
    arm, _, seed = label.partition("@")
    model = models.get(label) or models.get(arm, label)
    return label, f"{model}@seed={seed}" if seed and label not in models else model


def _named_method(config: Mapping[str, Any]) -> str | None:
    return _mapping(config.get("direction")).get("method")


def _method(run: Run, rank: str | None) -> str:
    if named := _named_method(run.manifest.config):
        return named
    if run.manifest.study not in _MEAN_SHIFT:
        return NOT_STATED
    return "principal_components" if rank and int(rank) > 1 else "difference_in_means"
