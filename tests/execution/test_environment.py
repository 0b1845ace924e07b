"""The manifest says which code ran, on what, and nothing that is secret."""

import subprocess
from pathlib import Path

import pytest
import torch

from mechsafety.execution.environment import (
    code_hash,
    environment,
    git_state,
)


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_a_clean_tree_is_its_commit(repository: Path) -> None:
    state = git_state(repository / "package")
    assert state.commit is not None
    assert len(state.commit) == 40
    assert not state.dirty
    assert state.diff == ""


def test_uncommitted_changes_are_kept_in_full_and_new_files_by_hash(repository: Path) -> None:
    (repository / "package" / "code.py").write_text("x = 2\n")
    (repository / "package" / "new.py").write_text("y = 3\n")
    (repository / "data.bin").write_text("not code, and perhaps very large")
    state = git_state(repository / "package")
    assert state.dirty
    assert "-x = 1\n+x = 2" in state.diff
    assert list(state.untracked) == ["package/new.py"]


def test_code_outside_any_repository_says_so(tmp_path: Path) -> None:
    state = git_state(tmp_path)
    assert state.commit is None
    assert "not a git repository" in state.note


def test_a_package_that_the_repository_ignores_is_not_its_code(repository: Path) -> None:
    installed = repository / "venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("x = 1\n")
    (repository / ".gitignore").write_text("venv/\n")
    state = git_state(installed)
    assert state.commit is None
    assert "not tracked" in state.note


def test_the_code_hash_follows_contents_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first = code_hash(tmp_path)
    (tmp_path / "a.pyc").write_text("compiled")
    assert code_hash(tmp_path) == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    renamed = code_hash(tmp_path)
    assert renamed != first
    (tmp_path / "b.py").write_text("x = 2\n")
    assert code_hash(tmp_path) != renamed


def test_the_environment_names_what_decides_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    found = environment()
    assert found.packages["torch"].startswith(torch.__version__.split("+")[0])
    assert found.threads["torch"] == torch.get_num_threads()
    assert found.hardware["cores"]
    # The diff of a dirty tree may hold this very file.
    text = found.model_dump_json(exclude={"git"})
    assert "hf_secret_token" not in text
    assert "secret-key" not in text
