"""A mirror of a finished run in wandb: made from its folder, in a process of its own, in time.

wandb may be missing, broken, slow or offline; none of it may fail, lose or hold up a run. So
the mirror is a child process with a time box, and whatever goes wrong there is one warning.
"""

import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from mechsafety.core.config import Wandb
from mechsafety.core.errors import ConfigError, MechsafetyError, RecordError, did_you_mean
from mechsafety.execution.time_box import run_in_time_box
from mechsafety.records.locking import RunLock
from mechsafety.records.reading import Run, open_run
from mechsafety.records.schema import DERIVED, own_folder

Mode = Literal["offline", "online"]

LOG: Final = "mirror.log"
LEFT_OUT: Final = "left out: "
"""Beginning of the lines in the log that say what the record has and the mirror has not."""
_KEPT: Final = "The record itself is untouched"
_QUIET: Final = {
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",
    # The machine, code and packages are those that the record names, not those of the mirror,
    # which may be written years later.
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB__DISABLE_META": "true",
    "WANDB__DISABLE_STATS": "true",
    "WANDB__DISABLE_MACHINE_INFO": "true",
    "WANDB__SAVE_REQUIREMENTS": "false",
}
"""Variables of the child that the caller's own variables overrule."""


class MirrorError(MechsafetyError):
    """A mirror that was asked for by itself and could not be written."""


@dataclass(frozen=True)
class Mirrored:
    """A mirror that was written."""

    folder: Path
    """Where wandb put its run: below the run folder unless `WANDB_DIR` says otherwise."""
    mode: str
    """`offline`, or `online` where it was uploaded as well."""
    warning: str | None
    """What was left out of it, in a sentence."""


def mirror(folder: Path, seconds: float | None = None) -> str | None:
    """Mirror the run that just ended in `folder`; what went wrong, in a sentence, or None.

    `WANDB_MODE` and the other variables of the environment win over the config. All that wandb
    writes lies in the run's `derived/wandb`, outside the seal.

    Args:
        folder: Of a run that is closed.
        seconds: Time box; the config's `wandb.seconds` where None.
    """
    try:
        run = open_run(folder)
        mode = os.environ.get("WANDB_MODE") or _settings(run).mode
        if mode == "disabled":
            return None
        return _write(run, mode, seconds).warning
    except MirrorError as error:
        return str(error)
    # A full disk, or a record that cannot be read back.
    except (MechsafetyError, OSError) as error:
        return f"wandb mirror of {folder}: {error}. {_KEPT}."


def sync(folder: Path, mode: str | None = None, seconds: float | None = None) -> Mirrored:
    """Write the mirror of a record anew, in place of an earlier one; the record stays as it is.

    An earlier mirror is replaced when the new one is complete, and stays where that fails.

    Args:
        folder: A run folder, whatever the run's status.
        mode: `offline` or `online`; where None, what `WANDB_MODE` or else the run's config says,
            and `offline` for a run that was not to be mirrored.
        seconds: Time box; the config's `wandb.seconds` where None.

    Raises:
        RecordError: No run there, or one that is still being written.
        ConfigError: Another mode.
        MirrorError: The mirror could not be written; says why.
    """
    run = open_run(folder)
    if run.status == "running":
        raise RecordError(
            f"mirroring {folder}: the run is still being written. A run that ends is mirrored by "
            "itself; wait for it, or try again when `mechsafety show` says that it is closed."
        )
    configured = _settings(run).mode
    asked = mode or os.environ.get("WANDB_MODE")
    chosen = asked or ("offline" if configured == "disabled" else configured)
    if chosen not in get_args(Mode):
        source = "the mode" if mode else "WANDB_MODE"
        raise ConfigError(
            f"mirroring {folder}: {source} is '{chosen}'. {did_you_mean(chosen, get_args(Mode))}"
        )
    try:
        return _write(run, chosen, seconds)
    except OSError as error:
        raise MirrorError(f"wandb mirror of {folder}: {error}. {_KEPT}.") from error


def _write(run: Run, mode: str, seconds: float | None) -> Mirrored:
    """Let the child write into folders that nobody takes for a mirror, then put it in place.

    Raises:
        MirrorError: Another mirror of this run is being written, or this one failed.
    """
    into = (own_folder(run.folder, DERIVED) / "wandb").resolve()
    into.mkdir(parents=True, exist_ok=True)
    try:
        lock = RunLock(into)
    except RecordError:
        raise MirrorError(
            f"wandb mirror of {run.folder}: another mirror of this run is being written. Wait "
            "for it, or end the process that writes it."
        ) from None
    fresh = _Fresh(into, secrets.token_hex(4))
    placed = None
    try:
        variables = {**fresh.variables(os.environ), "WANDB_MODE": mode}
        limit = _settings(run).seconds if seconds is None else seconds
        module = "mechsafety.execution.wandb_writing"
        # The child's own alarm is for when this process dies; this one kills first.
        command = [sys.executable, "-m", module, str(run.folder.resolve()), str(limit + 1)]
        code = run_in_time_box(command, limit, into / LOG, variables)
        if code != 0:
            late = f"gave up after {limit:g} s (wandb.seconds)"
            why = late if code is None else _last_words(into / LOG, code)
            raise MirrorError(
                f"wandb mirror of {run.folder}: {why}. {_KEPT}; {into / LOG} has the details."
            )
        placed = fresh.put_in_place(Path(variables["WANDB_DIR"]))
        return Mirrored(placed, mode, _left_out(run, into / LOG))
    finally:
        fresh.clear(failed=placed is None)
        lock.release()


def _settings(run: Run) -> Wandb:
    # Records of older versions lack the keys that came later, which then have their defaults.
    return Wandb.model_validate(run.manifest.config["wandb"])


def _last_words(log: Path, code: int) -> str:
    return _lines(log)[-1] if _lines(log) else f"the process ended with exit code {code}"


def _left_out(run: Run, log: Path) -> str | None:
    found = [line.removeprefix(LEFT_OUT) for line in _lines(log) if line.startswith(LEFT_OUT)]
    return f"wandb mirror of {run.folder}: it lacks {'; '.join(found)}" if found else None


def _lines(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").split("\n") if line.strip()]


@dataclass(frozen=True)
class _Fresh:
    """Folders of a mirror in progress, inside the folder of mirrors.

    wandb's run names the files of artifacts by absolute paths, so these lie from the start where
    they are to stay. The run itself is what makes a mirror, and comes into its place by renaming.
    """

    into: Path
    token: str

    @property
    def part(self) -> Path:
        """Where the child's wandb writes its run."""
        return self.into / f".{self.token}.part"

    @property
    def data(self) -> Path:
        """Files of artifacts."""
        return self.into / "data" / self.token

    def variables(self, given: Mapping[str, str]) -> dict[str, str]:
        """The child's environment: where wandb writes, unless the caller's environment says.

        Without `WANDB_DATA_DIR`, artifacts of offline runs are staged in the home directory and
        missing when the run is synced elsewhere.
        """
        places = {
            "WANDB_DIR": self.part,
            "WANDB_DATA_DIR": self.data,
            "WANDB_CACHE_DIR": self.part / "cache",
        }
        for name, path in places.items():
            if name not in given:
                # wandb takes another folder, without an error, for one that is not there.
                path.mkdir(parents=True, exist_ok=True)
        return {**{name: str(path) for name, path in places.items()}, **_QUIET, **given}

    def put_in_place(self, written: Path) -> Path:
        """Replace an earlier mirror; where the new one lies."""
        if written != self.part:
            return written / "wandb"
        self._hold_what_links_name()
        place = self.into / "wandb"
        if place.exists():
            place.rename(self.into / f".{self.token}.old")
        (self.part / "wandb").rename(place)
        for data in (self.into / "data").glob("*"):
            if data != self.data:
                shutil.rmtree(data)
        return place

    def _hold_what_links_name(self) -> None:
        """Put files in the place of links to the cache, which goes; a link to nothing goes too."""
        cache = (self.part / "cache").resolve()
        for link in [p for p in (self.part / "wandb").rglob("*") if p.is_symlink()]:
            target = link.resolve()
            if target.exists() and not target.is_relative_to(cache):
                continue
            link.unlink()
            if target.is_file():
                shutil.copyfile(target, link)

    def clear(self, failed: bool) -> None:
        """Remove what is no part of a whole mirror, whoever left it there.

        A mirror that was set aside is put back where no other took its place.
        """
        place = self.into / "wandb"
        for aside in self.into.glob(".*.old"):
            if place.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.rename(place)
        for part in self.into.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)
        if failed:
            shutil.rmtree(self.data, ignore_errors=True)
