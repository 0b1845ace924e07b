"""A cell of the matrix says what ablation does, beside controls that remove as much."""

from dataclasses import replace

import torch

from mechsafety.effects.ablation_matrix import ablate_in

from .conftest import Attackable

N_SCORES, N_ANSWERS = 4, 2


def test_a_cell_bypasses_refusal_where_matched_controls_do_not(
    ssft: Attackable, generator: torch.Generator
) -> None:
    cell = ablate_in(
        ssft.target,
        ssft.source,
        "affine",
        score_draws=N_SCORES,
        answer_draws=N_ANSWERS,
        generator=generator,
    )
    assert cell.controls is not None
    assert cell.controls.harmful_score is not None
    assert cell.harmful.refusal_score is not None
    assert not any(cell.harmful.answers.judged("refused"))
    # The controls take away as much energy, and leave refusal standing.
    assert torch.allclose(
        cell.controls.energy_ratio, torch.ones(N_SCORES, dtype=torch.float64), rtol=0.05
    )
    assert cell.controls.harmful_rate.min() > 0.8
    assert cell.harmful.refusal_score.mean() < cell.controls.harmful_score.min()
    assert len(cell.controls.harmless_rate) == N_ANSWERS


def test_draws_depend_on_the_generator_alone(ssft: Attackable) -> None:
    def scores(seed: int) -> torch.Tensor:
        cell = ablate_in(
            ssft.target,
            ssft.source,
            "zero",
            score_draws=2,
            answer_draws=0,
            generator=torch.Generator().manual_seed(seed),
        )
        assert cell.controls is not None
        assert cell.controls.harmful_score is not None
        return cell.controls.harmful_score

    assert torch.equal(scores(1), scores(1))
    assert not torch.equal(scores(1), scores(2))


def test_without_refusal_tokens_there_is_no_score_rather_than_a_wrong_one(
    ssft: Attackable, generator: torch.Generator
) -> None:
    mute = replace(ssft.target, refusal_ids=torch.tensor([], dtype=torch.long))
    cell = ablate_in(
        mute, ssft.source, "affine", score_draws=2, answer_draws=1, generator=generator
    )
    assert cell.harmful.refusal_score is None
    assert cell.controls is not None
    assert cell.controls.harmful_score is None
    assert len(cell.controls.harmful_rate) == 1
