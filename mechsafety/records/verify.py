"""Whether a run folder still holds what was sealed into it."""

from dataclasses import dataclass
from pathlib import Path

from mechsafety.core.config import read_yaml
from mechsafety.core.errors import ConfigError
from mechsafety.records.landing import sha256_of
from mechsafety.records.reading import Run
from mechsafety.records.schema import (
    CONFIG,
    DERIVED,
    FileEntry,
    canonical_hash,
    declared_hash,
    manifest_seal,
)
from mechsafety.records.store import private_files, sealed_files


@dataclass(frozen=True, slots=True)
class Verification:
    """What re-hashing every file of a run found."""

    checked: int
    """Files that were re-hashed."""
    problems: tuple[str, ...]
    """One sentence a difference, each naming its file; empty where nothing differs."""
    purged: tuple[str, ...]
    """Private files that are no longer there; that is allowed, and so no problem."""

    @property
    def intact(self) -> bool:
        """Whether everything is as it was sealed."""
        return not self.problems


def verify(run: Run) -> Verification:
    """Re-hash every file of `run` and compare with its manifest, and the manifest with its seal."""
    manifest = run.manifest
    if manifest.seal is None:
        reason = (
            "the run is still being written"
            if run.status == "running"
            else "the run was killed before it was sealed, so there are no hashes to compare with"
        )
        return Verification(0, (f"{run.folder}: {reason}.",), ())

    problems: list[str] = []
    if manifest_seal(run.raw_manifest()) != manifest.seal:
        problems.append("manifest.json: its content does not have the hash that it states")
    if canonical_hash(manifest.config) != manifest.config_sha256:
        problems.append("manifest.json: the config does not have the hash that it states")
    if declared_hash(manifest.declared) != manifest.declared_sha256:
        problems.append("manifest.json: the declared findings do not have the hash they state")
    problems += _config_differs(run)

    present = set(sealed_files(run.folder))
    for name in sorted(manifest.files.keys() - present):
        problems.append(f"{name}: missing")
    for name in sorted(present - manifest.files.keys()):
        problems.append(f"{name}: was not there when the run was sealed")
    for path in sorted(run.folder.rglob("*")):
        if path.is_symlink() and path.relative_to(run.folder).parts[0] != DERIVED:
            name = path.relative_to(run.folder).as_posix()
            problems.append(f"{name}: is a link to {path.readlink()}")
    here = sorted(present & manifest.files.keys())
    problems += _changed(run.folder, {name: manifest.files[name] for name in here})

    private = set(private_files(run.folder))
    kept = {name: entry for name, entry in manifest.private.items() if name in private}
    problems += _changed(run.folder, kept)
    purged = tuple(sorted(manifest.private.keys() - private))
    return Verification(len(here) + len(kept), tuple(problems), purged)


def _changed(folder: Path, entries: dict[str, FileEntry]) -> list[str]:
    problems: list[str] = []
    for name, entry in entries.items():
        path = folder / name
        size = path.stat().st_size
        if size != entry.bytes:
            problems.append(f"{name}: differs ({size} bytes, sealed with {entry.bytes})")
        elif sha256_of(path) != entry.sha256:
            problems.append(f"{name}: differs (same size, another SHA-256)")
    return problems


def _config_differs(run: Run) -> list[str]:
    """`config.yaml` is for people and the manifest's config for programs: they must agree."""
    path = run.folder / CONFIG
    if not path.exists():
        return []
    try:
        same = read_yaml(path) == run.manifest.config
    except ConfigError as error:
        return [f"{CONFIG}: {error}"]
    return [] if same else [f"{CONFIG}: its settings are not those of manifest.json"]
