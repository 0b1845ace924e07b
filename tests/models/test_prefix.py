"""Tokens that all prompts begin with are computed once, and nothing else changes."""

from functools import partial

import pytest
import torch

from mechsafety.core.sites import ResidualSite
from mechsafety.interventions.add import add
from mechsafety.models.hooking import intervene
from mechsafety.models.model import Model
from mechsafety.models.prefix import shared_length, without_first
from mechsafety.models.tokens import from_ids, pad

from .families import D_MODEL, FAMILIES, tiny

START = [7, 11, 13, 17, 19, 23, 29]
PROMPTS = from_ids([[*START, 5], [*START, 31, 37, 41], [*START, 43, 8]])


SLIDING = ("mistral", "gemma2", "gemma3")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in SLIDING])
def test_logits_after_a_shared_prefix_are_those_of_the_whole_prompt(family: str) -> None:
    model = Model(tiny(family), None, None)
    rest = without_first(PROMPTS, len(START))
    vector = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    edit = {ResidualSite(1, "resid_pre"): partial(add, vector=vector, coefficient=1.0)}
    whole, ending = (pad(p.ids, [0, 1, 2], 0, "left") for p in (PROMPTS, rest))
    with torch.inference_mode():
        clean = model.forward(whole)
        with intervene(model, edit):
            expected = model.forward(whole)
            prefix = model.run_prefix(START)
            found = model.forward(ending, after=prefix)
            # A pass leaves the prefix as it was, so that the next batch can begin with it.
            again = model.forward(ending, after=prefix)
    assert (expected - clean).abs().max() > 0.05
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(again, found)
    assert model.shared_length(PROMPTS) == len(START)


@pytest.mark.parametrize("family", SLIDING)
def test_a_window_that_counts_padding_is_found_out_and_nothing_is_shared(family: str) -> None:
    assert Model(tiny(family), None, None).shared_length(PROMPTS) == 0
    equal_lengths = from_ids([[*START, 5, 6], [*START, 31, 37]])
    assert Model(tiny("llama"), None, None).shared_length(equal_lengths) == len(START)


def test_a_prefix_is_shared_only_where_that_saves_enough() -> None:
    assert shared_length(PROMPTS) == len(START)
    long_endings = from_ids([[7, 11, *range(3, 53)], [7, 11, *range(4, 53)]])
    assert shared_length(long_endings) == 0
    assert shared_length(PROMPTS.select([0])) == 0


def test_the_last_token_of_a_prompt_is_never_in_the_prefix() -> None:
    assert shared_length(from_ids([[5, 6, 7], [5, 6, 7]])) == 2
