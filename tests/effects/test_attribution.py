"""Contributions add up to the stream's projection, and ablation takes away what they say."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.errors import (
    DegenerateDirectionError,
    PositionError,
    SampleError,
    SelfCheckError,
    SiteError,
    SubspaceError,
)
from mechsafety.core.positions import Position, TokenSpans
from mechsafety.core.sites import HeadSite, ResidualSite
from mechsafety.effects.attribution import (
    Attribution,
    Writer,
    WriterShares,
    attribute,
    shares,
    writer_edits,
    writer_means,
)
from mechsafety.models.hooking import intervene, reading
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenizedPrompts, from_ids, pad
from tests.models.biased import opened_with_biases
from tests.models.families import D_HEAD, D_MODEL, D_VOCAB, FAMILIES, N_HEADS, N_LAYERS, POST_NORM

N, EOI, TOKENS = 7, 3, 60
FINAL = ResidualSite(N_LAYERS - 1, "resid_post")
BIASED = ("gpt2", "neox")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def prompts() -> TokenizedPrompts:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(EOI + 2, 17, (N,), generator=generator).tolist()
    assert len(set(lengths)) > 2  # padding is really there
    ids = [tuple(torch.randint(3, D_VOCAB, (n,), generator=generator).tolist()) for n in lengths]
    spans = tuple(TokenSpans(n, (1, n - EOI)) for n in lengths)
    return TokenizedPrompts(tuple(ids), spans, tuple(f"id{i}" for i in range(N)))


@pytest.fixture(scope="module")
def direction() -> Tensor:
    return 3 * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(2))


@cache
def opened(family: str) -> Model:
    """One model for all tests: bridging it anew would take most of their time."""
    return opened_with_biases(family)


def column(found: Attribution, writer: Writer) -> Tensor:
    return found.contributions[:, found.writers.index(writer)]


def projected(
    model: Model, prompts: TokenizedPrompts, site: ResidualSite, direction: Tensor
) -> Tensor:
    """The stream's projection, read without any head, so from the Hugging Face model itself."""
    rows = collect(model, prompts, [site], ["last"], batch_tokens=TOKENS).rows(site, "last")
    return rows.double() @ (direction / direction.norm()).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_add_up_to_the_projection_of_the_stream(
    family: str, prompts: TokenizedPrompts, direction: Tensor
) -> None:
    model = opened(family)
    middle = ResidualSite(2, "resid_pre" if family == "neox" else "resid_mid")
    for site in (ResidualSite(0, "resid_pre"), middle, FINAL):
        found = attribute(model, prompts, direction, site, "last", TOKENS)
        clean = projected(model, prompts, site, direction)
        norms = collect(model, prompts, [site], ["last"]).rows(site, "last").norm(dim=1)
        assert clean.std() > 1e-2  # prompts differ, so that their order can be seen
        assert (found.residual - clean).abs().max() < 1e-4 * norms.mean()
        assert (found.contributions.sum(1) - clean).abs().max() < 1e-4 * norms.mean()
        assert found.contributions.dtype == torch.float64
        attentions = site.layer + (site.stream != "resid_pre")
        mlps = site.layer + (site.stream == "resid_post")
        per_attention = N_HEADS + (family in BIASED)
        assert len(found.writers) == len(set(found.writers))
        assert len(found.writers) == 1 + attentions * per_attention + mlps
        # No writer is silent, so that one left out would be missed.
        assert found.contributions.abs().mean(0).min() > 1e-3


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_a_prompt_among_others_is_that_prompt_alone_at_every_position(
    family: str, prompts: TokenizedPrompts, direction: Tensor
) -> None:
    model = opened(family)
    for position in ("last", "instruction_end"):
        together = attribute(model, prompts, direction, FINAL, position, TOKENS)
        assert together.position == Position.parse(position)
        for row in (0, N - 1):
            alone = attribute(model, prompts.select([row]), direction, FINAL, position, TOKENS)
            torch.testing.assert_close(together.contributions[row], alone.contributions[0], **CLOSE)


def test_length_does_not_matter_and_sign_does(prompts: TokenizedPrompts, direction: Tensor) -> None:
    model = opened("llama")
    found = attribute(model, prompts, direction, FINAL, "last", TOKENS)
    other = attribute(model, prompts, -0.1 * direction, FINAL, "last", TOKENS)
    torch.testing.assert_close(other.contributions, -found.contributions, **CLOSE)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in POST_NORM])
def test_zero_ablating_a_head_takes_its_contribution_from_the_stream_behind_it(
    family: str, prompts: TokenizedPrompts, direction: Tensor
) -> None:
    # Nothing of the block reads attention before this site, so that all of the effect is direct.
    model = opened(family)
    site = FINAL if family == "neox" else ResidualSite(FINAL.layer, "resid_mid")
    before = attribute(model, prompts, direction, site, "last", TOKENS)
    for h in (0, N_HEADS - 1):
        writer = Writer("head", FINAL.layer, h)
        assert column(before, writer).abs().max() > 0.05
        with intervene(model, writer_edits([writer], None)):
            after = attribute(model, prompts, direction, site, "last", TOKENS)
        lost = before.residual - after.residual
        torch.testing.assert_close(lost, column(before, writer), **CLOSE)
        assert not column(after, writer).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_ablating_the_last_mlp_takes_its_contribution_from_the_final_stream(
    family: str, prompts: TokenizedPrompts, direction: Tensor
) -> None:
    model = opened(family)
    before = attribute(model, prompts, direction, FINAL, "last", TOKENS)
    writer = Writer("mlp", FINAL.layer)
    assert column(before, writer).abs().max() > 0.05
    with intervene(model, writer_edits([writer], None)):
        after = projected(model, prompts, FINAL, direction)
    torch.testing.assert_close(before.residual - after, column(before, writer), **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_before_the_next_block_a_zeroed_head_is_missed_along_with_what_the_mlp_made_of_it(
    family: str, prompts: TokenizedPrompts, direction: Tensor
) -> None:
    model, site = opened(family), ResidualSite(2, "resid_pre")
    before = attribute(model, prompts, direction, site, "last", TOKENS)
    writer, mlp = Writer("head", 1, 3), Writer("mlp", 1)
    with intervene(model, writer_edits([writer], None)):
        after = attribute(model, prompts, direction, site, "last", TOKENS)
    indirect = column(before, mlp) - column(after, mlp)
    assert indirect.abs().max() > 0.05
    lost = before.residual - after.residual
    torch.testing.assert_close(lost, column(before, writer) + indirect, **CLOSE)
    others = [i for i, w in enumerate(before.writers) if w not in (writer, mlp)]
    torch.testing.assert_close(
        after.contributions[:, others], before.contributions[:, others], **CLOSE
    )


def test_mean_ablation_leaves_every_prompt_the_mean_contribution(
    prompts: TokenizedPrompts, direction: Tensor
) -> None:
    model, site = opened("llama"), ResidualSite(2, "resid_pre")
    writers = [Writer("head", 1, 4), Writer("mlp", 1)]
    # Every token of every prompt alone, by the model's own weights.
    unit = (direction / direction.norm()).double()
    projection = model.hf.model.layers[1].self_attn.o_proj.weight.detach().double()  # pyright: ignore
    onto = projection[:, 4 * D_HEAD : 5 * D_HEAD].T @ unit
    zs, outs = list[Tensor](), list[Tensor]()
    reads = {HeadSite(1, 4): zs.append, ResidualSite(1, "mlp_out"): outs.append}
    with torch.inference_mode(), reading(model, reads):
        for ids in prompts.ids:
            model.forward(pad([ids], [0], 0, "left"))
    expected = [
        torch.cat([z[0].double() @ onto for z in zs]).mean(),
        torch.cat([out[0].double() @ unit for out in outs]).mean(),
    ]
    clean = attribute(model, prompts, direction, site, "last", TOKENS)
    means = writer_means(model, prompts, writers, TOKENS)
    with intervene(model, writer_edits(writers, means)):
        found = attribute(model, prompts, direction, site, "last", TOKENS)
    for writer, mean in zip(writers, expected, strict=True):
        assert column(clean, writer).std() > 0.05
        torch.testing.assert_close(column(found, writer), mean.expand(N), **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_means_are_over_the_tokens_of_prompts_and_not_over_padding(
    family: str, prompts: TokenizedPrompts
) -> None:
    model = opened(family)
    writers = [Writer("embedding"), Writer("head", 3, 2), Writer("head", 0, 5), Writer("mlp", 2)]
    found = writer_means(model, prompts, writers, TOKENS)
    assert set(found) == {writer.site for writer in writers[1:]}
    one_by_one = writer_means(model, prompts, writers, 1)
    whole = collect(model, prompts, list(found), ["all"], keep="moments")
    for site, mean in found.items():
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, one_by_one[site], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mean, whole.moments(site, "all").mean, atol=1e-5, rtol=1e-4)


def made(*means: float) -> Attribution:
    """Two prompts of a model with these writers' mean contributions."""
    writers = (Writer("embedding"), *(Writer("mlp", i) for i in range(len(means) - 1)))
    rows = torch.tensor([means, means], dtype=torch.float64)
    rows = rows + torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    return Attribution(FINAL, Position("last"), writers, rows, rows.sum(1))


def test_shares_are_mean_differences_that_add_up_to_the_difference_of_projections(
    prompts: TokenizedPrompts, direction: Tensor
) -> None:
    model = opened("qwen2")
    first = attribute(model, prompts.select([0, 3, 5]), direction, FINAL, "last", TOKENS)
    second = attribute(model, prompts.select([1, 2]), direction, FINAL, "last", TOKENS)
    found = shares(first, second)
    expected = float(first.residual.mean() - second.residual.mean())
    assert abs(expected) > 0.05
    assert found.total == pytest.approx(expected, rel=1e-4)
    assert float(found.shares.sum()) == pytest.approx(1)
    mlp = Writer("mlp", 2)
    by_hand = column(first, mlp).mean() - column(second, mlp).mean()
    assert float(found.differences[found.writers.index(mlp)]) == pytest.approx(float(by_hand))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 1.0])
def test_the_top_writers_are_the_fewest_that_reach_the_share(sign: int, share: float) -> None:
    means = (1.0, -3.0, 4.0, 0.5, 2.0, 3.0, -0.5)
    found = shares(made(*(sign * m for m in means)), made(*(0.0 for _ in means)))
    assert found.total == pytest.approx(sign * 7)
    top = found.top_writers(share)

    def carried(writers: Sequence[Writer]) -> float:
        return sum(float(found.shares[found.writers.index(w)]) for w in writers)

    assert carried(top) >= share - 1e-9
    fewer = itertools.combinations(found.writers, len(top) - 1)
    assert all(carried(writers) < share - 1e-9 for writers in fewer)
    assert [carried([w]) for w in top] == sorted((carried([w]) for w in top), reverse=True)


def test_all_writers_may_be_needed_whatever_the_rounding() -> None:
    found = shares(made(*[0.1] * 7), made(*[0.0] * 7))
    assert found.top_writers(1.0) == found.writers


def test_writers_print_as_they_are_spoken_of_and_say_where_they_are_ablated() -> None:
    writers = {
        Writer("embedding"): ("embedding", None),
        Writer("head", 3, 5): ("head 3.5", HeadSite(3, 5)),
        Writer("attn_bias", 4): ("attn_bias 4", None),
        Writer("mlp", 4): ("mlp 4", ResidualSite(4, "mlp_out")),
    }
    assert {w: (str(w), w.site) for w in writers} == writers


def test_embeddings_and_biases_are_left_out_of_edits_and_alone_refused() -> None:
    head, mlp = Writer("head", 1, 2), Writer("mlp", 0)
    rest = [Writer("embedding"), Writer("attn_bias", 1)]
    edits = writer_edits([*rest, head, mlp], None)
    assert set(edits) == {head.site, mlp.site}
    assert not edits[HeadSite(1, 2)](torch.ones(2, 3, 5)).any()
    with pytest.raises(SiteError, match=r"none of the 2 writers \(embedding, attn_bias 1\)"):
        writer_edits(rest, None)
    with pytest.raises(SiteError, match=r"1 of 2 have none, first head\.1\.2"):
        writer_edits([head, mlp], {ResidualSite(0, "mlp_out"): torch.zeros(D_MODEL)})


def test_a_stream_that_is_more_than_its_writers_fails_the_run(
    prompts: TokenizedPrompts, direction: Tensor
) -> None:
    model = opened("llama")
    push = {ResidualSite(1, "resid_pre"): lambda a: a + 0.01 * direction}
    with (
        intervene(model, push),  # pyright: ignore
        pytest.raises(SelfCheckError, match=r"29 writers together miss it.*on the stream itself"),
    ):
        attribute(model, prompts, direction, FINAL, "last", TOKENS)


def test_what_cannot_be_attributed_is_refused_with_advice(
    prompts: TokenizedPrompts, direction: Tensor
) -> None:
    model = opened("llama")
    with pytest.raises(SiteError, match=r"one part adds.*Use resid_pre\.1 or resid_post\.1"):
        attribute(model, prompts, direction, ResidualSite(1, "mlp_out"), "last", TOKENS)
    with pytest.raises(PositionError, match=r"3 tokens.*eoi\[-3\], eoi\[-2\], eoi\[-1\]"):
        attribute(model, prompts, direction, FINAL, "eoi", TOKENS)
    for wrong in (direction[:-1], 0 * direction, direction / 0):
        with pytest.raises(SubspaceError, match="finite direction of that width"):
            attribute(model, prompts, wrong, FINAL, "last", TOKENS)


def test_classes_that_cannot_be_compared_are_refused_with_advice() -> None:
    one = made(1.0, 2.0)
    with pytest.raises(SampleError, match="at one site and position"):
        shares(one, replace(one, site=ResidualSite(1, "resid_pre")))
    with pytest.raises(DegenerateDirectionError, match="are equal"):
        shares(one, one)
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(SampleError, match="more than 0 and at most 1"):
            WriterShares(one.writers, one.contributions[0]).top_writers(share)


def test_bare_ids_have_a_last_token_too(direction: Tensor) -> None:
    model = opened("llama")
    found = attribute(model, from_ids([[5, 6], [4]]), direction, FINAL, "last", TOKENS)
    assert found.contributions.shape == (2, 29)
