"""A carried direction transfers where it does what the target's own does, beside controls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.config import Runtime
from mechsafety.core.errors import DegenerateDirectionError, SubspaceError
from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.directions.difference_in_means import difference_in_means
from mechsafety.effects.ablation import addition
from mechsafety.effects.scores import refusal_scores
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.metrics.matched_controls import draw_norm_matched
from mechsafety.models.loading import open_model
from mechsafety.models.spec import ModelSpec
from mechsafety.models.tokens import tokenize
from mechsafety.organisms.prompts import twins
from mechsafety.studies.comparing.transferring import (
    CarriedSource,
    TransferCell,
    TransferJob,
    Transferred,
    TransferSettings,
    transfer,
)
from tests.studies.comparing.keeping import kept

N_FIT, N_HELD_OUT = 40, 9
N_SCORES, N_ANSWERS = 4, 2
LAYER = 2
Folder = Callable[[str], Path]


@dataclass(frozen=True)
class Read:
    """What an organism gives: harmless activations, and its direction at the layer."""

    harmless: Mapping[ResidualSite, Tensor]
    direction: Tensor
    sorry: int


def read(folder: Path) -> Read:
    model = open_model(folder, probe=False)
    try:
        sites = [ResidualSite(layer, "resid_pre") for layer in range(model.dims.n_layers)]
        harmful, harmless = (
            collect(model, tokenize(model, side, ChatFormat()), sites, ["last"])
            for side in twins(N_FIT, 0, "fit", preset="small").sets
        )
        at = sites[LAYER]
        return Read(
            {site: harmless.rows(site, "last") for site in sites},
            difference_in_means(harmful.rows(at, "last"), harmless.rows(at, "last")),
            model.tokenizer.convert_tokens_to_ids("sorry"),
        )
    finally:
        model.close()


@pytest.fixture(scope="module")
def job(organism_small: Folder) -> TransferJob:
    """SSFT as the target of its own direction, of a relative's and of one drawn at random."""
    found = {arm: read(organism_small(arm)) for arm in ("ssft", "lat")}
    own = found["ssft"]
    drawn = torch.randn(len(own.direction), generator=torch.Generator().manual_seed(1))
    return TransferJob(
        target="ssft",
        model=ModelSpec(id=str(organism_small("ssft"))),
        runtime=Runtime(batch_tokens=2048),
        chat=ChatFormat(),
        judge=PhraseJudge(phrases="organism"),
        settings=TransferSettings(
            n=N_HELD_OUT,
            forms=("affine",),
            score_draws=N_SCORES,
            answer_draws=N_ANSWERS,
        ),
        pairs=twins(N_HELD_OUT, 0, "evaluate", preset="small"),
        site=ResidualSite(LAYER, "resid_pre"),
        sources=(
            CarriedSource("ssft", "own", own.direction),
            CarriedSource("lat", "same space", found["lat"].direction),
            CarriedSource("noise", "ridge", drawn),
        ),
        own_norm=1.5 * float(own.direction.norm()),
        harmless_rows=own.harmless,
        refusal_ids=(own.sorry,),
        seed=3,
    )


@pytest.fixture(scope="module")
def done(job: TransferJob) -> Transferred:
    return transfer(job)


@pytest.fixture
def brief(job: TransferJob) -> TransferJob:
    """The same with few prompts and short answers, in both forms."""
    pairs = job.pairs
    few = replace(pairs, first=pairs.first.select([0, 1, 2]), second=pairs.second.select([0, 1, 2]))
    less = {"forms": ("zero", "affine"), "max_new_tokens": 3, "score_draws": 2, "answer_draws": 1}
    settings = job.settings.model_copy(update=less)
    return replace(job, pairs=few, settings=settings)


def cell_of(done: Transferred, model: str) -> TransferCell:
    return next(cell for cell in done.cells if cell.source.model == model)


def numbers(cell: TransferCell) -> Tensor:
    """All that was measured in a cell, in one row."""
    added = cell.added
    found = [added.scores, added.control_scores, added.control_rates]
    for one in cell.ablated.values():
        assert one.controls is not None
        assert one.controls.harmful_score is not None
        for side in (one.harmful, one.harmless):
            assert side.refusal_score is not None
            found += [side.refusal_score, side.kl, side.content]
        found += [one.controls.harmful_score, one.controls.energy_ratio, one.controls.harmful_rate]
    return torch.cat([each.double() for each in found])


def mean_scores(cell: TransferCell) -> tuple[float, float]:
    """Of harmful prompts under affine ablation, and of harmless ones under addition."""
    ablated = cell.ablated["affine"].harmful.refusal_score
    assert ablated is not None
    return float(ablated.mean()), float(cell.added.scores.mean())


@pytest.mark.parametrize("model", ["ssft", "lat"])
def test_the_own_direction_and_a_relatives_switch_refusal_off_and_on_where_controls_do_not(
    done: Transferred, model: str
) -> None:
    assert all(verdict == "refused" for verdict in done.baseline.harmful)
    assert all(verdict == "complied" for verdict in done.baseline.harmless)
    cell = cell_of(done, model)
    ablated, (bypassed, induced) = cell.ablated["affine"], mean_scores(cell)
    assert not any(ablated.harmful.answers.judged("refused"))
    assert ablated.controls is not None
    assert ablated.controls.harmful_score is not None
    assert bypassed < ablated.controls.harmful_score.min()
    torch.testing.assert_close(
        ablated.controls.energy_ratio, torch.ones(N_SCORES).double(), rtol=0.05, atol=0
    )
    assert all(cell.added.answers.judged("refused"))
    assert induced > cell.added.control_scores.max()
    assert cell.added.control_rates.tolist() == [0] * N_ANSWERS


def test_a_random_direction_transfers_nothing(done: Transferred) -> None:
    cell = cell_of(done, "noise")
    assert all(cell.ablated["affine"].harmful.answers.judged("refused"))
    assert not any(cell.added.answers.judged("refused"))
    assert done.baseline.scores is not None
    bypassed, induced = mean_scores(cell)
    own_bypassed, own_induced = mean_scores(cell_of(done, "ssft"))
    harmful, harmless = (float(side.mean()) for side in done.baseline.scores.split(N_HELD_OUT))
    assert harmful - bypassed < (harmful - own_bypassed) / 5
    assert induced - harmless < (own_induced - harmless) / 3


def test_only_the_targets_own_ablation_has_controls_that_answer(done: Transferred) -> None:
    answered = {
        cell.source.model: len(cell.ablated["affine"].controls.harmful_rate)
        for cell in done.cells
        if cell.ablated["affine"].controls is not None
    }
    assert answered == {"ssft": N_ANSWERS, "lat": 0, "noise": 0}
    assert set(done.token_use) == {"transfer/harmful", "transfer/harmless"}
    assert [cell.source.model for cell in done.cells] == ["ssft", "lat", "noise"]


def test_shared_controls_of_addition_are_those_of_each_source_scored_one_by_one(
    job: TransferJob, done: Transferred
) -> None:
    shared = done.cells[0].added.control_scores
    assert shared.std() > 0.1
    model = open_model(Path(job.model.id), probe=False)
    tokens = tokenize(model, job.pairs.second.prompts, job.chat)
    try:
        for source, cell in zip(job.sources, done.cells, strict=True):
            vector = source.direction * (job.own_norm / source.direction.norm())
            name = ("controls of addition", job.target, str(job.site))
            drawn = draw_norm_matched(
                vector, N_SCORES, named_generator(job.seed, *name), job.harmless_rows[job.site]
            )
            alone = [
                refusal_scores(
                    model,
                    tokens,
                    torch.tensor(job.refusal_ids),
                    job.runtime.batch_tokens,
                    addition(job.site, control, 1.0),
                ).mean()
                for control in drawn
            ]
            torch.testing.assert_close(torch.stack(alone), shared, atol=1e-4, rtol=1e-4)
            assert torch.equal(cell.added.control_scores, shared)
    finally:
        model.close()


def test_a_source_gives_the_same_whatever_stands_before_it(brief: TransferJob) -> None:
    forwards = transfer(brief)
    backwards = transfer(replace(brief, sources=brief.sources[:0:-1]))
    assert [cell.source.model for cell in backwards.cells] == ["noise", "lat"]
    for cell in backwards.cells:
        assert torch.equal(numbers(cell), numbers(cell_of(forwards, cell.source.model)))
        assert set(cell.ablated) == {"zero", "affine"}
    # Sources do differ, and so do the forms.
    first, second = (numbers(cell) for cell in backwards.cells)
    assert not torch.allclose(first, second, atol=0.1)


def test_what_was_tried_is_the_same_when_it_was_kept_and_read_again(
    brief: TransferJob, done: Transferred
) -> None:
    again = kept(done)
    for cell in done.cells:
        other = cell_of(again, cell.source.model)
        assert float(numbers(cell).abs().max()) > 1
        assert torch.equal(numbers(other), numbers(cell))
    asked = kept(brief)
    assert asked.harmless_rows.keys() == brief.harmless_rows.keys()
    assert (asked.settings, asked.model, asked.pairs) == (brief.settings, brief.model, brief.pairs)


def test_a_direction_counts_by_where_it_points_and_the_dose_by_the_targets_norm(
    brief: TransferJob,
) -> None:
    own = brief.sources[0]
    settings = brief.settings.model_copy(update={"forms": ("affine",)})
    alone = replace(brief, sources=(own,), settings=settings)
    longer = replace(alone, sources=(replace(own, direction=8 * own.direction),))
    once, again = (transfer(one).cells[0] for one in (alone, longer))
    assert torch.equal(numbers(once), numbers(again))
    weaker = transfer(replace(longer, own_norm=brief.own_norm / 8)).cells[0]
    assert mean_scores(weaker)[0] == mean_scores(once)[0]
    assert mean_scores(weaker)[1] < mean_scores(once)[1] - 1
    backwards = transfer(replace(alone, sources=(replace(own, direction=-own.direction),))).cells[0]
    assert mean_scores(backwards)[0] == pytest.approx(mean_scores(once)[0], abs=1e-3)
    assert mean_scores(backwards)[1] < mean_scores(once)[1] - 1


@pytest.mark.parametrize("norm", [0.0, float("nan")])
def test_a_direction_that_points_nowhere_is_refused_by_name_before_a_model_is_opened(
    job: TransferJob, norm: float
) -> None:
    closed = replace(job, model=ModelSpec(id="/nowhere"))
    broken = CarriedSource("mapped", "ridge", norm * job.sources[0].direction)
    with pytest.raises(
        DegenerateDirectionError, match=r"'mapped' into 'ssft' \(ridge\).*map takes to zero"
    ):
        transfer(replace(closed, sources=(job.sources[0], broken)))
    with pytest.raises(DegenerateDirectionError, match=r"the dose (0|nan).*classes differ"):
        transfer(replace(closed, own_norm=norm))


def test_a_direction_of_another_width_needs_a_map(job: TransferJob) -> None:
    wider = torch.cat([job.sources[0].direction, torch.ones(3)])
    narrow = len(job.sources[0].direction)
    with pytest.raises(
        SubspaceError, match=rf"{narrow + 3} entries.*{narrow} wide at resid_pre\.2.*by a map"
    ):
        transfer(replace(job, sources=(CarriedSource("wide", "same space", wider),)))
