"""Tables of how alike directions and activations are."""

import math
from collections.abc import Iterator, Mapping
from typing import Final

from torch import Tensor

from mechsafety.core.result import Dimension, Table
from mechsafety.metrics.shared_null import STATISTICS, Statistic
from mechsafety.studies.claims import null_range
from mechsafety.studies.comparing.geometry import ActivationLikeness, Likeness
from mechsafety.studies.comparing.measured import Measured

METRICS: Final[dict[Statistic, str]] = {
    "raw": "cosine",
    "disjoint": "cosine_disjoint",
    "disattenuated": "cosine_disattenuated",
}
VIA_WORDS: Final = (
    "via none: channel by channel; procrustes, ridge: the first model's directions carried into "
    "the second's space by maps fitted on neutral prompts."
)
_INTERVALS: Final = (
    "Intervals are 95 % delete-group jackknife intervals; there is no bootstrap of a cosine, "
    "because repeated prompts lengthen the noise that models share."
)


def cosines_table(measured: Measured) -> Table:
    """Every cosine of directions, with its null and its ceiling."""
    n_draws = measured.frame.config.geometry.null_draws
    words = "; ".join(f"{METRICS[name]}: {text}" for name, text in STATISTICS.items())
    table = Table(
        "cosines",
        f"Cosines of the models' directions, layer by layer. {words}. {VIA_WORDS} "
        f"cosine_permuted_residuals: mean and 95 % range of {n_draws} cosines with the same "
        "permuted labels in both models, of activations about their class means: the null. "
        "excess: cosine less that mean, which is the finding. cosine_permuted_labels: the same of "
        "the activations themselves, as papers have it; every relabeling then keeps a share of "
        "the shift that is tested. cosine_independent_labels: other permuted labels in each "
        "model, a reference line. ceiling: what disjoint halves of one model's prompts reach, a "
        f"mean over splits without an interval. {_INTERVALS} Layer n is the output of the last "
        "block.",
    )
    for one in measured.likenesses:
        for (i, j), at in one.cells.items():
            itself = one.first == one.second and i == j
            where = {**_of(one), "first_layer": i, "second_layer": j}
            add_cosines(table, one, at, where, itself=itself)
    for name, view in measured.frame.views.items():
        d = view.dims.d_model
        table.add(
            "cosine_random_vectors",
            0.0,
            n=d,
            unit="cosine of isotropic random vectors, 95 % range (channels)",
            interval=(-1.96 / math.sqrt(d), 1.96 / math.sqrt(d)),
            first=name,
            second=name,
        )
    return table


def add_cosines(
    table: Table,
    one: Likeness,
    at: tuple[int, int],
    where: Mapping[str, Dimension],
    *,
    itself: bool = False,
) -> None:
    """All that one cell says, where it has directions.

    Args:
        table: Gets the rows.
        one: Two models.
        at: The cell of its cosines.
        where: Dimensions of the rows.
        itself: The cell compares a direction with itself, of which halves alone say something.
    """
    found = one.cosines
    if not bool(found.raw[at].isfinite()):
        return
    n = one.n_rows
    for statistic, metric in METRICS.items():
        # A direction's cosine with itself is 1 and says nothing.
        if (itself and statistic != "disjoint") or not bool(found.has_interval(statistic)[at]):
            continue
        number = found.jackknifed(statistic, *at)
        table.add(
            metric,
            number.value,
            n=n,
            unit="cosine (prompts)",
            interval=number.interval(),
            **where,
        )
    if itself:
        return
    raw, mean = found.jackknifed("raw", *at), float(found.null[:, at[0], at[1]].mean())
    low, high = raw.interval()
    table.add(
        "excess",
        raw.value - mean,
        n=n,
        unit="cosine less the mean of the null (prompts)",
        interval=(low - mean, high - mean),
        **where,
    )
    for metric, drawn in (
        ("cosine_permuted_residuals", found.null),
        ("cosine_permuted_labels", found.null_with_shift),
        ("cosine_independent_labels", found.independent_null),
    ):
        add_null(table, metric, drawn[:, at[0], at[1]], "cosine", where)
    reliable = float(found.reliability_first[at[0]]), float(found.reliability_second[at[1]])
    # Two that are below 0 would multiply to a ceiling.
    if min(reliable) > 0:
        table.add(
            "ceiling",
            (reliable[0] * reliable[1]) ** 0.5,
            n=n,
            unit="root of the product of both reliabilities (prompts)",
            interval=None,
            **where,
        )


def best_match_table(measured: Measured) -> Table:
    """Which layer of the second model each layer of the first is most like."""
    table = Table(
        "best_match",
        "For each layer of the first model the layer of the second with the largest cosine, chosen "
        "on half of the prompts of each class and measured on the other half. chosen: share of "
        "choices over splits. best_cosine: its cosine there, without the optimism of a choice. "
        "best_cosine_permuted_residuals: mean and 95 % range of the largest cosine with any layer "
        "under permuted labels, chosen and measured on all prompts, whereas the value is of half "
        f"of them: no like-for-like null. {_INTERVALS}",
    )
    for one in measured.likenesses:
        if one.via != "none" or one.first == one.second:
            continue
        found = one.cosines.best_match()
        n_splits = len(measured.frame.job.plan.halves[0])
        for i in range(len(found.value)):
            if not bool(found.value[i].isfinite() & found.replicates[:, i].isfinite().all()):
                continue
            where = {**_of(one), "first_layer": i}
            for j in range(found.frequency.shape[1]):
                table.add(
                    "chosen",
                    float(found.frequency[i, j]),
                    n=2 * n_splits,
                    unit="share of choices (halves)",
                    interval=None,
                    second_layer=j,
                    **where,
                )
            number = found.jackknifed(i)
            table.add(
                "best_cosine",
                number.value,
                n=measured.frame.job.plan.whole.n_rows,
                unit="cosine (prompts)",
                interval=number.interval(),
                **where,
            )
            add_null(table, "best_cosine_permuted_residuals", found.null[:, i], "cosine", where)
    return table


def subspaces_table(measured: Measured) -> Table:
    """Overlap and principal angles of the strongest components, at layers of equal depth."""
    settings = measured.frame.config.geometry
    table = Table(
        "subspaces",
        f"Spans of the first {settings.subspace_rank} uncentered components of harmful − harmless, "
        "at layers of equal depth, channel by channel. overlap: mean squared cosine of the "
        "principal angles; angle_1 is the smallest. *_permuted_residuals: mean and 95 % range of "
        f"{min(settings.subspace_draws, settings.null_draws)} draws of the same permuted labels in "
        f"both models; two unrelated spans overlap by rank / d_model. {_INTERVALS}",
    )
    for (first, second), found in measured.overlaps.items():
        for cell, (i, j) in enumerate(found.layers):
            if not bool(found.value[cell].isfinite()):
                continue
            where = {"first": first, "second": second, "first_layer": i, "second_layer": j}
            angles = [
                (f"angle_{k + 1}", found.jackknifed_angle(cell, k), found.angle_null[:, cell, k])
                for k in range(found.angles.shape[1])
            ]
            for metric, number, null in (
                ("overlap", found.jackknifed(cell), found.null[:, cell]),
                *angles,
            ):
                unit = "mean squared cosine" if metric == "overlap" else "degrees"
                table.add(
                    metric,
                    number.value,
                    n=measured.frame.job.plan.whole.n_rows,
                    unit=f"{unit} (prompts)",
                    interval=number.interval(),
                    **where,
                )
                add_null(table, f"{metric}_permuted_residuals", null, unit, where)
    return table


def add_null(
    table: Table, metric: str, draws: Tensor, unit: str, where: Mapping[str, Dimension]
) -> None:
    """Mean of a null and its 95 % range."""
    table.add(
        metric,
        float(draws.mean()),
        n=len(draws),
        unit=f"{unit} (draws); the interval is their 95 % range",
        interval=null_range(draws),
        **where,
    )


def cka_table(measured: Measured) -> Table:
    """CKA of activations, every layer with every layer."""
    shuffles = measured.frame.config.geometry.cka_shuffles
    table = Table(
        "cka",
        "Linear CKA, unbiased, of two models' activations on the same prompts: both classes, or "
        "held-out neutral prompts. channels_out: without the channels that are massive in a model "
        "of either's space. cka_shuffled_prompts: mean and range of "
        f"{shuffles} shuffles of one model's prompts. Intervals are 95 % delete-group jackknife. "
        "CKA says nothing about directions: it is invariant to rotations that no one undoes.",
    )
    for one in measured.activations:
        for at, cell in _cka_cells(one):
            add_cka(table, one, cell, at)
            draws = one.null[:, cell[0], cell[1]]
            table.add(
                "cka_shuffled_prompts",
                float(draws.mean()),
                n=len(draws),
                unit="CKA (shuffles); the interval is their range",
                interval=(float(draws.min()), float(draws.max())),
                **at,
            )
    return table


def add_cka(
    table: Table, one: ActivationLikeness, cell: tuple[int, int], at: Mapping[str, Dimension]
) -> None:
    """CKA of one cell of two models' layers."""
    number = one.cka.jackknifed(*cell)
    table.add("cka", number.value, n=one.n, unit="CKA (prompts)", interval=number.interval(), **at)


def _cka_cells(
    one: ActivationLikeness,
) -> Iterator[tuple[dict[str, Dimension], tuple[int, int]]]:
    for a, i in enumerate(one.layers[0]):
        for b, j in enumerate(one.layers[1]):
            yield (
                {
                    "first": one.first,
                    "second": one.second,
                    "prompts": one.prompts,
                    "channels": one.channels,
                    "first_layer": i,
                    "second_layer": j,
                },
                (a, b),
            )


def _of(one: Likeness) -> dict[str, Dimension]:
    return {"first": one.first, "second": one.second, "via": one.via, "channels": one.channels}
