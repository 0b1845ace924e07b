"""What goes through `context.map`, kept and read again."""

from typing import TypeVar

from mechsafety.execution.packing import pack, unpack

Value = TypeVar("Value")


def kept(value: Value) -> Value:
    """The value as another run finds it; nothing in it is of a kind that cannot be kept."""
    packed = pack(value, "a value")
    again = unpack(packed.tree, packed.tensors, {"mechsafety"})
    assert type(again) is type(value)
    assert again is not value
    assert pack(again, "a value").sha256 == packed.sha256
    return again
