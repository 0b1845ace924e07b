"""Finished work is found by its content, whole or not at all."""

import errno
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.config import Runtime
from mechsafety.core.errors import ConfigError, RecordError
from mechsafety.execution import stage_cache
from mechsafety.execution.packing import Packed, pack
from mechsafety.execution.stage_cache import StageCache, fingerprint, forget, prune, stages_root
from mechsafety.models.spec import ModelSpec
from mechsafety.records.schema import Environment
from tests.execution import toy_jobs
from tests.records.made_records import ENVIRONMENT

KEY = "ab" * 32
PACKAGES = ("mechsafety", "tests")
GIB = 2**30


@dataclass(frozen=True)
class Job:
    models: dict[str, ModelSpec]
    rows: Tensor
    runtime: Runtime


@dataclass(frozen=True)
class Result:
    rows: Any
    words: Any


@pytest.fixture
def cache(tmp_path: Path) -> StageCache:
    return StageCache("print", tmp_path / "stages")


@pytest.fixture
def job(tmp_path: Path, organism_small: Callable[[str], Path]) -> Job:
    folder = tmp_path / "model"
    shutil.copytree(organism_small("base"), folder)
    return Job({"base": ModelSpec(id=str(folder))}, torch.arange(6.0).reshape(2, 3), Runtime())


def result(seed: int = 0) -> Packed:
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    return pack(Result({"a": rows, "half": rows[::2].bfloat16()}, ("refused", 0.1)), "a result")


def entries(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def entry_of(root: Path) -> Path:
    (path,) = entries(root)
    return path


# --- the key -----------------------------------------------------------------------------------


def test_equal_jobs_have_one_key_wherever_they_stand(cache: StageCache, job: Job) -> None:
    def key(job: Job) -> str | None:
        return cache.key(toy_jobs.square, pack(job, "it"))

    again = Job({"base": job.models["base"].model_copy()}, job.rows.T.clone().T, Runtime())
    assert key(job) == key(again) is not None
    # No result depends on the number of workers, at any depth.
    assert key(replace(job, runtime=Runtime(workers=4))) == key(job)
    first = cache.key(toy_jobs.square, pack([Runtime(workers=1)], "job 1"))
    assert cache.key(toy_jobs.square, pack([Runtime(workers=9)], "job 2")) == first


def test_whatever_may_change_a_result_changes_the_key(cache: StageCache, job: Job) -> None:
    def key(job: object, function: Any = toy_jobs.square, cache: StageCache = cache) -> str | None:
        return cache.key(function, pack(job, "it"))

    bits = job.rows.clone()
    bits[1, 2] = bits[1, 2].nextafter(torch.tensor(9.0))
    other = [
        key(job),
        key(job, toy_jobs.draw),
        key(job, cache=StageCache("another print", cache._root)),
        key(replace(job, rows=bits)),
        key(replace(job, rows=job.rows.double())),
        key(replace(job, models={"other": job.models["base"]})),
        key(replace(job, models={"base": job.models["base"].model_copy(update={"revision": "x"})})),
        key(replace(job, runtime=Runtime(threads=2))),
        key(replace(job, runtime=Runtime(batch_tokens=64))),
        key([job]),
    ]
    assert len({*other}) == len(other)
    assert None not in other


def test_every_file_of_the_model_is_part_of_the_key(cache: StageCache, job: Job) -> None:
    folder = Path(job.models["base"].id)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) > 3
    found = [cache.key(toy_jobs.square, pack(job, "it"))]
    for path in files:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        found.append(cache.key(toy_jobs.square, pack(job, "it")))
    assert len({*found}) == len(files) + 1


def test_a_job_of_a_model_that_is_not_here_has_no_key(cache: StageCache, job: Job) -> None:
    gone = job.models["base"].model_copy(update={"id": "org/nowhere"})
    both = replace(job, models={**job.models, "gone": gone})
    assert cache.key(toy_jobs.square, pack(job, "it"))
    assert cache.key(toy_jobs.square, pack(both, "it")) is None


def test_code_outside_the_package_is_part_of_the_key(
    cache: StageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "__init__.py").write_text("")
    (tmp_path / "foreign" / "jobs.py").write_text("def job(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def key() -> str | None:
        for name in ("foreign", "foreign.jobs"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        stage_cache._foreign_code.cache_clear()  # as in another process
        from foreign.jobs import job  # type: ignore[import-not-found]

        return cache.key(job, pack(1, "it"))

    found = [key(), key()]
    assert found[0] == found[1] is not None
    (tmp_path / "foreign" / "helper.py").write_text("SCALE = 2\n")
    assert key() not in found


def test_a_function_that_was_typed_in_has_no_key(
    cache: StageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "typed", ModuleType("typed"))

    def job(x: int) -> int:
        return x

    job.__module__ = "typed"
    assert cache.key(job, pack(1, "it")) is None


def test_the_fingerprint_follows_what_may_change_the_last_bit() -> None:
    def of(**changes: object) -> str:
        return fingerprint(ENVIRONMENT.model_copy(update=changes))

    base = of()
    for changes in (
        {"code_sha256": "1" * 64},
        {"python": "3.12"},
        {"packages": {"torch": "3"}},
        {"packages": {"torch": "2", "scipy": "1"}},
        {"packages": {"torch": "2", "nvidia-cublas-cu12": "1"}},
        {"hardware": {"cores": 2, "cpu": "another"}},
        {"threads": {"torch": 2}},
        {"determinism": {"cudnn_benchmark": True}},
    ):
        assert of(**changes) != base
    for changes in (
        {"packages": {"torch": "2", "ruff": "1", "mechsafety": "9"}},
        {"hardware": {"cores": 64, "memory_gib": 1.5}},
        {"platform": "elsewhere"},
        {"variables": {"HF_HOME": "/elsewhere"}},
        {"git": ENVIRONMENT.git.model_copy(update={"commit": "2" * 40})},
    ):
        assert of(**changes) == base


def test_the_fingerprint_of_this_process_is_the_same_twice() -> None:
    from mechsafety.execution.environment import environment

    here: Environment = environment()
    assert fingerprint(here) == fingerprint(environment())
    assert fingerprint(here) != fingerprint(ENVIRONMENT)


# --- entries -----------------------------------------------------------------------------------


def test_what_is_kept_is_found_and_nothing_else_is(cache: StageCache) -> None:
    packed = result()
    assert cache.load(KEY, PACKAGES) is None
    cache.store(KEY, packed)
    found = cache.load(KEY, PACKAGES)
    assert found is not None
    assert found.sha256 == packed.sha256 == pack(found.value, "it").sha256
    assert type(found.value) is Result
    assert found.value.rows["half"].dtype == torch.bfloat16
    assert cache.load("cd" * 32, PACKAGES) is None


def test_a_result_of_words_alone_is_kept_however_long(cache: StageCache) -> None:
    # The format has room for 100 MB of metadata: none of this is metadata.
    words = pack({"text": ["sorry , i can not – \u2028" * 1000] * 10}, "it")
    cache.store(KEY, words)
    found = cache.load(KEY, ())
    assert found is not None
    assert found.sha256 == words.sha256
    with entry_of(cache._root).open("rb") as file:
        assert int.from_bytes(file.read(8), "little") < 1000


def test_a_found_tensor_may_be_changed_and_the_entry_is_not(cache: StageCache) -> None:
    cache.store(KEY, result())
    for _ in range(2):
        found = cache.load(KEY, PACKAGES)
        assert found is not None
        assert not bool((found.value.rows["a"] == 0).any())
        found.value.rows["a"].zero_()


def test_one_flipped_byte_anywhere_is_an_error_that_removes_the_entry(cache: StageCache) -> None:
    cache.store(KEY, pack({"rows": torch.arange(3.0), "words": ["refused"]}, "it"))
    path = entry_of(cache._root)
    whole = path.read_bytes()
    assert b"refused" in whole
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RecordError, match="reading the cached result"):
            cache.load(KEY, PACKAGES)
        assert not path.exists()
        assert cache.load(KEY, PACKAGES) is None
    path.write_bytes(whole)
    assert cache.load(KEY, PACKAGES) is not None


def test_a_truncated_entry_is_an_error_that_removes_it(cache: StageCache) -> None:
    cache.store(KEY, result())
    path = entry_of(cache._root)
    whole = path.read_bytes()
    for length in (0, 1, 8, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError, match="reading the cached result"):
            cache.load(KEY, PACKAGES)
        assert not path.exists()


def test_an_entry_that_names_a_foreign_class_is_removed_unopened(cache: StageCache) -> None:
    for tree in (
        {"!": "named", "c": "os:system", "v": {"command": "true"}},
        {"!": "data", "c": "mechsafety.organisms.cache:os.environ", "v": {}},
        {"!": "set", "v": [[]]},
        {"!": "tensor", "v": 3},
    ):
        cache.store(KEY, Packed(tree, ()))
        with pytest.raises(RecordError, match="unpacking a value"):
            cache.load(KEY, PACKAGES)
        assert entries(cache._root) == []
    cache.store(KEY, result())
    with pytest.raises(RecordError, match=r"names .*:Result, which is none of ours"):
        cache.load(KEY, ("mechsafety",))


def test_what_another_run_prunes_meanwhile_is_simply_not_there(
    cache: StageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(KEY, result())
    path, read = entry_of(cache._root), stage_cache._read

    def read_and_lose(path: Path) -> Any:
        found = read(path)
        path.unlink()
        return found

    monkeypatch.setattr(stage_cache, "_read", read_and_lose)
    assert cache.load(KEY, PACKAGES) is not None  # it was read before it went
    assert not path.exists()
    assert cache.load(KEY, PACKAGES) is None


def test_an_entry_that_can_be_neither_read_nor_removed_is_one_error(
    cache: StageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(KEY, result())

    def refused(*given: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(RecordError, match="Permission denied"):
        cache.load(KEY, PACKAGES)


def full(tensors: Any, path: Path, metadata: Any) -> None:
    path.write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_error_that_leaves_nothing_and_what_was_there(
    cache: StageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(KEY, result(1))
    monkeypatch.setattr(stage_cache, "save_file", full)
    for key in (KEY, "cd" * 32):
        with pytest.raises(RecordError, match=r"keeping a result in .*No space left"):
            cache.store(key, result(2))
    assert len(entries(cache._root)) == 1
    found = cache.load(KEY, PACKAGES)
    assert found is not None
    assert found.sha256 == result(1).sha256


def test_a_root_that_cannot_be_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    cache = StageCache("print", tmp_path / "file" / "stages")
    with pytest.raises(RecordError, match="keeping a result"):
        cache.store(KEY, result())
    assert cache.load(KEY, PACKAGES) is None
    assert (tmp_path / "file").read_text() == "mine"


def test_entries_are_their_owners_alone(cache: StageCache) -> None:
    # They hold activations and answers.
    cache.store(KEY, result())
    for folder in (cache._root, entry_of(cache._root).parent):
        assert folder.stat().st_mode & 0o077 == 0


def test_an_entry_replaced_while_it_is_read_is_the_old_one_or_the_new(
    cache: StageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(KEY, result(1))
    read = Path.read_bytes

    def read_and_replace(path: Path) -> bytes:
        content = read(path)
        cache.store(KEY, result(2))
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    for seed in (1, 2):
        found = cache.load(KEY, PACKAGES)
        assert found is not None
        assert found.sha256 == result(seed).sha256


def _store_until(seen: Any, root: Path, seed: int) -> None:
    packed = pack({"seed": seed, "words": ["x" * 100] * 200, "rows": torch.zeros(9)}, "it")
    parent = os.getppid()
    while not seen.is_set() and os.getppid() == parent:
        StageCache("print", root).store(KEY, packed)
    os._exit(0)


def test_two_processes_that_store_one_key_at_once_leave_one_whole_entry(cache: StageCache) -> None:
    processes = multiprocessing.get_context("fork")
    both_seen = processes.Event()
    both = [
        processes.Process(target=_store_until, args=(both_seen, cache._root, seed))
        for seed in (1, 2)
    ]
    for one in both:
        one.start()
    seen, looks, until = set[int](), 0, time.monotonic() + 60
    while (looks < 100 or seen != {1, 2}) and time.monotonic() < until:
        found = cache.load(KEY, ())  # whole, or not there yet
        if found is not None:
            seen.add(found.value["seed"])
            looks += 1
    both_seen.set()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert seen == {1, 2}  # they did race
    assert entry_of(cache._root).suffix == ".safetensors"
    assert cache.load(KEY, ()) is not None


# --- how much is kept --------------------------------------------------------------------------


def filled(cache: StageCache, n: int) -> list[Path]:
    """Entries of one size, the first used longest ago."""
    paths: list[Path] = []
    for i in range(n):
        key = f"{i:02d}" * 32
        cache.store(key, pack(torch.zeros(1000), "it"))
        paths.append(cache._root / key[:2] / f"{key}.safetensors")
        os.utime(paths[-1], (1000 + i, 1000 + i))
    return paths


def test_what_was_used_longest_ago_goes_first(
    cache: StageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = filled(cache, 5)
    size = paths[0].stat().st_size
    assert prune(cache._root) == 0  # 20 GiB hold them
    monkeypatch.setenv("MECHSAFETY_CACHE_GIB", str(3.5 * size / GIB))
    assert cache.load("00" * 32, ()) is not None  # used now, so no longer the oldest
    assert prune(cache._root) == 2
    assert [path.exists() for path in paths] == [True, False, False, True, True]
    assert prune(cache._root) == 0
    monkeypatch.setenv("MECHSAFETY_CACHE_GIB", "0")
    assert prune(cache._root) == 3
    assert entries(cache._root) == []
    assert prune(cache._root / "nowhere") == 0


def test_the_leftovers_of_killed_runs_go_after_a_day(cache: StageCache) -> None:
    (path,) = filled(cache, 1)
    old, new = path.with_name(".old.1234.part"), path.with_name(".new.1234.part")
    for leftover, days in ((old, 2), (new, 0.5)):
        leftover.write_bytes(b"half of it")
        when = time.time() - days * 24 * 60 * 60
        os.utime(leftover, (when, when))
    prune(cache._root)
    assert sorted(entries(cache._root)) == sorted([path, new])  # `new` may still be written


@pytest.mark.parametrize("text", ["many", "nan", "-1", "20 GiB", " "])
def test_a_limit_that_is_none_is_refused_before_the_work(
    text: str, monkeypatch: pytest.MonkeyPatch, cache: StageCache
) -> None:
    paths = filled(cache, 2)
    monkeypatch.setenv("MECHSAFETY_CACHE_GIB", text)
    with pytest.raises(ConfigError, match=r"MECHSAFETY_CACHE_GIB is .*such as 20"):
        StageCache("print", cache._root)
    with pytest.raises(ConfigError, match="MECHSAFETY_CACHE_GIB"):
        prune(cache._root)
    assert all(path.exists() for path in paths)


def test_pruning_goes_on_where_an_entry_cannot_be_removed(
    cache: StageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, unlink = filled(cache, 3), Path.unlink

    def held(path: Path, missing_ok: bool = False) -> None:
        if path == paths[0]:
            raise PermissionError
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", held)
    monkeypatch.setenv("MECHSAFETY_CACHE_GIB", "0")
    assert prune(cache._root) == 2
    assert [path.exists() for path in paths] == [True, False, False]


def test_the_environment_says_where_entries_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHSAFETY_STAGES", str(tmp_path / "fast"))
    assert stages_root() == tmp_path / "fast"
    monkeypatch.delenv("MECHSAFETY_STAGES")
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path))
    assert stages_root() == tmp_path / "stages"


def test_what_must_not_be_kept_is_forgotten_and_nothing_else(
    cache: StageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = filled(cache, 3)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"somebody's")
    forget(["01" * 32, "ff" * 32], cache._root)
    assert [path.exists() for path in paths] == [True, False, True]
    # A record from elsewhere may name anything as a key.
    forget(["../../model", "../model", str(tmp_path / "model"), "", None, 7], cache._root)
    assert weights.exists()

    def refused(*given: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(RecordError, match=r"removing the cached result .*Permission denied"):
        forget(["00" * 32], cache._root)
