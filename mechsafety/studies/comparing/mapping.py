"""Maps between models that share no space: fitted on neutral prompts, judged on others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.seeding import named_generator
from mechsafety.linalg.align import LinearMap, held_out_r2, procrustes, ridge
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.deals import varying_layers
from mechsafety.metrics.resampling import percentile_interval, resample
from mechsafety.studies.comparing.claims import MapMethod, Match
from mechsafety.studies.comparing.settings import MapSettings
from mechsafety.studies.intervals import around


class Place(NamedTuple):
    """A layer of the first model, and the layer of the second that it is compared with."""

    first: int
    second: int
    match: Match


@dataclass(frozen=True)
class NeutralRows:
    """One model's activations of the neutral prompts; layer `n_layers` is after the last block."""

    fit: Float[Tensor, "prompt layer d"]
    held_out: Float[Tensor, "n_held_out layer d"]


@dataclass(frozen=True)
class MapJob:
    """All maps from one model to another."""

    first: str
    second: str
    source: NeutralRows
    target: NeutralRows
    places: tuple[Place, ...]
    groups: tuple[str, ...]
    """Group of each fitted prompt, undivided between folds."""
    held_out_groups: tuple[str, ...]
    directions: tuple[Float[Tensor, "layer d"], Float[Tensor, "n_layers d_model"]]
    """Of the source and of the target at every layer: what shuffled maps are tried on."""
    settings: MapSettings
    seed: int


@dataclass(frozen=True)
class FittedMap:
    """One map, with how well it fits prompts that it has not seen."""

    method: MapMethod
    place: Place
    map: LinearMap
    r2: float
    """On held-out neutral prompts."""
    interval: tuple[float, float]
    n_held_out: int
    shuffled_r2: Float[Tensor, " n_shuffles"]
    """Of maps fitted on shuffled prompts: what chance gives."""
    shuffled_cosines: Float[Tensor, " n_shuffles"]
    """Of the source's direction, carried by those maps, with the target's; NaN where one of the
    models has no direction."""
    r2_along: float
    """As `r2`, of the target's coordinate along its own direction alone: whether the map sees what
    is carried through it. NaN without a direction, as are the two below."""
    interval_along: tuple[float, float]
    shuffled_r2_along: Float[Tensor, " n_shuffles"]
    """As above, of maps fitted on shuffled prompts."""
    spread_along: float
    """Variance of held-out neutral activations along the target's direction, as a multiple of that
    along a mean dimension. Far below 1, neutral prompts say nothing of the direction."""
    grid_edge: bool
    """The ridge's penalty is at an end of the grid, so the grid was too short."""


def depth_match(layer: int, n_first: int, n_second: int) -> int:
    """The layer at the same fraction of the way through another model."""
    return round(layer * n_second / n_first)


def places(
    n_first: int,
    n_second: int,
    usable: tuple[Sequence[int], Sequence[int]],
    likeness: Float[Tensor, "n_first_layers n_second_layers"],
) -> tuple[Place, ...]:
    """Each layer of the first model with the second's of equal depth, and with its best match.

    Args:
        n_first: Blocks of the first model.
        n_second: Blocks of the second.
        usable: Layers of each at which prompts differ.
        likeness: CKA of every layer with every layer, on prompts that nothing else is measured on;
            NaN where it is no number, which no layer is chosen for.
    """
    likeness = likeness.nan_to_num(nan=-torch.inf)
    found: list[Place] = []
    for layer in usable[0]:
        same = depth_match(layer, n_first, n_second)
        if same in usable[1]:
            found.append(Place(layer, same, "depth"))
        best = max(usable[1], key=lambda other: float(likeness[layer, other]))
        found.append(Place(layer, best, "best"))
    return tuple(found)


def fit_maps(job: MapJob) -> tuple[FittedMap, ...]:
    """Every method at every place; none where prompts do not differ, as at a template's token."""
    usable = [set(varying_layers(rows.fit)) for rows in (job.source, job.target)]
    done: dict[tuple[MapMethod, int, int], FittedMap] = {}
    found: list[FittedMap] = []
    for place in job.places:
        if place.first not in usable[0] or place.second not in usable[1]:
            continue
        for method in job.settings.methods:
            key = (method, place.first, place.second)
            if key not in done:
                done[key] = _fitted(job, method, place)
            found.append(replace(done[key], place=place))
    return tuple(found)


def _fitted(job: MapJob, method: MapMethod, place: Place) -> FittedMap:
    source, target = job.source.fit[:, place.first], job.target.fit[:, place.second]
    held = job.source.held_out[:, place.first], job.target.held_out[:, place.second]
    found = _map(job, method, source, target, job.settings.penalties)
    generator = named_generator(job.seed, "shuffled maps")
    shuffled_r2: list[float] = []
    shuffled_along: list[float] = []
    cosines: list[Tensor] = []
    direction = job.directions[0][place.first], job.directions[1][place.second].double()
    for _ in range(job.settings.shuffles):
        order = torch.randperm(len(target), generator=generator)
        # With the penalty that the true map chose, so that both are maps of one kind.
        kept = None if found.penalty is None else (found.penalty,)
        other = _map(job, method, source, target[order], kept or job.settings.penalties)
        shuffled_r2.append(held_out_r2(other, *held))
        shuffled_along.append(_r2(*_along(other, held, direction[1])))
        cosines.append(_cosine(other.carry(direction[0]), direction[1]))
    r2 = held_out_r2(found, *held)
    along = _along(found, held, direction[1])
    penalties = job.settings.penalties
    return FittedMap(
        method=method,
        place=place,
        map=found,
        r2=r2,
        interval=_interval(job, r2, *_everywhere(found, held)),
        n_held_out=len(held[0]),
        shuffled_r2=torch.tensor(shuffled_r2, dtype=torch.float64),
        shuffled_cosines=torch.stack(cosines),
        r2_along=_r2(*along),
        interval_along=_interval(job, _r2(*along), *along),
        shuffled_r2_along=torch.tensor(shuffled_along, dtype=torch.float64),
        spread_along=_spread(held[1].double(), direction[1]),
        grid_edge=found.penalty in (min(penalties), max(penalties)),
    )


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """NaN where one is zero."""
    norms = linalg.vector_norm(first) * linalg.vector_norm(second)
    return (first @ second) / norms


Squares = tuple[Float[Tensor, " prompt"], Float[Tensor, " prompt"]]
"""What a map leaves of each held-out prompt's squared deviation, and that deviation."""


def _everywhere(fitted: LinearMap, held: tuple[Tensor, Tensor]) -> Squares:
    left = (held[1].double() - fitted.apply(held[0])).square().sum(1)
    return left, (held[1].double() - fitted.target_mean).square().sum(1)


def _along(fitted: LinearMap, held: tuple[Tensor, Tensor], direction: Tensor) -> Squares:
    truth = (held[1].double() - fitted.target_mean) @ direction
    predicted = (fitted.apply(held[0]) - fitted.target_mean) @ direction
    return (truth - predicted).square(), truth.square()


def _r2(left: Float[Tensor, " prompt"], total: Float[Tensor, " prompt"]) -> float:
    return float(1 - left.sum() / total.sum())


def _spread(rows: Tensor, direction: Tensor) -> float:
    centered = rows - rows.mean(0)
    along = (centered @ direction).square().sum() / direction.square().sum()
    return float(along / centered.square().sum() * rows.shape[1])


def _map(
    job: MapJob, method: MapMethod, source: Tensor, target: Tensor, penalties: Sequence[float]
) -> LinearMap:
    if method == "procrustes":
        return procrustes(source, target, scaled=True)
    generator = named_generator(job.seed, "folds")
    return ridge(source, target, penalties, job.settings.folds, generator, job.groups)


def _interval(
    job: MapJob,
    value: float,
    left: Float[Tensor, " prompt"],
    total: Float[Tensor, " prompt"],
) -> tuple[float, float]:
    """Of an R²: a ratio of two sums over prompts, both resampled together."""
    generator = named_generator(job.seed, "held-out neutral prompts")
    sample = resample(job.held_out_groups, job.settings.resamples, generator)
    draws = 1 - sample.means(left) / sample.means(total)
    low, high = percentile_interval(draws, sample.n_units)
    return around(value, float(low), float(high))
