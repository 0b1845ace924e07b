"""Directions are found by model and method, keep their bits, and stay where they must."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from mechsafety.core.errors import RecordError
from mechsafety.execution.wandb_directions import (
    artifact_name,
    directions_of,
    excerpt,
    may_upload,
    methods_of,
)
from mechsafety.records.reading import Run
from mechsafety.records.schema import TENSORS, Manifest, ModelUsed
from tests.report.fake_record import manifest as fake_manifest

NO_DIRECTIONS = ("projection.lat", "projection.lat.label", "bypass", "doses.harmful", "clean.a")


def run(folder: Path, study: str, config: dict[str, Any], tensors: tuple[str, ...]) -> Run:
    one = {name: torch.ones(2, 3) for name in (*tensors, *NO_DIRECTIONS)}
    (folder / TENSORS).write_bytes(save(one))
    manifest: Manifest = fake_manifest([])
    return Run(folder, manifest.model_copy(update={"study": study, "config": config}))


def found(one: Run) -> list[tuple[str, str, str, list[str]]]:
    return [(d.arm, d.model, d.method, sorted(d.tensors)) for d in directions_of(one)]


def arms(*ids: str) -> dict[str, Any]:
    return {name.replace("@seed=", "_"): {"model": {"id": name}} for name in ids}


def test_subspaces_of_an_arm_are_of_the_method_that_their_rank_means(tmp_path: Path) -> None:
    names = ("subspace.lat.resid_pre.2.rank1", "subspace.lat.resid_pre.2.rank2")
    seeded = "subspace.ssft@1.resid_post.11.rank1"
    one = run(tmp_path, "concentration", {"arms": arms("lat", "ssft")}, (*names, seeded))
    assert found(one) == [
        ("lat", "lat", "difference_in_means", [names[0]]),
        ("lat", "lat", "principal_components", [names[1]]),
        ("ssft@1", "ssft@seed=1", "difference_in_means", [seeded]),
    ]
    assert {d.tensors.get(seeded) for d in directions_of(one)} == {None, "resid_post.11"}
    assert methods_of(one) == ["difference_in_means", "principal_components"]


def test_directions_of_several_models_are_of_the_method_that_the_config_names(
    tmp_path: Path,
) -> None:
    config = {"models": arms("base@seed=1", "org/chat-3.1"), "direction": {"method": "scav"}}
    names = ("directions.base_1", "directions.org/chat-3.1")
    one = run(tmp_path, "similarity", config, names)
    assert found(one) == [
        ("base_1", "base@seed=1", "scav", ["directions.base_1"]),
        ("org/chat-3.1", "org/chat-3.1", "scav", ["directions.org/chat-3.1"]),
    ]
    assert methods_of(one) == ["scav"]


def test_the_one_model_of_a_study_has_one_artifact(tmp_path: Path) -> None:
    names = ("candidates", "direction", "direction.refits")
    one = run(tmp_path, "locality", {"model": {"id": "ssft"}}, names)
    assert found(one) == [("ssft", "ssft", "difference_in_means", [*names])]
    assert directions_of(one)[0].name == "direction-ssft-difference_in_means"


def test_a_method_that_nobody_states_is_not_made_up(tmp_path: Path) -> None:
    one = run(tmp_path, "new_study", {}, ("direction", "subspace.a.rank3"))
    assert {method for _, _, method, _ in found(one)} == {"not_stated"}
    assert methods_of(one) == []


def test_an_excerpt_has_the_bits_of_the_record(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3),
        "half": torch.randn(5, 2).bfloat16(),
        "odd": torch.randint(0, 9, (7,), dtype=torch.uint8),
        "double": torch.randn(2, 2).double(),
    }
    path = tmp_path / TENSORS
    path.write_bytes(save(tensors))
    content, hashes = excerpt(path, {"odd": "", "half": "", "double": ""})
    read = load(content)
    assert sorted(read) == sorted(hashes) == ["double", "half", "odd"]
    assert all(torch.equal(read[name], tensors[name]) for name in read)
    whole = excerpt(path, dict.fromkeys(tensors, ""))[1]
    assert hashes == {name: whole[name] for name in hashes}
    assert len(set(whole.values())) == 4


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TENSORS).write_bytes(content)
    with pytest.raises(RecordError, match=r"tensors\.safetensors: it is damaged"):
        excerpt(tmp_path / TENSORS, {"a": ""})


def test_names_of_artifacts_are_what_wandb_takes_and_stay_different() -> None:
    names = ["org/chat", "org:chat", "org chat", "org-chat", "x" * 300, "x" * 299 + "y"]
    taken = [artifact_name(name) for name in names]
    assert len(set(taken)) == len(names)
    assert taken[3] == "org-chat"
    assert all(len(name) <= 128 and not set(name) & set("/: ") for name in taken)


@pytest.mark.parametrize(
    ("models", "upload", "uploaded"),
    [
        ({}, False, False),
        ({"lat": True}, False, True),
        ({"lat": True, "org/chat": False}, False, False),
        ({"lat": True, "org/chat": False}, True, True),
    ],
    ids=["unknown models", "organisms", "with a chat model", "asked for"],
)
def test_directions_of_other_peoples_models_stay_local_unless_asked_for(
    tmp_path: Path, models: dict[str, bool], upload: bool, uploaded: bool
) -> None:
    used = {name: ModelUsed(source="x", organism=organism) for name, organism in models.items()}
    config = {"wandb": {"upload_directions": upload}}
    manifest = fake_manifest([]).model_copy(update={"models": used, "config": config})
    assert may_upload(Run(tmp_path, manifest)) is uploaded
