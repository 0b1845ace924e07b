"""Settings of the parts of the locality study."""

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mechsafety.core.config import FrozenConfig, StudyConfig
from mechsafety.core.positions import Position, PositionText
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.pairs import PairsSource
from mechsafety.effects.selection import Mode
from mechsafety.effects.selection_rule import SelectionFilters
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.models.spec import ModelSpec
from mechsafety.studies.locating.claims import Claim


class SelectionSettings(FrozenConfig):
    """How the direction is chosen."""

    mode: Mode = "winner"
    """`winner` finds the chosen direction fast; `exhaustive` scores every candidate. Where the map
    is drawn it scores them all anyway, and the choice is repeated inside a bootstrap."""
    filters: SelectionFilters = SelectionFilters()
    """Which candidates may win; the defaults are the published ones."""
    only_behaving: bool = True
    """Fit and select on prompts that the model treats as it should: harmful ones with a refusal
    score above 0, harmless ones below (twins stay or leave together)."""
    min_prompts: PositiveInt = 8
    """Fewer pairs left than this, and nothing causal is measured."""
    refits: PositiveInt = 5
    """Disjoint folds of the fit split, each giving the winner's direction again."""


class MapSettings(FrozenConfig):
    """Resolution of the maps."""

    streams: tuple[Literal["resid_pre", "resid_mid"], ...] = ("resid_pre", "resid_mid")
    """Places of each block at which directions are read; `resid_pre`, of which the direction is
    chosen, must be among them."""
    permutations: PositiveInt = 200
    """Relabelings behind the separation band."""
    resamples: PositiveInt = 2000
    """Resamplings of prompts behind every interval."""
    controls: PositiveInt = 10
    """Matched directions at every layer; a band at 95 % needs 19."""
    control_position: PositionText = "last"
    """Position at which controls match the direction."""

    @field_validator("streams")
    @classmethod
    def _the_choice_has_candidates(cls, streams: tuple[str, ...]) -> tuple[str, ...]:
        if "resid_pre" not in streams:
            raise ValueError("leaves out resid_pre, of which the direction is chosen")
        return streams


class LocalizeSettings(FrozenConfig):
    """Where the winner's effect comes from."""

    max_windows_from: PositiveInt = 12
    """At most so many layers begin a window; deeper models are tried at every second, third, …"""
    share: float = Field(default=0.9, gt=0, le=1)
    """Share of the effect that a window, or of the direction that its top writers, must keep."""
    ablated_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the direction whose writers are ablated, beside as many others: the writers of most
    of it leave too few others to compare them with."""
    positions: tuple[PositionText, ...] = Field(
        default=("eoi", "instruction_end", "prompt"), min_length=1
    )
    """Tokens at which the direction is ablated alone."""
    doses: tuple[NonNegativeFloat, ...] = Field(default=(0.0, 0.1, 0.2, 0.4, 0.8), min_length=1)
    """Strengths of additions, in mean norms of the residual stream of that layer."""
    controls: PositiveInt = 10
    """Matched directions, and sets of other writers; a band at 95 % needs 19."""
    dose_controls: PositiveInt = 5
    """How many of these directions are also added at every layer and dose."""
    two_by_two_min: PositiveInt = 8
    """Prompts that a cell of harm × behavior needs."""
    two_by_two_n: NonNegativeInt = 80
    """Wrapped prompts a set that are asked to fill it (organism prompts only)."""

    @field_validator("doses")
    @classmethod
    def _some_dose_adds_something(cls, doses: tuple[float, ...]) -> tuple[float, ...]:
        if not any(doses):
            raise ValueError("has no dose above 0")
        return doses

    @field_validator("positions")
    @classmethod
    def _of_the_prompt(cls, positions: tuple[str, ...]) -> tuple[str, ...]:
        if "generated" in positions:
            raise ValueError("names 'generated', of which a prompt has no token")
        return positions


class EvaluateSettings(FrozenConfig):
    """The winner on the third split."""

    max_new_tokens: PositiveInt = 24
    """Answer length in tokens; part of the name of every rate."""
    addition_doses: tuple[PositiveFloat, ...] = Field(default=(1.0, 2.0), min_length=1)
    """Multiples of the raw mean difference."""
    score_draws: PositiveInt = 20
    """Energy-matched controls scored at the first token."""
    answer_draws: PositiveInt = 5
    """How many of these controls also generate answers."""


class LocalitySettings(StudyConfig):
    """All settings; `studies/locality.py` gives them their name."""

    model: ModelSpec
    """The model whose refusal is located."""
    base: ModelSpec | None = None
    """The model before safety training, whose separation map stands beside; None: not shown."""
    prompts: PairsSource
    """The organisms' world, or files."""
    chat: ChatFormat = ChatFormat()
    """System prompt, thinking state and chat template."""
    judge: PhraseJudge | None = None
    """None: the organisms' phrases on organism prompts, else the anchored list."""
    refusal_tokens: tuple[NonNegativeInt, ...] | None = None
    """Ids that open a refusal; None finds them in the model's own refusals."""
    positions: tuple[PositionText, ...] = Field(default=("eoi",), min_length=1)
    """Token positions at which directions are read; the order decides ties."""
    cluster_by: str | None = None
    """Label of the prompts that resampling keeps together, such as `kind`; None: their group."""
    answers_max_new_tokens: PositiveInt = 24
    """Length in tokens of the answers that say how the model behaves on the fitted pairs."""
    selection: SelectionSettings = SelectionSettings()
    """How the direction is chosen."""
    maps: MapSettings = MapSettings()
    """Resolution of the maps."""
    localize: LocalizeSettings = LocalizeSettings()
    """Where the chosen direction's effect comes from."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """What the chosen direction does on the third split."""
    findings: tuple[Claim, ...] = ()
    """Claims with their primary cells, declared before anything is measured."""

    @model_validator(mode="after")
    def _controls_match_a_position_that_is_read(self) -> "LocalitySettings":
        read = {Position.parse(name) for name in self.positions}
        at = Position.parse(self.maps.control_position)
        if at not in read and not (at.name in {"last", "eoi"} and Position("eoi") in read):
            raise ValueError(
                f"maps.control_position '{at}' is not read: positions are "
                f"{', '.join(self.positions)}"
            )
        return self
