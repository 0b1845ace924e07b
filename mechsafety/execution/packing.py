"""Values of the science as a tree of JSON and a list of tensors, and back, bit for bit.

The stage cache writes them and `replay` compares them. Pickle would do it too, but reading a
pickle runs what it says; this reads values, and makes only classes of named packages of them.
"""

import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from types import FunctionType
from typing import Any, Final, cast

import torch
from pydantic import BaseModel
from torch import Tensor

from mechsafety.core.errors import RecordError, SelfCheckError

# The key by which a JSON object says what it stands for; plain mappings are packed as items.
_KIND: Final = "!"
_DEEPEST: Final = 100
"""Levels of a value. None here has as many; one that holds itself has more."""
_DTYPES: Final = frozenset(
    (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
)
"""Those that every version of the file format has."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A value without its classes."""

    tree: object
    """JSON, with tensors by their place in `tensors`."""
    tensors: tuple[Tensor, ...]
    """On the CPU; one that appears twice in the value is here once."""

    @property
    def sha256(self) -> str:
        """Of everything: two values have one hash exactly where they are equal bit for bit."""
        return packed_hash(self.tree, self.tensors)


def packed_hash(tree: object, tensors: Sequence[Tensor]) -> str:
    """SHA-256 of a tree and of dtype, shape and bytes of each tensor."""
    digest = hashlib.sha256(tree_text(tree).encode())
    for one in tensors:
        digest.update(f"\0{one.dtype} {list(one.shape)}\0".encode())
        flat = one.contiguous().flatten().view(torch.uint8)
        digest.update(cast("Any", flat.numpy()))
    return digest.hexdigest()


def tree_text(tree: object) -> str:
    """The tree as JSON; a float keeps all its bits."""
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def pack(value: object, what: str) -> Packed:
    """Take a value apart.

    Args:
        value: Of dataclasses, settings, tuples, lists, sets, mappings, tensors, paths, dates,
            enums, functions, text, numbers, truth values and None, as deep as you like.
        what: Names the value in an error.

    Raises:
        SelfCheckError: Something else lies in it, or it would not come back as it went; the
            message says where.
    """
    packer = _Packer(what)
    return Packed(packer.pack(value, ()), tuple(packer.tensors))


def unpack(tree: object, tensors: Sequence[Tensor], packages: Collection[str]) -> Any:
    """Put a value together again.

    Args:
        tree: From `pack`.
        tensors: From `pack`, in order.
        packages: Top-level packages whose classes and functions the tree may name.

    Raises:
        RecordError: It names others, or something that is not there, or is not from `pack`.
    """
    try:
        return _Unpacker(tensors, packages).unpack(tree)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise RecordError(
            f"unpacking a value: its tree is none that `pack` makes ({type(error).__name__}: "
            f"{error})."
        ) from None


def nodes(tree: object, name: str) -> Iterator[Mapping[str, Any]]:
    """The packed fields of every value in the tree that is of the class `module:qualname`."""
    if isinstance(tree, dict):
        node = cast("dict[str, Any]", tree)
        if node.get("c") == name:
            yield node["v"]
        for below in node.values():
            yield from nodes(below, name)
    elif isinstance(tree, list):
        for below in cast("list[object]", tree):
            yield from nodes(below, name)


def name_of(kind: "type[Any] | Callable[..., Any]") -> str:
    """`module:qualname`, by which a tree names a class or a function."""
    return f"{kind.__module__}:{kind.__qualname__}"


class _Packer:
    def __init__(self, what: str) -> None:
        self._what = what
        self._places: dict[int, int] = {}
        # Held, so that no other tensor takes the address by which one is known.
        self._seen: list[Tensor] = []
        self.tensors: list[Tensor] = []

    def pack(self, value: object, at: tuple[str, ...]) -> object:
        if len(at) > _DEEPEST:
            raise self._refused(at[:5], "holds itself, or goes deeper than any value here")
        if value is None or type(value) in (bool, int):
            return value
        if type(value) is str:
            return self._text(value, at)
        if type(value) is float:
            return value if math.isfinite(value) else {_KIND: "float", "v": str(value)}
        if isinstance(value, Tensor):
            return {_KIND: "tensor", "v": self._place(value, at)}
        if isinstance(value, Enum):
            return {_KIND: "enum", "c": self._named(type(value), at), "v": value.name}
        if isinstance(value, FunctionType):
            return {_KIND: "function", "c": self._named(value, at)}
        if isinstance(value, Path):
            return {_KIND: "path", "v": self._text(str(value), at)}
        if type(value) is date:
            return {_KIND: "date", "v": value.isoformat()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return self._fields("data", value, fields, at)
        if isinstance(value, BaseModel):
            return self._fields("settings", value, dict(value), at)
        return self._collection(value, at)

    def _collection(self, value: Any, at: tuple[str, ...]) -> object:
        kind = cast("type[Any]", type(value))
        if hasattr(kind, "_asdict") and issubclass(kind, tuple):
            return self._fields("named", value, value._asdict(), at)
        # By its exact type: a torch.Size would come back as a plain tuple, and a defaultdict
        # without its default.
        if kind in (list, tuple):
            items = [self.pack(one, (*at, str(i))) for i, one in enumerate(value)]
            return items if kind is list else {_KIND: "tuple", "v": items}
        if kind in (set, frozenset):
            return self._set(value, at)
        if kind is dict:
            items = [
                [self.pack(name, (*at, "a key")), self.pack(one, (*at, str(name)))]
                for name, one in value.items()
            ]
            return {_KIND: "mapping", "v": items}
        raise self._refused(at, f"is a {kind.__module__}.{kind.__qualname__}")

    def _set(self, value: "set[object] | frozenset[object]", at: tuple[str, ...]) -> object:
        n_before = len(self.tensors)
        packed = [self.pack(v, (*at, "an element")) for v in value]
        if len(self.tensors) > n_before:
            # Tensors are counted in the order in which they are met, and a set has none.
            raise self._refused(at, "is a set with tensors in it, which has no order")
        return {_KIND: type(value).__name__, "v": sorted(packed, key=tree_text)}

    def _fields(
        self, kind: str, value: object, fields: Mapping[str, object], at: tuple[str, ...]
    ) -> object:
        packed = {name: self.pack(one, (*at, name)) for name, one in fields.items()}
        return {_KIND: kind, "c": self._named(type(value), at), "v": packed}

    def _named(self, kind: "type[Any] | Callable[..., Any]", at: tuple[str, ...]) -> str:
        name = name_of(kind)
        try:
            # Generic classes with their parameters filled in are there only once they were made.
            alike = "[" not in name and _found(name) is kind
        except (ImportError, AttributeError):
            alike = False
        if not alike:
            told = f"is of {name}, which no other process can import by that name"
            raise self._refused(at, f"{told}. Define it at the outermost level of a module")
        return name

    def _text(self, value: str, at: tuple[str, ...]) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self._refused(at, f"is text that UTF-8 cannot write ({error.reason})") from None
        return value

    def _place(self, value: Tensor, at: tuple[str, ...]) -> int:
        if id(value) not in self._places:
            plain = type(value) is Tensor and value.layout is torch.strided and not value.is_meta
            if not plain or value.is_quantized or value.dtype not in _DTYPES:
                kind = f"{type(value).__qualname__} of {value.dtype}, {value.layout}"
                raise self._refused(at, f"is a {kind}: only plain dense tensors come back alike")
            self._places[id(value)] = len(self.tensors)
            self._seen.append(value)
            # A conjugate or a negative may be a mark on the tensor that its bytes lack.
            self.tensors.append(value.detach().cpu().resolve_conj().resolve_neg())
        return self._places[id(value)]

    def _refused(self, at: tuple[str, ...], why: str) -> SelfCheckError:
        where = ".".join(at) or "the value itself"
        return SelfCheckError(
            f"{self._what}: {where} {why}. What goes to and comes from `context.map` is made of "
            "dataclasses, settings, sequences, mappings, tensors, text and numbers, so that it "
            "can be kept, compared and resumed."
        )


class _Unpacker:
    def __init__(self, tensors: Sequence[Tensor], packages: Collection[str]) -> None:
        self._tensors = tensors
        self._packages = packages

    def unpack(self, tree: object) -> Any:
        if isinstance(tree, list):
            return [self.unpack(one) for one in cast("list[object]", tree)]
        if not isinstance(tree, dict):
            return tree
        node = cast("dict[str, Any]", tree)
        kind, value = node[_KIND], node.get("v")
        if kind == "tensor":
            return self._tensors[cast("int", value)]
        if kind in _FROM_TEXT:
            return _FROM_TEXT[kind](cast("str", value))
        if kind == "mapping":
            return {self.unpack(k): self.unpack(v) for k, v in cast("list[list[object]]", value)}
        if kind in _SEQUENCES:
            return _SEQUENCES[kind](self.unpack(one) for one in cast("list[object]", value))
        named = self._named(node["c"], kind)
        if kind == "function":
            return named
        if kind == "enum":
            return named[value]
        fields = {name: self.unpack(v) for name, v in cast("dict[str, Any]", value).items()}
        # Not through the constructor: what was valid when it was packed is not checked again,
        # and fields that a constructor derives keep the values they had.
        if kind == "named":
            return cast("Any", tuple).__new__(named, [fields[name] for name in named._fields])
        return (
            cast("type[BaseModel]", named).model_construct(**fields)
            if kind == "settings"
            else _dataclass_of(named, fields)
        )

    def _named(self, name: str, kind: str) -> Any:
        if name.partition(":")[0].partition(".")[0] not in self._packages:
            raise RecordError(f"unpacking a value: it names {name}, which is none of ours.")
        try:
            found = _found(name)
        except (ImportError, AttributeError) as error:
            raise RecordError(f"unpacking a value: it names {name}: {error}.") from None
        # A module of ours has modules of others as attributes, and `os` has `system`.
        if not _IS[kind](found) or name_of(found) != name:
            raise RecordError(
                f"unpacking a value: it names {name} as '{kind}', which it is not, or not there."
            )
        return found


def _found(name: str) -> Any:
    module, _, qualname = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _dataclass_of(cls: type[Any], fields: Mapping[str, object]) -> object:
    made = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


_IS: Final[dict[str, Callable[[Any], bool]]] = {
    "function": lambda found: isinstance(found, FunctionType),
    "enum": lambda found: isinstance(found, type) and issubclass(found, Enum),
    "named": lambda found: isinstance(found, type) and issubclass(found, tuple),
    "settings": lambda found: isinstance(found, type) and issubclass(found, BaseModel),
    "data": lambda found: isinstance(found, type) and dataclasses.is_dataclass(found),
}


_FROM_TEXT: Final[dict[str, Callable[[str], Any]]] = {
    "float": float,
    "path": Path,
    "date": date.fromisoformat,
}
_SEQUENCES: Final[dict[str, Callable[[Iterator[Any]], Any]]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
