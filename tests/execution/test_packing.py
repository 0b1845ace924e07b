"""What is packed comes back bit for bit, and what would not is refused with where it lies."""

import json
import math
import struct
import sys
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, date, datetime
from enum import Enum
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mechsafety.core.config import Runtime
from mechsafety.core.errors import RecordError, SelfCheckError
from mechsafety.core.result import DeclaredFinding
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.directions.difference_in_means import DifferenceInMeans
from mechsafety.execution.packing import (
    Packed,
    name_of,
    nodes,
    pack,
    packed_hash,
    tree_text,
    unpack,
)
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.metrics.intervals import Interval
from mechsafety.models.spec import ModelSpec
from tests.studies.comparing.planted import PAIRS, measured, shift, streams, view
from tests.studies.similarity_runs import configured

PACKAGES = ("mechsafety", "tests")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool)


class Color(Enum):
    RED = "r"
    BLUE = ("b", 2)


@dataclass(frozen=True, slots=True)
class Frozen:
    rows: Any
    by: Any = ()


@dataclass
class Derived:
    """What its constructor derives, and would refuse, stays as it was."""

    given: int
    made: int = field(init=False)

    def __post_init__(self) -> None:
        self.made = self.given + 1
        if self.given < 0:
            raise ValueError("negative")


class Pair(NamedTuple):
    first: Any
    second: Any


def outer(number: int) -> int:
    return number


def back(value: object) -> Any:
    """Through the text of the tree, as a file has it."""
    packed = pack(value, "a value")
    return unpack(json.loads(tree_text(packed.tree)), packed.tensors, PACKAGES)


def alike(a: Any, b: Any) -> bool:
    """Equal bit for bit, and of equal classes, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and _bytes(a) == _bytes(b)
    if is_dataclass(a):
        return all(alike(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return alike(list(a), list(b)) and alike(list(a.values()), list(b.values()))
    return bool(a == b)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    seed = draw(st.integers(0, 2**20))
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
    tensor = made.to(draw(st.sampled_from(DTYPES)))
    if tensor.is_floating_point() and tensor.numel():
        tensor.view(-1)[0] = draw(st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1.0]))
    if tensor.ndim == 2:
        tensor = draw(st.sampled_from([tensor, tensor.T, tensor[::2], tensor[:, 1:]]))
    return tensor


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.dates(),
    st.sampled_from([Color.RED, Color.BLUE, Path("a/b"), Path("/"), outer, Interval(0.1, -0.0)]),
    st.sampled_from([ModelSpec(id="org/name", revision="main"), ResidualSite(3, "resid_post")]),
)
KEYS = st.one_of(st.integers(), st.text(max_size=3), st.tuples(st.text(max_size=2), st.integers()))
VALUES = st.recursive(
    SCALARS | tensors(),
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.lists(below, max_size=3).map(tuple),
        st.dictionaries(KEYS, below, max_size=3),
        st.frozensets(st.integers() | st.text(max_size=2), max_size=3),
        st.sets(st.integers(), max_size=3),
        st.builds(Pair, below, below),
        st.builds(Frozen, below, below),
        st.builds(Derived, st.integers(0, 9)),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(VALUES)
def test_every_value_comes_back_bit_for_bit(value: object) -> None:
    again = back(value)
    assert alike(value, again)
    assert pack(again, "it").sha256 == pack(value, "it").sha256


@settings(deadline=None, max_examples=50)
@given(st.lists(VALUES, min_size=2, max_size=2))
def test_one_hash_goes_with_equal_values_alone(two: list[object]) -> None:
    first, second = (pack(value, "it").sha256 for value in two)
    # The order of a set is no part of it, and NaN differs from itself for `==` alone.
    assert (first == second) == alike(*two)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (True, 1),
        (1, 1.0),
        (0.0, -0.0),
        (0, False),
        ("1", 1),
        (None, "null"),
        (math.nan, "nan"),
        (math.inf, -math.inf),
        ((1, 2), [1, 2]),
        ({1, 2}, frozenset({1, 2})),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: "a"}, {"1": "a"}),
        (Path("a"), "a"),
        (date(2026, 11, 21), "2026-11-21"),
        (Color.RED, "RED"),
        (Frozen(1), Pair(1, ())),
        (Interval(0.0, 1.0), (0.0, 1.0)),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(0, 2), torch.zeros(2, 0)),
        (torch.zeros(1), torch.tensor(0.0)),
        (torch.zeros(2), -torch.zeros(2)),
        (torch.zeros(4, dtype=torch.int8), torch.zeros(4, dtype=torch.bool)),
        (torch.ones(3), torch.ones(3).nextafter(torch.tensor(2.0))),
        (DifferenceInMeans(), {"method": "difference_in_means"}),
    ],
)
def test_what_differs_in_its_last_bit_or_its_kind_has_another_hash(a: object, b: object) -> None:
    assert pack(a, "it").sha256 == pack(back(a), "it").sha256
    assert pack(a, "it").sha256 != pack(b, "it").sha256
    assert pack({"deep": [a]}, "it").sha256 != pack({"deep": [b]}, "it").sha256


def test_a_tensor_shared_by_two_places_is_kept_once_and_stays_shared() -> None:
    rows = torch.randn(5, 7)
    packed = pack({"a": rows, "b": [rows, rows.clone()]}, "it")
    assert len(packed.tensors) == 2
    again = unpack(packed.tree, packed.tensors, ())
    assert again["a"] is again["b"][0]
    assert again["a"] is not again["b"][1]


@dataclass
class Lazy:
    """Makes its tensor when asked: the address of the last one is free again."""

    at: int
    rows: Any = None

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return torch.full((3,), float(self.at)) if name == "rows" else found


def test_tensors_made_and_dropped_while_packing_are_not_taken_for_one_another() -> None:
    packed = pack([Lazy(i) for i in range(9)], "it")
    assert [int(one[0]) for one in packed.tensors] == list(range(9))


def test_gradients_and_marks_stay_behind_and_numbers_do_not() -> None:
    weights = torch.randn(3, requires_grad=True)
    doubled = weights * 2
    again = back(doubled)
    assert doubled.requires_grad
    assert not again.requires_grad
    assert torch.equal(again, doubled)
    negative = torch._neg_view(torch.ones(3))
    assert negative.is_neg()  # a mark: the bytes say 1
    assert pack(negative, "it").sha256 == pack(-torch.ones(3), "it").sha256
    assert torch.equal(back(negative), -torch.ones(3))


def test_settings_come_back_with_their_short_forms_and_defaults() -> None:
    given = {
        "spec": ModelSpec.model_validate("org/name@v2"),
        "runtime": Runtime(batch_tokens=77),
        "judge": PhraseJudge(phrases="organism"),
    }
    again = back(given)
    assert again == given
    assert [type(one) for one in again.values()] == [ModelSpec, Runtime, PhraseJudge]
    assert again["spec"].revision == "v2"
    assert again["runtime"].pass_tokens == 77
    # Frozen still, and serialized alike.
    assert again["spec"].model_dump() == given["spec"].model_dump()
    with pytest.raises(ValueError, match="frozen"):
        again["spec"].id = "other"


def test_what_a_constructor_derives_or_would_refuse_is_kept_as_it_was() -> None:
    changed = Derived(4)
    changed.given, changed.made = -3, 99
    again = back(changed)
    assert (again.given, again.made) == (-3, 99)
    with pytest.raises(AttributeError):
        object.__setattr__(back(Frozen(1)), "other", 2)  # slots still


def _not_here() -> FunctionType:
    def inner() -> None: ...

    return cast("FunctionType", inner)


class Local:
    """Not of any kind that comes back."""


class Words(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (lambda: 1, r"<lambda>, which no other process can import"),
        (_not_here(), r"<locals>\.inner, which no other process can import"),
        ((i for i in range(2)), r"builtins\.generator"),
        (np.zeros(2), r"numpy\.ndarray"),
        (np.float64(1.0), r"numpy\.float64"),
        (torch.Size([1]), r"torch\.Size"),
        (torch.zeros(2, 3).max(0), r"torch\.return_types\.max"),
        (torch.float32, r"torch\.dtype"),
        (1j, r"builtins\.complex"),
        (b"x", r"builtins\.bytes"),
        (Words("x"), r"\.Words"),
        (OrderedDict(a=1), r"collections\.OrderedDict"),
        (defaultdict(int), r"collections\.defaultdict"),
        (datetime(2026, 11, 21, tzinfo=UTC), r"datetime\.datetime"),
        (partial(outer, 1), r"functools\.partial"),
        (Local(), r"\.Local"),
        (Frozen, r"builtins\.type"),
        (Interval, r"builtins\.type"),
        (math.sqrt, r"builtin_function_or_method"),
        (DeclaredFinding[dict[str, int]], r"ModelMetaclass"),
        (
            DeclaredFinding[dict[str, int]](
                id="a", claim="c.", scope="method", margin=1, cell={"layer": 1}
            ),
            r"DeclaredFinding\[dict\[str, int\]\], which no other process",
        ),
        (nn.Parameter(torch.zeros(2)), r"Parameter of torch\.float32"),
        (torch.zeros(2).to_sparse(), r"Tensor of torch\.float32, torch\.sparse_coo"),
        (torch.zeros(2, device="meta"), r"only plain dense tensors"),
        (torch.zeros(2, dtype=torch.complex128), r"Tensor of torch\.complex128"),
        ({Frozen(torch.zeros(2))}, r"a set with tensors in it"),
        ("\ud800", r"text that UTF-8 cannot write"),
        (Path("\udc80"), r"text that UTF-8 cannot write"),
    ],
)
def test_what_would_not_come_back_is_refused_with_where_it_lies(value: Any, told: str) -> None:
    with pytest.raises(SelfCheckError, match=rf"^scoring, job 3: the value itself .*{told}"):
        pack(value, "scoring, job 3")
    with pytest.raises(SelfCheckError, match=rf"^scoring: cells\.by\.1 .*{told}"):
        pack({"cells": Frozen((), by=(1, value))}, "scoring")


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: dict[str, Any] = {"a": 1}
    assert back(loop) == loop
    loop["loop"] = [loop]
    with pytest.raises(SelfCheckError, match=r"^it: loop\.0\.loop\.0\.loop holds itself, or goes"):
        pack(loop, "it")


def test_a_class_that_its_module_calls_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = Frozen(1)
    assert alike(back(value), value)
    monkeypatch.setattr(sys.modules[__name__], "Frozen", Derived)
    with pytest.raises(SelfCheckError, match="no other process can import"):
        pack(value, "it")


def node(kind: str, name: str, value: object) -> dict[str, object]:
    return {"!": kind, "c": name, "v": value}


def test_a_tree_of_a_foreign_module_is_refused_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_module.py").write_text("raise SystemExit('was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind in ("function", "data", "named", "settings", "enum"):
        with pytest.raises(RecordError, match="planted_module:run, which is none of ours"):
            unpack(node(kind, "planted_module:run", {}), (), PACKAGES)
    with pytest.raises(RecordError, match="os:system, which is none of ours"):
        unpack([[{"!": "mapping", "v": [["a", node("named", "os:system", {})]]}]], (), PACKAGES)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, f"mechsafety.{name}")
        for kind in ("function", "data", "named", "settings", "enum")
        for name in (
            # Modules of ours have modules of others as attributes.
            "organisms.cache:os.system",
            "organisms.cache:shutil.rmtree",
            "organisms.cache:os.environ",
            # Ours, but of no kind that a value is made of, or under another name.
            "organisms.cache:cache_root",
            "execution.packing:_DEEPEST",
            "execution.stage_cache:pack",
            "models.model:Model",
        )
        if (kind, name) != ("function", "organisms.cache:cache_root")
    ],
)
def test_a_tree_reaches_nothing_through_a_module_of_ours(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*given: object, **named: object) -> None:
        raise AssertionError("it was called")

    monkeypatch.setattr("os.system", called)
    monkeypatch.setattr("shutil.rmtree", called)
    assert unpack(node("function", name_of(outer), None), (), PACKAGES) is outer
    with pytest.raises(RecordError, match="which it is not, or not there"):
        unpack(node(kind, name, {"path": "x", "command": "x"}), (), PACKAGES)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"v": 1},
        {"!": "unheard of", "v": 1},
        {"!": "tensor", "v": 7},
        {"!": "tensor", "v": "0"},
        {"!": "float", "v": "x"},
        {"!": "date", "v": "yesterday"},
        {"!": "tuple"},
        {"!": "set", "v": [[]]},
        {"!": "mapping", "v": [1]},
        node("enum", name_of(Color), "GREEN"),
        node("named", name_of(Interval), {"low": 0.0}),
        node("data", name_of(Frozen), {"unheard_of": 1}),
        node("data", name_of(Frozen), 3),
        node("function", "tests.no_such_module:f", None),
        node("function", f"{__name__}:no_such_function", None),
    ],
)
def test_a_damaged_tree_is_one_error(tree: object) -> None:
    with pytest.raises(RecordError, match="unpacking a value"):
        unpack(tree, (torch.zeros(1),), PACKAGES)


def test_a_tree_too_deep_to_read_is_one_error() -> None:
    tree: object = 1
    for _ in range(10 * sys.getrecursionlimit()):
        tree = [tree]
    with pytest.raises(RecordError, match="RecursionError"):
        unpack(tree, (), PACKAGES)


def test_models_are_found_wherever_a_tree_names_them() -> None:
    specs = [ModelSpec(id=name) for name in "abc"]
    value = {("k", 1): [specs[0], Frozen(specs[1], by={"x": (specs[2],)})], "id": "not one"}
    found = nodes(pack(value, "it").tree, name_of(ModelSpec))
    assert [one["id"] for one in found] == ["a", "b", "c"]


def test_the_hash_of_a_tree_is_that_of_its_file() -> None:
    packed = pack({"a": torch.randn(3, 2), "b": 0.1 + 0.2}, "it")
    read = json.loads(tree_text(packed.tree))
    assert packed_hash(read, packed.tensors) == packed.sha256 == Packed(*_parts(packed)).sha256


def _parts(packed: Packed) -> tuple[object, tuple[Tensor, ...]]:
    # Elsewhere in memory, and elsewhere laid out.
    return packed.tree, tuple(t.T.clone().T for t in packed.tensors)


def test_what_the_studies_read_comes_back() -> None:
    value = {"view": view("a", streams(shift(1))), "pairs": PAIRS, "chat": ChatFormat()}
    again = back(value)
    assert again["pairs"] == PAIRS
    assert again["view"].harmful == value["view"].harmful
    assert pack(again, "it").sha256 == pack(value, "it").sha256


def test_what_the_studies_compute_comes_back() -> None:
    config = configured("{a: {model: ./a}, b: {model: ./b}}", "maps.between=[[a, b]]")
    found = measured(config, {name: streams(shift(i)) for i, name in enumerate("ab")})
    value = (found.stacks, found.likenesses, found.activations, found.overlaps, found.maps)
    assert all(value)
    assert alike(back(value), value)
