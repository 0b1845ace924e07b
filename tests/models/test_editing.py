"""Edited weights do what hooks do, on every family that lets them, and leave nothing behind."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from mechsafety.core.errors import EditedModelError, ModelError
from mechsafety.core.sites import HeadSite, ResidualSite
from mechsafety.interventions.ablate import ablate
from mechsafety.models.editing import ablated_weights, ablates_by_weights
from mechsafety.models.hooking import intervene, reading
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


@pytest.mark.parametrize(
    "save",
    [
        lambda hf, file: hf.save_pretrained(file.parent),
        lambda hf, file: hf.model.save_pretrained(file.parent),
        lambda hf, file: hf.push_to_hub(file.name),
        lambda hf, file: torch.save(hf.state_dict(), file),
        lambda hf, file: save_model(hf, file),
        # transformers' own, past the method that refuses, asks the model for its weights.
        lambda hf, file: type(hf).save_pretrained(hf, file.parent),
        lambda hf, file: copy.deepcopy(hf).save_pretrained(file.parent),
        lambda hf, file: copy.deepcopy(hf).state_dict(),
    ],
    ids=[
        "save_pretrained", "of the inner model", "push_to_hub", "torch.save", "safetensors",
        "of the class", "of a copy", "weights of a copy",
    ],
)  # fmt: skip
def test_edited_weights_cannot_be_saved(
    save: Callable[[nn.Module, Path], object], tmp_path: Path
) -> None:
    model, file = Model(tiny("llama"), None, None), tmp_path / "weights"
    clean = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    with ablated_weights(model, BASIS):
        logits(model)
        # There is something that must not leave.
        now = dict(model.hf.named_parameters())
        assert any(not torch.equal(clean[name], weight) for name, weight in now.items())
        with pytest.raises(EditedModelError, match="does not export"):
            save(model.hf, file)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".bin")]
    assert not file.exists()
    torch.save(model.hf.state_dict(), file)
    assert file.stat().st_size > 1000


@pytest.mark.parametrize("edited", ["weights", "hooks"])
def test_a_model_that_is_edited_cannot_be_pickled(edited: str, tmp_path: Path) -> None:
    model, file = Model(tiny("llama"), None, None), tmp_path / "model.pt"
    edits = {ResidualSite(0, "resid_pre"): partial(ablate, basis=BASIS)}
    block = ablated_weights(model, BASIS) if edited == "weights" else intervene(model, edits)
    with block:
        logits(model)
        # Python cannot pickle what is installed, and torch writes weights after the rest.
        with pytest.raises((AttributeError, pickle.PicklingError), match=r"[Cc]an't pickle|local"):
            torch.save(model.hf, file)
    assert not file.exists() or file.stat().st_size < 1000


def test_a_model_with_edited_weights_still_says_which_it_is_and_reads_heads() -> None:
    model = Model(tiny("llama"), None, None)
    clean, seen = model.identity()["weights"], list[Tensor]()
    with ablated_weights(model, BASIS):
        assert model.identity()["weights"] != clean
        with reading(model, {HeadSite(1, 2): seen.append}):
            logits(model)
    assert seen
    assert model.identity()["weights"] == clean
    with intervene(model, {HeadSite(1, 2): torch.clone}):
        logits(model)


def test_an_error_inside_the_block_brings_the_weights_back() -> None:
    model = Model(tiny("llama"), None, None)
    clean = logits(model)
    with pytest.raises(ZeroDivisionError), ablated_weights(model, BASIS):
        raise ZeroDivisionError
    assert torch.equal(logits(model), clean)
