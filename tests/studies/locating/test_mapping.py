"""Candidates, their controls, and a choice that is the same however it is searched for."""

import pytest
import torch

from mechsafety.core.sites import ResidualSite
from mechsafety.effects.selection import Mode
from mechsafety.studies.arms import let_go
from mechsafety.studies.locating.mapping import (
    SelectJob,
    at_block_inputs,
    control_candidates,
    select,
)
from tests.studies.locality_runs import Ran

N_ROWS, D_MODEL, N_DRAWS = 40, 11, 5
SITES = [ResidualSite(0, "resid_pre"), ResidualSite(1, "resid_pre"), ResidualSite(1, "resid_post")]


@pytest.mark.parametrize("mode", ["winner", "exhaustive"])
def test_either_search_chooses_what_the_complete_map_does(ssft: Ran, mode: Mode) -> None:
    found, kept = ssft.causal.map, ssft.causal.selection
    assert kept.mode == "winner"
    pairs = ssft.frame.prompts.pairs["select"]  # all of them are treated as they should be
    assert len(pairs.first) == len(found.clean.harmful)
    candidates = at_block_inputs(found.candidates)
    job = SelectJob(
        ssft.frame.asked, pairs, ssft.causal.refusal_ids, candidates, kept.filters, mode
    )
    try:
        again = select(job)
    finally:
        let_go()
    assert again.chosen is not None
    assert again.chosen == kept.chosen == found.choice(again)
    columns = [found.candidates.sites.index(site) for site in candidates.sites]
    full = found.scores.bypass[:, :, columns]
    scored = ~again.scores.bypass.isnan()
    assert bool(scored.all()) == (mode == "exhaustive")  # the fast one leaves some out
    torch.testing.assert_close(again.scores.bypass[scored], full[scored], atol=1e-4, rtol=1e-4)


def test_only_block_inputs_are_chosen_from(ssft: Ran) -> None:
    everywhere = ssft.causal.map.candidates
    assert {site.stream for site in everywhere.sites} == {"resid_pre", "resid_mid", "resid_post"}
    inputs = at_block_inputs(everywhere)
    assert [str(site) for site in inputs.sites] == [f"resid_pre.{layer}" for layer in range(4)]
    assert torch.equal(inputs.at(1, 3), everywhere.at(1, everywhere.sites.index(inputs.sites[3])))


def test_controls_match_each_direction_and_a_zero_one_has_none(generator: torch.Generator) -> None:
    rows = torch.randn(N_ROWS, len(SITES), D_MODEL, generator=generator)
    rows[:, 1] *= torch.linspace(0.1, 4, D_MODEL)
    vectors = torch.randn(len(SITES), D_MODEL, generator=generator)
    vectors[0] = 0
    found = control_candidates(rows, vectors, SITES, N_DRAWS, seed=0)
    assert found.vectors.shape == (N_DRAWS, len(SITES), D_MODEL)
    assert not bool(found.vectors[:, 0].any())
    norms = found.vectors.norm(dim=2)
    torch.testing.assert_close(norms, vectors.norm(dim=1).expand_as(norms))
    energy = [
        ((rows[:, 1].double() @ (v / v.norm()).double()) ** 2).mean()
        for v in (vectors[1], *found.vectors[:, 1])
    ]
    torch.testing.assert_close(torch.stack(energy[1:]), energy[0].repeat(N_DRAWS), rtol=0.2, atol=0)
    unlike = torch.cosine_similarity(found.vectors[:, 1], vectors[1], dim=1).abs()
    assert float(unlike.max()) < 0.95


def test_controls_of_a_site_do_not_depend_on_which_others_are_asked(
    generator: torch.Generator,
) -> None:
    rows = torch.randn(N_ROWS, len(SITES), D_MODEL, generator=generator)
    vectors = torch.randn(len(SITES), D_MODEL, generator=generator)
    all_three = control_candidates(rows, vectors, SITES, N_DRAWS, seed=0).vectors
    alone = control_candidates(rows[:, 2:], vectors[2:], SITES[2:], N_DRAWS, seed=0).vectors
    assert torch.equal(all_three[:, 2], alone[:, 0])
    other = control_candidates(rows[:, 2:], vectors[2:], SITES[2:], N_DRAWS, seed=1).vectors
    assert not torch.equal(alone, other)
