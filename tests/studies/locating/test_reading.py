"""Places that are read, named once each, and the prompt that shows them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mechsafety.core.config import Runtime
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import Prompt, PromptSet
from mechsafety.models.model import Model
from mechsafety.models.spec import ModelSpec
from mechsafety.studies import arms
from mechsafety.studies.arms import single_positions
from mechsafety.studies.locating.reading import Asked, map_sites
from tests.studies.locality_runs import Ran


@pytest.fixture
def asked(organism_small: Callable[[str], Path]) -> Iterator[Asked]:
    yield Asked(ModelSpec(id=str(organism_small("ssft"))), Runtime(), ChatFormat(), 0)
    arms.let_go()


def test_one_model_at_a_time_stays_open(
    asked: Asked, organism_small: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Model] = []
    real = arms.open_arm
    monkeypatch.setattr(arms, "open_arm", lambda *given: opened.append(real(*given)) or opened[-1])
    first = asked.open()
    assert asked.open() is first
    other = Asked(ModelSpec(id=str(organism_small("base"))), Runtime(), ChatFormat(), 0)
    second = other.open()
    assert second is not first
    assert not hasattr(first, "hf"), "the model before is closed"
    assert other.open() is second
    arms.let_go()
    assert not hasattr(second, "hf")
    assert len(opened) == 2
    arms.let_go()  # nothing is left to close


def test_the_last_token_is_read_once_whatever_it_is_called(asked: Asked) -> None:
    prompts = PromptSet("harmless", (Prompt.of("how do you make bread ?"),), "test")
    tokens = asked.tokens(asked.open(), prompts)
    for names in (["eoi", "last"], ["last", "eoi"], ["eoi[-1]", "eoi", "last"]):
        found = [str(one) for one in single_positions(tokens, names)]
        assert sorted(found) == ["eoi[-2]", "last"]


def test_the_map_ends_with_the_output_of_the_last_block(asked: Asked) -> None:
    sites, left_out = map_sites(asked.open(), ("resid_pre", "resid_mid"))
    assert [str(site) for site in sites[:3]] == ["resid_pre.0", "resid_mid.0", "resid_pre.1"]
    assert str(sites[-1]) == "resid_post.3"
    assert len(sites) == 9
    assert left_out == ()
    assert list(sites) == sorted(sites)  # in order of computation


def test_the_prompt_that_is_shown_says_where_it_is_read(ssft: Ran) -> None:
    tokens = [
        (row.dimensions["token"], row.dimensions["part"], row.dimensions["read"])
        for row in ssft.table("prompt")
    ]
    shown = ssft.frame.prompts.pairs["fit"].second.prompts[0].instruction
    assert " ".join(str(t) for t, part, _ in tokens if part == "instruction") == shown
    assert tokens[0][:2] == ("<|user|>", "template")
    assert [read for _, _, read in tokens[-3:]] == ["instruction_end", "eoi[-2]", "last"]
    assert [read for _, _, read in tokens[:-3]] == [None] * (len(tokens) - 3)


def test_rows_of_the_map_are_the_activations_of_the_prompts_in_their_order(ssft: Ran) -> None:
    read = ssft.measured.read
    n = len(ssft.frame.prompts.pairs["fit"].first)
    assert read.rows["harmful"].shape == (n, 9, 3, read.dims.d_model)
    at_last_input = read.rows["harmless"][:, 0, 2]
    assert torch.equal(at_last_input, at_last_input[:1].expand_as(at_last_input))
    assert read.norms.keys() == set(range(5))
    norm = read.rows["harmless"][:, 8, 2].double().norm(dim=1).mean()
    assert read.norms[4] == pytest.approx(float(norm), rel=1e-5)
