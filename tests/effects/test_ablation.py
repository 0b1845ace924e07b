"""Both forms of ablation do to the stream what they say, wherever it is read."""

from functools import partial

import torch

from mechsafety.activations.collecting import collect
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import ZeroAblation, addition, affine_ablation, zero_ablation
from mechsafety.effects.scores import first_token_logits
from mechsafety.interventions.ablate import ablate
from mechsafety.models.hooking import intervene

from .conftest import BATCH_TOKENS, LAYER, Attackable


def test_zero_ablation_leaves_no_projection_at_any_read_of_the_stream(ssft: Attackable) -> None:
    model, basis = ssft.model, ssft.source.subspace.basis
    tokens = ssft.target.harmful.tokens
    # Reads at a block's input see what arrives, before that input's own edit.
    sites = [ResidualSite(layer, "resid_post") for layer in range(model.dims.n_layers)]
    before = collect(model, tokens, sites, ["last"])
    assert max((before.rows(s, "last") @ basis.T).abs().max() for s in sites) > 0.1
    with intervene(model, zero_ablation(model.dims, basis)):
        after = collect(model, tokens, sites, ["last"])
    for site in sites:
        size = before.rows(site, "last").norm(dim=1).max()
        assert (after.rows(site, "last") @ basis.T).abs().max() < 1e-5 * size


def test_affine_ablation_sets_the_projection_of_block_inputs_to_the_harmless_mean(
    ssft: Attackable,
) -> None:
    model, basis = ssft.model, ssft.source.subspace.basis
    site = ResidualSite(LAYER, "resid_pre")
    mean = ssft.target.harmless_means[site]
    edit = affine_ablation(basis, {site: mean})[site]
    stream = torch.randn(3, 7, model.dims.d_model)
    assert ((stream @ basis.T) - mean @ basis.T).abs().max() > 0.1
    assert torch.allclose(edit(stream) @ basis.T, (mean @ basis.T).expand(3, 7, 1), atol=1e-5)


def test_affine_ablation_with_a_zero_mean_is_the_zero_form(ssft: Attackable) -> None:
    basis = ssft.source.subspace.basis
    site = ResidualSite(LAYER, "resid_pre")
    nothing = affine_ablation(basis, {site: torch.zeros(ssft.model.dims.d_model)})[site]
    zero = partial(ablate, basis=basis)
    stream = torch.randn(5, ssft.model.dims.d_model)
    assert torch.allclose(nothing(stream), zero(stream), atol=1e-6)


def test_zero_ablation_edits_every_place_where_something_enters_the_stream(
    ssft: Attackable,
) -> None:
    edits = zero_ablation(ssft.model.dims, ssft.source.subspace.basis)
    streams = {(site.layer, site.stream) for site in edits}
    layers = range(ssft.model.dims.n_layers)
    contributions = {(n, s) for n in layers for s in ("attn_out", "mlp_out")}
    assert streams == {(0, "resid_pre"), *contributions}


def test_zero_ablation_as_a_condition_gives_the_numbers_of_its_hooks(ssft: Attackable) -> None:
    model, basis = ssft.model, ssft.source.subspace.basis
    tokens, size = ssft.target.harmful.tokens, BATCH_TOKENS
    clean = first_token_logits(model, tokens, size)
    by_hooks = first_token_logits(model, tokens, size, zero_ablation(model.dims, basis))
    assert (by_hooks - clean).abs().max() > 1
    assert torch.allclose(
        first_token_logits(model, tokens, size, ZeroAblation(basis)), by_hooks, atol=1e-4
    )
    assert torch.equal(first_token_logits(model, tokens, size), clean)


def test_addition_is_linear_in_its_dose(ssft: Attackable) -> None:
    site, vector = ssft.source.site, ssft.source.subspace.vector
    stream = torch.randn(4, ssft.model.dims.d_model)
    once = addition(site, vector, 1.0)[site](stream) - stream
    twice = addition(site, vector, 2.0)[site](stream) - stream
    assert torch.allclose(twice, 2 * once, atol=1e-5)
    assert once.abs().max() > 0.1
