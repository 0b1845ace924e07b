from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mechsafety.core.errors import EditedModelError, HookError, SiteError
from mechsafety.core.sites import HeadSite, NeuronSite, ResidualSite, Site
from mechsafety.models.hooking import intervene, reading
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenBatch, from_ids, pad
from tests.models.families import D_HEAD, D_MODEL, FAMILIES, N_HEADS, N_LAYERS, tiny

IDS = [[5, 6, 7, 8, 9], [4, 11], [9, 8, 7, 6, 5, 4, 3, 12]]
STREAMS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def opened(family: str) -> Model:
    return Model(tiny(family), None, None)


def batch(side: str = "left") -> TokenBatch:
    return pad(IDS, range(3), 0, side)  # pyright: ignore[reportArgumentType]


def noise(seed: int = 0, width: int = D_MODEL) -> Tensor:
    return 2 * torch.randn(width, generator=torch.Generator().manual_seed(seed))


def has(model: Model, site: Site) -> bool:
    try:
        model.wiring.check(site)
    except SiteError:
        return False
    return True


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_reads_the_same_through_torch_and_through_the_bridge(
    family: str, side: str
) -> None:
    model, x = opened(family), batch(side)
    mask = x.attention_mask.bool()
    sites = [ResidualSite(k, s) for k in range(N_LAYERS) for s in STREAMS]  # pyright: ignore
    sites = [s for s in sites if has(model, s)]
    assert len(sites) == N_LAYERS * (4 if family == "neox" else 5)
    torch_side: dict[Site, Tensor] = {}
    bridge_side: dict[Site, Tensor] = {}
    with reading(model, {s: lambda a, s=s: torch_side.update({s: a}) for s in sites}):
        assert model.wiring.backend == "torch"
        model.forward(x)
    with (
        reading(model, {s: lambda a, s=s: bridge_side.update({s: a}) for s in sites}),
        reading(model, {HeadSite(0, 0): lambda _: None}),
    ):
        assert model.wiring.backend == "bridge"
        model.forward(x)
    for site in sites:
        torch.testing.assert_close(
            torch_side[site][mask], bridge_side[site][mask], atol=2e-5, rtol=1e-4
        )
        assert torch_side[site][mask].abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_changes_what_follows_and_nothing_stays(family: str) -> None:
    model, x = opened(family), batch()
    before = model.forward(x, keep="all").detach()
    generated = model.generate(from_ids(IDS), 5, 1000)
    dims = model.dims
    edits: dict[Site, Tensor] = {ResidualSite(1, s): noise() for s in STREAMS}  # pyright: ignore
    edits |= {HeadSite(1, 3): noise(0, dims.d_head), NeuronSite(1): noise(0, dims.d_mlp or 0)}
    for site, vector in edits.items():
        if not has(model, site):
            with pytest.raises(SiteError, match="parallel blocks"), intervene(model, {site: abs}):
                pass
            continue
        with intervene(model, {site: lambda a, v=vector: a + v}) as accounting:
            after = model.forward(x)
        assert (after - before[:, -1]).abs().max() > 1e-2, site
        assert accounting.calls == {site: 1}
        assert accounting.tokens == {site: sum(map(len, IDS))}
    assert torch.equal(model.forward(x, keep="all"), before)
    assert model.generate(from_ids(IDS), 5, 1000) == generated
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "neox"])
def test_an_edit_of_resid_mid_reaches_the_mlp_and_the_skip_connection(family: str) -> None:
    model, x, v = opened(family), batch(), noise()
    with intervene(model, {ResidualSite(1, "resid_mid"): lambda a: a + v}):
        at_mid = model.forward(x)
    with intervene(model, {ResidualSite(1, "attn_out"): lambda a: a + v}):
        at_attn = model.forward(x)
    # Adding to the contribution is adding to the stream behind it.
    torch.testing.assert_close(at_mid, at_attn, atol=1e-4, rtol=1e-4)

    # Replacing the stream altogether leaves only what the MLP makes of it, plus it.
    seen: dict[str, Tensor] = {}
    mid, mlp, post = (ResidualSite(1, s) for s in ("resid_mid", "mlp_out", "resid_post"))  # pyright: ignore
    with (
        intervene(model, {mid: lambda a: torch.ones_like(a) * v}),
        reading(model, {s: lambda a, s=s: seen.update({s.stream: a}) for s in (mid, mlp, post)}),
    ):
        model.forward(x)
    torch.testing.assert_close(seen["resid_mid"], v.expand_as(seen["resid_mid"]))
    torch.testing.assert_close(seen["resid_post"], v + seen["mlp_out"], atol=1e-4, rtol=1e-4)


def test_an_edit_after_a_block_is_the_same_edit_before_the_next() -> None:
    for family in FAMILIES:
        model, x, v = opened(family), batch(), noise()
        with intervene(model, {ResidualSite(1, "resid_post"): lambda a, v=v: a + v}):
            first = model.forward(x)
        with intervene(model, {ResidualSite(2, "resid_pre"): lambda a, v=v: a + v}):
            assert torch.equal(model.forward(x), first)


def test_zeroing_a_head_is_zeroing_its_columns_of_the_output_projection() -> None:
    model, x = opened("llama"), batch()
    plain = model.forward(x)
    with intervene(model, {HeadSite(2, 4): torch.zeros_like}):
        hooked = model.forward(x)
    assert (hooked - plain).abs().max() > 1e-2
    projection = model.hf.model.layers[2].self_attn.o_proj.weight  # pyright: ignore
    with torch.no_grad():
        projection[:, 4 * D_HEAD : 5 * D_HEAD] = 0
    assert projection.shape[1] == N_HEADS * D_HEAD
    torch.testing.assert_close(model.forward(x), hooked, atol=1e-5, rtol=1e-5)


def test_contexts_nest_with_the_inner_edit_after_the_outer_one() -> None:
    model, x, v = opened("llama"), batch(), noise()
    site = ResidualSite(1, "resid_pre")
    with (
        intervene(model, {site: lambda a, v=v: a + v}),
        intervene(model, {site: lambda a: 3 * a}),
    ):
        nested = model.forward(x)
    with intervene(model, {site: lambda a: 3 * (a + v)}):
        torch.testing.assert_close(nested, model.forward(x))
    with intervene(model, {site: lambda a: 3 * a + v}):
        assert not torch.allclose(nested, model.forward(x), atol=1e-3)


def test_an_edit_of_attention_comes_before_one_of_the_stream_whoever_asked_first() -> None:
    model, x, v = opened("llama"), batch(), noise()
    mid, attn = ResidualSite(1, "resid_mid"), ResidualSite(1, "attn_out")
    with (
        intervene(model, {mid: lambda a: 2 * a}),
        intervene(model, {attn: lambda a, v=v: a + v}),
    ):
        nested = model.forward(x)
    with intervene(model, {attn: lambda a, v=v: a + v, mid: lambda a: 2 * a}):
        assert torch.equal(nested, model.forward(x))
    with intervene(model, {mid: lambda a: 2 * (a + v)}):
        torch.testing.assert_close(nested, model.forward(x), atol=1e-4, rtol=1e-4)


def test_resid_mid_is_replaced_whole_after_an_inner_edit_of_resid_pre() -> None:
    model, x, v = opened("llama"), batch(), noise()
    mid, pre = ResidualSite(1, "resid_mid"), ResidualSite(1, "resid_pre")
    with intervene(model, {mid: lambda a: 0 * a + v}):
        replaced = model.forward(x)
        with intervene(model, {pre: lambda a: a + 3 * noise(1)}):
            inner = model.forward(x)
    # What entered the block is gone either way.
    torch.testing.assert_close(inner, replaced, atol=1e-4, rtol=1e-4)


def test_an_inner_edit_of_a_head_takes_the_outer_edits_along() -> None:
    model, x, v = opened("llama"), batch(), noise()
    outer, head = ResidualSite(0, "resid_pre"), HeadSite(1, 2)
    with intervene(model, {outer: lambda a, v=v: a + v}) as first:
        alone = model.forward(x)
        with intervene(model, {head: lambda z: z.clone()}):
            through_bridge = model.forward(x)
        again = model.forward(x)
    torch.testing.assert_close(alone, through_bridge, atol=1e-4, rtol=1e-4)
    assert torch.equal(alone, again)
    assert first.calls[outer] == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_generated_token_is_affected_and_every_step_is_edited(family: str) -> None:
    model, prompts = opened(family), from_ids(IDS)
    clean = model.generate(prompts, 6, 1000)
    target = torch.zeros(D_MODEL)
    unembed = model.hf.get_output_embeddings().weight  # pyright: ignore
    target = 400 * unembed[17] / unembed[17].norm()
    site = ResidualSite(N_LAYERS - 1, "resid_post")
    with intervene(model, {site: lambda a: 0 * a + target}) as accounting:
        edited = model.generate(prompts, 6, 1000)
    assert all(ids[0] != 17 for ids in clean.ids)
    one_token = set(edited.ids)
    assert len(one_token) == 1  # every row, at every step, sees nothing but the edit
    assert edited.ids[0][0] == edited.ids[0][-1]
    assert accounting.calls[site] == 6
    assert accounting.counts[site].decoding_calls == 5
    assert accounting.counts[site].backend == "torch"
    assert accounting.tokens[site] == sum(map(len, IDS)) + 5 * len(IDS)


def test_generation_under_an_edit_is_repeated_forward_passes_under_it() -> None:
    for family in FAMILIES:
        model, v = opened(family), noise()
        with intervene(model, {ResidualSite(1, "resid_pre"): lambda a, v=v: a + v}):
            generated = model.generate(from_ids(IDS), 4, 1000)
            for prompt, answer, done in zip(IDS, generated.ids, generated.finished, strict=True):
                ids = list(prompt)
                for token in answer:
                    best = model.forward(pad([ids], [0], 0, "left"))[0].argmax()
                    assert int(best) == token
                    ids.append(token)
                assert done == (len(answer) < 4)


@pytest.mark.parametrize("site", [ResidualSite(1, "resid_mid"), HeadSite(1, 2)])
def test_gradients_flow_through_edits(site: Site) -> None:
    model, x = opened("llama"), batch()
    width = site.width(model.dims)
    delta = torch.zeros(width, requires_grad=True)
    with intervene(model, {site: lambda a: a + delta}):
        loss = model.forward(x).logsumexp(-1).sum()
        loss.backward()
    assert delta.grad is not None
    step = 1e-3 * delta.grad / delta.grad.norm()
    with torch.no_grad(), intervene(model, {site: lambda a: a + step}):
        moved = model.forward(x).logsumexp(-1).sum()
    expected = float(1e-3 * delta.grad.norm())
    assert float(moved - loss.detach()) == pytest.approx(expected, rel=0.1)


def test_an_edit_that_changes_nothing_is_the_baseline_bit_for_bit() -> None:
    for family in FAMILIES:
        model, x = opened(family), batch()
        sites = [ResidualSite(k, s) for k in range(N_LAYERS) for s in STREAMS]  # pyright: ignore
        with intervene(model, {s: torch.clone for s in sites if has(model, s)}):
            hooked = model.forward(x, keep="all")
        assert torch.equal(hooked, model.forward(x, keep="all"))


def test_the_tail_of_the_head_is_the_edited_forward() -> None:
    for family in ("llama", "gemma2", "gpt2"):
        model, x, v = opened(family), batch(), noise()
        sites = (ResidualSite(2, "resid_pre"), ResidualSite(3, "attn_out"))
        with intervene(model, {s: lambda a, v=v: a + v for s in sites}):
            assert torch.equal(model.tail(model.head(x, 2), x, 2), model.forward(x))
        head_edit = {HeadSite(3, 1): lambda z: 2 * z + 1}
        with intervene(model, head_edit):
            assert torch.equal(model.tail(model.head(x, 2), x, 2), model.forward(x))


def test_an_edit_below_the_tail_never_runs_and_says_so() -> None:
    model, x = opened("llama"), batch()
    residual = model.head(x, 2)
    with (
        pytest.raises(HookError, match=r"passed 1 of 1 sites.*'resid_post\.0'"),
        intervene(model, {ResidualSite(0, "resid_post"): torch.clone}),
    ):
        model.tail(residual, x, 2)


def test_silence_is_an_error_unless_the_block_raised() -> None:
    model = opened("llama")
    site = ResidualSite(1, "resid_pre")
    with (
        pytest.raises(HookError, match="nothing passed 1 of 1 sites"),
        intervene(model, {site: abs}),
    ):
        pass
    with pytest.raises(KeyError), intervene(model, {site: abs}):
        raise KeyError
    with pytest.raises(HookError, match="nothing passed"), reading(model, {site: print}):
        pass


def _in_place(a: Tensor) -> Tensor:
    a += 1
    return a.clone()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: a, "in place or returned it as it was"),
        (_in_place, "in place or returned it as it was"),
        (lambda a: a[:, :1], r"shape \(3, 8, 48\).*returned \(3, 1, 48\)"),
    ],
)
def test_an_edit_that_is_no_edit_is_refused_and_leaves_the_model_clean(
    edit: object, message: str
) -> None:
    model, x = opened("llama"), batch()
    before = model.forward(x)
    site = ResidualSite(1, "resid_pre")
    with pytest.raises(HookError, match=message), intervene(model, {site: edit}):  # pyright: ignore
        model.forward(x)
    assert torch.equal(model.forward(x), before)


def test_a_site_that_does_not_exist_leaves_no_hook_of_the_others() -> None:
    model, x = opened("llama"), batch()
    before = model.forward(x)
    edits = {ResidualSite(0, "resid_pre"): torch.zeros_like, ResidualSite(9, "resid_pre"): abs}
    with pytest.raises(SiteError, match="has 4 layers"), intervene(model, edits):
        pass
    assert torch.equal(model.forward(x), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_installing_that_fails_half_way_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = opened("llama"), batch()
    before = model.forward(x)
    real, count = nn.Module.register_forward_hook, iter(range(9))

    def second_fails(self: nn.Module, *args: object, **kwargs: object) -> object:
        if next(count) == 1:
            raise RuntimeError("no more hooks")
        return real(self, *args, **kwargs)  # pyright: ignore

    edits = {ResidualSite(k, "resid_post"): torch.zeros_like for k in range(3)}
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "register_forward_hook", second_fails)
        with pytest.raises(RuntimeError, match="no more hooks"), intervene(model, edits):
            pass
    assert torch.equal(model.forward(x), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_hooks_of_others_stay() -> None:
    model, x = opened("llama"), batch()
    calls: list[int] = []
    model.hf.model.layers[1].register_forward_hook(lambda *_: calls.append(1))  # pyright: ignore
    with intervene(model, {ResidualSite(1, "resid_post"): torch.clone}):
        model.forward(x)
    model.forward(x)
    assert calls == [1, 1]


def test_an_edited_model_cannot_be_saved_pushed_or_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    plain = opened("llama")
    lora = Model(
        get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["q_proj"])), None, None
    )
    site = ResidualSite(1, "resid_pre")
    for model, ways in (
        (plain, ("save_pretrained", "push_to_hub")),
        (lora, ("save_pretrained", "push_to_hub", "merge_and_unload", "merge_adapter", "unload")),
    ):
        with intervene(model, {site: torch.clone}):
            model.forward(batch())
            for way in ways:
                with pytest.raises(EditedModelError, match="does not export"):
                    getattr(model.hf, way)(str(tmp_path / "out"))
            with intervene(model, {site: torch.clone}):
                model.forward(batch())
            with pytest.raises(EditedModelError):
                model.hf.save_pretrained(str(tmp_path / "out"))  # pyright: ignore
        assert not (tmp_path / "out").exists()
        model.hf.save_pretrained(str(tmp_path / "out"))  # pyright: ignore
        assert (tmp_path / "out").exists()
        (tmp_path / "out").rename(tmp_path / type(model.hf).__name__)


def test_the_clean_model_keeps_its_fast_attention_and_its_names() -> None:
    model = opened("qwen3")
    names = list(model.hf.state_dict())
    model.wiring.twin()
    assert model.hf.config._attn_implementation == "sdpa"  # pyright: ignore
    assert list(model.hf.state_dict()) == names
    twin = {id(p) for p in model.wiring.twin().hf.parameters()}
    assert {id(p) for p in model.hf.parameters()} <= twin  # no second copy of the weights


def test_the_twin_follows_the_weights() -> None:
    for family in ("llama", "neox"):
        model, x = opened(family), batch()
        head = {HeadSite(1, 2): lambda z: z.clone()}
        with intervene(model, head):
            before = model.forward(x)
        with torch.no_grad():
            for parameter in model.hf.parameters():
                parameter.mul_(1.3)
        with intervene(model, head):
            after = model.forward(x)
        assert not torch.allclose(before, after, atol=1e-2)
        torch.testing.assert_close(after, model.forward(x), atol=1e-4, rtol=1e-4)


def test_reading_can_stop_the_forward_pass_after_its_last_site() -> None:
    model, x = opened("llama"), batch()
    ran: list[int] = []
    for index, block in enumerate(model.hf.model.layers):  # pyright: ignore
        block.register_forward_hook(lambda *_, i=index: ran.append(i))
    site = ResidualSite(1, "attn_out")
    with reading(model, {site: lambda _: None}, stop=True) as calls:
        assert model.run(x) is None
        with pytest.raises(HookError, match="ends the forward pass early"):
            model.forward(x)
    assert (ran, calls[site]) == ([0, 0], 2)


def test_reads_see_what_the_edits_left() -> None:
    model, x, v = opened("llama"), batch(), noise()
    site, seen = ResidualSite(1, "resid_pre"), list[Tensor]()
    with reading(model, {site: seen.append}):
        model.forward(x)
        with intervene(model, {site: lambda a, v=v: a + v}):
            model.forward(x)
    torch.testing.assert_close(seen[1], seen[0] + v)
