"""Where an ablation's effect comes from: windows of layers, and tokens."""

from functools import partial

import pytest
import torch
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.errors import PositionError
from mechsafety.core.positions import Position, TokenSpans
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import ZeroAblation, zero_ablation
from mechsafety.effects.scores import run_halfway, score
from mechsafety.effects.windows import (
    Window,
    position_scores,
    token_mask,
    window_ablation,
    window_scores,
    windows,
)
from mechsafety.interventions.ablate import ablate
from mechsafety.interventions.at_tokens import at_tokens
from mechsafety.models.hooking import intervene, reading
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenizedPrompts, pad
from tests.models.families import D_MODEL, N_LAYERS, tiny

from .conftest import BATCH_TOKENS, Attackable

EOI = 2
PROMPTS = TokenizedPrompts(
    ids=((1, 5, 6, 7, 8, 3, 4), (1, 9, 12, 3, 4), (1, 31, 8, 6, 7, 30, 9, 3, 4)),
    spans=(TokenSpans(7, (1, 5)), TokenSpans(5, (1, 3)), TokenSpans(9, (1, 7))),
    names=("a", "b", "c"),
)
REFUSAL = torch.tensor([7, 19])


def refusal(model: Model, prompts: TokenizedPrompts, ids: Tensor, edits: object = None) -> Tensor:
    found = score(model, prompts, ids, BATCH_TOKENS, edits).refusal  # pyright: ignore
    assert found is not None
    return found


def test_windows_are_worked_by_hand() -> None:
    assert windows(3, 1) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert windows(5, 2) == [(0, 1), (0, 3), (0, 4), (2, 3), (2, 4), (4, 4)]
    assert windows(4, 9) == [(0, 3)]


@pytest.mark.parametrize(("n_layers", "step"), [(7, 1), (12, 3), (11, 4), (1, 1)])
def test_windows_are_distinct_lie_in_the_model_and_hold_the_whole_of_it(
    n_layers: int, step: int
) -> None:
    found, parts = windows(n_layers, step), -(-n_layers // step)
    assert len(found) == len(set(found)) == parts * (parts + 1) // 2
    assert (0, n_layers - 1) in found
    for first, last in found:
        assert 0 <= first <= last < n_layers
        assert first % step == 0
        assert (last + 1) % step == 0 or last == n_layers - 1


def test_the_window_of_the_whole_model_is_zero_ablation(ssft: Attackable) -> None:
    model, prompts, basis = ssft.model, ssft.target.harmful.tokens, ssft.source.subspace.basis
    ids, last = ssft.target.refusal_ids, model.dims.n_layers - 1
    assert set(window_ablation((0, last), basis)) == set(zero_ablation(model.dims, basis))
    start = run_halfway(model, prompts, [0], BATCH_TOKENS)
    found = window_scores(model, prompts, start, basis, [(0, last)], ids, BATCH_TOKENS)
    whole = refusal(model, prompts, ids, ZeroAblation(basis))
    assert (refusal(model, prompts, ids) - whole).mean() > 0.5  # the ablation does something
    assert torch.allclose(found[:, 0], whole, atol=1e-4)


def check_halfway(
    model: Model, prompts: TokenizedPrompts, basis: Tensor, ids: Tensor
) -> tuple[Tensor, list[Window]]:
    """Scores from halfway starts, after holding each against hooks in a whole pass."""
    tried = windows(model.dims.n_layers, 1)
    starts = run_halfway(model, prompts, range(model.dims.n_layers), BATCH_TOKENS)
    found = window_scores(model, prompts, starts, basis, tried, ids, BATCH_TOKENS)
    assert found.shape == (len(prompts), len(tried))
    for column, window in enumerate(tried):
        expected = refusal(model, prompts, ids, window_ablation(window, basis))
        assert torch.allclose(found[:, column], expected, atol=1e-4), window
    return found, tried


def test_every_window_from_halfway_is_that_of_hooks_in_a_whole_pass(ssft: Attackable) -> None:
    prompts, ids = ssft.target.harmful.tokens, ssft.target.refusal_ids
    basis = ssft.source.subspace.basis
    found, tried = check_halfway(ssft.model, prompts, basis, ids)
    assert found.std(dim=1).mean() > 0.2  # windows differ
    assert len(tried) == 10


@pytest.mark.parametrize("family", ["gemma2", "neox", "gpt2"])
def test_other_families_have_the_same_windows(family: str, generator: torch.Generator) -> None:
    model = Model(tiny(family), None, None)
    basis = torch.randn(2, D_MODEL, generator=generator)
    found, _ = check_halfway(model, PROMPTS, basis, REFUSAL)
    assert found.std(dim=1).min() > 1e-3


def test_inside_its_window_the_direction_is_gone_below_nothing_changed_above_it_may_return(
    ssft: Attackable,
) -> None:
    model, prompts, basis = ssft.model, ssft.target.harmful.tokens, ssft.source.subspace.basis
    first, last = 1, 2
    after = [ResidualSite(layer, "resid_post") for layer in range(model.dims.n_layers)]
    clean = collect(model, prompts, after, ["last"])
    with intervene(model, window_ablation((first, last), basis)):
        edited = collect(model, prompts, after, ["last"])

    def along(site: ResidualSite) -> Tensor:
        return (edited.rows(site, "last") @ basis.T).abs().max()

    size = clean.rows(after[last], "last").norm(dim=1).max()
    for site in after[:first]:
        assert torch.equal(edited.rows(site, "last"), clean.rows(site, "last"))
        assert along(site) > 1e-3 * size
    for site in after[first : last + 1]:
        assert along(site) < 1e-5 * size
    assert along(after[last + 1]) > 1e-3 * size


def test_ablating_at_all_tokens_is_ablating_everywhere(ssft: Attackable) -> None:
    model, prompts, basis = ssft.model, ssft.target.harmful.tokens, ssft.source.subspace.basis
    ids = ssft.target.refusal_ids
    assert len(set(map(len, prompts.ids))) > 1  # so batches have padding, which is not edited
    found = position_scores(model, prompts, basis, [Position("all")], ids, BATCH_TOKENS)
    everywhere = refusal(model, prompts, ids, zero_ablation(model.dims, basis))
    assert (refusal(model, prompts, ids) - everywhere).abs().max() > 1
    assert torch.allclose(found[:, 0], everywhere, atol=1e-4)


def test_ablating_at_a_position_is_a_hook_on_those_columns_of_each_prompt_alone(
    ssft: Attackable,
) -> None:
    model, prompts, basis = ssft.model, ssft.target.harmful.tokens, ssft.source.subspace.basis
    ids = ssft.target.refusal_ids
    positions = [Position("eoi", -1), Position("prompt"), Position("eoi"), Position("eoi", -2)]
    found = position_scores(model, prompts, basis, positions, ids, BATCH_TOKENS)
    assert found.shape == (len(prompts), len(positions))
    edit = partial(ablate, basis=basis)
    for row in range(len(prompts)):
        start, stop = prompts.spans[row].instruction
        n = len(prompts.ids[row])
        columns = (slice(n - 1, n), slice(start, stop), slice(stop, n), slice(n - 2, n - 1))
        for place, where in enumerate(columns):

            def there(x: Tensor, where: slice = where) -> Tensor:
                y = x.clone()
                y[:, where] = edit(x)[:, where]
                return y

            hooks = dict.fromkeys(zero_ablation(model.dims, basis), there)
            expected = refusal(model, prompts.select([row]), ids, hooks)
            assert torch.allclose(found[row, place], expected[0], atol=1e-4)
    assert found.std(dim=1).mean() > 0.1  # positions differ
    assert torch.equal(
        found[:, :1],
        position_scores(model, prompts, basis, [Position("last")], ids, BATCH_TOKENS),
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "neox"])
def test_ablating_at_the_last_token_leaves_every_other_column_of_every_layer_clean(
    family: str, side: str, generator: torch.Generator
) -> None:
    model = Model(tiny(family), None, None)
    basis = torch.randn(1, D_MODEL, generator=generator)
    batch = pad(PROMPTS.ids, range(len(PROMPTS)), 0, side)  # pyright: ignore
    last = token_mask(batch, PROMPTS, Position("eoi", -1))
    assert last.sum(1).tolist() == [1, 1, 1]
    edits = {
        site: partial(at_tokens, tokens=last, edit=edit)
        for site, edit in zero_ablation(model.dims, basis).items()
    }
    streams: list[dict[ResidualSite, Tensor]] = []
    for some in ({}, edits):
        seen: dict[ResidualSite, Tensor] = {}
        reads = {
            site: lambda x, site=site, seen=seen: seen.update({site: x.clone()})
            for site in (ResidualSite(layer, "resid_post") for layer in range(N_LAYERS))
        }
        with torch.inference_mode(), intervene(model, some), reading(model, reads):
            model.forward(batch, keep="all")
        streams.append(seen)
    others = batch.attention_mask.bool() & ~last
    for site, clean in streams[0].items():
        edited = streams[1][site]
        assert torch.equal(edited[others], clean[others])
        assert (clean[last] @ basis.T).abs().min() > 1e-3
        assert (edited[last] @ basis.T).abs().max() < 1e-4 * clean[last].norm()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokens_of_a_position_are_where_padding_put_them(side: str) -> None:
    rows = [2, 0, 1]
    batch = pad([PROMPTS.ids[row] for row in rows], rows, 0, side)  # pyright: ignore
    names = ("all", "prompt", "eoi", "last", "instruction_end")
    masks = {name: token_mask(batch, PROMPTS, Position(name)) for name in names}
    assert torch.equal(masks["all"], batch.attention_mask.bool())
    assert batch.ids[masks["eoi"]].tolist() == [3, 4] * len(rows)
    assert batch.ids[masks["last"]].tolist() == [4] * len(rows)
    assert batch.ids[masks["instruction_end"]].tolist() == [9, 8, 12]
    assert batch.ids[masks["prompt"]].tolist() == [31, 8, 6, 7, 30, 9, 5, 6, 7, 8, 9, 12]
    first = masks["all"] & ~masks["prompt"] & ~masks["eoi"]
    assert not (masks["prompt"] & masks["eoi"]).any()
    assert batch.ids[first].tolist() == [1] * len(rows)  # the token before the instruction


def test_a_position_that_prompts_do_not_have_is_refused(ssft: Attackable) -> None:
    prompts, ids = ssft.target.harmful.tokens, ssft.target.refusal_ids
    basis = ssft.source.subspace.basis
    with pytest.raises(PositionError, match="no such token"):
        position_scores(ssft.model, prompts, basis, [Position("generated")], ids, BATCH_TOKENS)
