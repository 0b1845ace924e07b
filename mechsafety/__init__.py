"""How do language models represent refusal, and what does safety training do to it?

The names below are imported when first used, so that `import mechsafety` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechsafety.activations.collecting import collect
    from mechsafety.core.positions import Position
    from mechsafety.core.sites import HeadSite, NeuronSite, ResidualSite, Site
    from mechsafety.data.chat_template import ChatFormat
    from mechsafety.data.pairs import read_pairs
    from mechsafety.data.readers import read_prompts
    from mechsafety.directions.difference_in_means import DifferenceInMeans, difference_in_means
    from mechsafety.directions.principal_components import PrincipalComponents
    from mechsafety.directions.scav import Scav
    from mechsafety.effects.ablation import addition, affine_ablation, zero_ablation
    from mechsafety.interventions.ablate import ablate, ablate_affine
    from mechsafety.interventions.add import add
    from mechsafety.judges.phrases import PhraseJudge
    from mechsafety.metrics.concentration import ConcentrationSettings, concentration
    from mechsafety.models.hooking import intervene
    from mechsafety.models.loading import open_model
    from mechsafety.models.tokens import tokenize
    from mechsafety.organisms.prompts import twins
    from mechsafety.records.reading import open_run

_HOMES = {
    "ChatFormat": "data.chat_template",
    "ConcentrationSettings": "metrics.concentration",
    "DifferenceInMeans": "directions.difference_in_means",
    "HeadSite": "core.sites",
    "NeuronSite": "core.sites",
    "PhraseJudge": "judges.phrases",
    "Position": "core.positions",
    "PrincipalComponents": "directions.principal_components",
    "ResidualSite": "core.sites",
    "Scav": "directions.scav",
    "Site": "core.sites",
    "ablate": "interventions.ablate",
    "ablate_affine": "interventions.ablate",
    "add": "interventions.add",
    "addition": "effects.ablation",
    "affine_ablation": "effects.ablation",
    "collect": "activations.collecting",
    "concentration": "metrics.concentration",
    "difference_in_means": "directions.difference_in_means",
    "intervene": "models.hooking",
    "open_model": "models.loading",
    "open_run": "records.reading",
    "read_pairs": "data.pairs",
    "read_prompts": "data.readers",
    "tokenize": "models.tokens",
    "twins": "organisms.prompts",
    "zero_ablation": "effects.ablation",
}

__all__ = [
    "ChatFormat",
    "ConcentrationSettings",
    "DifferenceInMeans",
    "HeadSite",
    "NeuronSite",
    "PhraseJudge",
    "Position",
    "PrincipalComponents",
    "ResidualSite",
    "Scav",
    "Site",
    "ablate",
    "ablate_affine",
    "add",
    "addition",
    "affine_ablation",
    "collect",
    "concentration",
    "difference_in_means",
    "intervene",
    "open_model",
    "open_run",
    "read_pairs",
    "read_prompts",
    "tokenize",
    "twins",
    "zero_ablation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mechsafety' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mechsafety.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
