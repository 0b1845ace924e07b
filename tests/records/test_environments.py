"""What differs between two runs' surroundings is listed in the order in which it matters."""

from typing import Any, get_args

import pytest

from mechsafety.records.environments import (
    ELSEWHERE,
    EnvironmentDifference,
    Kind,
    decides_bits,
    environment_differences,
)
from mechsafety.records.schema import Environment, Git, Manifest

HARDWARE = {"cpu": "a CPU", "cores": 2, "memory_gib": 8.0, "cuda": None}
ENVIRONMENT = {
    "python": "3.11.7 (CPython)",
    "platform": "Linux-6.1",
    "packages": {"torch": "2.13", "numpy": "2.4", "ruff": "0.17"},
    "hardware": HARDWARE,
    "threads": {"torch": 1, "OMP_NUM_THREADS": "1"},
    "determinism": {"deterministic_algorithms": False},
    "variables": {"HF_HOME": "/home/a", "OMP_NUM_THREADS": "1"},
    "code_sha256": "0" * 64,
    "git": Git(commit="1" * 40),
}
RUNTIME = {"threads": 1, "device": "cpu", "device_map": None, "dtype": "float32"}
RUNTIME |= {"batch_tokens": 16384, "pass_tokens": 2048}
MODEL = {"id": "lat", "dtype": "float32", "quantization": "none", "weights": "2" * 64}
PROVENANCE = {
    "prompts": {"harmful": "3" * 64},
    "token_ids": {"lat": {"harmful": "4" * 64}},
    "models": {"lat": MODEL},
}


def manifest(runtime: Any = None, provenance: Any = None, **environment: Any) -> Manifest:
    return Manifest(
        run="r",
        study="made",
        status="completed",
        opened="2026-11-21T18:24:03+00:00",
        command_line=(),
        experiment=None,
        config={"runtime": RUNTIME if runtime is None else runtime},
        config_sha256="",
        declared=(),
        declared_sha256="",
        seed=0,
        environment=Environment.model_validate({**ENVIRONMENT, **environment}),
        provenance=PROVENANCE if provenance is None else provenance,
    )


def of_model(**changes: str) -> dict[str, Any]:
    return {"provenance": {**PROVENANCE, "models": {"lat": {**MODEL, **changes}}}}


ONE_OF_EACH: list[tuple[str, str, dict[str, Any]]] = [
    ("threads", "OMP_NUM_THREADS", {"threads": {"torch": 1, "OMP_NUM_THREADS": "2"}}),
    ("threads", "runtime.threads", {"runtime": {**RUNTIME, "threads": 2}}),
    ("torch", "torch", {"packages": {"torch": "2.14", "numpy": "2.4", "ruff": "0.17"}}),
    ("device", "cpu", {"hardware": {**HARDWARE, "cpu": "another"}}),
    ("device", "cuda:0", {"hardware": {**HARDWARE, "cuda:0": "a GPU"}}),
    ("device", "runtime.device", {"runtime": {**RUNTIME, "device": "cuda:0"}}),
    ("dtype", "lat/dtype", of_model(dtype="bfloat16")),
    ("dtype", "lat/quantization", of_model(quantization="4bit")),
    ("dtype", "runtime.dtype", {"runtime": {**RUNTIME, "dtype": "bfloat16"}}),
    ("batch composition", "runtime.batch_tokens", {"runtime": {**RUNTIME, "batch_tokens": 9}}),
    ("batch composition", "runtime.pass_tokens", {"runtime": {**RUNTIME, "pass_tokens": 9}}),
    ("model revision", "lat/weights", of_model(weights="9" * 64)),
    ("model revision", "lat/revision", of_model(revision="9" * 40)),
    ("model revision", "lat/template", of_model(template="9" * 64)),
    ("prompts", "harmful", {"provenance": {**PROVENANCE, "prompts": {"harmful": "9" * 64}}}),
    (
        "prompts",
        "lat/harmful",
        {"provenance": {**PROVENANCE, "token_ids": {"lat": {"harmful": "9"}}}},
    ),
    ("code", "sha256", {"code_sha256": "9" * 64}),
    ("other versions", "python", {"python": "3.12"}),
    ("other versions", "numpy", {"packages": {"torch": "2.13", "numpy": "2.5", "ruff": "0.17"}}),
    (
        "determinism",
        "deterministic_algorithms",
        {"determinism": {"deterministic_algorithms": True}},
    ),
    ("other", "git commit", {"git": Git(commit="9" * 40)}),
    ("other", "platform", {"platform": "Linux-6.2"}),
    ("other", "lat/id", of_model(id="/elsewhere/lat")),
    ("other", "ruff", {"packages": {"torch": "2.13", "numpy": "2.4", "ruff": "0.18"}}),
    ("other", "cores", {"hardware": {**HARDWARE, "cores": 64}}),
    ("other", "HF_HOME", {"variables": {"HF_HOME": "/home/b"}}),
]


def test_equal_surroundings_differ_in_nothing() -> None:
    assert environment_differences(manifest(), manifest()) == ()


@pytest.mark.parametrize(("kind", "name", "changes"), ONE_OF_EACH)
def test_each_difference_has_its_kind_its_name_and_both_values(
    kind: Kind, name: str, changes: dict[str, Any]
) -> None:
    (there,) = environment_differences(manifest(), manifest(**changes))
    (back,) = environment_differences(manifest(**changes), manifest())
    assert (there.kind, there.name) == (kind, name)
    assert there.before != there.now
    assert back == EnvironmentDifference(there.kind, name, there.now, there.before)


def test_differences_are_listed_in_the_order_in_which_they_are_likely_to_matter() -> None:
    kinds = list(get_args(Kind))
    assert kinds[:8] == [
        "threads",
        "torch",
        "device",
        "dtype",
        "batch composition",
        "model revision",
        "prompts",
        "code",
    ]
    assert {kind for kind, _, _ in ONE_OF_EACH} == set(kinds)
    runtime = {**RUNTIME, "threads": 2, "device": "cuda", "dtype": "auto", "batch_tokens": 9}
    provenance = {"prompts": {"harmful": "9"}, "models": {"lat": {**MODEL, "weights": "9"}}}
    found = environment_differences(
        manifest(),
        manifest(
            runtime,
            provenance,
            packages={"torch": "3"},
            code_sha256="9",
            determinism={},
            platform="x",
        ),
    )
    assert list(dict.fromkeys(one.kind for one in found)) == kinds
    threads = [one.name for one in found if one.kind == "other"]
    assert threads == sorted(threads)


def test_what_only_one_has_is_told_with_none() -> None:
    (found,) = environment_differences(
        manifest(), manifest(packages={"torch": "2.13", "numpy": "2.4"})
    )
    assert (found.kind, found.name, found.before, found.now) == ("other", "ruff", "0.17", None)


def test_another_model_or_other_prompts_are_no_excuse_for_other_bits() -> None:
    assert set(get_args(Kind)) - set(ELSEWHERE) == {"model revision", "prompts", "other"}


@pytest.mark.parametrize(
    ("name", "decides"),
    [
        ("torch", True),
        ("transformer-lens", True),
        ("nvidia-cublas-cu12", True),
        ("ruff", False),
        ("mechsafety", False),
        ("torchvision", False),
    ],
)
def test_only_some_distributions_decide_bits(name: str, decides: bool) -> None:
    assert decides_bits(name) == decides


def test_distributions_that_decide_bits_are_named_as_they_are_installed() -> None:
    from importlib.metadata import distributions

    from mechsafety.records.environments import _NUMERIC

    installed = {found.metadata["Name"] for found in distributions()}
    needed = {"torch", "transformers", "transformer-lens", "tokenizers", "numpy", "scipy"}
    assert needed <= installed & set(_NUMERIC)


@pytest.mark.parametrize(
    "provenance",
    [{"models": {"lat": "a name"}}, {"models": [1]}, {"prompts": "x", "token_ids": None}],
)
def test_provenance_of_another_form_is_not_read(provenance: Any) -> None:
    found = environment_differences(manifest(provenance=provenance), manifest(provenance={}))
    assert found == ()
    assert environment_differences(manifest(runtime="fast"), manifest(runtime={})) == ()
