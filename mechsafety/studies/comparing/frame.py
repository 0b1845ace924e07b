"""What every comparison of the study shares: prompts, their deals, and each model's activations."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.result import Table
from mechsafety.core.seeding import named_generator
from mechsafety.data.prompts import PromptPairs
from mechsafety.directions.methods import DirectionMethod
from mechsafety.metrics.deals import Plan, plan
from mechsafety.metrics.spectral_intervals import jackknife_groups
from mechsafety.organisms.sources import NeutralPrompts
from mechsafety.studies.arms import ArmView, clusters_of
from mechsafety.studies.comparing.mapping import NeutralRows
from mechsafety.studies.comparing.reading import NEUTRAL
from mechsafety.studies.comparing.settings import (
    GeometrySettings,
    Pair,
    SimilaritySettings,
    space_of,
)
from mechsafety.studies.massive import massive_of, massive_table
from mechsafety.studies.samples import undivided


@dataclass(frozen=True)
class GeometryJob:
    """All that directions, subspaces and activations are compared by; no model and no claim."""

    direction: DirectionMethod
    settings: GeometrySettings
    seed: int
    spaces: Mapping[str, str]
    """Model → the space it lives in (`space_of`)."""
    rows: Mapping[str, Float[Tensor, "row layer d"]]
    """Harmful rows of each model, then harmless ones, at the one position."""
    neutral: Mapping[str, NeutralRows]
    """Each model's activations of neutral prompts."""
    held_out_clusters: tuple[str, ...]
    """Of the held-out neutral prompts."""
    plan: Plan
    massive: Mapping[str, tuple[int, ...]]
    """Space → channels that are massive in one of its models."""

    def width(self, name: str) -> int:
        """Channels of a model."""
        return self.rows[name].shape[2]

    def n_blocks(self, name: str) -> int:
        """Blocks of a model; its layers are one more."""
        return self.rows[name].shape[1] - 1

    def one_space(self, pair: Pair) -> bool:
        """Whether the two need no map."""
        return self.spaces[pair[0]] == self.spaces[pair[1]]

    def channels_out(self, pair: Pair) -> tuple[int, ...]:
        """Massive channels of either model's space."""
        spaces = {self.spaces[name] for name in pair}
        return tuple(sorted({c for space in spaces for c in self.massive[space]}))


@dataclass(frozen=True)
class Frame:
    """The models as they were read, and what their geometry is computed from."""

    config: SimilaritySettings
    views: Mapping[str, ArmView]
    job: GeometryJob
    massive_table: Table
    neutral: NeutralPrompts


def framed(
    config: SimilaritySettings,
    views: Mapping[str, ArmView],
    pairs: PromptPairs,
    neutral: NeutralPrompts,
) -> Frame:
    """Draw the deals that every number of the study shares, and find massive channels."""
    rows = {
        name: torch.cat([view.pairs.first[:, :, 0], view.pairs.second[:, :, 0]])
        for name, view in views.items()
    }
    spaces = {name: space_of(name, config.models) for name in views}
    threshold = config.geometry.massive_threshold
    table = massive_table(threshold)
    massive: dict[str, set[int]] = {}
    for name, read in rows.items():
        found = massive_of(name, read[:, :, None], threshold, table)
        massive.setdefault(spaces[name], set()).update(found.channels)
    contrasts = {name: view.contrasts[NEUTRAL] for name, view in views.items()}
    job = GeometryJob(
        direction=config.direction,
        settings=config.geometry,
        seed=config.seed,
        spaces=spaces,
        rows=rows,
        neutral={
            name: NeutralRows(read.first[:, :, 0], read.second[:, :, 0])
            for name, read in contrasts.items()
        },
        held_out_clusters=clusters_of(neutral.held_out, None),
        plan=_plan(config, pairs),
        massive={space: tuple(sorted(channels)) for space, channels in massive.items()},
    )
    return Frame(config, views, job, table, neutral)


def _plan(config: SimilaritySettings, pairs: PromptPairs) -> Plan:
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
    return plan(
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
    )
