"""Adding the direction makes harmless prompts refused, and other vectors of its norm do not."""

import pytest
import torch

from mechsafety.effects.ablation import addition
from mechsafety.effects.added_in import add_in, added_controls
from mechsafety.effects.scores import refusal_scores
from mechsafety.metrics.matched_controls import draw_norm_matched
from mechsafety.metrics.refusal_score import refusal_score

from .conftest import Attackable

N_SCORES, N_ANSWERS = 4, 2
DOSE = 1.5  # half of the small organism's harmless prompts resist a dose of 1


def test_the_direction_induces_refusal_where_vectors_of_its_norm_do_not(
    ssft: Attackable, generator: torch.Generator
) -> None:
    target, site, vector = ssft.target, ssft.source.site, ssft.source.subspace.vector
    assert not any(target.harmless.answers.judged("refused"))
    drawn = draw_norm_matched(vector, N_SCORES, generator, target.harmless_rows[site])
    controls = added_controls(target, site, DOSE * drawn, N_ANSWERS)
    assert controls.scores.shape == (N_SCORES,)
    assert controls.rates.tolist() == [0] * N_ANSWERS

    added = add_in(target, site, vector, DOSE, controls)
    assert sum(added.answers.judged("refused")) > len(added.scores) / 2
    assert added.scores.mean() > controls.scores.max()
    assert torch.equal(added.control_scores, controls.scores)
    assert torch.equal(added.control_rates, controls.rates)


def test_controls_are_what_adding_each_of_them_gives(ssft: Attackable) -> None:
    target, site, vector = ssft.target, ssft.source.site, ssft.source.subspace.vector
    vectors = torch.stack([0.7 * vector, -vector, torch.zeros_like(vector)])
    controls = added_controls(target, site, vectors, N_ANSWERS)
    for i, one in enumerate(vectors):
        alone = add_in(target, site, one, 1.0, controls)
        assert float(alone.scores.mean()) == pytest.approx(float(controls.scores[i]), abs=1e-4)
        if i < N_ANSWERS:
            refused = alone.answers.judged("refused")
            assert float(controls.rates[i]) == sum(refused) / len(refused)
    unedited = refusal_score(target.harmless.logits, target.refusal_ids).mean()
    assert float(controls.scores[2]) == pytest.approx(float(unedited), abs=1e-4)


def test_a_dose_is_so_many_times_the_vector(ssft: Attackable) -> None:
    target, site, vector = ssft.target, ssft.source.site, ssft.source.subspace.vector
    none = added_controls(target, site, vector[None][:0], N_ANSWERS)
    half = add_in(target, site, vector, 0.5, none)
    assert half.dose == 0.5
    by_hand = refusal_scores(
        target.model,
        target.harmless.tokens,
        target.refusal_ids,
        target.batch_tokens,
        addition(site, 0.5 * vector, 1.0),
    )
    torch.testing.assert_close(half.scores, by_hand)
    assert len(half.control_scores) == len(half.control_rates) == 0
