import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mechsafety.core.errors import ModelError, SiteError
from mechsafety.core.sites import HeadSite, ResidualSite, Site
from mechsafety.models.anatomy import anatomy
from mechsafety.models.hooking import intervene, reading
from mechsafety.models.model import Model
from mechsafety.models.tails import blocks, head_residual, last_token_only, run_tail
from mechsafety.models.tokens import TokenBatch, pad
from tests.models.families import COMMON, FAMILIES, N_LAYERS, POST_NORM, padded, tiny

IDS = [[5, 6, 7, 8, 9], [4, 11], [9, 8, 7, 6, 5, 4, 3, 12]]
LAST = N_LAYERS - 1


def batch_of(side: str = "left") -> TokenBatch:
    return pad(IDS, range(3), 0, side)  # pyright: ignore[reportArgumentType]


@contextmanager
def widths(model: Model) -> Iterator[list[int]]:
    """How many columns the last block's output projection of attention computed, by pass."""
    found: list[int] = []
    writer = blocks(model.hf)[-1].get_submodule(anatomy(model.hf).projections[0])
    handle = writer.register_forward_hook(lambda _m, _in, out: found.append(out.shape[1]))
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tail_of_the_heads_residual_is_the_full_forward(family: str, side: str) -> None:
    model, batch = tiny(family), padded(side)
    full = model(**batch, use_cache=False).logits
    for layer in range(N_LAYERS + 1):
        residual = head_residual(model, layer=layer, **batch)
        assert torch.equal(run_tail(model, residual, layer=layer, **batch), full)
        moved = run_tail(model, residual + 0.5 * torch.randn_like(residual), layer=layer, **batch)
        assert not torch.allclose(moved, full, atol=1e-3)  # the residual is really what is used


def test_only_the_blocks_of_the_tail_run() -> None:
    model, batch = tiny("llama"), padded("left")
    ran: list[int] = []
    for index, block in enumerate(blocks(model)):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    residual = head_residual(model, layer=2, **batch)
    assert ran == [0, 1]
    run_tail(model, residual, layer=2, **batch)
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "neox"])
def test_gradients_of_the_tail_are_those_of_the_full_forward(family: str) -> None:
    model, batch = tiny(family), padded("left")
    layer = 2
    delta = torch.zeros(3, 9, 48, requires_grad=True)
    handle = blocks(model)[layer].register_forward_pre_hook(
        lambda _m, args: (args[0] + delta, *args[1:])
    )
    model(**batch, use_cache=False).logits[:, -1].logsumexp(-1).sum().backward()
    handle.remove()
    expected = delta.grad
    assert expected is not None
    assert expected.abs().max() > 1e-3
    above = {n: p.grad for n, p in blocks(model)[3].named_parameters()}

    model.zero_grad()
    residual = head_residual(model, layer=layer, **batch).detach().requires_grad_()
    run_tail(model, residual, layer=layer, logits_to_keep=1, **batch).logsumexp(-1).sum().backward()
    assert residual.grad is not None
    torch.testing.assert_close(residual.grad, expected, atol=1e-6, rtol=1e-5)
    for name, parameter in blocks(model)[3].named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, above[name], atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for p in blocks(model)[0].parameters())


def test_gradient_checkpointing_recomputes_from_the_same_residual() -> None:
    model, batch = tiny("llama").train(), padded("left")
    residual = head_residual(model, layer=1, **batch).detach().requires_grad_()
    run_tail(model, residual, layer=1, **batch).square().sum().backward()
    expected = residual.grad
    model.gradient_checkpointing_enable()
    again = residual.detach().clone().requires_grad_()
    run_tail(model, again, layer=1, **batch).square().sum().backward()
    torch.testing.assert_close(again.grad, expected)


def test_a_tail_leaves_the_model_as_it_was_even_after_an_error() -> None:
    model, batch = tiny("gemma2"), padded("left")
    before, names = model(**batch).logits, [n for n, _ in model.named_modules()]
    state = copy.deepcopy(model.state_dict())
    residual = head_residual(model, layer=3, **batch)
    run_tail(model, residual, layer=3, **batch)
    with pytest.raises(TypeError):
        run_tail(model, residual, layer=3, **{**batch, "logits_to_keep": "many"})  # pyright: ignore
    assert [n for n, _ in model.named_modules()] == names
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model(**batch).logits, before)


def test_a_model_in_training_keeps_its_random_numbers() -> None:
    settings = {**COMMON, "attention_dropout": 0.5}
    model = LlamaForCausalLM(LlamaConfig(**settings)).train()
    state = torch.random.get_rng_state()
    blocks(model)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_lora_model_has_a_tail() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    batch = padded("left")
    residual = head_residual(model, layer=2, **batch)
    assert torch.equal(run_tail(model, residual, layer=2, **batch), model(**batch).logits)


def test_a_layer_or_width_that_the_model_lacks_is_refused_with_its_sizes() -> None:
    model, batch = tiny("llama"), padded("left")
    with pytest.raises(SiteError, match=r"has 4 blocks.*0 to 4"):
        run_tail(model, torch.zeros(3, 9, 48), layer=5, **batch)
    with pytest.raises(SiteError, match="has 4 blocks"):
        head_residual(model, layer=-1, **batch)
    with pytest.raises(ModelError, match=r"17 wide and the model 48"):
        run_tail(model, torch.zeros(3, 9, 17), layer=1, **batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_column_alone_is_the_last_of_all_columns_at_less_work(family: str) -> None:
    model, batch = Model(tiny(family), None, None), batch_of()
    with torch.inference_mode(), widths(model) as found:
        everything = model.forward(batch, keep="all")
        alone = model.forward(batch)
        residual = model.head(batch, 2)
        from_halfway = model.tail(residual, batch, 2)
        from_last = model.tail(model.head(batch, LAST), batch, LAST)
    # A norm behind the contributions runs on whatever columns it gets, so it is left alone.
    one = 8 if family in POST_NORM else 1
    assert found == [8, one, one, one]
    assert everything[:, -1].std() > 0.1
    for logits in (alone, from_halfway, from_last):
        assert logits.shape == everything[:, -1].shape
        torch.testing.assert_close(logits, everything[:, -1], atol=1e-5, rtol=1e-5)
    assert not any(m._forward_pre_hooks for m in model.hf.modules())
    with torch.inference_mode():
        assert torch.equal(model.forward(batch, keep="all"), everything)


@pytest.mark.parametrize("family", ["llama", "neox", "gpt2"])
def test_an_edit_below_the_last_block_goes_with_the_last_column_alone(family: str) -> None:
    model, batch = Model(tiny(family), None, None), batch_of()
    vector = torch.randn(48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        clean = model.forward(batch)
        # The last block's input is below what it computes.
        for site in (ResidualSite(1, "mlp_out"), ResidualSite(LAST, "resid_pre")):
            with intervene(model, {site: lambda x: x + vector}), widths(model) as found:
                alone = model.forward(batch)
                everything = model.forward(batch, keep="all")
            assert found == [1, 8]
            assert (alone - clean).abs().max() > 0.01
            torch.testing.assert_close(alone, everything[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "neox", "gemma2"])
@pytest.mark.parametrize("stream", ["attn_out", "resid_mid", "mlp_out", "resid_post"])
def test_whatever_watches_the_last_block_sees_all_of_its_columns(family: str, stream: str) -> None:
    model, batch = Model(tiny(family), None, None), batch_of()
    site = ResidualSite(LAST, stream)  # pyright: ignore[reportArgumentType]
    if family == "neox" and stream == "resid_mid":
        pytest.skip("parallel blocks have no resid_mid")
    seen: list[Tensor] = []
    with torch.inference_mode():
        with reading(model, {site: seen.append}), widths(model) as found:
            model.forward(batch, keep="all")
            model.forward(batch)
            model.tail(model.head(batch, 2), batch, 2)
        for other in seen[1:]:
            torch.testing.assert_close(other, seen[0], atol=1e-5, rtol=1e-5)
        assert len(seen) == len(found) == 3
        with intervene(model, {site: lambda x: x.flip(1)}), widths(model) as edited:
            moved = model.forward(batch)
            everything = model.forward(batch, keep="all")
    assert found == [8, 8, 8]
    assert edited == [8, 8]
    assert seen[0].std(dim=1).max() > 0.01  # columns differ, so that one could not stand for all
    torch.testing.assert_close(moved, everything[:, -1], atol=1e-5, rtol=1e-5)


def test_an_edit_of_each_token_by_itself_lets_the_last_block_compute_one() -> None:
    model, batch = Model(tiny("llama"), None, None), batch_of("left")
    site = ResidualSite(LAST, "mlp_out")

    def doubled(x: Tensor) -> Tensor:
        widths_seen.append(x.shape[1])
        return 2 * x

    widths_seen: list[int] = []
    with torch.inference_mode():
        clean = model.forward(batch)
        with intervene(model, {site: doubled}):
            expected = model.forward(batch)
        with intervene(model, {site: doubled}, tokenwise=True):
            found = model.forward(batch)
    assert (expected - clean).abs().max() > 0.01
    assert widths_seen == [batch.ids.shape[1], 1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_heads_gradients_and_right_padding_have_all_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, used = Model(tiny("llama"), None, None), list[nn.Module]()

    @contextmanager
    def spy(hf: nn.Module) -> Iterator[None]:
        used.append(hf)
        with last_token_only(hf):
            yield

    monkeypatch.setattr("mechsafety.models.model.last_token_only", spy)
    left, right = batch_of("left"), batch_of("right")
    with torch.inference_mode():
        expected = model.forward(left)
        assert len(used) == 1  # the spy is where the model looks
        torch.testing.assert_close(model.forward(right), expected, atol=1e-5, rtol=1e-5)
        sites: list[Site] = [HeadSite(LAST, 2), HeadSite(0, 1)]
        for site in sites:
            with reading(model, {site: lambda _: None}):
                assert model.wiring.backend == "bridge"
                torch.testing.assert_close(model.forward(left), expected, atol=1e-5, rtol=1e-4)
        model.tail(model.head(left, N_LAYERS), left, N_LAYERS)  # no block runs at all
        model.run(left, logits_to_keep=1)  # for reads, which may be of any column
    assert len(used) == 1
    torch.testing.assert_close(model.forward(left), expected, atol=1e-5, rtol=1e-5)
    assert model.forward(left).requires_grad
    assert len(used) == 1


def test_an_error_in_the_pass_leaves_no_narrowing_behind() -> None:
    model, batch = Model(tiny("llama"), None, None), batch_of()

    def fail(_x: Tensor) -> Tensor:
        raise RuntimeError("half-way")

    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="half-way"),
        intervene(model, {ResidualSite(1, "resid_pre"): fail}),
    ):
        model.forward(batch)
    assert not any(m._forward_pre_hooks for m in model.hf.modules())


def test_a_lora_models_last_column_is_that_of_all_its_columns() -> None:
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["o_proj", "down_proj"]))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model, batch = Model(peft, None, None), batch_of()
    with torch.inference_mode(), widths(model) as found:
        everything, alone = model.forward(batch, keep="all"), model.forward(batch)
    assert found == [8, 1]
    torch.testing.assert_close(alone, everything[:, -1], atol=1e-5, rtol=1e-5)
