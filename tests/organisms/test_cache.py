import ast
import threading
from pathlib import Path

import pytest

from mechsafety.core.errors import ModelError
from mechsafety.organisms import cache
from mechsafety.organisms.cache import base_of, cache_root, folder_of, landing, recipe_hash
from mechsafety.organisms.recipes import Organism


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHSAFETY_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_root() == Path("/a")
    monkeypatch.delenv("MECHSAFETY_CACHE")
    assert cache_root() == Path("/b/mechsafety")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "mechsafety"


def test_everything_that_changes_an_organism_changes_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    organism = Organism(arm="lat")
    others = (
        Organism(arm="noise"),
        Organism(arm="lat", seed=1),
        Organism(arm="lat", preset="small"),
        Organism(arm="lat", size="deep"),
        Organism(arm="lat_strong"),
    )
    assert recipe_hash(organism) == recipe_hash(Organism(arm="lat"))
    assert len({recipe_hash(one) for one in (organism, *others)}) == 6
    before = folder_of(organism, tmp_path)
    monkeypatch.setattr(cache, "code_version", lambda: "another")
    assert folder_of(organism, tmp_path) != before


def test_an_arm_starts_from_the_base_of_its_own_size_and_its_folder_says_which() -> None:
    wide = Organism(arm="ssft", seed=3, size="wide")
    assert base_of(wide) == Organism(arm="base", seed=3, size="wide")
    assert folder_of(wide).name.startswith("ssft-s3-wide-")
    assert folder_of(Organism(arm="ssft", seed=3)).name.startswith("ssft-s3-default-")


def test_comments_and_docstrings_do_not_make_another_organism() -> None:
    def shape(source: str) -> str:
        return ast.dump(cache._without_docstrings(ast.parse(source)))

    plain = "def f(x):\n    return x + 1\n"
    told = '"""Module."""\ndef f(x):\n    """What it does."""\n    # why\n    return x  +  1\n'
    assert shape(told) == shape(plain)
    assert shape(plain.replace("+", "-")) != shape(plain)


def test_a_folder_lands_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "organisms" / "one"

    def fail() -> None:
        with landing(folder) as part:
            assert part is not None
            (part / "half").touch()
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert [p.name for p in folder.parent.iterdir()] == [".locks"]

    (folder.parent / ".one.killed").mkdir()  # as a killed process leaves it
    with landing(folder) as part:
        assert part is not None
        assert not folder.exists()
        (part / "whole").touch()
    assert [p.name for p in folder.iterdir()] == ["whole"]
    assert not (folder.parent / ".one.killed").exists()
    with landing(folder) as part:
        assert part is None


def test_two_builders_of_one_organism_take_turns_and_the_second_finds_it(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    entered, built = threading.Event(), []

    def second() -> None:
        entered.wait()
        with landing(folder) as part:
            built.append(part is not None)

    waiting = threading.Thread(target=second)
    waiting.start()
    with landing(folder) as part:
        assert part is not None
        entered.set()
        waiting.join(0.3)
        assert waiting.is_alive()  # it waits for the lock
        (part / "weights").touch()
    waiting.join()
    assert built == [False]


def test_a_cache_that_cannot_be_written_is_an_error_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ModelError, match=r"cannot be written.*Set MECHSAFETY_CACHE"),
        landing(tmp_path / "file" / "one"),
    ):
        pass
