"""How alike the models' directions, subspaces and activations are, layer by layer."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.result import Table
from mechsafety.core.seeding import named_generator
from mechsafety.data.prompts import PromptPairs, PromptSet
from mechsafety.directions.difference_in_means import DifferenceInMeans
from mechsafety.directions.methods import DirectionMethod
from mechsafety.metrics.activation_grams import activation_grams
from mechsafety.metrics.cka import LayerCka, layer_cka, shuffled_layer_cka
from mechsafety.metrics.deals import Deals, Plan, mean_differences, plan, refit_each, varying_layers
from mechsafety.metrics.direction_stacks import DirectionStack, refitted
from mechsafety.metrics.layer_overlaps import LayerOverlaps, layer_overlaps, subspace_stack
from mechsafety.metrics.massive_channels import Control, without_channels
from mechsafety.metrics.pairing import Pairing
from mechsafety.metrics.resampling import MIN_CLUSTERS
from mechsafety.metrics.shared_null import LayerCosines, layer_cosines
from mechsafety.metrics.spectral_intervals import LeaveOut, jackknife_groups
from mechsafety.organisms.sources import NeutralPrompts
from mechsafety.studies.arms import ArmView, clusters_of
from mechsafety.studies.comparing.claims import MapMethod
from mechsafety.studies.comparing.mapping import FittedMap, NeutralRows, Place, places
from mechsafety.studies.comparing.reading import NEUTRAL
from mechsafety.studies.comparing.settings import Pair, SimilaritySettings, space_of
from mechsafety.studies.massive import massive_of, massive_table
from mechsafety.studies.samples import undivided

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
class Frame:
    """The prompts' deals, and every model's directions under them."""

    config: SimilaritySettings
    views: Mapping[str, ArmView]
    plan: Plan
    massive: Mapping[str, tuple[int, ...]]
    """Space → channels that are massive in one of its models."""
    massive_table: Table
    neutral: NeutralPrompts
    pairs: PromptPairs

    @property
    def rows(self) -> Mapping[str, Float[Tensor, "row layer d"]]:
        """Harmful rows of each model, then harmless ones, at the one position."""
        return {name: _both(view) for name, view in self.views.items()}

    def neutral_rows(self, name: str) -> NeutralRows:
        """The model's activations of neutral prompts."""
        read = self.views[name].contrasts[NEUTRAL]
        return NeutralRows(read.first[:, :, 0], read.second[:, :, 0])

    def channels_out(self, pair: Pair) -> tuple[int, ...]:
        """Massive channels of either model's space."""
        spaces = {space_of(name, self.config.models) for name in pair}
        return tuple(sorted({c for space in spaces for c in self.massive[space]}))


def framed(
    config: SimilaritySettings,
    views: Mapping[str, ArmView],
    pairs: PromptPairs,
    neutral: NeutralPrompts,
) -> Frame:
    """Draw the deals that every number of the study shares, and find massive channels."""
    clusters, second_clusters = undivided(pairs, config.cluster_by)
    settings = config.geometry
    n_harmful, n_harmless = len(pairs.first), len(pairs.second)
    groups = jackknife_groups(
        n_harmful,
        n_harmless,
        settings.groups,
        named_generator(config.seed, "groups"),
        clusters,
        second_clusters,
    )
    table = massive_table(settings.massive_threshold)
    massive: dict[str, set[int]] = {}
    for name, view in views.items():
        both = torch.cat([view.pairs.first, view.pairs.second])
        found = massive_of(name, both, settings.massive_threshold, table)
        massive.setdefault(space_of(name, config.models), set()).update(found.channels)
    return Frame(
        config=config,
        views=views,
        plan=plan(
            n_harmful,
            n_harmless,
            pairs.pairing == "twins",
            groups,
            settings.null_draws,
            settings.splits,
            min(settings.splits_left_out, settings.splits),
            named_generator(config.seed, "deals"),
            clusters,
            second_clusters,
        ),
        massive={space: tuple(sorted(channels)) for space, channels in massive.items()},
        massive_table=table,
        neutral=neutral,
        pairs=pairs,
    )


def stacks(frame: Frame, out: Sequence[int] = ()) -> dict[str, DirectionStack]:
    """Every model's directions under every deal, without some channels."""
    fit = fitter(frame.config.direction)
    return {
        name: refitted(fit, without_channels(rows, list(out)) if out else rows, frame.plan)
        for name, rows in frame.rows.items()
    }


def fitter(
    method: DirectionMethod,
) -> Callable[[Float[Tensor, "row layer d"], Deals], Float[Tensor, "deal layer d"]]:
    """How a direction method is fitted again on every deal."""
    if isinstance(method, DifferenceInMeans):
        # Linear in the rows: one product instead of a fit a deal.
        return mean_differences
    return partial(refit_each, lambda harmful, harmless: method.fit(harmful, harmless).vector)


def same_channels(frame: Frame, found: Mapping[str, DirectionStack]) -> list[Likeness]:
    """Every two models of one width, and each with itself, channel by channel.

    Between models of other bases this is the cosine that single-number claims print; its null is
    then all that it can be held against.
    """
    pairs = [
        (a, b)
        for a, b in itertools.combinations_with_replacement(frame.views, 2)
        if frame.views[a].dims.d_model == frame.views[b].dims.d_model
    ]
    without: dict[tuple[int, ...], dict[str, DirectionStack]] = {(): dict(found)}
    likenesses: list[Likeness] = []
    for first, second in pairs:
        out = frame.channels_out((first, second))
        controls: list[tuple[Control, tuple[int, ...]]] = [("all", ())]
        if out:
            controls.append(("channels_out", out))
        for channels, left in controls:
            if left not in without:
                without[left] = stacks(frame, left)
            one, other = without[left][first], without[left][second]
            n_first, n_second = len(one.whole), len(other.whole)
            cells = {(i, j): (i, j) for i in range(n_first) for j in range(n_second)}
            likenesses.append(
                _likeness(frame, (first, second), "none", channels, cells, one, other)
            )
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
                _likeness(frame, (first, second), method, "all", cells, carried, there)
            )
    return likenesses


def _likeness(
    frame: Frame,
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
        layer_cosines(first, second, frame.plan),
        (_within(first), _within(second)),
        frame.plan.whole.n_rows,
    )


def _within(stack: DirectionStack) -> Float[Tensor, "split layer"]:
    return torch.nn.functional.cosine_similarity(*(half.double() for half in stack.halves), dim=-1)


def activation_likenesses(frame: Frame) -> list[ActivationLikeness]:
    """CKA of every two models, on harmful and harmless prompts and on held-out neutral ones."""
    found: list[ActivationLikeness] = []
    for prompts in ACTIVATIONS:
        rows = {name: _activations(frame, name, prompts) for name in frame.views}
        leave_out = _leave_out(frame, prompts)
        layers = {name: tuple(varying_layers(one)) for name, one in rows.items()}
        massive = {name: frame.massive[space_of(name, frame.config.models)] for name in rows}
        grams = {
            (name, out): activation_grams(
                without_channels(one[:, list(layers[name])], out), "unbiased", leave_out
            )
            for name, one in rows.items()
            for out in {(), massive[name]}
        }
        for first, second in itertools.combinations(frame.views, 2):
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
                            frame.config.geometry.cka_shuffles,
                            named_generator(frame.config.seed, "shuffled prompts"),
                        ),
                        len(rows[first]),
                    )
                )
    return found


def all_overlaps(
    frame: Frame, where: Mapping[Pair, tuple[Place, ...]]
) -> dict[Pair, LayerOverlaps]:
    """Overlap of the strongest components, at layers of equal depth of models of one width."""
    settings = frame.config.geometry
    pairing: Pairing = "list" if frame.pairs.pairing == "twins" else "all"
    n_draws = min(settings.subspace_draws, settings.null_draws)
    found = {
        name: subspace_stack(rows, frame.plan, settings.subspace_rank, pairing, n_draws)
        for name, rows in frame.rows.items()
    }
    return {
        (first, second): layer_overlaps(
            found[first],
            found[second],
            [(at.first, at.second) for at in where[first, second] if at.match == "depth"],
        )
        for first, second in itertools.combinations(frame.views, 2)
        if frame.views[first].dims.d_model == frame.views[second].dims.d_model
    }


def all_places(frame: Frame) -> dict[Pair, tuple[Place, ...]]:
    """For every two models, both ways, which layers are compared.

    The best match is chosen by CKA on the neutral prompts that maps are fitted on: nothing else is
    measured on them, so no number here was chosen for being large.
    """
    rows = {name: frame.neutral_rows(name).fit for name in frame.views}
    usable = {name: varying_layers(one) for name, one in rows.items()}
    grams = {
        name: activation_grams(one[:, usable[name]], "unbiased", None) for name, one in rows.items()
    }
    depth = {name: view.dims.n_layers for name, view in frame.views.items()}
    found: dict[Pair, tuple[Place, ...]] = {}
    for first, second in itertools.combinations(frame.views, 2):
        cka = torch.full((depth[first] + 1, depth[second] + 1), -1.0, dtype=torch.float64)
        inner = layer_cka(grams[first], grams[second]).value
        cka[torch.tensor(usable[first])[:, None], torch.tensor(usable[second])[None]] = inner
        for pair, likeness in (((first, second), cka), ((second, first), cka.T)):
            a, b = pair
            found[pair] = places(depth[a], depth[b], (usable[a], usable[b]), likeness)
    return found


def _activations(frame: Frame, name: str, prompts: CkaPrompts) -> Float[Tensor, "row layer d"]:
    return _both(frame.views[name]) if prompts != "neutral" else frame.neutral_rows(name).held_out


def _both(view: ArmView) -> Float[Tensor, "row layer d"]:
    return torch.cat([view.pairs.first[:, :, 0], view.pairs.second[:, :, 0]])


def _leave_out(frame: Frame, prompts: CkaPrompts) -> LeaveOut:
    like = torch.zeros(1, dtype=torch.float64)
    if prompts != "neutral":
        groups = frame.plan.groups
        return LeaveOut.of(groups, torch.cat([groups.harmful, groups.harmless]), like)
    held_out: PromptSet = frame.neutral.held_out
    names = clusters_of(held_out, None)
    repeated = MIN_CLUSTERS <= len(set(names)) < len(names)
    groups = jackknife_groups(
        len(held_out),
        len(held_out),
        frame.config.geometry.groups,
        named_generator(frame.config.seed, "groups of neutral prompts"),
        names if repeated else None,
    )
    return LeaveOut.of(groups, groups.harmful, like)
