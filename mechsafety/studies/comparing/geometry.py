"""How alike the models' directions, subspaces and activations are, layer by layer."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.seeding import named_generator
from mechsafety.directions.difference_in_means import DifferenceInMeans
from mechsafety.directions.methods import DirectionMethod
from mechsafety.metrics.activation_grams import activation_grams
from mechsafety.metrics.cka import LayerCka, layer_cka, shuffled_layer_cka
from mechsafety.metrics.deals import Deals, mean_differences, refit_each, varying_layers
from mechsafety.metrics.direction_stacks import DirectionStack, refitted
from mechsafety.metrics.layer_overlaps import LayerOverlaps, layer_overlaps, subspace_stack
from mechsafety.metrics.massive_channels import Control, without_channels
from mechsafety.metrics.pairing import Pairing
from mechsafety.metrics.resampling import MIN_CLUSTERS
from mechsafety.metrics.shared_null import LayerCosines, layer_cosines
from mechsafety.metrics.spectral_intervals import LeaveOut, jackknife_groups
from mechsafety.studies.comparing.claims import MapMethod
from mechsafety.studies.comparing.frame import Frame, GeometryJob
from mechsafety.studies.comparing.mapping import FittedMap, Place, places
from mechsafety.studies.comparing.settings import Pair

Via = Literal["none"] | MapMethod
"""How the first model's directions come into the second's space; `none`: channel by channel."""
CkaPrompts = Literal["harmful and harmless", "neutral"]
ACTIVATIONS: Final[tuple[CkaPrompts, ...]] = ("harmful and harmless", "neutral")


@dataclass(frozen=True)
class Likeness:
    """Directions of two models, compared at every pair of layers, or where maps were fitted."""

    first: str
    second: str
    via: Via
    channels: Control
    cells: Mapping[tuple[int, int], tuple[int, int]]
    """Layers of both models → where `cosines` has them."""
    cosines: LayerCosines
    within: tuple[Float[Tensor, "split n_first"], Float[Tensor, "split n_second"]]
    """Cosine of halves A and B within each model, split by split."""
    n_rows: int


@dataclass(frozen=True)
class ActivationLikeness:
    """CKA of two models' activations at every pair of layers at which prompts differ."""

    first: str
    second: str
    prompts: CkaPrompts
    channels: Control
    layers: tuple[tuple[int, ...], tuple[int, ...]]
    """Which layers the axes stand for."""
    cka: LayerCka
    null: Float[Tensor, "draw n_first n_second"]
    """With one model's prompts shuffled."""
    n: int


@dataclass(frozen=True)
class Geometry:
    """How alike every two models are, before any map between them."""

    stacks: Mapping[str, DirectionStack]
    """Every model's directions."""
    places: Mapping[Pair, tuple[Place, ...]]
    likenesses: tuple[Likeness, ...]
    activations: tuple[ActivationLikeness, ...]
    overlaps: Mapping[Pair, LayerOverlaps]


def geometry_of(job: GeometryJob) -> Geometry:
    """Compare every two models without a map; holds one `DirectionStack` a model."""
    found, at = stacks(job), all_places(job)
    return Geometry(
        stacks=found,
        places=at,
        likenesses=tuple(same_channels(job, found)),
        activations=tuple(activation_likenesses(job)),
        overlaps=all_overlaps(job, at),
    )


def stacks(job: GeometryJob, out: Sequence[int] = ()) -> dict[str, DirectionStack]:
    """Every model's directions under every deal, without some channels."""
    fit = fitter(job.direction)
    return {
        name: refitted(fit, without_channels(rows, list(out)) if out else rows, job.plan)
        for name, rows in job.rows.items()
    }


def fitter(
    method: DirectionMethod,
) -> Callable[[Float[Tensor, "row layer d"], Deals], Float[Tensor, "deal layer d"]]:
    """How a direction method is fitted again on every deal."""
    if isinstance(method, DifferenceInMeans):
        # Linear in the rows: one product instead of a fit a deal.
        return mean_differences
    return partial(refit_each, lambda harmful, harmless: method.fit(harmful, harmless).vector)


def same_channels(job: GeometryJob, found: Mapping[str, DirectionStack]) -> list[Likeness]:
    """Every two models of one width, and each with itself, channel by channel.

    Between models of other bases this is the cosine that single-number claims print; its null is
    then all that it can be held against.
    """
    pairs = [
        (a, b)
        for a, b in itertools.combinations_with_replacement(job.rows, 2)
        if job.width(a) == job.width(b)
    ]
    without: dict[tuple[int, ...], dict[str, DirectionStack]] = {(): dict(found)}
    likenesses: list[Likeness] = []
    for first, second in pairs:
        out = job.channels_out((first, second))
        controls: list[tuple[Control, tuple[int, ...]]] = [("all", ())]
        if out:
            controls.append(("channels_out", out))
        for channels, left in controls:
            if left not in without:
                without[left] = stacks(job, left)
            one, other = without[left][first], without[left][second]
            n_first, n_second = len(one.whole), len(other.whole)
            cells = {(i, j): (i, j) for i in range(n_first) for j in range(n_second)}
            likenesses.append(_likeness(job, (first, second), "none", channels, cells, one, other))
    return likenesses


def through_maps(
    frame: Frame,
    found: Mapping[str, DirectionStack],
    maps: Mapping[Pair, tuple[FittedMap, ...]],
) -> list[Likeness]:
    """Directions of one model carried into another's space, compared where maps were fitted."""
    likenesses: list[Likeness] = []
    for (first, second), fitted in maps.items():
        for method in frame.config.maps.methods:
            by_layers = {
                (one.place.first, one.place.second): one for one in fitted if one.method == method
            }
            layers = list(by_layers)
            carried = (
                found[first]
                .select([i for i, _ in layers])
                .through([by_layers[at].map.matrix for at in layers])
            )
            there = found[second].select([j for _, j in layers])
            cells = {at: (i, i) for i, at in enumerate(layers)}
            likenesses.append(
                _likeness(frame.job, (first, second), method, "all", cells, carried, there)
            )
    return likenesses


def _likeness(
    job: GeometryJob,
    pair: Pair,
    via: Via,
    channels: Control,
    cells: Mapping[tuple[int, int], tuple[int, int]],
    first: DirectionStack,
    second: DirectionStack,
) -> Likeness:
    return Likeness(
        *pair,
        via,
        channels,
        cells,
        layer_cosines(first, second, job.plan),
        (_within(first), _within(second)),
        job.plan.whole.n_rows,
    )


def _within(stack: DirectionStack) -> Float[Tensor, "split layer"]:
    return torch.nn.functional.cosine_similarity(*(half.double() for half in stack.halves), dim=-1)


def activation_likenesses(job: GeometryJob) -> list[ActivationLikeness]:
    """CKA of every two models, on harmful and harmless prompts and on held-out neutral ones."""
    found: list[ActivationLikeness] = []
    for prompts in ACTIVATIONS:
        rows = {name: _activations(job, name, prompts) for name in job.rows}
        leave_out = _leave_out(job, prompts)
        layers = {name: tuple(varying_layers(one)) for name, one in rows.items()}
        massive = {name: job.massive[job.spaces[name]] for name in rows}
        grams = {
            (name, out): activation_grams(
                without_channels(one[:, list(layers[name])], out), "unbiased", leave_out
            )
            for name, one in rows.items()
            for out in {(), massive[name]}
        }
        for first, second in itertools.combinations(job.rows, 2):
            some = massive[first] or massive[second]
            for channels in ("all", "channels_out") if some else ("all",):
                x, y = (
                    grams[name, massive[name] if channels == "channels_out" else ()]
                    for name in (first, second)
                )
                found.append(
                    ActivationLikeness(
                        first,
                        second,
                        prompts,
                        channels,
                        (layers[first], layers[second]),
                        layer_cka(x, y),
                        shuffled_layer_cka(
                            x,
                            y,
                            job.settings.cka_shuffles,
                            named_generator(job.seed, "shuffled prompts"),
                        ),
                        len(rows[first]),
                    )
                )
    return found


def all_overlaps(
    job: GeometryJob, where: Mapping[Pair, tuple[Place, ...]]
) -> dict[Pair, LayerOverlaps]:
    """Overlap of the strongest components, at layers of equal depth of models of one width."""
    settings = job.settings
    pairing: Pairing = "list" if job.plan.paired else "all"
    n_draws = min(settings.subspace_draws, settings.null_draws)
    found = {
        name: subspace_stack(rows, job.plan, settings.subspace_rank, pairing, n_draws)
        for name, rows in job.rows.items()
    }
    return {
        (first, second): layer_overlaps(
            found[first],
            found[second],
            [(at.first, at.second) for at in where[first, second] if at.match == "depth"],
        )
        for first, second in itertools.combinations(job.rows, 2)
        if job.width(first) == job.width(second)
    }


def all_places(job: GeometryJob) -> dict[Pair, tuple[Place, ...]]:
    """For every two models, both ways, which layers are compared.

    The best match is chosen by CKA on the neutral prompts that maps are fitted on: nothing else is
    measured on them, so no number here was chosen for being large.
    """
    rows = {name: neutral.fit for name, neutral in job.neutral.items()}
    usable = {name: varying_layers(one) for name, one in rows.items()}
    grams = {
        name: activation_grams(one[:, usable[name]], "unbiased", None) for name, one in rows.items()
    }
    depth = {name: job.n_blocks(name) for name in rows}
    found: dict[Pair, tuple[Place, ...]] = {}
    for first, second in itertools.combinations(rows, 2):
        cka = torch.full((depth[first] + 1, depth[second] + 1), -1.0, dtype=torch.float64)
        inner = layer_cka(grams[first], grams[second]).value
        cka[torch.tensor(usable[first])[:, None], torch.tensor(usable[second])[None]] = inner
        for pair, likeness in (((first, second), cka), ((second, first), cka.T)):
            a, b = pair
            found[pair] = places(depth[a], depth[b], (usable[a], usable[b]), likeness)
    return found


def _activations(job: GeometryJob, name: str, prompts: CkaPrompts) -> Float[Tensor, "row layer d"]:
    return job.neutral[name].held_out if prompts == "neutral" else job.rows[name]


def _leave_out(job: GeometryJob, prompts: CkaPrompts) -> LeaveOut:
    like = torch.zeros(1, dtype=torch.float64)
    if prompts != "neutral":
        groups = job.plan.groups
        return LeaveOut.of(groups, torch.cat([groups.harmful, groups.harmless]), like)
    names = job.held_out_clusters
    repeated = MIN_CLUSTERS <= len(set(names)) < len(names)
    groups = jackknife_groups(
        len(names),
        len(names),
        job.settings.groups,
        named_generator(job.seed, "groups of neutral prompts"),
        names if repeated else None,
    )
    return LeaveOut.of(groups, groups.harmful, like)
