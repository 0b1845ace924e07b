"""Controls of the writers: as many others of each kind."""

import pytest
import torch

from mechsafety.core.config import Runtime
from mechsafety.core.positions import Position
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.pairs import twins_of
from mechsafety.effects.attribution import Writer
from mechsafety.models.spec import ModelSpec
from mechsafety.studies.locating.partial import WritersJob, _other_writers
from mechsafety.studies.locating.reading import Asked

N_HEADS, N_BLOCKS, N_CONTROLS = 5, 3, 4
EMBEDDING = Writer("embedding")
HEADS = [Writer("head", layer, head) for layer in range(N_BLOCKS) for head in range(N_HEADS)]
MLPS = [Writer("mlp", layer) for layer in range(N_BLOCKS)]
ALL = [EMBEDDING, *HEADS, *MLPS]


@pytest.fixture
def job() -> WritersJob:
    pairs = twins_of([("how do you fake coins ?", "how do you bake bread ?")])
    asked = Asked(ModelSpec(id="nowhere"), Runtime(), ChatFormat(), 0)
    return WritersJob(
        asked=asked,
        fit=pairs,
        held_out=pairs,
        refusal_ids=(1,),
        direction=torch.ones(7),
        site=ResidualSite(3, "resid_pre"),
        position=Position("last"),
        share=0.9,
        ablated_share=0.5,
        n_controls=N_CONTROLS,
    )


def test_others_are_as_many_of_each_kind_and_none_of_the_top(job: WritersJob) -> None:
    top = [HEADS[0], HEADS[7], MLPS[1]]
    rivals = _other_writers(job, ALL, top)
    assert len(rivals) == N_CONTROLS
    for rival in rivals:
        assert sorted(writer.kind for writer in rival) == ["head", "head", "mlp"]
        assert len(set(rival)) == 3
        assert not set(rival) & set(top)
    assert len({tuple(rival) for rival in rivals}) > 1


def test_where_a_kind_runs_out_others_are_of_any_kind_and_may_overlap(job: WritersJob) -> None:
    top = [MLPS[0], MLPS[1]]
    rivals = _other_writers(job, ALL, top)
    assert all(len(set(rival)) == 2 and EMBEDDING not in rival for rival in rivals)
    assert any(writer.kind == "head" for rival in rivals for writer in rival)


@pytest.mark.parametrize("top", [[], [*HEADS, *MLPS]])
def test_with_nothing_to_ablate_or_nothing_else_left_there_are_no_others(
    job: WritersJob, top: list[Writer]
) -> None:
    assert _other_writers(job, ALL, top) == []
