"""Each probe passes on healthy models of every family, and each can fail."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mechsafety.core.errors import ActivationError, ProbeError
from mechsafety.core.sites import HeadSite, NeuronSite
from mechsafety.models.loading import open_model
from mechsafety.models.probes import check_model
from tests.models.families import (
    D_VOCAB,
    FAMILIES,
    POST_NORM,
    TEMPLATE,
    glued_tokenizer,
    tiny,
    word_tokenizer,
)

NAMES = (
    "sites that do not fire",
    "hooked forward",
    "last token alone",
    "residual contributions",
    "residual stream",
    "bridge logits",
    "bridge sites",
    "left padding",
    "right padding",
    "BOS tokens",
    "template at layer 0",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_healthy_models_of_every_family_pass_every_probe(family: str) -> None:
    model = open_model(tiny(family), tokenizer=word_tokenizer())
    assert model.probes is not None
    assert tuple(p.name for p in model.probes.probes) == NAMES
    assert model.probes.failed == ()
    found = {p.name: p for p in model.probes.probes}
    assert ("norms behind" in found["residual contributions"].detail) == (family in POST_NORM)
    assert ("parallel" in found["residual contributions"].detail) == (family == "neox")
    assert ("positions are added" in found["template at layer 0"].detail) == (family == "gpt2")
    assert found["BOS tokens"].value == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_sites_that_were_asked_for_are_probed_too() -> None:
    plain = check_model(tiny("llama")).probes[0]
    asked = check_model(tiny("llama"), sites=[HeadSite(1, 5), NeuronSite(2)]).probes[0]
    assert (plain.value, asked.value) == (0, 0)
    assert plain.detail.startswith("of 28 sites")
    assert asked.detail.startswith("of 29 sites")  # every layer's neurons were probed before


def replace_forward(module: nn.Module, change: Callable[..., Any]) -> None:
    """The module's forward becomes `change(real_forward, *args, **kwargs)`."""
    real = module.forward
    module.forward = lambda *args, **kwargs: change(real, *args, **kwargs)


def leaky_block(model: PreTrainedModel) -> None:
    """The block adds something that neither attention nor MLP gave."""
    replace_forward(model.model.layers[1], lambda real, *a, **k: real(*a, **k) + 0.5)


def bypassed_mlp(model: PreTrainedModel) -> None:
    """The MLP runs without its module being called, so no hook of it can fire."""

    def without_module(real: Any, x: Tensor, *a: Any, **k: Any) -> Tensor:
        block = model.model.layers[2]
        out, _ = block.self_attn(block.input_layernorm(x), *a, **k)
        middle = x + out
        return middle + block.mlp.forward(block.post_attention_layernorm(middle))

    replace_forward(model.model.layers[2], without_module)


def forgetful(model: PreTrainedModel) -> None:
    """Position ids are dropped, as by code that counts positions over padding."""
    replace_forward(model, lambda real, *a, position_ids=None, **k: real(*a, **k))


def mask_dropper(model: PreTrainedModel) -> None:
    """One layer attends to padding."""
    replace_forward(
        model.model.layers[1].self_attn,
        lambda real, *a, attention_mask=None, **k: real(*a, attention_mask=None, **k),
    )


def unsteady(model: PreTrainedModel) -> None:
    """Every call gives something else."""
    calls: list[int] = []

    def drift(real: Any, *a: Any, **k: Any) -> Tensor:
        calls.append(1)
        return real(*a, **k) * (1 + 0.01 * len(calls))

    replace_forward(model.model.layers[1].mlp, drift)


def scaled_attention(model: PreTrainedModel) -> None:
    """Attention is not what the projections make it, as in a family that the bridge misreads."""

    def scaled(real: Any, *a: Any, **k: Any) -> Any:
        out, weights = real(*a, **k)
        return 1.2 * out, weights

    replace_forward(model.model.layers[0].self_attn, scaled)


def between_blocks(model: PreTrainedModel) -> None:
    """Something is added between two blocks."""
    model.model.layers[1].register_forward_pre_hook(lambda _m, args: (args[0] + 0.3, *args[1:]))


def text_in_embeddings(model: PreTrainedModel) -> None:
    """The embedding of a token depends on the other tokens."""

    def mixed(real: Any, ids: Tensor) -> Tensor:
        return real(ids) + 0.1 * ids.double().mean(-1)[:, None, None].to(torch.float32)

    replace_forward(model.model.embed_tokens, mixed)


@pytest.mark.parametrize(
    ("family", "sabotage", "probe"),
    [
        ("llama", bypassed_mlp, "sites that do not fire: "),
        ("llama", unsteady, "hooked forward: 0."),
        ("llama", leaky_block, "residual contributions: 0."),
        ("llama", between_blocks, "residual stream: 0."),
        ("llama", scaled_attention, "bridge logits: 0."),
        ("llama", scaled_attention, "bridge sites: 0."),
        ("gpt2", forgetful, "left padding: "),
        ("llama", mask_dropper, "left padding: "),
        ("llama", text_in_embeddings, "template at layer 0: 0."),
    ],
)
def test_each_probe_can_fail_and_says_by_how_much(
    family: str, sabotage: Callable[[PreTrainedModel], None], probe: str
) -> None:
    model = tiny(family)
    sabotage(model)
    with pytest.raises(ProbeError, match="do not agree") as caught:
        open_model(model, tokenizer=word_tokenizer())
    assert f"\n  {probe}" in str(caught.value)
    if sabotage is bypassed_mlp:
        assert "silent or of another width: mlp_out.2" in str(caught.value)


def test_the_probe_of_right_padding_can_fail() -> None:
    model = tiny("llama")

    def from_the_end(real: Any, *a: Any, attention_mask: Tensor, **k: Any) -> Any:
        # A model that reads its last column: fine with left padding, wrong with right.
        return real(*a, attention_mask=attention_mask.flip(-1), **k)

    replace_forward(model, from_the_end)
    report = check_model(model)
    assert "right padding" in {p.name for p in report.failed}


def test_a_weight_that_is_nan_is_refused_as_such_at_the_first_site_it_spoils() -> None:
    hf = tiny("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ActivationError, match=r"NaN or infinite.*first mlp_out\.1\. Check its"):
        open_model(hf, tokenizer=word_tokenizer())


def test_a_template_that_doubles_bos_is_refused() -> None:
    doubled = word_tokenizer("{{ bos_token }} " + TEMPLATE)
    with pytest.raises(ProbeError, match=r"BOS tokens: 2, where at most 1 is allowed"):
        open_model(tiny("llama"), tokenizer=doubled)


def test_a_template_token_that_merges_with_the_text_before_it_is_reported_and_passes() -> None:
    report = check_model(tiny("llama"), tokenizer=glued_tokenizer())
    probe = report.probes[-1]
    assert probe.passed
    assert "depends on the text before it" in probe.detail


def test_probing_at_lower_precision_allows_its_rounding() -> None:
    report = check_model(tiny("llama").bfloat16())
    assert report.failed == ()
    parity = {p.name: p for p in report.probes}
    assert parity["bridge logits"].tolerance > 1e-2
    assert max(p.value for p in report.probes[1:9]) > 1e-3  # which float32 would not excuse


def test_a_model_without_template_is_probed_as_far_as_it_goes() -> None:
    report = check_model(tiny("llama"), tokenizer=word_tokenizer(None))
    assert report.failed == ()
    assert "no chat template" in report.probes[-1].detail
    assert D_VOCAB == 53


def test_sequential_neox_blocks_have_a_middle() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from tests.models.families import COMMON

    config = GPTNeoXConfig(**{**COMMON, "use_parallel_residual": False})
    model = open_model(GPTNeoXForCausalLM(config).eval())
    assert not model.wiring.anatomy.parallel
    assert model.probes is not None
    assert "sequential" in model.probes.probes[3].detail
