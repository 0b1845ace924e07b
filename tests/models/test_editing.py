"""Edited weights do what hooks do, on every family that lets them, and leave nothing behind."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import EditedModelError, ModelError
from mechsafety.core.sites import ResidualSite
from mechsafety.interventions.ablate import ablate
from mechsafety.models.editing import ablated_weights, ablates_by_weights
from mechsafety.models.hooking import intervene
from mechsafety.models.model import Model
from mechsafety.models.tokens import batches, from_ids

from .families import D_MODEL, FAMILIES, N_LAYERS, POST_NORM, tiny

PROMPTS = from_ids([[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [15, 16]])
PRE_NORM = [family for family in FAMILIES if family not in POST_NORM]
BASIS = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(5))


def logits(model: Model) -> Tensor:
    with torch.inference_mode():
        return model.forward(next(batches(PROMPTS, 2048)))


def by_hooks(model: Model) -> Tensor:
    sites = [ResidualSite(0, "resid_pre")]
    sites += [ResidualSite(n, s) for n in range(N_LAYERS) for s in ("attn_out", "mlp_out")]
    with intervene(model, dict.fromkeys(sites, partial(ablate, basis=BASIS))):
        return logits(model)


@pytest.mark.parametrize("family", PRE_NORM)
def test_edited_weights_give_the_logits_of_hooks_and_come_back_bit_for_bit(family: str) -> None:
    model = Model(tiny(family), None, None)
    clean, hooked = logits(model), by_hooks(model)
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    assert (hooked - clean).abs().max() > 0.05
    assert ablates_by_weights(model)
    with ablated_weights(model, BASIS):
        edited = logits(model)
    assert torch.allclose(edited, hooked, atol=1e-5)
    assert torch.equal(logits(model), clean)
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())


@pytest.mark.parametrize("family", POST_NORM)
def test_where_contributions_pass_a_norm_the_probe_finds_that_weights_do_not_do(
    family: str,
) -> None:
    model = Model(tiny(family), None, None)
    with ablated_weights(model, BASIS):
        edited = logits(model)
    assert (edited - by_hooks(model)).abs().max() > 1e-3
    assert not ablates_by_weights(model)


def test_weights_in_half_precision_are_left_to_hooks() -> None:
    model = Model(tiny("llama").bfloat16(), None, None)
    assert not ablates_by_weights(model)
    with pytest.raises(ModelError, match="Ablate with hooks"), ablated_weights(model, BASIS):
        pass


def test_a_model_with_edited_weights_cannot_be_saved(tmp_path: Path) -> None:
    model = Model(tiny("llama"), None, None)
    with ablated_weights(model, BASIS):
        logits(model)
        with pytest.raises(EditedModelError, match="does not export"):
            model.hf.save_pretrained(tmp_path)


def test_an_error_inside_the_block_brings_the_weights_back() -> None:
    model = Model(tiny("llama"), None, None)
    clean = logits(model)
    with pytest.raises(ZeroDivisionError), ablated_weights(model, BASIS):
        raise ZeroDivisionError
    assert torch.equal(logits(model), clean)
