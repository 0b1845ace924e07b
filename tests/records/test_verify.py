"""Verifying finds any byte that changed, and names the file."""

import json
from pathlib import Path

import pytest

from mechsafety.records.reading import open_run
from mechsafety.records.store import RunWriter
from mechsafety.records.verify import verify
from tests.records.made_records import ENVIRONMENT, config, result

SEALED = ("config.yaml", "events.jsonl", "findings.json", "metrics.parquet", "report.html")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = RunWriter.create(tmp_path, config(), ENVIRONMENT, ["mechsafety"])
    writer.write_result(result())
    writer.write_report("<p>page</p>")
    writer.write_private("answers.jsonl", b"{}\n")
    writer.close("completed")
    return writer.folder


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def test_an_untouched_run_is_intact(folder: Path) -> None:
    found = verify(open_run(folder))
    assert found.intact
    assert found.checked == 7
    assert found.problems == ()


@pytest.mark.parametrize("name", [*SEALED, "tensors.safetensors", "private/answers.jsonl"])
def test_one_flipped_bit_names_its_file(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    rewrite(folder / name, bytes(content))
    problems = verify(open_run(folder)).problems
    assert any(problem.startswith(f"{name}: differs (same size") for problem in problems)


def test_missing_longer_and_added_files_are_named(folder: Path) -> None:
    (folder / "report.html").unlink()
    rewrite(folder / "findings.json", (folder / "findings.json").read_bytes() + b"\n")
    (folder / "more.txt").write_text("x")
    problems = "\n".join(verify(open_run(folder)).problems)
    assert "report.html: missing" in problems
    assert "findings.json: differs (" in problems
    assert "more.txt: was not there" in problems


@pytest.mark.parametrize(
    ("key", "value"), [("status", "failed"), ("seed", 4), ("command_line", ["other"])]
)
def test_an_edited_manifest_does_not_fit_its_seal(folder: Path, key: str, value: object) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    assert raw[key] != value
    rewrite(folder / "manifest.json", json.dumps({**raw, key: value}).encode())
    assert any("manifest.json" in problem for problem in verify(open_run(folder)).problems)


def test_config_yaml_must_agree_with_the_manifest(folder: Path) -> None:
    path = folder / "config.yaml"
    rewrite(path, path.read_bytes().replace(b"depth: 3", b"depth: 4"))
    problems = verify(open_run(folder)).problems
    assert "config.yaml: its settings are not those of manifest.json" in problems


def test_what_lies_outside_the_seal_may_change(folder: Path) -> None:
    (folder / "derived").mkdir()
    (folder / "derived" / "report.html").write_text("again")
    (folder / "private" / "answers.jsonl").unlink()
    found = verify(open_run(folder))
    assert found.intact
    assert found.purged == ("private/answers.jsonl",)


def test_a_run_that_was_never_sealed_says_so(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, config(), ENVIRONMENT, ["mechsafety"])
    assert "still being written" in verify(open_run(writer.folder)).problems[0]
    writer._lock.release()  # as the kernel does when the process dies
    found = verify(open_run(writer.folder))
    assert not found.intact
    assert "killed before it was sealed" in found.problems[0]
