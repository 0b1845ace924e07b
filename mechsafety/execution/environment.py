# pyright: reportUnknownMemberType=false
# torch.backends comes without complete types.
"""What a run's manifest says about the machine, the software and the code."""

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Final

import mechsafety
from mechsafety.core.errors import RecordError
from mechsafety.records.landing import sha256_of
from mechsafety.records.schema import Environment, Git

PACKAGE: Final = Path(mechsafety.__file__).parent

# Named one by one: an environment also holds tokens and passwords.
_VARIABLES: Final = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "MECHSAFETY_CACHE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_OFFLINE",
    "WANDB_MODE",
    "XDG_CACHE_HOME",
)
_GIT_SECONDS: Final = 30


def environment() -> Environment:
    """The environment of this process, threads and flags as they stand now."""
    import torch

    return Environment(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        platform=platform.platform(),
        packages=dict(
            sorted(
                (found.metadata["Name"], found.version)
                for found in importlib.metadata.distributions()
            )
        ),
        hardware=_hardware(),
        threads={
            "torch": torch.get_num_threads(),
            "torch_interop": torch.get_num_interop_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
            "MKL_NUM_THREADS": os.environ.get("MKL_NUM_THREADS"),
        },
        determinism={
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "mkldnn": torch.backends.mkldnn.is_available(),
            "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        },
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        code_sha256=_unchanged_code(),
        git=git_state(PACKAGE),
    )


def _unchanged_code() -> str:
    """Hash of the code that this process imported, if the files still hold it.

    Raises:
        RecordError: They do not: workers would import other code than this process has.
    """
    if code_changed():
        raise RecordError(
            f"recording the code: files of {PACKAGE} changed since this process imported them, so "
            "no hash would say what runs. Start a new process (restart the notebook's kernel)."
        )
    return LOADED


def code_changed() -> bool:
    """Whether the package's files are no longer what this process imported."""
    return code_hash(PACKAGE) != LOADED


def code_hash(package: Path) -> str:
    """SHA-256 over the names and contents of a package's Python files and templates."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(package).as_posix()}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()


def git_state(folder: Path) -> Git:
    """Commit and uncommitted changes of the repository that tracks `folder`."""
    try:
        root = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
        # A package installed inside somebody else's repository is not that repository's code.
        if not _git(folder, "ls-files", "--", ".").strip():
            return Git(note=f"{folder} is not tracked by the repository {root}")
        commit = _git(root, "rev-parse", "HEAD").strip()
        diff = _git(root, "diff", "--no-ext-diff", "--no-color", "HEAD")
        # Below the package only: data sets of any size may lie elsewhere in the tree.
        options = ("--others", "--exclude-standard", "--full-name", "-z")
        listed = _git(folder, "ls-files", *options)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        return Git(note=" ".join(str(said).split()))
    untracked = {
        name: sha256_of(root / name)
        for name in sorted(listed.split("\0"))
        if (root / name).is_file()
    }
    return Git(commit=commit, dirty=bool(diff or untracked), diff=diff, untracked=untracked)


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_GIT_SECONDS,
        check=True,
        # Reading must not take the index lock from a person who is committing.
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout


def _hardware() -> dict[str, str | int | float | None]:
    import torch

    hardware: dict[str, str | int | float | None] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            hardware[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return hardware


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


LOADED: Final = code_hash(PACKAGE)
"""Taken when the first run is prepared, as near to the import of the rest as can be."""
