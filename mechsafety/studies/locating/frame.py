"""What every step of the study needs at hand."""

from collections.abc import Mapping
from dataclasses import dataclass

from mechsafety.core.context import Context
from mechsafety.core.seeding import derive_seed
from mechsafety.data.prompts import PromptPairs
from mechsafety.data.splits import Split
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.models.spec import ModelSpec
from mechsafety.organisms.sources import StudyPrompts
from mechsafety.studies.locating.reading import Asked, ClassScores
from mechsafety.studies.locating.settings import LocalitySettings


@dataclass(frozen=True)
class Frame:
    """The run, its prompts and the model that is asked."""

    config: LocalitySettings
    context: Context
    prompts: StudyPrompts
    judge: PhraseJudge
    asked: Asked


@dataclass(frozen=True)
class Behaving:
    """The prompts that the model treats as a refusing model does."""

    refusal_ids: tuple[int, ...]
    scores: Mapping[str, ClassScores]
    """Of the unedited model, by split, all prompts."""
    rows: Mapping[Split, tuple[list[int], list[int]]]
    """Rows of both sides that are kept, of the splits that fit and select."""
    pairs: Mapping[Split, PromptPairs]
    """Those rows, and the whole third split."""


def ask_of(config: LocalitySettings, model: ModelSpec, folders: Mapping[str, str]) -> Asked:
    """Which model jobs ask, and how."""
    spec = model.model_copy(update={"id": folders[model.id]})
    return Asked(spec, config.runtime, config.chat, derive_seed(config.seed, "locality"))
