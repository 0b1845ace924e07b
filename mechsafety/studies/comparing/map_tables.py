"""Tables of the maps between models, and of which layers were compared."""

import math

from mechsafety.core.result import Table
from mechsafety.studies.comparing.likeness_tables import VIA_WORDS, add_cka, add_cosines
from mechsafety.studies.comparing.measured import Measured


def maps_table(measured: Measured) -> Table:
    """How well each map predicts neutral prompts that it has not seen."""
    settings, neutral = measured.frame.config.maps, measured.frame.neutral
    table = Table(
        "maps",
        f"Maps from the first model's activations to the second's, fitted on {len(neutral.fit)} "
        f"neutral prompts and judged on {len(neutral.held_out)} others, which share no content "
        "with them. r2: share of the target's squared deviation that is predicted; intervals are "
        "95 %, prompts resampled by group. r2_shuffled: range of maps fitted on "
        f"{settings.shuffles} shuffles of the prompts. carried_cosine_shuffled: cosine of the "
        "first's direction, carried by these, with the second's. r2_along_direction: of the "
        "target's coordinate along its own direction; spread_along_direction: variance of neutral "
        "activations along it, as a multiple of that along a mean dimension. A map of prompts "
        "that do not vary along the direction cannot carry it. penalty: of the ridge, as a "
        "multiple of the mean eigenvalue; `grid_edge` says that the grid was too short. rank: "
        "dimensions that the prompts determined. match: layer of equal depth, or the one of "
        "highest CKA on the prompts that the maps are fitted on.",
    )
    for (first, second), fitted in measured.maps.items():
        for one in fitted:
            at = {
                "first": first,
                "second": second,
                "via": one.method,
                "match": one.place.match,
                "first_layer": one.place.first,
                "second_layer": one.place.second,
            }
            table.add(
                "r2",
                one.r2,
                n=one.n_held_out,
                unit="share of squared deviation (prompts)",
                interval=one.interval,
                grid_edge=one.grid_edge,
                **at,
            )
            for metric, drawn, unit in (
                ("r2_shuffled", one.shuffled_r2, "share of squared deviation"),
                (
                    "r2_along_direction_shuffled",
                    one.shuffled_r2_along,
                    "share of squared deviation",
                ),
                ("carried_cosine_shuffled", one.shuffled_cosines, "cosine"),
            ):
                # Where a model has no direction there is none to see or to carry.
                if not bool(drawn.isfinite().all()):
                    continue
                table.add(
                    metric,
                    float(drawn.mean()),
                    n=len(drawn),
                    unit=f"{unit} (shuffles); the interval is their range",
                    interval=(float(drawn.min()), float(drawn.max())),
                    **at,
                )
            for metric, value, interval, unit in (
                (
                    "r2_along_direction",
                    one.r2_along,
                    one.interval_along,
                    "share of squared deviation",
                ),
                (
                    "spread_along_direction",
                    one.spread_along,
                    None,
                    "multiples of a mean dimension's",
                ),
            ):
                if not math.isfinite(value):
                    continue
                table.add(
                    metric,
                    value,
                    n=one.n_held_out,
                    unit=f"{unit} (prompts)",
                    interval=interval,
                    **at,
                )
            if one.map.penalty is not None:
                table.add(
                    "penalty",
                    one.map.penalty,
                    n=len(neutral.fit),
                    unit="multiples of the mean eigenvalue (prompts)",
                    interval=None,
                    grid_edge=one.grid_edge,
                    **at,
                )
            table.add(
                "rank",
                float(one.map.rank),
                n=len(neutral.fit),
                unit="dimensions (prompts)",
                interval=None,
                **at,
            )
    return table


def matches_table(measured: Measured) -> Table:
    """Each layer of one model with the layer of equal depth of another, and with its best match."""
    table = Table(
        "matches",
        "match depth: the layer of the second model at the same fraction of the way through; best: "
        "the one with the highest CKA on the neutral prompts that maps are fitted on, on which "
        "nothing else is measured. second_layer is the choice; cka is on held-out neutral prompts. "
        "All else are the rows of the table `cosines` for these two layers (cosine, its null, its "
        "excess over it, cosine_disattenuated), channel by channel for every two models of one "
        f"width, and through every map that was fitted there. {VIA_WORDS}",
    )
    cka = {
        (one.first, one.second): one
        for one in measured.activations
        if one.prompts == "neutral" and one.channels == "all"
    }
    for (first, second), places in measured.places.items():
        for place in places:
            at = {
                "first": first,
                "second": second,
                "match": place.match,
                "first_layer": place.first,
            }
            table.add(
                "second_layer",
                float(place.second),
                n=len(measured.frame.neutral.fit),
                unit="layer (prompts)",
                interval=None,
                **at,
            )
            turned = (first, second) not in cka
            one = cka[(second, first) if turned else (first, second)]
            cell = (place.second, place.first) if turned else (place.first, place.second)
            if cell[0] in one.layers[0] and cell[1] in one.layers[1]:
                there = one.layers[0].index(cell[0]), one.layers[1].index(cell[1])
                add_cka(table, one, there, at)
            for likeness, held, _ in measured.compared((first, second), place):
                if likeness.channels == "all":
                    add_cosines(table, likeness, held, {"via": likeness.via, **at})
    return table
