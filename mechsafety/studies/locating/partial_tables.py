"""Tables of where the chosen direction's effect comes from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mechsafety.core.result import Dimension, Table
from mechsafety.metrics.resampling import percentile_interval
from mechsafety.studies.cell_rows import add_scores
from mechsafety.studies.intervals import around
from mechsafety.studies.locating.measured import Winner, searched
from mechsafety.studies.rows import add_estimate, add_range
from mechsafety.studies.samples import Sample, estimates
from mechsafety.studies.words import EFFECT, EFFECT_UNIT, POINTWISE, SCORE, SCORE_UNIT


def windows_table(winner: Winner) -> Table:
    """The direction ablated in one window of layers alone."""
    found = winner.windows
    table = Table(
        "windows",
        "Fall of the refusal score of harmful prompts when the direction is removed in layers "
        "first to last only (from what enters the window and from what its blocks add), on the "
        f"third split. {POINTWISE} controls: range over {len(found.evaluate) - 1} energy-matched "
        "directions; adjusted_p against the largest of any window of each, no finer than "
        f"{1 / len(found.evaluate):.3g}. share: of the effect of ablating in all layers.",
    )
    direction = estimates(found.evaluate[0], winner.evaluate.harmful)
    controls = found.evaluate[1:].mean(1)
    full = float(direction.value[found.tried.index(_whole(found.tried))])
    search = searched(direction.value, controls)
    for column, (first, last) in enumerate(found.tried):
        at: dict[str, Dimension] = {"first": first, "last": last}
        add_estimate(table, "effect", direction, (column,), EFFECT_UNIT, at)
        table.add(
            "share",
            float(direction.value[column]) / full if full > 0 else None,
            n=direction.n,
            unit="share of the effect of all layers (prompts)",
            interval=None,
            **at,
        )
        drawn = controls[:, column]
        add_range(table, "effect_controls", drawn, EFFECT, at)
        table.add(
            "adjusted_p",
            float(search.p[column]),
            n=len(drawn),
            unit="p-value, adjusted for the search over windows (controls)",
            interval=None,
            **at,
        )
    return table


def _whole(tried: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(first for first, _ in tried), max(last for _, last in tried)


def positions_table(winner: Winner) -> Table:
    """The direction ablated at one position's tokens alone."""
    found = winner.windows
    table = Table(
        "positions",
        "Fall of the refusal score of harmful prompts when the direction is removed in every layer "
        f"but at these tokens only, on the third split. {POINTWISE} `prompt` is the instruction. "
        f"controls: range over {len(found.by_position) - 1} energy-matched directions; adjusted_p "
        "against the largest at any of these tokens, no finer than "
        f"{1 / len(found.by_position):.3g}.",
    )
    controls = found.by_position[1:].mean(1)
    search = searched(found.by_position[0].mean(0), controls)
    estimate = estimates(found.by_position[0], winner.evaluate.harmful)
    for column, position in enumerate(found.positions):
        at: dict[str, Dimension] = {"position": position}
        add_estimate(table, "effect", estimate, (column,), EFFECT_UNIT, at)
        add_range(
            table,
            "effect_controls",
            controls[:, column],
            EFFECT,
            at,
        )
        table.add(
            "adjusted_p",
            float(search.p[column]),
            n=len(controls),
            unit="p-value, adjusted for the search over positions (controls)",
            interval=None,
            **at,
        )
    return table


def doses_table(winner: Winner) -> Table:
    """Addition at every layer, over a range of doses."""
    n_controls = len(winner.induced.response) - 1
    table = Table(
        "doses",
        "Refusal score with the direction added at one layer's input, all tokens, third split: on "
        "harmless prompts (does it induce refusal?) and, with negative doses, on harmful ones "
        "(does it bypass?). Doses are in mean norms of that layer's residual stream. Layer n is "
        f"the output of the last block: final norm and unembedding alone. {POINTWISE} controls: "
        f"range over {n_controls} energy-drawn directions of the same norm. direct: each layer's "
        "own direction added to the output of the last block, as change of the refusal score.",
    )
    for side, found, sample, sign in (
        ("harmless", winner.induced, winner.evaluate.harmless, 1.0),
        ("harmful", winner.subtracted, winner.evaluate.harmful, -1.0),
    ):
        direction = estimates(found.response[0], sample)
        controls = found.response[1:].mean(1)
        for row, layer in enumerate(winner.dose_layers):
            for column, dose in enumerate(winner.doses):
                at: dict[str, Dimension] = {
                    "prompts": side,
                    "layer": layer,
                    "dose": sign * dose if dose else 0.0,
                }
                add_estimate(table, "refusal_score", direction, (row, column), SCORE_UNIT, at)
                drawn = controls[:, row, column]
                add_range(table, "refusal_score_controls", drawn, SCORE, at)
        for column, dose in enumerate(winner.doses):
            everywhere = controls[:, :, column]
            table.add(
                "refusal_score_all_controls",
                float(everywhere.mean()),
                n=n_controls,
                unit=f"{SCORE} (controls, over all layers)",
                interval=(float(everywhere.min()), float(everywhere.max())),
                prompts=side,
                dose=sign * dose if dose else 0.0,
            )
    direct = estimates(
        winner.induced.direct - winner.clean.harmless[:, None], winner.evaluate.harmless
    )
    for layer in range(winner.induced.direct.shape[1]):
        add_estimate(
            table,
            "direct_logit_effect",
            direct,
            (layer,),
            EFFECT_UNIT,
            {"prompts": "harmless", "layer": layer, "dose": winner.doses[len(winner.doses) // 2]},
        )
    return table


def writers_table(winner: Winner) -> Table:
    """Which heads and MLPs write the direction, and what ablating the top ones does."""
    found = winner.writers
    table = Table(
        "writers",
        f"What each part adds to the difference of mean projections on the direction at "
        f"{winner.site}, {winner.position} (fit split, harmful − harmless): parts sum to the "
        "whole, direct effects only. Intervals are ±1.96 standard errors, prompts as independent. "
        f"top: the fewest that sum to the share asked for ({len(found.top)}). Rows with a form: "
        f"refusal scores on the third split with {', '.join(map(str, found.ablated)) or 'none'} "
        "ablated at every token (zero, or set to their harmless mean), and the range over as many "
        "other heads and MLPs (of any kind and with overlap, where these leave too few).",
    )
    shares = found.shares.shares
    total = found.shares.total
    order = shares.sort(descending=True, stable=True).indices
    for i in (int(i) for i in order):
        writer = found.shares.writers[i]
        half = 1.96 * float(found.spread[i]) / abs(total)
        value = float(shares[i])
        table.add(
            "share",
            value,
            n=found.n,
            unit="share of the difference of projections (prompts)",
            interval=(value - half, value + half),
            writer=str(writer),
            kind=writer.kind,
            layer=writer.layer,
            top=writer in found.top,
        )
    clean = winner.clean
    _add_gap(table, clean.harmful, clean.harmless, winner.evaluate, "none")
    for form in ("zero", "mean"):
        drawn = [a for a in found.ablations if a.form == form]
        mine = [a for a in drawn if a.control is None]
        others = [a for a in drawn if a.control is not None]
        for one in mine:
            for side, scores, sample in (
                ("harmful", one.harmful, winner.evaluate.harmful),
                ("harmless", one.harmless, winner.evaluate.harmless),
            ):
                add_scores(table, side, scores, sample, {"form": form})
            _add_gap(table, one.harmful, one.harmless, winner.evaluate, form)
        if others:
            gaps = torch.stack([a.harmful.mean() - a.harmless.mean() for a in others])
            add_range(
                table,
                "score_gap_controls",
                gaps,
                "harmful − harmless refusal score",
                {"form": form},
            )
            shared = torch.tensor([a.overlap for a in others], dtype=torch.float64)
            add_range(table, "overlap_controls", shared, "share of the top writers", {"form": form})
    return table


def _add_gap(table: Table, harmful: Tensor, harmless: Tensor, sample: Sample, form: str) -> None:
    value = float(harmful.mean() - harmless.mean())
    draws = sample.harmful.means(harmful) - sample.harmless.means(harmless)
    low, high = percentile_interval(draws, sample.n_units)
    table.add(
        "score_gap",
        value,
        n=len(harmful) + len(harmless),
        unit="harmful − harmless refusal score (prompts)",
        interval=around(value, float(low), float(high)),
        form=form,
    )


def second_table(winner: Winner) -> Table:
    """The direction that is refitted in the model with the first one ablated."""
    found = winner.second
    table = Table(
        "second_direction",
        "With the first direction ablated the model runs again, mean differences are refitted "
        "everywhere, and the best by the same filters (without induce) is tried by itself: fall of "
        f"the refusal score on the third split. {POINTWISE} controls: range over directions of its "
        "energy. independence: mean squared change of activations' cosine with the one when the "
        "other is ablated (arXiv:2502.17420); 0 is independent.",
    )
    if found.alone is None or found.both is None or found.controls is None:
        table.add("effect_alone", None, n=0, unit="no refitted direction passes the filters")
        return table
    sample, clean = winner.evaluate.harmful, winner.clean.harmful
    zero = winner.evaluated.cells[0].harmful.refusal_score
    assert zero is not None  # refusal tokens are given
    first = clean - zero
    chosen = found.selection.chosen
    assert chosen is not None
    where: dict[str, Dimension] = {
        "position": found.selection.candidates.positions[chosen[0]],
        "layer": chosen[1],
    }
    for metric, effect in (
        ("effect_first", first),
        ("effect_alone", clean - found.alone),
        ("effect_both", clean - found.both),
    ):
        estimate = estimates(effect, sample)
        add_estimate(table, metric, estimate, (), EFFECT_UNIT, where)
    drawn = (clean[None] - found.controls).mean(1)
    add_range(table, "effect_controls", drawn, EFFECT, where)
    if found.independence is not None:
        for name, value in zip(
            ("first_from_second", "second_from_first"), found.independence, strict=True
        ):
            table.add(
                f"independence_{name}",
                value,
                n=len(clean),
                unit="squared change of cosine (prompts)",
                interval=None,
                **where,
            )
    return table
