"""YAML names a direction method by its tag, and a wrong tag is told the right ones."""

import pytest
from pydantic import TypeAdapter, ValidationError

from mechsafety.directions.difference_in_means import DifferenceInMeans
from mechsafety.directions.methods import DirectionMethod
from mechsafety.directions.scav import Scav

METHODS: TypeAdapter[DirectionMethod] = TypeAdapter(DirectionMethod)


def test_a_tag_selects_the_method_with_its_own_settings() -> None:
    assert METHODS.validate_python({"method": "difference_in_means"}) == DifferenceInMeans()
    assert METHODS.validate_python({"method": "scav", "c": 3}) == Scav(c=3.0)
    with pytest.raises(ValidationError, match="'difference_in_means', 'scav'"):
        METHODS.validate_python({"method": "lda"})
    with pytest.raises(ValidationError, match=r"difference_in_means\.c"):
        METHODS.validate_python({"method": "difference_in_means", "c": 3})
