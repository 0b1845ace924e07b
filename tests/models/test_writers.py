"""What the heads write adds up to what attention adds to the stream, in every family."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mechsafety.core.errors import ModelError, SiteError
from mechsafety.core.sites import HeadSite, ResidualSite, Site
from mechsafety.models.hooking import intervene, reading
from mechsafety.models.model import Model
from mechsafety.models.tokens import pad
from mechsafety.models.writers import attention_writes, head_projections
from tests.models.biased import opened_with_biases
from tests.models.families import D_HEAD, D_MODEL, FAMILIES, N_HEADS, N_KV_HEADS, POST_NORM, tiny

IDS = [[5, 6, 7, 8, 9], [4, 11], [9, 8, 7, 6, 5, 4, 3, 12]]
N_TOKENS, LAYER = 15, 2
BIASED = ("gpt2", "neox")


def direction() -> Tensor:
    unit = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(4))
    return unit / unit.norm()


def written(model: Model, layer: int = LAYER) -> tuple[Tensor, Tensor]:
    """z of all heads, and what attention adds, at every token of a left-padded batch."""
    batch = pad(IDS, range(3), 0, "left")
    real = batch.attention_mask.bool()
    found: dict[Site, Tensor] = {}

    def take(site: Site, activation: Tensor) -> None:
        found[site] = activation[real].clone()

    heads: list[Site] = [HeadSite(layer, h) for h in range(N_HEADS)]
    added = ResidualSite(layer, "attn_out")
    with torch.inference_mode(), reading(model, {s: partial(take, s) for s in (*heads, added)}):
        model.forward(batch)
    return torch.stack([found[site] for site in heads], dim=1), found[added]


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_bias_add_up_to_what_attention_adds(family: str) -> None:
    model, r = opened_with_biases(family), direction()
    z, attn_out = written(model)
    assert z.shape == (N_TOKENS, N_HEADS, model.dims.d_head)
    writes = attention_writes(model, LAYER)
    heads, bias = head_projections(writes, z, attn_out, r)
    assert heads.abs().mean(0).min() > 1e-2  # every head writes
    assert bool(bias.any()) == (family in BIASED)
    assert writes.normed == (family in POST_NORM)
    gap = heads.sum(1) + bias - attn_out.double() @ r.double()
    assert gap.abs().max() < 1e-5 * attn_out.norm(dim=-1).mean()
    # Nothing is left over in any other direction either.
    other = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
    heads, bias = head_projections(writes, z, attn_out, other)
    torch.testing.assert_close(heads.sum(1) + bias, attn_out.double() @ other.double(), **CLOSE)


CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def test_a_query_head_writes_through_its_own_columns_of_the_output_projection() -> None:
    model, r = opened_with_biases("llama"), direction().double()
    assert N_KV_HEADS < N_HEADS  # z and W_O belong to query heads all the same
    z, attn_out = written(model)
    heads, _ = head_projections(attention_writes(model, LAYER), z, attn_out, r)
    projection = model.hf.model.layers[LAYER].self_attn.o_proj.weight.detach().double()  # pyright: ignore
    for h in range(N_HEADS):
        columns = projection[:, h * D_HEAD : (h + 1) * D_HEAD]
        torch.testing.assert_close(heads[:, h], z[:, h].double() @ columns.T @ r)


@pytest.mark.parametrize("family", POST_NORM)
def test_behind_a_post_norm_a_head_writes_its_part_of_what_the_norm_lets_through(
    family: str,
) -> None:
    model, r = opened_with_biases(family), direction().double()
    z, attn_out = written(model)
    heads, _ = head_projections(attention_writes(model, LAYER), z, attn_out, r)
    block = model.hf.model.layers[LAYER]  # pyright: ignore
    projection = block.self_attn.o_proj.weight.detach().double()  # pyright: ignore
    norm = block.post_attention_layernorm  # pyright: ignore
    gain, eps = 1 + norm.weight.detach().double(), norm.eps  # pyright: ignore
    assert gain.std() > 0.1  # a gain that is left out would be seen
    y = z.flatten(1).double() @ projection.T
    rms = (y.square().mean(-1) + eps).sqrt()
    assert (rms - 1).abs().mean() > 0.1  # and so would the scale
    for h in range(N_HEADS):
        d_head = model.dims.d_head
        part = z[:, h].double() @ projection[:, h * d_head : (h + 1) * d_head].T
        torch.testing.assert_close(heads[:, h], (gain * part / rms[:, None]) @ r, **CLOSE)


def test_an_adapter_on_the_projection_counts_as_part_of_it() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["o_proj"])).eval()
    plain = attention_writes(Model(adapted, None, None), LAYER).weight
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.2)
    model, r = Model(adapted, None, None), direction()
    writes = attention_writes(model, LAYER)
    assert (writes.weight - plain).abs().max() > 0.05
    z, attn_out = written(model)
    heads, _ = head_projections(writes, z, attn_out, r)
    torch.testing.assert_close(heads.sum(1), attn_out.double() @ r.double(), **CLOSE)


def test_half_precision_weights_come_out_exactly_beside_a_bias() -> None:
    for family, part in (("gpt2", "transformer.h.2.attn.c_proj"), ("neox", None)):
        model = opened_with_biases(family, torch.bfloat16)
        module = model.hf.get_submodule(part or "gpt_neox.layers.2.attention.dense")
        weight = module.weight.detach() if part else module.weight.detach().T  # pyright: ignore
        writes = attention_writes(model, LAYER)
        assert torch.equal(writes.weight.flatten(0, 1), weight.double())
        assert torch.equal(writes.bias, module.bias.detach().double())  # pyright: ignore


def test_finding_the_map_runs_no_intervention_and_works_in_inference_mode() -> None:
    for family in ("llama", "gemma2"):
        model = opened_with_biases(family)
        expected = attention_writes(model, LAYER)
        # The first lies on the Hugging Face model's own modules, the second on the bridge's.
        for site in (ResidualSite(LAYER, "attn_out"), HeadSite(LAYER, 0)):
            doubled = {site: lambda a: 2 * a}
            with torch.inference_mode(), intervene(model, doubled) as accounting:  # pyright: ignore
                found = attention_writes(model, LAYER)
                model.forward(pad(IDS, range(3), 0, "left"))
            assert torch.equal(found.weight, expected.weight)
            assert accounting.calls == {site: 1}


def test_attention_that_is_no_sum_over_its_heads_is_refused_with_advice() -> None:
    model, r = opened_with_biases("gemma2"), direction()
    z, attn_out = written(model)
    writes = attention_writes(model, LAYER)
    centered = nn.functional.layer_norm(z.flatten(1) @ writes.weight.float().flatten(0, 1), [48])
    with pytest.raises(ModelError, match=r"attention of layer 2 .*through the norm.*as a whole"):
        head_projections(writes, z, centered + 1, r)
    # Without its norm the map is off too, and so is attention that an intervention changed.
    with pytest.raises(ModelError, match=r"z W_O \+ b is off what attention adds"):
        head_projections(replace(writes, normed=False), z, attn_out, r)
    with intervene(model, {ResidualSite(LAYER, "attn_out"): lambda a: a + r}):
        z, edited = written(model)
    with pytest.raises(ModelError, match="an intervention at attn_out is installed"):
        head_projections(writes, z, edited, r)


def test_a_layer_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(SiteError, match="has 4 layers"):
        attention_writes(opened_with_biases("llama"), 4)
