"""Nothing that a YAML text can say expands, hides, or takes longer than a few seconds to refuse."""

import contextlib
import itertools
import time
import tracemalloc
from collections import Counter

import pytest

from mechsafety.core.config import MAX_YAML_BYTES
from mechsafety.core.errors import ConfigError
from mechsafety.core.plain_yaml import MAX_DEPTH, MAX_INTEGER, MAX_VALUES, plain_yaml

MANY = MAX_YAML_BYTES


def _refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plain_yaml(text)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_plain_values_are_read_as_yaml_reads_them() -> None:
    values = '1, -2.5, .inf, yes, null, ~, \'5\', "\\u00e9", "\\ud83d\\ude42"'
    text = f"a: {{b: [{values}]}}\nc: |\n  two\n  lines\n"
    assert plain_yaml(text) == {
        "a": {"b": [1, -2.5, float("inf"), True, None, None, "5", "é", "🙂"]},
        "c": "two\nlines\n",
    }
    assert plain_yaml("") is None


def test_numbers_are_those_that_editors_read() -> None:
    written = "[1e-3, 1E5, +.5e1, 1., 010, 08, 0x1F, 0o17, -0b1_1, -1_000, 1_0.5, -.inf]"
    read = plain_yaml(written)
    assert read == [0.001, 1e5, 5.0, 1.0, 10, 8, 31, 15, -3, -1000, 10.5, -float("inf")]
    assert isinstance(read, list)
    whole = [isinstance(number, int) for number in read]
    assert whole == [False] * 4 + [True] * 6 + [False] * 2
    # YAML 1.1 makes 750 of 12:30, and cannot read 0b_.
    words = ["12:30", "1:0:0.5", "1" + ":0" * 250 + ".0", "0b_", "0x_", "0o8", "1e", "_1", "-", "."]
    assert plain_yaml(f"[{', '.join(words)}]") == words
    assert plain_yaml(f"{'0' * 50_000}1") == 1


def test_whatever_looks_like_a_number_is_the_one_that_python_reads_or_stays_text() -> None:
    signs = [itertools.product("-01_.xbe", repeat=length) for length in (1, 2, 3, 4)]
    looks = [look for one in signs for look in map("".join, one) if look.strip("-.")]
    kinds: Counter[type] = Counter()
    read = plain_yaml("\n".join(f"- {look}" for look in looks))
    assert isinstance(read, list)
    for look, one in zip(looks, read, strict=True):
        kinds[type(one)] += 1
        digits = look.replace("_", "")
        if isinstance(one, str):
            assert one == look
        elif digits.lstrip("-")[:2] in ("0x", "0b"):
            assert one == int(digits, 0)
        else:
            assert one == float(digits)
    assert set(kinds) == {int, float, str}
    assert min(kinds.values()) > 100


def test_dates_and_signs_stay_text() -> None:
    assert plain_yaml("[2026-02-31, 2024-07-26, 2024-07-26 10:00:00, =]") == [
        "2026-02-31",
        "2024-07-26",
        "2024-07-26 10:00:00",
        "=",
    ]


def test_a_billion_laughs_are_refused_before_they_expand() -> None:
    lines = ["a0: &a0 [" + ", ".join(["ha"] * 10) + "]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    tracemalloc.start()
    started = time.process_time()
    message = _refused("\n".join(lines))
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.startswith("line 2: YAML aliases")
    assert seconds < 1
    assert peak < 5_000_000  # 10⁹ words would be gigabytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: &b {x: 1}\nuse:\n  <<: *b\n", "line 3: YAML aliases"),
        ("use:\n  <<: {x: 1}\n", "line 2: merge keys"),
        ("a: &x\n  b: *x\n", "line 2: YAML aliases"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1: YAML tags .*python"),
        ("a: !!binary aGk=\n", "line 1: YAML tags"),
        ("a: !!set {x}\n", "line 1: YAML tags"),
        ("a: !mine x\n", "line 1: YAML tags"),
        (f"!{'x' * 10_000} y", "line 1: YAML tags"),
        ("1: x\n", "line 1: the key 1 is no text.*quotes"),
        ("a:\n  on: x\n", "line 2: the key True is no text.*on and off"),
        ("? [a, b]\n: x\n", r"line 1: the key \['a', 'b'\] is no text"),
        ("? {a: b}\n: x\n", "line 1: the key .* is no text"),
        ("~: x\n", "line 1: the key None is no text"),
        ("a: 1\n'a': 2\n", "line 2: key 'a' appears twice"),
        (f"{'k' * 1000}: 1\n{'k' * 1000}: 2\n", "line 2: key 'kkk.*… appears twice"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a:\n\t- 1\n", "line 2: .*not valid YAML"),
        ("a: [1\n", "not valid YAML"),
        ("a: 'x\n", "not valid YAML"),
        ("a: 1\nb: \0\n", r"line 2: it is not valid YAML: the character '\\x00'"),
        ("a: \x1b[31m\n", "not valid YAML"),
        ("a: %x\n", "not valid YAML"),
        (f"a: {MAX_INTEGER + 1}\n", "line 1: 9223372036854775808 is larger than any"),
        (f"a: 0x{'f' * 100_000}\n", "line 1: 0xfff.*… is larger than any"),
        (f"a: 1\nb: {'9' * 5000}\n", "line 2: 999.*… is larger than any"),
        (f"a: -0b{'1' * 65}\n", "line 1: -0b111.* is larger than any"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', "line 2: .*no character"),
        ('a: 1\nb: "\\U00110000"\n', "line 2: .*no character"),
        (f"%YAML {'9' * 5000}.1\n--- a\n", "line 1: .*version after %YAML"),
        ('a: 1\nb: "\\uD800"\n', r"line 2: .* holds half a character"),
        ('"\\uDC00\\uD800": 1\n', r"line 1: .* holds half a character"),
    ],
)
def test_what_experiments_do_not_need_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plain_yaml(text)
    _refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 10_000 + "]" * 10_000,
        "[" * MANY,
        "{a: " * 10_000,
        "- " * 10_000,
        "? " * 10_000,
        "\n".join(f"{' ' * depth}a:" for depth in range(1_000)),
    ],
    ids=lambda text: text[:4].strip(),
)
def test_deep_nesting_is_refused_at_once(text: str) -> None:
    started = time.process_time()
    assert f"more than {MAX_DEPTH} levels" in _refused(text)
    assert time.process_time() - started < 4
    inner = "x"
    for _ in range(MAX_DEPTH - 1):
        inner = f"[{inner}]"
    assert plain_yaml(inner)  # as deep as is allowed


@pytest.mark.parametrize(
    "text",
    [
        "[" + "x," * (MANY // 2),
        "- x\n" * (MANY // 4),
        "".join(f"k{i}: 1\n" for i in range(MANY // 12)),
        "[" + "[]," * (MANY // 3),
        "[" + "{}," * (MANY // 3),
    ],
    ids=["words", "lines", "keys", "lists", "mappings"],
)
def test_as_many_bytes_of_values_is_refused_when_they_are_too_many(text: str) -> None:
    started = time.process_time()
    assert f"more than {MAX_VALUES:,} keys and values" in _refused(text)
    assert time.process_time() - started < 4


@pytest.mark.parametrize(
    "text",
    [
        "x" * MANY,
        "'" + "x" * MANY,
        "#" * MANY,
        "\n" * MANY,
        "x " * (MANY // 2),
        "|\n" + " x\n" * (MANY // 3),
        "%" * MANY,
        "&" + "a" * MANY,
        '"' + "\\" * MANY,
    ],
    ids=lambda text: repr(text[:3]),
)
def test_as_many_bytes_of_anything_else_ends_too(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(ConfigError):
        plain_yaml(text)
    assert time.process_time() - started < 4
