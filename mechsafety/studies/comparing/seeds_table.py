"""Numbers over training seeds, where the same comparison exists for several."""

from collections.abc import Mapping
from statistics import fmean

from mechsafety.core.result import Dimension, Table
from mechsafety.metrics.seeds import MIN_SEEDS, over_seeds
from mechsafety.studies.comparing.likeness_tables import METRICS
from mechsafety.studies.comparing.measured import Measured
from mechsafety.studies.comparing.settings import seed_of, space_of, training_of


def seeds_table(measured: Measured) -> Table:
    """Each cosine, averaged over the pairs of models that replicate each other."""
    table = Table(
        "seeds",
        "Cosines averaged over training seeds, for every comparison that several of them "
        "replicate: `first` and `second` are how the two models were trained, and `bases` whether "
        f"they share one. n counts seeds. Intervals are 95 %, each seed left out in turn; fewer "
        f"than {MIN_SEEDS} seeds have none.",
    )
    models = measured.frame.config.models
    found: dict[tuple[Dimension, ...], dict[tuple[int, ...], list[float]]] = {}
    for one in measured.likenesses:
        names = (one.first, one.second)
        seeds = [seed_of(name, models) for name in names]
        if one.first == one.second or any(seed is None for seed in seeds):
            continue
        same = space_of(one.first, models) == space_of(one.second, models)
        if not same and one.via == "none":
            continue
        entered = tuple(sorted({seed for seed in seeds if seed is not None}))
        trained = tuple(training_of(name, models) for name in names)
        # In whatever order the models stand, replications come together.
        turned = one.via == "none" and trained[0] > trained[1]
        for (first, second), at in one.cells.items():
            i, j = (second, first) if turned else (first, second)
            for statistic, metric in METRICS.items():
                if not bool(one.cosines.has_interval(statistic)[at]):
                    continue
                value = one.cosines.jackknifed(statistic, *at).value
                key = (
                    metric,
                    *(sorted(trained) if turned else trained),
                    same,
                    one.via,
                    one.channels,
                    i,
                    j,
                )
                # Both ways between two models are one replication.
                found.setdefault(key, {}).setdefault(entered, []).append(value)
    for key, values in found.items():
        if len(values) > 1:
            _add(table, key, {seeds: fmean(each) for seeds, each in values.items()})
    return table


def _add(table: Table, key: tuple[Dimension, ...], values: Mapping[tuple[int, ...], float]) -> None:
    metric, first, second, same, via, channels, i, j = key
    over = over_seeds(values)
    table.add(
        str(metric),
        over.value,
        n=over.n_seeds,
        unit="cosine (training seeds)",
        interval=over.interval,
        first=first,
        second=second,
        bases="same" if same else "other",
        via=via,
        channels=channels,
        first_layer=i,
        second_layer=j,
    )
