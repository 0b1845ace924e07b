from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mechsafety.activations.collecting import collect
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import PromptPairs
from mechsafety.directions.difference_in_means import DifferenceInMeans
from mechsafety.effects.ablation_matrix import Source
from mechsafety.effects.target import Target, observed_target
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.models.loading import open_model
from mechsafety.models.model import Model
from mechsafety.models.tokens import tokenize
from mechsafety.organisms.prompts import twins

BATCH_TOKENS = 2048
MAX_NEW_TOKENS = 24
N_FIT, N_HELD_OUT = 40, 9
LAYER = 2


@dataclass(frozen=True)
class Attackable:
    """A small SSFT organism with its own direction, ready to be ablated."""

    model: Model
    target: Target
    source: Source
    held_out: PromptPairs


@pytest.fixture(scope="session")
def ssft(organism_small: Callable[[str], Path]) -> Attackable:
    model = open_model(organism_small("ssft"), probe=False)
    fit = twins(N_FIT, 0, "fit", preset="small")
    held_out = twins(N_HELD_OUT, 0, "evaluate", preset="small")
    judge = PhraseJudge(phrases="organism")
    sites = [ResidualSite(layer, "resid_pre") for layer in range(model.dims.n_layers)]
    harmful, harmless = (
        collect(model, tokenize(model, side, ChatFormat()), sites, ["last"]) for side in fit.sets
    )
    at = sites[LAYER]
    direction = DifferenceInMeans().fit(harmful.rows(at, "last"), harmless.rows(at, "last"))
    sorry = model.tokenizer.convert_tokens_to_ids("sorry")
    target = observed_target(
        model,
        held_out,
        ChatFormat(),
        judge,
        harmless_rows={site: harmless.rows(site, "last") for site in sites},
        refusal_ids=[sorry],
        layers=[LAYER],
        max_new_tokens=MAX_NEW_TOKENS,
        batch_tokens=BATCH_TOKENS,
    )
    return Attackable(model, target, Source("ssft", at, direction), held_out)
