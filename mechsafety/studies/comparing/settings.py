"""Settings of the parts of the similarity study."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mechsafety.core.config import FrozenConfig, Name, StudyConfig, with_short_form
from mechsafety.core.errors import ConfigError, did_you_mean
from mechsafety.core.positions import PositionText
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.neutral import NeutralSource
from mechsafety.data.pairs import PairsSource
from mechsafety.directions.difference_in_means import DifferenceInMeans
from mechsafety.directions.methods import DirectionMethod
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.models.spec import ModelSpec
from mechsafety.organisms.cache import base_of
from mechsafety.organisms.recipes import Organism
from mechsafety.studies.comparing.claims import AtLayer, Claim, MapMethod
from mechsafety.studies.comparing.transferring import TransferSettings

Pair = tuple[str, str]
PENALTIES: Final = tuple(10.0**power for power in range(-4, 5))


class Compared(FrozenConfig):
    """One model of the comparison."""

    model: ModelSpec
    """Organism, folder, or `org/name@revision`."""
    base: str | None = None
    """Name, among these models, of the one it was trained from: models of one base share a space
    and are compared without a map. Known of organisms; null: a space of its own."""
    training: str | None = None
    """How it was trained, such as `ssft`: models of equal training and another base are each
    other's replications. Known of organisms; null: its name here."""
    seed: NonNegativeInt | None = None
    """Training seed, for intervals over seeds. Known of organisms."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        # A model's name says all there is to say of most models.
        return {"model": given} if isinstance(given, str) else given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return with_short_form(handler(schema), "Organism, folder, or `org/name@revision`.")

    @model_validator(mode="after")
    def _organisms_are_known(self) -> "Compared":
        try:
            organism = organism_of(self)
        except ConfigError as error:
            # Of another kind than pydantic's own, it would not be told with its key.
            raise ValueError(str(error)) from None
        if organism is None:
            return self
        given = {"base": self.base, "training": self.training, "seed": self.seed}
        stated = [f"{key} {value}" for key, value in given.items() if value is not None]
        if stated:
            raise ValueError(
                f"'{self.model.id}' is given {', '.join(stated)}, and all three are known of "
                "organisms by their name: leave these keys out, or name the organism that is "
                "meant, such as ssft@seed=1"
            )
        return self


class GeometrySettings(FrozenConfig):
    """How finely directions, subspaces and activations are compared."""

    groups: PositiveInt = Field(default=20, ge=4)
    """Groups of prompts (clusters undivided) that the jackknife leaves out in turn."""
    null_draws: PositiveInt = Field(default=200, ge=20)
    """Relabelings of the prompts, the same in every model."""
    splits: PositiveInt = Field(default=50, ge=2)
    """Random halves of the prompts."""
    splits_left_out: PositiveInt = 4
    """Halves in each replicate of the jackknife."""
    subspace_rank: PositiveInt = 2
    """Components of harmful − harmless whose span is compared."""
    subspace_draws: PositiveInt = Field(default=40, ge=20)
    """Relabelings behind the null of subspaces."""
    cka_shuffles: PositiveInt = Field(default=20, ge=19)
    """Shuffles of one model's prompts behind the null of CKA."""
    massive_threshold: PositiveFloat = 200.0
    """Size of a massive channel as a multiple of the layer's median |x| (evidence.md 3)."""


class MapSettings(FrozenConfig):
    """Maps between models that share no space."""

    methods: tuple[MapMethod, ...] = ("procrustes", "ridge")
    """Empty: no maps. Models of one width are still compared channel by channel, whether or not
    they share a space; models of several widths are refused."""
    between: tuple[Pair, ...] | None = None
    """Pairs of models, each mapped both ways; null: all that share no space."""
    penalties: tuple[PositiveFloat, ...] = Field(default=PENALTIES, min_length=2)
    """Of the ridge, as multiples of the mean eigenvalue; cross-validation chooses."""
    folds: PositiveInt = Field(default=5, ge=2)
    """Parts of the neutral prompts that cross-validation holds out in turn."""
    rows_per_dimension: PositiveFloat = 2.0
    """Neutral prompts that a map needs, as a multiple of the wider model's `d_model`; fewer leave
    dimensions that no prompt determines."""
    shuffles: PositiveInt = 5
    """Maps fitted on shuffled prompts, whose held-out fit shows what chance gives."""
    resamples: PositiveInt = Field(default=1000, ge=100)
    """Resamplings of held-out prompts behind the interval of R²."""

    @field_validator("methods")
    @classmethod
    def _each_once(cls, methods: tuple[MapMethod, ...]) -> tuple[MapMethod, ...]:
        if len(set(methods)) < len(methods):
            raise ValueError("names a method twice")
        return methods

    @field_validator("between")
    @classmethod
    def _of_two_models(cls, between: tuple[Pair, ...] | None) -> tuple[Pair, ...] | None:
        for first, second in between or ():
            if first == second:
                raise ValueError(
                    f"pairs '{first}' with itself: a model with itself needs no map. Name two "
                    "models, such as [base, chat]"
                )
        return between


class TransferMatrix(TransferSettings):
    """Which directions are carried where, to be ablated and added."""

    models: tuple[str, ...] | None = None
    """Models whose directions are tried in each other; null: all. Models that refuse next to
    nothing give directions and receive none."""
    map: MapMethod = "ridge"
    """The map that carries directions between models that share no space."""
    min_refusals: float = Field(default=0.1, gt=0, le=1)
    """Share of harmful prompts that a model must refuse to be tried: else nothing can be lost."""
    resamples: PositiveInt = Field(default=1000, ge=100)
    """Resamplings of prompts behind every interval."""

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = {name for name in models or () if (models or ()).count(name) > 1}
        if twice:
            raise ValueError(
                f"names {', '.join(sorted(twice))} twice: each direction is tried once in each "
                "model, and its own is among them. Name every model once"
            )
        return models


class SimilaritySettings(StudyConfig):
    """All settings; `studies/similarity.py` gives them their name."""

    models: dict[Name, Compared] = Field(min_length=2)
    """Name → model. One is resident at a time (per worker)."""
    prompts: PairsSource
    """The organisms' world, or files: the same prompts for every model."""
    neutral: NeutralSource
    """Prompts that are not about harm, on which maps are fitted and checked."""
    chat: ChatFormat = ChatFormat()
    """System prompt, thinking state and chat template."""
    templates: Literal["same", "own"] = "same"
    """`same` refuses models whose chat templates differ; `own` reads each at the last token of its
    own template, which is then another token in another context."""
    judge: PhraseJudge | None = None
    """None: the organisms' phrases on organism prompts, else the anchored list."""
    refusal_tokens: dict[str, tuple[NonNegativeInt, ...]] = Field(
        default_factory=dict[str, tuple[int, ...]]
    )
    """Model → ids that open its refusals; for others they are found in the refusals of all models
    with its tokenizer."""
    position: PositionText = "last"
    """The one token position that is read."""
    cluster_by: str | None = None
    """Label of the prompts that resampling keeps together, such as `kind`; None: their group."""
    answers_max_new_tokens: PositiveInt = 24
    """Length in tokens of the answers that say how each model behaves on the fitted pairs."""
    direction: DirectionMethod = DifferenceInMeans()
    """How directions are fitted. Others than the mean difference are fitted anew for every group,
    relabeling and half: lower those counts."""
    geometry: GeometrySettings = GeometrySettings()
    """How finely directions, subspaces and activations are compared."""
    maps: MapSettings = MapSettings()
    """Maps between models that share no space."""
    transfer: TransferMatrix | None = TransferMatrix()
    """Which directions are carried where, to be ablated and added; None: geometry alone."""
    findings: tuple[Claim, ...] = ()
    """Claims with their primary cells, declared before anything is measured."""

    @model_validator(mode="after")
    def _names_are_known(self) -> "SimilaritySettings":
        named: dict[str, list[str]] = {
            f"models.{name}.base": [one.base] for name, one in self.models.items() if one.base
        }
        named["maps.between"] = [name for pair in self.maps.between or () for name in pair]
        named["refusal_tokens"] = list(self.refusal_tokens)
        if self.transfer is not None:
            named["transfer.models"] = list(self.transfer.models or ())
        for claim in self.findings:
            cell, whose = claim.cell, f"of finding '{claim.id}'"
            named[f"cell.first {whose}"] = [cell.first]
            named[f"cell.second {whose}"] = [cell.second]
            named[f"cell.replicates {whose}"] = [name for pair in cell.replicates for name in pair]
        for key, names in named.items():
            for name in names:
                if name not in self.models:
                    raise ValueError(
                        f"{key} names '{name}', which is no model of this run. "
                        + did_you_mean(name, list(self.models))
                    )
        return self

    @model_validator(mode="after")
    def _bases_come_to_an_end(self) -> "SimilaritySettings":
        for name in self.models:
            line = [name]
            while (base := self.models[line[-1]].base) is not None:
                line.append(base)
                if base in line[:-1]:
                    raise ValueError(
                        f"models.{line[-2]}.base closes a circle ({' from '.join(line)}): `base` "
                        "names the model that one was trained from, so one of them has none. "
                        "Leave out the `base` of the model that was there first"
                    )
        return self

    @model_validator(mode="after")
    def _maps_that_are_needed_are_fitted(self) -> "SimilaritySettings":
        methods = self.maps.methods
        if self.transfer is not None and methods and self.transfer.map not in methods:
            raise ValueError(
                f"transfer.map is '{self.transfer.map}', and maps.methods fits "
                f"{', '.join(methods)} only"
            )
        for claim in self.findings:
            via = claim.cell.via if isinstance(claim.cell, AtLayer) else None
            if via is not None and via not in methods:
                raise ValueError(
                    f"finding '{claim.id}' goes via '{via}', and maps.methods fits "
                    f"{', '.join(methods) or 'none'} only"
                )
        return self


def organism_of(model: Compared) -> Organism | None:
    """What is known of it, where it is an organism."""
    name = model.model.id
    return Organism.parse(name) if Organism.is_name(name) else None


def space_of(name: str, models: Mapping[str, Compared]) -> str:
    """The base whose space the model lives in; equal for models that need no map."""
    while (base := models[name].base) is not None:
        name = base
    organism = organism_of(models[name])
    return name if organism is None else str(base_of(organism))


def training_of(name: str, models: Mapping[str, Compared]) -> str:
    """How it was trained, in a word."""
    organism = organism_of(models[name])
    if organism is None:
        return models[name].training or name
    return organism.arm if organism.size == "default" else f"{organism.arm} ({organism.size})"


def seed_of(name: str, models: Mapping[str, Compared]) -> int | None:
    """Its training seed, where it is known."""
    organism = organism_of(models[name])
    return organism.seed if organism is not None else models[name].seed
