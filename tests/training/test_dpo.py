import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from mechsafety.training.batches import AnswerBatch, answer_log_probability
from mechsafety.training.dpo import dpo, frozen_copy, preference_loss
from mechsafety.training.ssft import SafetyBatch, Weights, ssft
from tests.training.tiny import safety_batch, tiny_llama

WEIGHTS = Weights(clean=0.5, perturbed=0.0, allowed=2.0)
BETA = 0.3


def log_probability(model: LlamaForCausalLM, batch: AnswerBatch) -> Tensor:
    logits = model(**batch.inputs, logits_to_keep=batch.kept).logits
    return answer_log_probability(logits, batch.targets)


def loss_of(model: LlamaForCausalLM, reference: LlamaForCausalLM, batch: SafetyBatch) -> Tensor:
    terms = dpo(model, batch, reference=reference, beta=BETA, anchor=0.0, weights=WEIGHTS)
    return torch.stack(list(terms.values())).sum()


def test_the_loss_is_that_of_the_papers_equation_worked_by_hand() -> None:
    found = preference_loss(
        torch.tensor([-2.0, -5.0]),
        torch.tensor([-4.0, -1.0]),
        torch.tensor([-3.0, -4.0]),
        torch.tensor([-3.5, -3.0]),
        beta=0.5,
    )
    # Row 0: (-2+3) - (-4+3.5) = 1.5; row 1: (-5+4) - (-1+3) = -3.
    by_hand = [math.log(1 + math.exp(-0.5 * margin)) for margin in (1.5, -3.0)]
    assert found.item() == pytest.approx(sum(by_hand) / 2, rel=1e-6)


def test_at_the_reference_the_loss_is_the_logarithm_of_two_whatever_beta() -> None:
    model, batch = tiny_llama(), safety_batch()
    for beta in (0.1, 5.0):
        terms = dpo(
            model, batch, reference=frozen_copy(model), beta=beta, anchor=0.0, weights=WEIGHTS
        )
        assert terms["refusal"].item() == pytest.approx(WEIGHTS.clean * math.log(2), rel=1e-6)
        assert terms["allowed"].item() == pytest.approx(WEIGHTS.allowed * math.log(2), rel=1e-6)
    other = loss_of(model, tiny_llama(seed=1), batch)
    assert other.item() != pytest.approx(2.5 * math.log(2), rel=0.01)


def test_a_shift_of_both_log_probabilities_changes_nothing(generator: torch.Generator) -> None:
    rows = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    shift = 10 * torch.randn(7, generator=generator, dtype=torch.float64)
    plain = preference_loss(*rows, beta=BETA)
    torch.testing.assert_close(
        preference_loss(rows[0] + shift, rows[1] + shift, rows[2], rows[3], beta=BETA), plain
    )
    one_sided = preference_loss(rows[0] + shift, rows[1], rows[2], rows[3], beta=BETA)
    assert (one_sided - plain).abs() > 0.1


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected_alike(
    generator: torch.Generator,
) -> None:
    rows = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    chosen, rejected = rows[0].requires_grad_(), rows[1].clone().requires_grad_()
    loss = preference_loss(chosen, rejected, rows[2], rows[3].detach(), beta=BETA)
    up, down = torch.autograd.grad(loss, (chosen, rejected))
    assert (up < 0).all()
    torch.testing.assert_close(down, -up)
    # The paper's weight: beta times the sigmoid of the reward that is the wrong way round.
    margin = (rows[0] - rows[2]) - (rows[1] - rows[3])
    torch.testing.assert_close(-up * len(up), BETA * torch.sigmoid(-BETA * margin).detach())


def test_a_step_down_the_gradient_turns_the_margin_for_both_kinds_of_requests() -> None:
    model, batch = tiny_llama(), safety_batch()
    reference = frozen_copy(model)
    sides = (batch.refusing, batch.complying, batch.allowed, batch.declining)
    before = [log_probability(model, side).detach() for side in sides]
    for _ in range(5):
        gradients = torch.autograd.grad(loss_of(model, reference, batch), [*model.parameters()])
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.02 * gradient
    refusing, complying, allowed, declining = (
        log_probability(model, side) - old for side, old in zip(sides, before, strict=True)
    )
    assert (refusing - complying > 0.1).all()
    assert (allowed - declining > 0.1).all()
    unmoved = zip(reference.parameters(), tiny_llama().parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in unmoved)
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_only_tokens_of_the_answers_count() -> None:
    model, reference, batch = tiny_llama(), tiny_llama(seed=1), safety_batch()
    side = batch.refusing
    logits = model(**side.inputs).logits.log_softmax(-1)
    row, n_prompt = 0, int(side.prompt_mask[0].sum())
    answer = [5, 6, 3]
    by_hand = sum(logits[row, n_prompt - 1 + i, token] for i, token in enumerate(answer))
    torch.testing.assert_close(log_probability(model, side)[row], torch.as_tensor(by_hand))

    # Behind the shorter row's answer stands padding, and what stands there is of no account.
    padding = side.input_ids.clone()
    padding[row, n_prompt + len(answer) :] = 9
    assert not torch.equal(padding, side.input_ids)
    other = replace(batch, refusing=replace(side, input_ids=padding))
    torch.testing.assert_close(
        loss_of(model, reference, other), loss_of(model, reference, batch), atol=1e-6, rtol=0
    )


def test_the_anchor_is_the_loss_of_supervised_fine_tuning() -> None:
    model, reference, batch = tiny_llama(), tiny_llama(seed=1), safety_batch()
    terms = dpo(model, batch, reference=reference, beta=BETA, anchor=0.2, weights=WEIGHTS)
    supervised = ssft(model, batch, weights=WEIGHTS)
    torch.testing.assert_close(
        terms["anchor"], 0.2 * (supervised["refusal"] + supervised["allowed"])
    )
