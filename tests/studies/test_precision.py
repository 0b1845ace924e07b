"""Models that were read in unequal precision are named in every finding."""

from dataclasses import replace

from mechsafety.studies.precision import precision_notes
from tests.studies.comparing.planted import shift, streams, view


def test_models_are_named_where_they_differ_and_in_what() -> None:
    one = view("one", streams(shift(1)))
    half = replace(one, identity={**one.identity, "dtype": "bfloat16"})
    packed = replace(one, identity={**one.identity, "quantization": "4bit"})
    assert precision_notes("models", {"a": one, "b": one}.items()) == ()
    assert precision_notes("arms", [("a", one), ("b", half), ("c", one)]) == (
        "The arms differ in dtype: a float32, b bfloat16, c float32.",
    )
    assert precision_notes("models", iter([("a", half), ("b", packed)])) == (
        "The models differ in dtype: a bfloat16, b float32.",
        "The models differ in quantization: a unknown, b 4bit.",
    )
