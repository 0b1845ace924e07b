"""A model's content is that of every file of its folder, wherever that lies."""

import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from mechsafety.models import content
from mechsafety.models.content import content_hash
from mechsafety.models.spec import ModelSpec

FIRST, SECOND = "1" * 40, "2" * 40


def model(folder: Path, weights: bytes = b"weights", tokenizer: bytes = b"{}") -> Path:
    (folder / "nested").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    (folder / "nested" / "more.txt").write_text("more")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the Hub's client, with one model of two commits and a branch."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--org--name"
    for commit, weights in ((FIRST, b"first"), (SECOND, b"second")):
        kept = model(repo / "blobs" / commit, weights)
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for path in kept.glob("*.*"):
            # As the client has it: names that point at contents.
            (snapshot / path.name).symlink_to(path)
    (repo / "refs" / "pr").mkdir(parents=True)
    (repo / "refs" / "main").write_text(FIRST)
    (repo / "refs" / "pr" / "1").write_text(SECOND)
    return repo


def of(id: object, **settings: str) -> str | None:
    return content_hash(ModelSpec(id=str(id), **settings))


def test_equal_files_have_one_hash_wherever_they_lie(tmp_path: Path) -> None:
    first, second = model(tmp_path / "a"), model(tmp_path / "b")
    assert of(first) == of(second) is not None
    assert of(first, revision="main") == of(first)  # a folder has no revisions


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "nested/more.txt"])
def test_any_changed_file_changes_the_hash(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "a")
    before, content = of(folder), bytearray((folder / name).read_bytes())
    content[0] ^= 1
    (folder / name).write_bytes(content)
    os.utime(folder / name, ns=(1, 1))  # not even the clock need tell
    changed = of(folder)
    (folder / name).rename(folder / "renamed")
    assert len({before, changed, of(folder)}) == 3
    (folder / "renamed").unlink()
    assert of(folder) not in (before, changed)


def test_what_did_not_change_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = model(tmp_path / "a"), list[int]()
    digest = content.hashlib.file_digest
    monkeypatch.setattr(
        content.hashlib, "file_digest", lambda *given: read.append(1) or digest(*given)
    )
    assert of(folder) == of(folder)
    assert len(read) == 4
    (folder / "added.json").write_text("{}")
    of(folder)
    assert len(read) == 9


def test_an_adapter_is_part_of_the_model(tmp_path: Path) -> None:
    base, adapter = model(tmp_path / "base"), model(tmp_path / "adapter", b"adapted")
    found = {of(base), of(adapter), of(base, adapter=str(adapter))}
    found.add(of(adapter, adapter=str(base)))
    assert len(found) == 4
    assert None not in found
    assert of(base, adapter=str(tmp_path / "missing")) is None


def test_a_hub_model_is_hashed_at_its_revision(hub: Path) -> None:
    main, other = of("org/name"), of("org/name", revision="pr/1")
    assert main is not None
    assert other not in (None, main)
    assert of("org/name", revision="main") == of("org/name", revision=FIRST) == main
    assert of("org/name", revision=SECOND) == other
    (hub / "refs" / "main").write_text(SECOND)  # the branch moved
    assert of("org/name") == other


def test_a_model_with_one_word_for_a_name_is_found_too(hub: Path) -> None:
    shutil.copytree(hub, hub.parent / "models--gpt2", symlinks=True)
    assert of("gpt2") == of("org/name") is not None


@pytest.mark.parametrize(
    ("id", "revision"),
    [
        ("org/other", None),
        ("org/name", "no-such-branch"),
        ("org/name", "3" * 40),
        ("/not/there", None),
        ("./not/there", None),
        ("organism:lat@seed=1", None),
        ("a/b/c", None),
        ("--", None),
    ],
)
def test_what_is_not_here_has_no_hash(hub: Path, id: str, revision: str | None) -> None:
    assert content_hash(ModelSpec(id=id, revision=revision)) is None


def test_a_model_that_is_half_here_has_no_hash(hub: Path) -> None:
    snapshot = hub / "snapshots" / FIRST
    assert of("org/name") is not None
    weights = snapshot / "model.safetensors"
    weights.rename(snapshot / "model-1-of-2.safetensors")
    shards = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(shards))
    assert of("org/name") is None
    (snapshot / "model-2-of-2.safetensors").write_bytes(b"x")
    assert of("org/name") is not None
    # An index of other files of the same weights, which nobody fetched, takes nothing away.
    (snapshot / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "1.bin"}}')
    assert of("org/name") is not None
    for path in snapshot.glob("*model*"):
        path.unlink()
    assert (snapshot / "config.json").exists()
    assert of("org/name") is None


def test_of_commits_that_are_alike_so_far_each_has_its_own_hash(hub: Path) -> None:
    # Their tokenizers may still come, and differ.
    kept = hub / "blobs" / FIRST / "model.safetensors"
    other = hub / "snapshots" / SECOND / "model.safetensors"
    other.unlink()
    other.symlink_to(kept)
    assert of("org/name", revision=FIRST) != of("org/name", revision=SECOND)


def test_a_damaged_index_or_a_vanished_file_is_left_to_the_opening(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = hub / "snapshots" / FIRST / "model.safetensors.index.json"
    for damaged in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(damaged)
        assert of("org/name") is None
    index.unlink()

    def vanished(*given: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(content.hashlib, "file_digest", vanished)
    monkeypatch.setattr(content, "_known", {})
    assert of("org/name") is None
