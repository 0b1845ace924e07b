"""The cells that a claim of the study may name."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mechsafety.core.config import FrozenConfig
from mechsafety.core.layers import LayerRule
from mechsafety.core.result import DeclaredFinding
from mechsafety.effects.ablation import AblationForm

MapMethod = Literal["procrustes", "ridge"]
Match = Literal["depth", "best", "transfer"]
"""Which layer of the second model a layer of the first is compared with: that of equal depth, the
one most like it on neutral prompts, or that at which transfer edits (where it is neither)."""


class _OfTwo(FrozenConfig):
    """A claim about two models, or about the same two models of several training seeds."""

    first: str
    """Name of one of `models`."""
    second: str
    """Name of one of `models`; where one acts on the other, it is the one that is acted on."""
    replicates: tuple[tuple[str, str], ...] = ()
    """The same two models of other training seeds, for claims of scope `method`."""

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The claim's own pair, and its replications."""
        return ((self.first, self.second), *self.replicates)


class _OfDifferentTwo(_OfTwo):
    """What a model with itself has no number for."""

    @model_validator(mode="after")
    def _models_differ(self) -> "_OfDifferentTwo":
        for first, second in self.pairs():
            if first == second:
                raise ValueError(
                    f"compares '{first}' with itself, of which nothing is to be found out: "
                    "name two models"
                )
        return self


class AtLayer(_OfDifferentTwo):
    """A claim about the directions of two models at one place."""

    layer: LayerRule
    """Layer of the first model; the second is read where `match` says."""
    match: Literal["depth", "best"] = "depth"
    """`depth`: at the same fraction of the way through; `best`: where neutral prompts give the
    highest CKA."""
    via: MapMethod | None = None
    """Map between models that share no space; null: that of `transfer`, or the first of `maps`."""


class LikenessCell(AtLayer):
    """Cosine of two models' directions, less that of directions from permuted labels."""

    test: Literal["likeness"]
    """Kind of claim."""


class CeilingCell(AtLayer):
    """What is missing from the cosine between halves of one model's prompts."""

    test: Literal["below_ceiling"]
    """Kind of claim."""


class AngleCell(AtLayer):
    """Degrees between two models' directions beyond those between halves of one's prompts."""

    test: Literal["angle"]
    """Kind of claim."""


class MatchingCell(_OfDifferentTwo):
    """How much more alike layers of equal depth are than layers of other depths."""

    test: Literal["layers_match"]
    """Kind of claim."""
    by: Literal["cosine", "cka"] = "cosine"
    """Cosine of directions (models that share a space), or CKA of activations."""


class TransferCell(_OfTwo):
    """What the first model's direction does in the second."""

    test: Literal["transfer"]
    """Kind of claim."""
    effect: Literal["bypass", "induce"] = "bypass"
    """`bypass`: refusal score that its ablation takes from harmful prompts; `induce`: what its
    addition gives to harmless ones."""
    form: AblationForm = "affine"
    """Of the ablation, for `bypass`."""


ClaimCell = Annotated[
    LikenessCell | CeilingCell | AngleCell | MatchingCell | TransferCell,
    Field(discriminator="test"),
]


class Claim(DeclaredFinding[ClaimCell]):
    """A claim of the similarity study, declared before anything is measured."""
