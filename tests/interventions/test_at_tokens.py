"""An edit at some tokens is the edit there, and nothing anywhere else."""

from functools import partial

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import PositionError
from mechsafety.interventions.ablate import ablate
from mechsafety.interventions.at_tokens import at_tokens

BATCH, POS, D = 3, 5, 11


@pytest.fixture
def activation(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, POS, D, generator=generator)


@pytest.fixture
def edit(generator: torch.Generator) -> partial[Tensor]:
    return partial(ablate, basis=torch.randn(2, D, generator=generator))


def some_tokens() -> Tensor:
    mask = torch.zeros(BATCH, POS, dtype=torch.bool)
    mask[0, 1] = mask[0, 4] = mask[2, 0] = True
    return mask


def test_chosen_tokens_are_edited_and_the_others_stay_bit_for_bit(
    activation: Tensor, edit: partial[Tensor]
) -> None:
    before, mask = activation.clone(), some_tokens()
    everywhere = edit(activation)
    assert (everywhere - activation).abs().amax(-1).min() > 0.1  # it would have moved every token
    edited = at_tokens(activation, mask, edit)
    assert torch.equal(edited[mask], everywhere[mask])
    assert torch.equal(edited[~mask], before[~mask])
    assert torch.equal(activation, before)


def test_all_tokens_are_the_whole_edit_and_no_token_is_none_of_it(
    activation: Tensor, edit: partial[Tensor]
) -> None:
    every = torch.ones(BATCH, POS, dtype=torch.bool)
    assert torch.equal(at_tokens(activation, every, edit), edit(activation))
    nothing = at_tokens(activation, ~every, edit)
    assert torch.equal(nothing, activation)
    nothing[0] += 1  # memory of its own: other tensors of a forward pass share the activation's
    assert not torch.equal(nothing, activation)


def test_edits_of_disjoint_tokens_add_up_to_the_edit_of_their_union(
    activation: Tensor, edit: partial[Tensor]
) -> None:
    mask = some_tokens()
    one_by_one = at_tokens(at_tokens(activation, mask, edit), ~mask, edit)
    assert not torch.equal(at_tokens(activation, mask, edit), one_by_one)
    assert torch.equal(one_by_one, edit(activation))


def test_what_the_edit_makes_of_other_tokens_does_not_matter(activation: Tensor) -> None:
    activation[1] = 0  # padding may hold anything
    edited = at_tokens(activation, some_tokens(), lambda x: x / x.norm(dim=-1, keepdim=True))
    assert not torch.isfinite(activation / activation.norm(dim=-1, keepdim=True)).all()
    assert torch.isfinite(edited).all()


def test_gradients_pass_the_edit_at_its_tokens_only(activation: Tensor) -> None:
    leaf, mask = activation.requires_grad_(), some_tokens()
    at_tokens(leaf, mask, lambda x: 3 * x).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.where(mask, 3.0, 1.0)[..., None].expand(BATCH, POS, D))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_stays(activation: Tensor, edit: partial[Tensor], dtype: torch.dtype) -> None:
    assert at_tokens(activation.to(dtype), some_tokens(), edit).dtype == dtype


@pytest.mark.parametrize("shape", [(BATCH, 1), (BATCH, POS + 1), (BATCH - 1, POS)])
def test_a_mask_of_another_batch_is_refused_with_advice(
    activation: Tensor, edit: partial[Tensor], shape: tuple[int, int]
) -> None:
    with pytest.raises(PositionError, match=r"\(3, 5\) rows and columns.*batch that runs"):
        at_tokens(activation, torch.ones(shape, dtype=torch.bool), edit)
