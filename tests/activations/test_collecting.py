import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechsafety.activations import collecting
from mechsafety.activations.collecting import collect
from mechsafety.activations.storing import Activations, load_activations
from mechsafety.core.errors import ActivationError, PositionError, PromptError, SiteError
from mechsafety.core.positions import Position, TokenSpans
from mechsafety.core.sites import HeadSite, NeuronSite, ResidualSite, Site
from mechsafety.models.hooking import intervene, reading
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenizedPrompts, pad
from tests.models.families import D_MODEL, D_VOCAB, FAMILIES, tiny

N, EOI = 23, 3
SITES = (
    ResidualSite(2, "resid_post"),
    ResidualSite(0, "resid_pre"),
    ResidualSite(1, "attn_out"),
    ResidualSite(2, "mlp_out"),
)
POSITIONS = ("last", "eoi", "instruction_end")


@pytest.fixture(scope="module")
def prompts() -> TokenizedPrompts:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(EOI + 2, 17, (N,), generator=generator).tolist()
    ids = tuple(
        tuple(torch.randint(3, D_VOCAB, (n,), generator=generator).tolist()) for n in lengths
    )
    spans = tuple(TokenSpans(n, (1, n - EOI)) for n in lengths)
    return TokenizedPrompts(ids, spans, tuple(f"id{i:02d}" for i in range(N)))


def opened(family: str = "llama") -> Model:
    return Model(tiny(family), None, None)


def one_by_one(model: Model, prompts: TokenizedPrompts, site: Site) -> list[Tensor]:
    """Every activation of each prompt, run alone and without padding."""
    found: list[Tensor] = []
    with torch.inference_mode(), reading(model, {site: lambda a: found.append(a[0].clone())}):
        for ids in prompts.ids:
            model.forward(pad([ids], [0], 0, "left"))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_each_prompt_alone_in_the_callers_order(
    family: str, prompts: TokenizedPrompts
) -> None:
    model = opened(family)
    sites: tuple[Site, ...] = (*SITES, HeadSite(1, 4), NeuronSite(0))
    if family != "neox":
        sites += (ResidualSite(1, "resid_mid"),)
    found = collect(model, prompts, sites, POSITIONS, batch_tokens=60)
    assert found.positions == tuple(
        map(Position.parse, ("last", "eoi[-3]", "eoi[-2]", "eoi[-1]", "instruction_end"))
    )
    assert found.sites == tuple(sorted(sites))
    for site in sites:
        alone = one_by_one(model, prompts, site)
        for position, column in (("last", -1), ("eoi[-2]", -2), ("instruction_end", -EOI - 1)):
            expected = torch.stack([a[column] for a in alone])
            assert (expected[0] - expected[1]).abs().max() > 1e-4  # order can be seen
            torch.testing.assert_close(found.rows(site, position), expected, atol=2e-5, rtol=1e-4)


def test_residual_sites_alone_leave_the_bridge_out(prompts: TokenizedPrompts) -> None:
    model = opened()
    assert collect(model, prompts, SITES, ["last"]).backend == "torch"
    assert collect(model, prompts, [HeadSite(0, 0)], ["last"]).backend == "bridge"


def test_shards_hold_the_same_rows_as_memory(prompts: TokenizedPrompts, tmp_path: Path) -> None:
    model = opened()
    memory = collect(model, prompts, SITES, POSITIONS, batch_tokens=60)
    tight = {"memory_gib": 10_000 / 2**30, "batch_tokens": 60}
    with pytest.raises(ActivationError, match=r"GiB and memory_gib is.*scratch"):
        collect(model, prompts, SITES, POSITIONS, **tight)  # pyright: ignore
    shards = collect(model, prompts, SITES, POSITIONS, scratch=tmp_path / "s", **tight)  # pyright: ignore
    assert len(list((tmp_path / "s").glob("*.safetensors"))) > 2
    again = load_activations(tmp_path / "s")
    memory.save(tmp_path / "saved")
    saved = load_activations(tmp_path / "saved")
    for site, position in itertools.product(memory.sites, memory.positions):
        rows = memory.rows(site, position)
        for other in (shards, again, saved):
            assert torch.equal(other.rows(site, position), rows)
    for field in ("sites", "positions", "n", "prompts_hash", "model", "edited", "backend"):
        assert getattr(again, field) == getattr(memory, field) == getattr(saved, field)


def test_moments_are_those_of_the_rows(prompts: TokenizedPrompts) -> None:
    model = opened()
    rows = collect(model, prompts, SITES, POSITIONS)
    kept = collect(model, prompts, SITES, POSITIONS, keep="moments", batch_tokens=60)
    for site, position in itertools.product(SITES, ("last", "eoi[-3]")):
        expected = rows.rows(site, position).double()
        found = kept.moments(site, position)
        torch.testing.assert_close(found.mean, expected.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.covariance, expected.T.cov(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            rows.moments(site, position).covariance, expected.T.cov(), atol=1e-6, rtol=1e-6
        )
    with pytest.raises(ActivationError, match="only moments were kept"):
        kept.rows(SITES[0], "last")


def test_moments_over_several_tokens_take_every_token_of_every_prompt(
    prompts: TokenizedPrompts,
) -> None:
    model, site = opened(), ResidualSite(2, "resid_post")
    kept = collect(model, prompts, [site], ["all", "prompt"], keep="moments", batch_tokens=50)
    everything = torch.cat(one_by_one(model, prompts, site)).double()
    found = kept.moments(site, "all")
    assert found.n == len(everything) == sum(map(len, prompts.ids))
    torch.testing.assert_close(found.mean, everything.mean(0), atol=1e-5, rtol=1e-4)
    assert kept.moments(site, "prompt").n == sum(len(i) - EOI - 1 for i in prompts.ids)
    with pytest.raises(PositionError, match=r"'all'.*several tokens.*keep='moments'"):
        collect(model, prompts, [site], ["all"])


def test_blocks_above_the_last_site_do_not_run(prompts: TokenizedPrompts) -> None:
    model = opened()
    ran: list[int] = []
    for index, block in enumerate(model.hf.model.layers):  # pyright: ignore
        block.register_forward_hook(lambda *_, i=index: ran.append(i))
    longest = prompts.select([max(range(N), key=lambda i: len(prompts.ids[i]))])
    collect(model, longest, [ResidualSite(1, "resid_post")], ["last"], batch_tokens=10_000)
    assert ran == [0, 1]


def test_under_an_intervention_edited_activations_are_read_and_it_is_said(
    prompts: TokenizedPrompts,
) -> None:
    model, site = opened(), ResidualSite(1, "resid_pre")
    clean = collect(model, prompts, [site], ["last"])
    with intervene(model, {site: lambda a: a + 1}):
        edited = collect(model, prompts, [site], ["last"])
    assert (clean.edited, edited.edited) == (False, True)
    torch.testing.assert_close(edited.rows(site, "last"), clean.rows(site, "last") + 1)


def test_an_activation_that_is_not_finite_names_site_and_prompt(prompts: TokenizedPrompts) -> None:
    model = opened()
    longest = max(range(N), key=lambda i: len(prompts.ids[i]))

    def spoil(a: Tensor) -> Tensor:
        return torch.where(torch.arange(len(a))[:, None, None] == 0, torch.nan, a)

    with (
        pytest.raises(
            ActivationError, match=rf"'resid_pre.2'.*prompt {longest} \(id id{longest:02d}\)"
        ),
        intervene(model, {ResidualSite(2, "resid_pre"): spoil}),
    ):
        collect(model, prompts, [ResidualSite(k, "resid_pre") for k in range(4)], ["last"])


def test_what_will_be_held_is_said_before_it_is(
    prompts: TokenizedPrompts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened()
    collect(model, prompts, SITES, ["last"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(collecting, "SAID_FROM", 4 * N * D_MODEL * len(SITES))
    collect(model, prompts, SITES, ["last"])
    assert f"({N} prompts, 4 sites, 1 positions): 0.00 GiB in memory" in capsys.readouterr().err


def test_bad_requests_are_refused_with_what_there_is(
    prompts: TokenizedPrompts, tmp_path: Path
) -> None:
    model = opened()
    found: Activations = collect(model, prompts, SITES, ["last"])
    with pytest.raises(SiteError, match=r"collected at resid_pre\.0, attn_out\.1"):
        found.rows(ResidualSite(3, "resid_pre"), "last")
    with pytest.raises(PositionError, match="collected at last"):
        found.rows(SITES[0], "eoi[-1]")
    with pytest.raises(SiteError, match="has 4 layers"):
        collect(model, prompts, [ResidualSite(4, "resid_pre")], ["last"])
    with pytest.raises(PromptError, match="no prompt"):
        collect(model, TokenizedPrompts((), (), ()), SITES, ["last"])
    with pytest.raises(ActivationError, match="no site"):
        collect(model, prompts, [], ["last"])
    with pytest.raises(PositionError, match=r"no such token"):
        collect(model, prompts, SITES, ["eoi[-9]"])
    with pytest.raises(ActivationError, match="has no index"):
        load_activations(tmp_path)
    found.save(tmp_path / "x")
    with pytest.raises(ActivationError, match="not empty"):
        found.save(tmp_path / "x")
    shard = next((tmp_path / "x").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(ActivationError, match="missing or damaged"):
        load_activations(tmp_path / "x")
