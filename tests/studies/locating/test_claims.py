"""Cells that a claim may name."""

import pytest

from mechsafety.core.errors import ConfigError, SiteError
from mechsafety.studies.locating.claims import (
    CausalCell,
    Claim,
    ClaimCell,
    SeparationCell,
    WindowCell,
    check_layers,
)


def claim(cell: ClaimCell) -> Claim:
    return Claim(id="x", claim="X.", scope="checkpoint", margin=0.1, cell=cell)


def test_the_last_template_token_has_one_name() -> None:
    cells = [
        SeparationCell(test="separation", layer=1, position=position)
        for position in ("last", "eoi[-1]", "eoi[-2]")
    ]
    assert [cell.position for cell in cells] == ["last", "last", "eoi[-2]"]


def test_a_layer_may_be_the_output_of_the_last_block_and_no_further() -> None:
    check_layers([claim(CausalCell(test="causal", layer=4))], 4)
    check_layers([claim(WindowCell(test="window"))], 4)
    with pytest.raises(SiteError, match="layer 5, but the model has 4"):
        check_layers([claim(CausalCell(test="causal", layer=5))], 4)
    with pytest.raises(ConfigError, match="attacked"):
        check_layers([claim(SeparationCell(test="separation", layer="attacked"))], 4)
