"""Is there one refusal direction or more? What is left to find once the first is removed.

A difference in means that is refitted on the same activations with the first direction projected
out is zero at its own site by construction, and says nothing. So the model itself runs with the
first direction ablated, and directions are fitted on what it then computes: if refusal has another
carrier, one of these bypasses refusal by itself, in the unedited model.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.positions import Position
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.ablation import Hooks, under, zero_ablation
from mechsafety.effects.selection import Candidates
from mechsafety.interventions.ablate import ablate
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenizedPrompts


def refitted_candidates(
    model: Model,
    harmful: TokenizedPrompts,
    harmless: TokenizedPrompts,
    first: Float[Tensor, "k d_model"],
    sites: Sequence[ResidualSite],
    positions: Sequence[Position],
    batch_tokens: int,
) -> Candidates:
    """Differences in means of the model that runs with `first` ablated, at each place.

    All are orthogonal to `first`, whose rounding is taken out as well.

    Args:
        harmful: Of the fit split.
        harmless: As above.
        first: Basis of the direction that is removed.
        sites: Where directions are read.
        positions: As above.
        batch_tokens: Most padded tokens of one pass.
    """
    with under(model, _ablated_up_to(model, first, sites)):
        there = [
            collect(model, prompts, sites, positions, batch_tokens=batch_tokens)
            for prompts in (harmful, harmless)
        ]
    means = [
        torch.stack(
            [torch.stack([rows.rows(s, p).double().mean(0) for s in sites]) for p in rows.positions]
        )
        for rows in there
    ]
    vectors = ablate(means[0] - means[1], first).float()
    return Candidates(tuple(map(str, there[0].positions)), tuple(sites), vectors)


def last_token_stream(
    model: Model,
    prompts: TokenizedPrompts,
    sites: Sequence[ResidualSite],
    batch_tokens: int,
    without: Float[Tensor, "k d_model"] | None = None,
) -> Float[Tensor, "layer prompt d_model"]:
    """The residual stream at the last token, of the model as it is or with a direction ablated."""
    with under(model, None if without is None else _ablated_up_to(model, without, sites)):
        read = collect(model, prompts, sites, ["last"], batch_tokens=batch_tokens)
    return torch.stack([read.rows(site, "last") for site in sites])


def _ablated_up_to(
    model: Model, basis: Float[Tensor, "k d_model"], sites: Sequence[ResidualSite]
) -> Hooks:
    """Zero ablation up to the last of the sites, where a pass that reads them ends.

    As hooks: edited weights would be hashed anew with everything that is collected from them.
    """
    edits = zero_ablation(model.dims, basis)
    return {at: edit for at, edit in edits.items() if any(at <= site for site in sites)}
