"""Seeded ways to break an experiment's YAML, as hands, editors and mischief do."""

import copy
import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from mechsafety.core.config import MAX_YAML_BYTES

Path = tuple[str | int, ...]

NAMES = ("arms", "models", "refusal_tokens")
"""Keys below which the experiment chooses the keys."""


@dataclass(frozen=True)
class Mutation:
    """A broken YAML, and what an error about it must say."""

    kind: str
    content: bytes
    names: tuple[str, ...] = ()
    """The key in question: an error names one of these."""
    meant: str | None = None
    """The key that was meant: an error suggests it."""
    refused: bool = False
    """Whether it cannot be valid."""


# --- slips of the hand -------------------------------------------------------------------------


def slips(word: str) -> list[str]:
    """Near misses: two letters swapped, one dropped or doubled, a plural or its absence."""
    swapped = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)]
    dropped = [word[:i] + word[i + 1 :] for i in range(len(word))] if len(word) > 2 else []
    doubled = [word[: i + 1] + word[i:] for i in range(len(word))]
    plural = [word[:-1] if word.endswith("s") else f"{word}s"]
    return [slip for slip in (*swapped, *dropped, *doubled, *plural) if slip and slip != word]


ODD_TEXT = (
    "a\0b",
    "‮txet",
    "​",
    "\ud800",
    "\udfff\ud800",
    "é",
    "ﷺ" * 50,
    "🙂",
    "\x1b[31m",
    "\r\n",
    "\\",
    "../../etc/passwd",
    "..",
    "/",
    "nul",
    "%s%n{}",
    "${HOME}",
    "''\"\"",
    " ",
)
ODD_NUMBERS = (10**30, -(10**30), 10**400, -1, -5, 7, 0, 1e308, -1e308, 5e-324, 2**63, 2**64, 1.5)
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
HALF = "holds half a character"
TOO_LARGE = "is larger than any number"
TOO_MUCH = ("keys and values are no experiment", "bytes are no experiment")
"""What is refused before keys are known, by its line."""
RETYPED: tuple[Any, ...] = ({"a": 1}, {}, [], [[1]], "text", 5, 2.5, True, False, None, "")


# --- trees -------------------------------------------------------------------------------------


def paths_of(tree: object, at: Path = ()) -> Iterator[Path]:
    """Every key and every place of a list, at every depth."""
    steps: list[str | int] = []
    if isinstance(tree, dict):
        steps = list(tree)
    elif isinstance(tree, list):
        steps = list(range(len(tree)))
    for step in steps:
        yield (*at, step)
        yield from paths_of(tree[step], (*at, step))  # pyright: ignore[reportIndexIssue]


def _at(tree: Any, path: Path) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _put(tree: Any, path: Path, value: object) -> Any:
    _at(tree, path[:-1])[path[-1]] = value
    return tree


def _rename(tree: Any, path: Path, name: str) -> Any:
    """In its place, since order is part of what is read."""
    parent = _at(tree, path[:-1])
    items = [(name if key == path[-1] else key, value) for key, value in parent.items()]
    parent.clear()
    parent.update(items)
    return tree


def _key(path: Path) -> str:
    """The innermost key that was written: a place of a list has none of its own."""
    return next(step for step in reversed(path) if isinstance(step, str))


def _dumped(tree: object) -> bytes:
    """As JSON, which is YAML but for the numbers that are none."""
    text = json.dumps(tree, indent=1)
    for word, yamls in (("NaN", ".nan"), ("-Infinity", "-.inf"), ("Infinity", ".inf")):
        text = text.replace(f'"!{word}"', yamls)
    return text.encode()


def _drop(tree: Any, path: Path, rng: random.Random) -> Mutation:
    del _at(tree, path[:-1])[path[-1]]
    return Mutation("dropped", _dumped(tree), (_key(path),))


def _slip(tree: Any, path: Path, rng: random.Random) -> Mutation | None:
    key = path[-1]
    if not isinstance(key, str):
        return None
    name = rng.choice(slips(key))
    if name in _at(tree, path[:-1]):
        return None
    chosen = len(path) > 1 and path[-2] in NAMES
    broken = _dumped(_rename(tree, path, name))
    if chosen:
        return Mutation("other name", broken, (key, name))
    return Mutation("near miss", broken, (name,), meant=key, refused=True)


def _other_key(tree: Any, path: Path, rng: random.Random) -> Mutation | None:
    if not isinstance(path[-1], str) or (len(path) > 1 and path[-2] in NAMES):
        return None
    name = "".join(rng.choices(string.ascii_lowercase, k=12))
    told = "study" if path == ("study",) else name
    return Mutation("renamed", _dumped(_rename(tree, path, name)), (told,), refused=True)


def _retype(tree: Any, path: Path, rng: random.Random) -> Mutation:
    value = copy.deepcopy(rng.choice(RETYPED))
    return Mutation("retyped", _dumped(_put(tree, path, value)), (_key(path),))


def _nest(tree: Any, path: Path, rng: random.Random) -> Mutation | None:
    """One level too deep, below a neighbor, or one level too high."""
    key, parent = path[-1], _at(tree, path[:-1])
    if not isinstance(key, str):
        return None
    how = rng.choice(("deeper", "neighbor", "higher"))
    if how == "deeper":
        parent[key] = {key: parent[key]}
        return Mutation("nested wrongly", _dumped(tree), (key,))
    value = parent.pop(key)
    if how == "higher" and len(path) > 1:
        above = _at(tree, path[:-2])
        if isinstance(above, dict):
            above[f"{key}"] = value
        else:
            above.append({key: value})
        return Mutation("nested wrongly", _dumped(tree), (key, _key(path[:-1])))
    others = [name for name, other in parent.items() if isinstance(other, dict)]
    if not others:
        return None
    neighbor = rng.choice(others)
    parent[neighbor][key] = value
    return Mutation("nested wrongly", _dumped(tree), (key, neighbor))


def _wrap(tree: Any, path: Path, rng: random.Random) -> Mutation:
    value = [_at(tree, path)] * rng.choice((1, 1, 2, 50))
    broken = _dumped(_put(tree, path, value))
    return Mutation("wrapped in a list", broken, (_key(path), *TOO_MUCH))


def _number(tree: Any, path: Path, rng: random.Random) -> Mutation:
    value = rng.choice(ODD_NUMBERS)
    return Mutation("odd number", _dumped(_put(tree, path, value)), (_key(path), TOO_LARGE))


def _not_finite(tree: Any, path: Path, rng: random.Random) -> Mutation:
    value = f"!{rng.choice(NOT_FINITE)}"
    return Mutation("not finite", _dumped(_put(tree, path, value)), (_key(path),))


def _odd_value(tree: Any, path: Path, rng: random.Random) -> Mutation:
    broken = _dumped(_put(tree, path, rng.choice(ODD_TEXT)))
    return Mutation("odd text", broken, (_key(path), HALF))


def _odd_key(tree: Any, path: Path, rng: random.Random) -> Mutation | None:
    if not isinstance(path[-1], str):
        return None
    name = rng.choice(ODD_TEXT)
    return Mutation("odd key", _dumped(_rename(tree, path, name)))


def _long(tree: Any, path: Path, rng: random.Random) -> Mutation | None:
    n = rng.choice((300, 5_000, 100_000, MAX_YAML_BYTES))
    how = rng.choice(("value", "list", "key"))
    if how == "value":
        return Mutation("long", _dumped(_put(tree, path, "x" * n)))
    if how == "list":
        value = [_at(tree, path)] * min(n // 10, 5_000)
        return Mutation("long", _dumped(_put(tree, path, value)))
    if not isinstance(path[-1], str):
        return None
    return Mutation("long", _dumped(_rename(tree, path, "k" * n)))


TREES: tuple[Callable[[Any, Path, random.Random], Mutation | None], ...] = (
    _drop, _slip, _slip, _slip, _other_key, _retype, _retype, _nest, _wrap, _number, _not_finite,
    _odd_value, _odd_key, _long,
)  # fmt: skip


# --- text --------------------------------------------------------------------------------------


def _a_line(lines: list[str], rng: random.Random) -> int:
    """Of those that hold a key and a value."""
    return rng.choice([i for i, line in enumerate(lines) if ": " in line and "#" not in line])


def _alias(lines: list[str], rng: random.Random) -> list[str]:
    i = _a_line(lines, rng)
    head, _, value = lines[i].partition(": ")
    kind = rng.randrange(4)
    if kind == 0:
        lines[i] = f"{head}: &here {value}"
        return [*lines, "title: *here"]
    if kind == 1:
        lines[i] = f"{head}: *nowhere"
        return lines
    if kind == 2:
        return ["defaults: &all {seed: 1}", *lines, "<<: *all"]
    laughs = ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    laughs += [f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 9)}]" for k in range(1, 10)]
    return [*lines, *laughs, "title: *l9"]


def _tag(lines: list[str], rng: random.Random) -> list[str]:
    i = _a_line(lines, rng)
    head, _, value = lines[i].partition(": ")
    tag = rng.choice(
        ("!!python/object/apply:os.getcwd []", f"!!str {value}", "!!binary aGVsbG8=", "!!set {a}",
         "!!python/name:os.system", "!include /etc/hostname", f"!{'t' * 3000} {value}", "! x")
    )  # fmt: skip
    lines[i] = f"{head}: {tag}"
    return lines


def _twice(lines: list[str], rng: random.Random) -> list[str]:
    i = _a_line(lines, rng)
    return [*lines[: i + 1], lines[i], *lines[i + 1 :]]


def _deep(lines: list[str], rng: random.Random) -> list[str]:
    i = _a_line(lines, rng)
    head = lines[i].partition(": ")[0]
    n = rng.choice((30, 45, 1_000, 10_000))
    inner = rng.choice(("[" * n + "]" * n, "[" * n, "{a: " * n + "1" + "}" * n, "- " * n))
    lines[i] = f"{head}: {inner}"
    return lines


def _tabs(lines: list[str], rng: random.Random) -> list[str]:
    i = _a_line(lines, rng)
    lines[i] = rng.choice(("\t" + lines[i], lines[i].replace("  ", "\t"), lines[i] + "\t"))
    return lines


def _shifted(lines: list[str], rng: random.Random) -> list[str]:
    i = _a_line(lines, rng)
    lines[i] = rng.choice((f" {lines[i]}", f"    {lines[i]}", lines[i].lstrip()))
    return lines


def _lost_line(lines: list[str], rng: random.Random) -> list[str]:
    del lines[_a_line(lines, rng)]
    return lines


def _punctuation(lines: list[str], rng: random.Random) -> list[str]:
    i = _a_line(lines, rng)
    at = rng.randrange(len(lines[i]))
    odd = rng.choice((":", "-", "[", "]", "{", "}", "'", '"', "|", ">", "%", "@", "`", "?", ","))
    lines[i] = lines[i][:at] + odd + lines[i][at + rng.randrange(2) :]
    return lines


def _lines(kind: str, change: Callable[[list[str], random.Random], list[str]], refused: bool):
    def broken(text: str, rng: random.Random) -> Mutation:
        content = "\n".join(change(text.splitlines(), rng)) + "\n"
        return Mutation(kind, content.encode(), refused=refused)

    return broken


def _bytes(text: str, rng: random.Random) -> Mutation:
    content = bytearray(text.encode())
    at = rng.randrange(len(content))
    odd = rng.choice((b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\0", b"\x1b", b"\xfe\xff", b"\x85"))
    content[at:at] = odd
    return Mutation("odd bytes", bytes(content))


def _encoded(text: str, rng: random.Random) -> Mutation:
    encoding = rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le"))
    return Mutation("encoded", text.encode(encoding), refused=encoding != "utf-8-sig")


def _line_ends(text: str, rng: random.Random) -> Mutation:
    ends = rng.choice(("\r\n", "\r", "\n\n"))
    return Mutation("line ends", text.replace("\n", ends).encode())


def _cut_short(text: str, rng: random.Random) -> Mutation:
    return Mutation("cut short", text.encode()[: rng.randrange(len(text))])


TEXTS: tuple[Callable[[str, random.Random], Mutation], ...] = (
    _lines("aliases", _alias, refused=True),
    _lines("tags", _tag, refused=False),
    _lines("twice", _twice, refused=False),
    _lines("deep", _deep, refused=True),
    _lines("tabs", _tabs, refused=False),
    _lines("shifted", _shifted, refused=False),
    _lines("lost line", _lost_line, refused=False),
    _lines("punctuation", _punctuation, refused=False),
    _bytes,
    _encoded,
    _line_ends,
    _cut_short,
)


# --- all of them -------------------------------------------------------------------------------


@cache
def _tree(text: str) -> Any:
    return yaml.safe_load(text)


def mutation(texts: list[str], seed: int) -> Mutation:
    """The mutation of this number; the same one in every process."""
    rng = random.Random(seed)
    while True:
        text = rng.choice(texts)
        if rng.random() < 0.3:
            return rng.choice(TEXTS)(text, rng)
        tree = copy.deepcopy(_tree(text))
        path = rng.choice(list(paths_of(tree)))
        # Most paths lie in the findings: half of the time a key of the outermost levels is taken.
        if rng.random() < 0.5:
            path = path[: rng.randint(1, 2)]
        if (broken := rng.choice(TREES)(tree, path, rng)) is not None:
            return broken


OVERRIDE_KEYS = (
    *("seed", "runtime.threads", "wandb", "study", "findings", "a", "", ".", "..", "a.b.c"),
    *("runtime..threads", "seed.x", "prompts.n", "findings.0.id", "runtime.", ".seed", "sede"),
    *("x" * 3000, ".".join("a" * 200), "se\0ed", "runtime.thread", "title", "cluster_by"),
)
OVERRIDE_VALUES = (
    *("1", "", "null", "[1", "[" * 5000, "{a: " * 5000, "*x", "&x 1", "!!python/name:os.system"),
    *("{<<: {a: 1}}", "x" * 100_000, "9" * 6000, ".nan", "a: b: c", "'", "\0", "\ud800", "yes"),
    *("2026-02-31", "[" + "1," * 20_000 + "]", "{1: 2}", "-5", "1e400", "\t- x", "\u202e"),
    *("{a: 1, a: 2}", "- x", "?", "@", "%", "---\n...\n---", '"\\ud800"', "[" * 39 + "]" * 39),
)


def override(seed: int) -> str:
    """A `--set` of this number, most of which cannot be set."""
    rng = random.Random(f"override {seed}")
    key, value = rng.choice(OVERRIDE_KEYS), rng.choice(OVERRIDE_VALUES)
    if rng.random() < 0.2:
        return rng.choice((key, value, f"{key}{value}", f"={value}", f"{key} = {value}"))
    if rng.random() < 0.3:
        value = "".join(chr(rng.choice((*range(32, 127), 9, 10, 0x202E, 0xE9))) for _ in range(20))
    return f"{key}={value}"
