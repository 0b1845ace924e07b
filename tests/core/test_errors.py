"""Errors suggest what was meant, and quote what arrived on one short, printable line."""

import time

import pytest

from mechsafety.core.errors import did_you_mean, nearest, printable, shown

KEYS = ("id", "by", "n", "seed", "test", "layer", "layers", "runtime", "cross_ranks", "ranks")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("di", "id"),
        ("yb", "by"),
        ("nn", "n"),
        ("sede", "seed"),
        ("seeed", "seed"),
        ("tets", "test"),
        ("layerss", "layers"),
        ("runtme", "runtime"),
        ("rank", "ranks"),
        ("cros_ranks", "cross_ranks"),
        ("quantization", None),
        ("", None),
    ],
)
def test_the_nearest_word_is_the_one_that_was_meant(word: str, meant: str | None) -> None:
    assert nearest(word, KEYS) == meant
    told = did_you_mean(word, KEYS)
    assert told.startswith(f"Did you mean '{meant}'? " if meant else "Expected one of: ")
    assert told.endswith(f"Expected one of: {', '.join(sorted(KEYS))}.")


def test_a_whole_file_in_place_of_a_word_takes_no_time() -> None:
    started = time.process_time()
    nearest("seed" * 1_000_000, [f"{word}{i}" for word in KEYS for i in range(100)])
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "odd", ["a\x1b[31mb", "a\u202eb", "a\nb", "a\0b", "a\ud800b", "x" * 10_000]
)
def test_what_arrived_is_quoted_on_one_short_printable_line(odd: str) -> None:
    for quoted in (shown(odd), shown([odd] * 50), shown({odd: 1}), printable(odd)):
        assert quoted.isprintable()
        assert 3 <= len(quoted) <= 80
    assert len(shown(odd, 200)) <= 200
    assert printable(odd, 5)[0] == odd[0]
    assert shown("größe 模型") == "'größe 模型'"
    assert printable("größe 模型") == "größe 模型"
