"""The page's figures, as descriptions of the tables."""

from mechsafety.core.result import Figure
from mechsafety.judges.rates import rate_name
from mechsafety.studies.comparing.carrying import transfer_layer
from mechsafety.studies.comparing.mapping import depth_match
from mechsafety.studies.comparing.measured import Measured

COSINES = ("cosine_disattenuated", "cosine", "cosine_disjoint", "excess")
_NULL = (
    "Hover for the interval, the cosine of directions from the same permuted labels in both "
    "models, and the ceiling that halves of one model's prompts reach."
)


def figures(measured: Measured) -> tuple[Figure, ...]:
    """Matrices, layer matches, maps and transfer; those without rows stay out."""
    found = [*_direction_figures(measured), *_activation_figures(measured)]
    if measured.maps:
        found += _map_figures(measured)
    if measured.transfers is not None and measured.transfers.targets:
        found += _transfer_figures(measured)
    return tuple(found)


def _direction_figures(measured: Measured) -> list[Figure]:
    frame = measured.frame
    names = list(frame.views)
    n = frame.job.plan.whole.n_rows
    any_massive = any(frame.job.massive.values())
    channels = {} if any_massive else {"channels": "all"}
    choose = ("channels",) if any_massive else ()
    same_width = [one for one in measured.likenesses if one.via == "none"]
    different = [one for one in same_width if one.first != one.second]
    if not different:
        return []
    n_layers = frame.views[names[0]].dims.n_layers
    settings = frame.config.transfer
    start_layer = transfer_layer(settings, n_layers) if settings else depth_match(2, 3, n_layers)
    start_pair = {"first": different[0].first, "second": different[0].second}
    return [
        Figure(
            id="models",
            title="How alike are the models' directions?",
            caption=f"Cosines of directions, model by model, read at one layer of each; n = {n} "
            "prompts. The diagonal has a number for cosine_disjoint alone: disjoint halves of one "
            "model's prompts. The same labels permuted in both models already give a cosine, so "
            "look at the excess. "
            f"{_NULL}",
            kind="matrix",
            table="cosines",
            metric="cosine_disattenuated",
            where={"via": "none", **channels, "metric": list(COSINES)},
            x="second",
            y="first",
            choose=("metric", "first_layer", "second_layer", *choose),
            start={
                "metric": "cosine",
                "first_layer": start_layer,
                "second_layer": start_layer,
            },
            hover=("cosine", "cosine_disjoint", "cosine_permuted_residuals", "ceiling", "excess"),
            center=0.0,
            limits=(-1.0, 1.0),
            x_title="second model",
            y_title="first model",
            value_title="cosine",
        ),
        Figure(
            id="layer_match",
            title="Which layers match?",
            caption="Every layer of one model with every layer of another, channel by channel; "
            f"n = {n} prompts. A bright diagonal: layers match by depth. {_NULL}",
            kind="heatmap",
            table="cosines",
            metric="cosine",
            where={"via": "none", **channels, "metric": list(COSINES)},
            x="second_layer",
            y="first_layer",
            choose=("metric", "first", "second", *choose),
            start={"metric": "cosine", **start_pair},
            hover=(
                "cosine_disjoint",
                "cosine_disattenuated",
                "cosine_permuted_residuals",
                "ceiling",
            ),
            center=0.0,
            limits=(-1.0, 1.0),
            x_title="layer of the second model",
            y_title="layer of the first model",
            value_title="cosine",
        ),
        Figure(
            id="best_match",
            title="Which layer of the second model is most like each layer of the first?",
            caption="Share of choices over splits: the layer with the largest cosine on half of "
            f"the prompts, n = {n}. Layers without a direction stay white.",
            kind="heatmap",
            table="best_match",
            metric="chosen",
            where=channels,
            x="second_layer",
            y="first_layer",
            choose=("first", "second", *choose),
            start=start_pair,
            limits=(0.0, 1.0),
            x_title="layer of the second model",
            y_title="layer of the first model",
            value_title="share of choices",
        ),
        Figure(
            id="subspaces",
            title=f"Overlap of the first {frame.config.geometry.subspace_rank} components",
            caption="Mean squared cosine of the principal angles between the spans of the "
            "strongest components of harmful − harmless, at layers of equal depth. Gray: the same "
            "permuted labels in both models, 95 % range. Bands are 95 % jackknife intervals; "
            f"n = {n} prompts.",
            kind="lines",
            table="subspaces",
            metric="overlap",
            x="first_layer",
            color="second",
            choose=("first",),
            start={"first": names[0]},
            null_metric="overlap_permuted_residuals",
            limits=(0.0, 1.0),
            x_title="layer of the first model",
            y_title="overlap",
        ),
    ]


def _activation_figures(measured: Measured) -> list[Figure]:
    any_massive = any(measured.frame.job.massive.values())
    first = measured.activations[0]
    choose = ("channels",) if any_massive else ()
    return [
        Figure(
            id="cka",
            title="CKA of activations, layer by layer",
            caption="Unbiased linear CKA on the same prompts; it needs no map, and says nothing of "
            "directions. Hover for the interval (95 % jackknife) and what shuffled prompts give.",
            kind="heatmap",
            table="cka",
            metric="cka",
            where={} if any_massive else {"channels": "all"},
            x="second_layer",
            y="first_layer",
            choose=("first", "second", "prompts", *choose),
            start={"first": first.first, "second": first.second, "prompts": "neutral"},
            hover=("cka_shuffled_prompts",),
            limits=(0.0, 1.0),
            x_title="layer of the second model",
            y_title="layer of the first model",
            value_title="CKA",
        )
    ]


def _map_figures(measured: Measured) -> list[Figure]:
    first, second = next(iter(measured.maps))
    n = len(measured.frame.neutral.held_out)
    start = {"first": first, "second": second, "match": "depth"}
    return [
        Figure(
            id="maps",
            title="How well do the maps hold on prompts they have not seen?",
            caption=f"Share of the target's squared deviation that the map predicts on {n} "
            "held-out neutral prompts; bands are 95 % intervals. Gray: maps fitted on shuffled "
            "prompts. A carried direction is worth no more than its map.",
            kind="lines",
            table="maps",
            metric="r2",
            x="first_layer",
            color="via",
            choose=("first", "second", "match"),
            start=start,
            null_metric="r2_shuffled",
            x_title="layer of the first model",
            y_title="held-out R²",
        ),
        Figure(
            id="carried",
            title="Directions carried through the maps",
            caption="Cosine of the first model's direction, carried into the second's space, with "
            "the second's own; bands are 95 % jackknife intervals. Gray: directions from the same "
            "permuted labels in both models, carried by the same map, 95 % range. n = "
            f"{measured.frame.job.plan.whole.n_rows} prompts.",
            kind="lines",
            table="matches",
            metric="cosine",
            where={"via": list(measured.frame.config.maps.methods)},
            x="first_layer",
            color="via",
            choose=("first", "second", "match"),
            start=start,
            null_metric="cosine_permuted_residuals",
            limits=(-1.0, 1.0),
            x_title="layer of the first model",
            y_title="cosine",
        ),
    ]


def _transfer_figures(measured: Measured) -> list[Figure]:
    settings, transfers = measured.frame.config.transfer, measured.transfers
    assert settings is not None
    assert transfers is not None
    refused = rate_name("refused", settings.max_new_tokens)
    return [
        Figure(
            id="transfer",
            title="Does one model's direction act in another?",
            caption="effect: how far the refusal score falls on harmful prompts when the carried "
            "direction is ablated, or rises on harmless ones when it is added at the norm of the "
            f"target's own (log-odds); {transfers.n_words} held-out prompts a cell. Hover for the "
            "range of matched controls: what is not beyond it is geometry at most.",
            kind="matrix",
            table="transfer",
            metric="effect",
            where={"source": list(measured.frame.views), "form": [*settings.forms, "add"]},
            x="target",
            y="source",
            facet="form",
            hover=("effect_controls", refused),
            x_title="model that is edited",
            y_title="model whose direction it is",
            value_title="log-odds",
        ),
        Figure(
            id="transfer_rates",
            title="Answers refused under carried directions",
            caption=f"Share of answers of up to {settings.max_new_tokens} tokens judged as "
            f"refusals on {transfers.n_words} held-out prompts of a class; intervals are Wilson, "
            "95 %, clusters undivided. Rates of unedited models: the table's rows of form none.",
            kind="matrix",
            table="transfer",
            metric=refused,
            where={"form": [*settings.forms, "add"], "source": list(measured.frame.views)},
            x="target",
            y="source",
            facet="form",
            choose=("prompts",),
            start={"prompts": "harmful"},
            hover=("kl", "content"),
            limits=(0.0, 1.0),
            x_title="model that is edited",
            y_title="model whose direction it is",
            value_title="share refused",
        ),
    ]
