"""The cells that a claim of the study may name."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, field_validator

from mechsafety.core.config import FrozenConfig
from mechsafety.core.layers import LayerRule, resolve_layer
from mechsafety.core.positions import PositionText
from mechsafety.core.result import DeclaredFinding
from mechsafety.effects.ablation import AblationForm


class SeparationCell(FrozenConfig):
    """AUC of held-out prompts at one place, minus what it is compared with."""

    test: Literal["separation"]
    """Kind of claim."""
    layer: LayerRule
    """Block input; the number of layers is the output of the last block."""
    position: PositionText = "last"
    """Token position that is read."""
    versus: Literal["chance", "lexical", "base"] = "chance"
    """`chance`: 0.5; `lexical`: a bag of tokens; `base`: the same place of the base model."""

    @field_validator("position")
    @classmethod
    def _as_maps_call_it(cls, position: str) -> str:
        return "last" if position == "eoi[-1]" else position


class CausalCell(FrozenConfig):
    """How much ablating (or adding) the direction read at one layer moves the refusal score."""

    test: Literal["causal"]
    """Kind of claim."""
    layer: LayerRule
    """Block input at which the direction is read and added."""
    score: Literal["bypass", "induce"] = "bypass"
    """`bypass`: what its ablation takes from harmful prompts; `induce`: what its addition gives to
    harmless ones."""


class WinnerCell(FrozenConfig):
    """Refusals that the chosen direction takes from harmful prompts, or gives to harmless ones."""

    test: Literal["winner"]
    """Kind of claim."""
    effect: Literal["bypass", "induce"] = "bypass"
    """`bypass`: harmful prompts that its ablation lets through; `induce`: harmless ones that its
    addition has refused."""
    form: AblationForm = "zero"
    """Of the ablation, for `bypass`."""
    dose: PositiveFloat = 1.0
    """Multiple of the mean difference, for `induce`; one of `evaluate.addition_doses`."""


class WindowCell(FrozenConfig):
    """The share of the effect that one window of at most so many layers carries."""

    test: Literal["window"]
    """Kind of claim."""
    max_length: float = Field(default=0.5, gt=0, le=1)
    """Longest window that counts as local, as a share of the depth. The claim's margin is the
    share of the effect that it must carry."""


class SecondDirectionCell(FrozenConfig):
    """What the direction refitted after removal of the first does by itself."""

    test: Literal["second_direction"]
    """Kind of claim."""


class WritersCell(FrozenConfig):
    """How much of the score gap between the classes the top writers carry."""

    test: Literal["writers"]
    """Kind of claim."""
    form: Literal["zero", "mean"] = "mean"
    """What each writer's output is set to: nothing, or its mean over harmless prompts."""


ClaimCell = Annotated[
    SeparationCell | CausalCell | WinnerCell | WindowCell | SecondDirectionCell | WritersCell,
    Field(discriminator="test"),
]


class Claim(DeclaredFinding[ClaimCell]):
    """A claim of the locality study, declared before anything is measured."""


def check_layers(claims: Sequence[Claim], n_layers: int) -> None:
    """Refuse a claim about a layer that the model does not have.

    Raises:
        SiteError: As `resolve_layer`.
        ConfigError: `attacked`, which no model of this study is known to be.
    """
    for claim in claims:
        if isinstance(claim.cell, SeparationCell | CausalCell):
            resolve_layer(claim.cell.layer, n_layers, None)
