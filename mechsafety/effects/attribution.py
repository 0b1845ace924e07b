"""Who writes a direction: heads, MLPs, biases and embeddings, and what ablating them does.

The residual stream is a sum, so its projection on a direction is the sum of what each part of
the model wrote (direct effects only: what a head does through later parts counts as theirs).
Attribution says who writes; only ablation (`writer_edits`) says who is needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.activations.storing import Activations
from mechsafety.core.errors import (
    DegenerateDirectionError,
    PositionError,
    SampleError,
    SelfCheckError,
    SiteError,
    SubspaceError,
)
from mechsafety.core.positions import Position
from mechsafety.core.sites import HeadSite, ResidualSite, Site
from mechsafety.interventions.intervention import Intervention
from mechsafety.interventions.replace import replace
from mechsafety.linalg.moments import Moments
from mechsafety.linalg.typed import linalg
from mechsafety.models.hooking import reading
from mechsafety.models.model import Model
from mechsafety.models.probes import TOLERANCES
from mechsafety.models.tokens import TokenizedPrompts, batches
from mechsafety.models.writers import attention_writes, head_projections

WriterKind = Literal["embedding", "head", "attn_bias", "mlp"]


@dataclass(frozen=True, slots=True)
class Writer:
    """A part of the model that adds to the residual stream. Printed as `head 3.5`, `mlp 4`."""

    kind: WriterKind
    layer: int | None = None
    """None for the embeddings."""
    head: int | None = None
    """Query head; None for what is no head."""

    @property
    def site(self) -> HeadSite | ResidualSite | None:
        """Where the writer is ablated; None for embeddings and biases, which are not."""
        if self.layer is not None and self.head is not None:
            return HeadSite(self.layer, self.head)
        if self.layer is not None and self.kind == "mlp":
            return ResidualSite(self.layer, "mlp_out")
        return None

    def __str__(self) -> str:
        if self.layer is None:
            return self.kind
        return f"{self.kind} {self.layer}" + ("" if self.head is None else f".{self.head}")


@dataclass(frozen=True)
class Attribution:
    """What each writer put into the stream's projection on a direction, prompt by prompt."""

    site: ResidualSite
    """Where the stream is projected."""
    position: Position
    writers: tuple[Writer, ...]
    """Every writer before the site, in order of computation."""
    contributions: Float[Tensor, "prompt n_writers"]
    """Projection of what each writer added on the unit direction: activation units, float64."""
    residual: Float[Tensor, " prompt"]
    """Projection of the stream itself, which the contributions add up to; float64."""


@dataclass(frozen=True)
class WriterShares:
    """What each writer adds to the difference between harmful and harmless prompts."""

    writers: tuple[Writer, ...]
    differences: Float[Tensor, " n_writers"]
    """Mean contribution on harmful prompts less that on harmless ones: activation units, float64.
    A negative one writes against the sum."""

    @property
    def total(self) -> float:
        """Difference of the classes' mean projections, which the differences add up to."""
        return float(self.differences.sum())

    @property
    def shares(self) -> Float[Tensor, " n_writers"]:
        """Each difference over the total. They add up to 1; single ones may exceed it."""
        return self.differences / self.differences.sum()

    def top_writers(self, share: float = 0.9) -> tuple[Writer, ...]:
        """The fewest writers whose differences add up to at least `share` of the total.

        Largest signed share first. Where other writers work against them, the rest of the model
        then carries less than 1 − `share` on balance and not writer by writer. Embeddings and
        biases count although they cannot be ablated: their `site` is None.

        Raises:
            SampleError: The share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise SampleError(
                f"choosing the top writers: the share is {share}; expected more than 0 and at "
                "most 1 (0.9: the fewest writers that carry 90 % of the difference)."
            )
        found, order = self.shares.sort(descending=True, stable=True)
        # All positive shares together reach 1, but for rounding.
        enough = int((found.cumsum(0) < share - 1e-12).sum()) + 1
        return tuple(self.writers[int(i)] for i in order[:enough])


def attribute(
    model: Model,
    prompts: TokenizedPrompts,
    direction: Float[Tensor, " d_model"],
    site: ResidualSite,
    position: Position | str,
    batch_tokens: int,
) -> Attribution:
    r"""Split the projection of the residual stream on a direction into what each writer adds.

    $\langle x, \hat r \rangle = \langle e, \hat r \rangle + \sum_{l} \left( \sum_h \langle z_{lh}
    W_O^{lh}, \hat r \rangle + \langle b_O^l, \hat r \rangle + \langle m_l, \hat r \rangle \right)$
    over the blocks before the site. In post-norm families each contribution is taken as it
    arrives in the stream, behind the norm (`head_projections`). Checked against the stream.

    Holds `4 · prompts · blocks · (n_heads · d_head + 2 · d_model)` bytes of activations, and W_O
    of one layer at a time. Under an installed intervention on heads or MLPs what is left is
    attributed.

    Source: the residual stream as a sum, Elhage et al. 2021,
    https://transformer-circuits.pub/2021/framework/index.html.

    Args:
        model: Any model that has the heads' sites; its weights do not change.
        prompts: One class of prompts.
        direction: Its length does not matter, its sign does.
        site: `resid_pre`, `resid_mid` or `resid_post`; writers before it are counted.
        position: One token of each prompt.
        batch_tokens: Most padded tokens of a forward pass.

    Raises:
        SiteError: The site is no place of the stream, or the model does not have it.
        PositionError: Several tokens of a prompt.
        SubspaceError: The direction is zero, not finite, or of another width.
        ModelError: The attention of this architecture is no sum over heads.
        SelfCheckError: The contributions do not add up to the projection.
    """
    unit = _unit(direction, model)
    model.wiring.check(site)
    at = _single(prompts, position)
    attentions, mlps = _blocks_before(site)
    embedded = ResidualSite(0, "resid_pre")
    added = [ResidualSite(layer, "attn_out") for layer in range(attentions)]
    heads = [HeadSite(layer, h) for layer in range(attentions) for h in range(model.dims.n_heads)]
    outputs = [ResidualSite(layer, "mlp_out") for layer in range(mlps)]
    reads: list[Site] = [embedded, *added, *heads, *outputs, site]
    found = collect(model, prompts, reads, [at], batch_tokens=batch_tokens)
    writers = [Writer("embedding")]
    columns = [found.rows(embedded, at).double() @ unit]
    for layer in range(attentions):
        for writer, column in _attention(model, layer, found, at, unit):
            writers.append(writer)
            columns.append(column)
        if layer < mlps:
            writers.append(Writer("mlp", layer))
            columns.append(found.rows(outputs[layer], at).double() @ unit)
    contributions = torch.stack(columns, dim=1)
    residual = found.rows(site, at).double() @ unit
    _check_sum(contributions, residual, site, TOLERANCES.get(model.dtype, 1e-4))
    return Attribution(site, at, tuple(writers), contributions, residual)


def shares(harmful: Attribution, harmless: Attribution) -> WriterShares:
    """What each writer adds to the difference of the classes' mean projections.

    Raises:
        SampleError: The two are of different sites, positions or models.
        DegenerateDirectionError: The classes project equally, so there is nothing to share.
    """
    if (harmful.site, harmful.position, harmful.writers) != (
        harmless.site,
        harmless.position,
        harmless.writers,
    ):
        raise SampleError(
            f"comparing writers: harmful prompts were attributed at {harmful.site}, "
            f"{harmful.position} with {len(harmful.writers)} writers, and harmless ones at "
            f"{harmless.site}, {harmless.position} with {len(harmless.writers)}. Attribute both "
            "in one model, at one site and position."
        )
    differences = harmful.contributions.mean(0) - harmless.contributions.mean(0)
    found = WriterShares(harmful.writers, differences)
    if found.total == 0:
        raise DegenerateDirectionError(
            f"comparing writers at {harmful.site}: the mean projections of the classes are equal, "
            "so no writer has a share of their difference. Use a direction that separates them."
        )
    return found


def writer_means(
    model: Model, prompts: TokenizedPrompts, writers: Iterable[Writer], batch_tokens: int
) -> dict[Site, Float[Tensor, " d"]]:
    """Mean activation of each writer over all tokens of the prompts, in float64.

    Give harmless prompts of the fit split: mean ablation then leaves of a writer what it does
    whatever it is asked. Holds `8 · Σ width` bytes, however many prompts there are.

    Raises:
        SiteError: None of the writers can be ablated.
        ActivationError: An activation is not finite.
    """
    sites = _sites(writers, "taking means of writers")
    means: dict[Site, Moments] = {s: Moments(s.width(model.dims), second=False) for s in sites}
    real = torch.empty(0, dtype=torch.bool)

    def take(site: Site, activation: Tensor) -> None:
        means[site].update(activation[real.to(activation.device)])

    reads = {site: partial(take, site) for site in sites}
    with torch.inference_mode(), reading(model, reads, stop=True):
        for batch in batches(prompts, model.pass_tokens(batch_tokens)):
            # Padding is computed with, and is nobody's token.
            real = batch.attention_mask.bool()
            model.run(batch, logits_to_keep=1)
    return {site: moments.mean for site, moments in means.items()}


def writer_edits(
    writers: Iterable[Writer], means: Mapping[Site, Float[Tensor, " d"]] | None
) -> dict[Site, Intervention]:
    """Ablation of these writers at every position, for `intervene`: zero, or mean.

    Embeddings and biases are left out, as nothing ablates them. Unlike their contributions, the
    effect of ablating writers includes what later parts make of it.

    Args:
        writers: Such as `top_writers`.
        means: None for zero ablation; else what each one becomes (`writer_means`).

    Raises:
        SiteError: None of the writers can be ablated, or one has no mean.
    """
    sites = _sites(writers, "ablating writers")
    if means is None:
        return {site: partial(replace, value=0.0) for site in sites}
    missing = [str(site) for site in sites if site not in means]
    if missing:
        raise SiteError(
            f"ablating writers to their means: {len(missing)} of {len(sites)} have none, first "
            f"{missing[0]}. Take means of the same writers with `writer_means`."
        )
    return {site: partial(replace, value=means[site]) for site in sites}


def _attention(
    model: Model, layer: int, found: Activations, at: Position, unit: Tensor
) -> list[tuple[Writer, Tensor]]:
    """The heads of a layer, and its bias if it has one, each with what it adds."""
    writes = attention_writes(model, layer)
    n_heads = len(writes.weight)
    z = torch.stack([found.rows(HeadSite(layer, h), at) for h in range(n_heads)], dim=1)
    attn_out = found.rows(ResidualSite(layer, "attn_out"), at)
    heads, bias = head_projections(writes, z, attn_out, unit)
    parts = [(Writer("head", layer, h), heads[:, h]) for h in range(n_heads)]
    if bool(writes.bias.any()):
        parts.append((Writer("attn_bias", layer), bias))
    return parts


def _blocks_before(site: ResidualSite) -> tuple[int, int]:
    """How many attentions, and how many MLPs, have written when the stream reaches the site."""
    done = {"resid_pre": (0, 0), "resid_mid": (1, 0), "resid_post": (1, 1)}
    if site.stream not in done:
        raise SiteError(
            f"attributing the projection at '{site}': that is what one part adds, not the stream "
            f"that all write to. Use resid_pre.{site.layer} or resid_post.{site.layer}."
        )
    attention, mlp = done[site.stream]
    return site.layer + attention, site.layer + mlp


def _unit(direction: Tensor, model: Model) -> Tensor:
    wide = direction.detach().double().cpu()
    norm = float(linalg.vector_norm(wide))
    if len(wide) != model.dims.d_model or not 0 < norm < float("inf"):
        raise SubspaceError(
            f"attributing a direction of width {len(wide)} and norm {norm:.3g} in a model of width "
            f"{model.dims.d_model}: expected a finite direction of that width that is not zero."
        )
    return wide / norm


def _single(prompts: TokenizedPrompts, position: Position | str) -> Position:
    parsed = Position.parse(position) if isinstance(position, str) else position
    at = prompts.positions(parsed)
    if len(at) != 1:
        raise PositionError(
            f"attributing at position '{parsed}': it is {len(at)} tokens of a prompt. Attribute at "
            f"one of them: {', '.join(map(str, at))}."
        )
    return at[0]


def _sites(writers: Iterable[Writer], doing: str) -> Sequence[HeadSite | ResidualSite]:
    listed = tuple(writers)
    sites = [writer.site for writer in listed if writer.site is not None]
    if not sites:
        named = ", ".join(map(str, listed[:4])) or "none were given"
        raise SiteError(
            f"{doing}: none of the {len(listed)} writers ({named}) can be ablated. Only heads and "
            "MLPs can; ask `top_writers` for a larger share."
        )
    return sites


def _check_sum(contributions: Tensor, residual: Tensor, site: Site, tolerance: float) -> None:
    # Not relative to the projection: that may be a small difference of large contributions.
    size = linalg.vector_norm(contributions, dim=1).mean()
    gap = (contributions.sum(dim=1) - residual).abs().max()
    # Written so that NaN fails it too.
    if not gap <= tolerance * size:
        raise SelfCheckError(
            f"attributing the projection at '{site}': {contributions.shape[1]} writers together "
            f"miss it by {gap:.3g} in one prompt, where {tolerance * size:.3g} could be rounding. "
            "Either an intervention on the stream itself is installed (attribute outside it), or "
            "this architecture adds to the stream what is no head, MLP or embedding; "
            "`mechsafety check` says whether its contributions add up."
        )
