"""Which directions are carried into which models, to be ablated and added there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mechsafety.core.layers import resolve_layer
from mechsafety.core.seeding import derive_seed
from mechsafety.core.sites import ResidualSite
from mechsafety.data.prompts import PromptPairs
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.direction_stacks import LOST
from mechsafety.models.spec import ModelSpec
from mechsafety.studies.arms import ArmView, common_refusal_ids, first_of, harmless_inputs
from mechsafety.studies.comparing.mapping import FittedMap, Place, depth_match
from mechsafety.studies.comparing.settings import SimilaritySettings, TransferMatrix, space_of
from mechsafety.studies.comparing.transferring import CarriedSource, TransferJob

Directions = Mapping[str, Float[Tensor, "layer d"]]
"""Each model's direction at every layer, on all prompts of the fit split."""


@dataclass(frozen=True)
class Untried:
    """A direction that was not tried in a target, and why."""

    source: str
    target: str
    why: str


def transfer_layer(settings: TransferMatrix, n_layers: int) -> int:
    """The block whose input is edited in a model of this depth."""
    return min(resolve_layer(settings.layer, n_layers, None), n_layers - 1)


def transfer_place(settings: TransferMatrix, source: ArmView, target: ArmView) -> Place:
    """Where a direction is read in the source, so that it belongs at the target's layer."""
    there = transfer_layer(settings, target.dims.n_layers)
    here = depth_match(there, target.dims.n_layers, source.dims.n_layers)
    same = depth_match(here, source.dims.n_layers, target.dims.n_layers) == there
    return Place(here, there, "depth" if same else "transfer")


def refusing(view: ArmView, settings: TransferMatrix) -> bool:
    """Whether the model refuses enough for anything to be lost."""
    refused = view.harmful.judged("refused")
    return sum(refused) >= settings.min_refusals * len(refused)


def _why_not(target: str, view: ArmView, settings: TransferMatrix, ids: Sequence[int]) -> str:
    """Why nothing can be tried in a model; empty where it can."""
    refused = view.harmful.judged("refused")
    of = f"{target} refuses {sum(refused)} of {len(refused)} harmful prompts"
    if not refusing(view, settings):
        return f"{of}, so next to nothing could be lost"
    if not ids:
        return (
            f"{of}, and no token opens its refusals more often than its other answers: name some "
            "in `refusal_tokens`"
        )
    return ""


def transfer_jobs(
    config: SimilaritySettings,
    views: Mapping[str, ArmView],
    specs: Mapping[str, ModelSpec],
    directions: Directions,
    maps: Mapping[tuple[str, str], tuple[FittedMap, ...]],
    held_out: PromptPairs,
    judge: PhraseJudge,
) -> tuple[list[TransferJob], list[Untried]]:
    """One job a target, with every direction that can be carried into it."""
    settings = config.transfer
    assert settings is not None
    jobs: list[TransferJob] = []
    untried: list[Untried] = []
    names = settings.models or tuple(config.models)
    for target in names:
        view = views[target]
        ids = config.refusal_tokens.get(target) or common_refusal_ids(view, views.values())
        layer = transfer_layer(settings, view.dims.n_layers)
        own_norm = float(linalg.vector_norm(directions[target][layer].double()))
        why = _why_not(target, view, settings, ids)
        if not why and own_norm == 0:
            why = f"{target} has no direction of its own at layer {layer}, whose norm is the dose"
        if why:
            untried += [Untried(source, target, why) for source in names]
            continue
        sources: list[CarriedSource] = []
        for source in names:
            found = _carried(config, settings, source, target, views, directions, maps)
            if isinstance(found, CarriedSource):
                sources.append(found)
            else:
                untried.append(found)
        jobs.append(
            TransferJob(
                target=target,
                model=specs[target],
                runtime=config.runtime,
                chat=config.chat,
                judge=judge,
                settings=settings,
                pairs=first_of(held_out, settings.n),
                site=ResidualSite(layer, "resid_pre"),
                sources=tuple(sources),
                own_norm=own_norm,
                harmless_rows=harmless_inputs(view, 0),
                refusal_ids=ids,
                seed=derive_seed(config.seed, "transfer"),
            )
        )
    return jobs, untried


def _carried(
    config: SimilaritySettings,
    settings: TransferMatrix,
    source: str,
    target: str,
    views: Mapping[str, ArmView],
    directions: Directions,
    maps: Mapping[tuple[str, str], tuple[FittedMap, ...]],
) -> CarriedSource | Untried:
    place = transfer_place(settings, views[source], views[target])
    vector = directions[source][place.first]
    if not bool(vector.any()):
        return Untried(source, target, f"{source} has no direction at layer {place.first}")
    if source == target:
        return CarriedSource(source, "own", vector)
    if space_of(source, config.models) == space_of(target, config.models):
        return CarriedSource(source, "same space", vector)
    fitted = [
        one
        for one in maps.get((source, target), ())
        if one.method == settings.map and one.place == place
    ]
    if not fitted:
        return Untried(source, target, "the two share no space and no map between them was fitted")
    found = fitted[0].map
    carried = found.carry(vector)
    before = linalg.vector_norm(vector.double()) * linalg.vector_norm(found.matrix)
    if not bool(linalg.vector_norm(carried) > LOST * before):
        return Untried(source, target, f"the {settings.map} map takes the direction to zero")
    return CarriedSource(source, settings.map, carried.float())
