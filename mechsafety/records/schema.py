"""The manifest of a run folder: everything needed to say what was run, on what, and how it went."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, cast

from pydantic import Field, NonNegativeInt, ValidationError, field_validator

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import RecordError
from mechsafety.core.result import DeclaredFinding, Figure, Tolerances

SCHEMA_VERSION: Final = 2

Declared = DeclaredFinding[dict[str, Any]]
"""A declared finding as the record keeps it: the study's type of cell becomes keys and values."""

Status = Literal["running", "completed", "failed", "interrupted"]

MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.yaml"
METRICS: Final = "metrics.parquet"
FINDINGS: Final = "findings.json"
TENSORS: Final = "tensors.safetensors"
EVENTS: Final = "events.jsonl"
REPORT: Final = "report.html"
CITATIONS: Final = "citations.bib"
LOCK: Final = ".lock"
DERIVED: Final = "derived"
PRIVATE: Final = "private"


def check_inside(name: str) -> str:
    """The name of a file of a run folder, if it does not lead out of it.

    Raises:
        ValueError: It is absolute, goes up, or is no name.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r} does not name a file inside the run folder")
    return name


def own_folder(run: Path, name: str) -> Path:
    """`derived/` or `private/` of a run folder, there or not.

    Raises:
        RecordError: A link stands there: what is written or deleted would lie elsewhere.
    """
    folder = run / name
    if folder.is_symlink():
        raise RecordError(
            f"{folder} is a link to {folder.readlink()}. A run's folders are its own: put a folder "
            "in its place, or remove it."
        )
    return folder


class Git(FrozenConfig):
    """Where the code came from. `code_sha256` of `Environment` identifies it without git."""

    commit: str | None = None
    """Full commit of the repository that holds the package; None outside a repository."""
    dirty: bool = False
    """Whether tracked files differed from the commit, or untracked ones lay beside them."""
    diff: str = ""
    """`git diff HEAD` of tracked files, in full."""
    untracked: dict[str, str] = Field(default_factory=dict[str, str])
    """Path → SHA-256 of each file of the package that git neither tracks nor ignores."""
    note: str = ""
    """Why the commit is unknown, in git's words."""


class Environment(FrozenConfig):
    """The machine and the software, as found before work started."""

    python: str
    """Version and implementation."""
    platform: str
    """Operating system and architecture."""
    packages: dict[str, str]
    """Distribution → version of everything installed."""
    hardware: dict[str, str | int | float | None]
    """CPU model, cores, memory in GiB, accelerators."""
    threads: dict[str, int | str | None]
    """torch's threads within and between operations, and the variables that set them."""
    determinism: dict[str, bool | str | None]
    """Flags of torch that decide whether equal inputs give equal bits."""
    variables: dict[str, str]
    """Environment variables that change what is loaded or computed; never credentials."""
    code_sha256: str
    """Hash over the package's own source files."""
    git: Git


class FileEntry(FrozenConfig):
    """One sealed file."""

    sha256: str
    bytes: NonNegativeInt


class TableEntry(FrozenConfig):
    """One table of `metrics.parquet`."""

    name: str
    caption: str
    """Names the null, the pairing and the interval method."""
    rows: NonNegativeInt
    dimensions: tuple[str, ...]
    """Columns that index this table's rows, in the order in which they were first used."""


class JobDone(FrozenConfig):
    """One job of a stage, in the order in which the study asked for them."""

    what: str
    """What the jobs of this call did."""
    sha256: str
    """Of the result, bit for bit."""
    key: str | None = None
    """What it is kept under in the stage cache; None where it was not to be kept."""
    cached: bool
    """Whether it had been done before and was taken from the cache."""


class StageTiming(FrozenConfig):
    """One stage, in the order in which stages ended."""

    name: str
    """Nested stages are joined with `/`."""
    started: float
    """Seconds after the run was opened."""
    seconds: float
    peak_gib: float | None = None
    """Most memory that one process held in it: resident, and on its CUDA devices, in GiB."""
    jobs: tuple[JobDone, ...] = ()
    """What was computed in it that another run can be compared with."""


class ModelUsed(FrozenConfig):
    """A model that the study asked the run for."""

    source: str
    """Folder or hub id that was opened."""
    organism: bool
    """Whether mechsafety trained it; only such models' directions may leave the machine."""


class Parent(FrozenConfig):
    """The record that a replay ran again."""

    run: str
    """Name of its folder."""
    folder: str
    """Where it lay, relative to the replay's folder, where both are on one disk."""
    seal: str | None
    """Its seal, so that it can be told apart whatever the folder was renamed to."""


class Session(FrozenConfig):
    """An earlier attempt at this run, which was resumed."""

    opened: str
    """UTC, ISO 8601."""
    status: Status
    """How it ended."""
    command_line: tuple[str, ...]
    code_sha256: str
    """Of the code that it ran. Finished work of other code was not taken over."""
    seconds: float | None = None
    """None after a kill."""
    error: str | None = None
    """Message of what ended it."""


class Failure(FrozenConfig):
    """Why a run did not complete."""

    kind: str
    """Class of the exception."""
    message: str
    traceback: str


class Manifest(FrozenConfig):
    """`manifest.json`. Written when the run opens, and again when it closes."""

    schema_version: Literal[2] = SCHEMA_VERSION
    run: str
    """Name of the run folder."""
    study: str
    status: Status
    """As written by the run itself; readers say `interrupted` where `running` has a free lock."""
    opened: str
    """UTC, ISO 8601."""
    closed: str | None = None
    """UTC, ISO 8601; None while running, and after a kill."""
    seconds: float | None = None
    """From opening to closing."""
    command_line: tuple[str, ...]
    """As typed, or the library call."""
    replay_of: Parent | None = None
    """The record that this run replays."""
    sessions: tuple[Session, ...] = ()
    """Earlier attempts in this folder, first first. All else is about the last."""
    experiment: str | None
    """Path of the YAML; None where a config was passed from Python."""
    config: dict[str, Any]
    """Filled in: every default is written out."""
    config_sha256: str
    declared: tuple[Declared, ...]
    """Findings as the experiment states them, recorded before work started."""
    declared_sha256: str
    """Hash of `declared`."""
    seed: int
    """The run's one seed."""
    seeds: dict[str, int] = Field(default_factory=dict[str, int])
    """Stage name → seed derived for it, of every generator that the study asked for."""
    environment: Environment
    models: dict[str, ModelUsed] = Field(default_factory=dict[str, ModelUsed])
    """Model name as in the config → what was opened."""
    provenance: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Hashes of prompts, token ids, weights, tokenizer and template, as the study gives them."""
    sources: dict[str, tuple[str, ...]] = Field(default_factory=dict[str, tuple[str, ...]])
    """Key in `citations.bib` → modules of this run that cite it."""
    tolerances: Tolerances = Tolerances()
    """What a replay elsewhere may differ by, as the study states it."""
    tables: tuple[TableEntry, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences that every page of this run must show."""
    stages: tuple[StageTiming, ...] = ()
    files: dict[str, FileEntry] = Field(default_factory=dict[str, FileEntry])
    """Every other sealed file, by its path in the folder; empty until the run closes."""
    private: dict[str, FileEntry] = Field(default_factory=dict[str, FileEntry])
    """Files of `private/`: outside the seal, because they may be purged."""
    error: Failure | None = None
    seal: str | None = None
    """SHA-256 of this manifest without `seal`; None until the run closes."""

    @field_validator("files", "private")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        # Readers open and `purge` deletes what is named here: a record from elsewhere must not
        # name what lies beside it.
        for name in files:
            check_inside(name)
        return files


def canonical_hash(value: object) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys; equals `core.config.config_hash`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def declared_hash(declared: tuple[Declared, ...]) -> str:
    """Hash of the findings as declared, in their order."""
    return canonical_hash([finding.model_dump(mode="json") for finding in declared])


def manifest_seal(raw: Mapping[str, Any]) -> str:
    """What `seal` must be in this manifest, as it stands in the file, of whatever version."""
    return canonical_hash({key: value for key, value in raw.items() if key != "seal"})


def declared_findings(config: FrozenConfig) -> tuple[Declared, ...]:
    """Every finding that an experiment declares, wherever its study's settings keep them."""
    return tuple(
        Declared.model_validate(value.model_dump(mode="json"))
        for value in values_in(config)
        if isinstance(value, DeclaredFinding)
    )


def values_in(value: object) -> Iterator[object]:
    """Every value in nested settings, outermost first: settings, sequences and mappings too."""
    yield value
    below: Iterable[object] = ()
    if isinstance(value, FrozenConfig):
        below = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, tuple | list):
        below = cast("Iterable[object]", value)
    elif isinstance(value, Mapping):
        below = cast("Mapping[object, object]", value).values()
    for item in below:
        yield from values_in(item)


def parse_manifest(raw: object, source: str) -> Manifest:
    """A manifest as read from JSON; one of an earlier version as this one would have it.

    Raises:
        RecordError: A newer schema version, or not a manifest; the message names the fault.
    """
    version = (
        cast("dict[str, object]", raw).get("schema_version") if isinstance(raw, dict) else None
    )
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"reading {source}: it has schema version {version}, and this mechsafety reads up to "
            f"{SCHEMA_VERSION}. Install a newer mechsafety."
        )
    if version == 1:
        raw = _from_version_1(cast("dict[str, Any]", raw))
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise RecordError(
            f"reading {source}: it is not a manifest of mechsafety: {key}: {first['msg']}."
        ) from None


def _from_version_1(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 had no sessions, parents, tolerances and jobs, and named papers by number alone."""
    found = {**raw, "schema_version": SCHEMA_VERSION}
    sources = raw.get("sources")
    if isinstance(sources, Mapping):
        given = cast("Mapping[str, Any]", sources)
        found["sources"] = {f"arXiv:{number}": modules for number, modules in given.items()}
    return found
