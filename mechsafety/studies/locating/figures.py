"""Figures of the study."""

from collections.abc import Iterator

from mechsafety.core.result import Figure
from mechsafety.studies.locating.measured import Measured, Winner
from mechsafety.studies.locating.separating import HELD_WORDS
from mechsafety.studies.words import place


def figures(measured: Measured) -> tuple[Figure, ...]:
    """What the page draws of this run."""
    return tuple(_figures(measured))


def _figures(measured: Measured) -> Iterator[Figure]:
    yield Figure(
        id="prompt",
        title="What is read and written",
        caption="The first harmless prompt as the model receives it.",
        kind="tokens",
        table="prompt",
        metric="token",
    )
    streams = list(dict.fromkeys(str(place(site)["stream"]) for site in measured.read.sites))
    sources = list(dict.fromkeys(source for _, source in measured.separation))
    beside = [] if measured.base is None else ["the base model"]
    beside += ["words that safety training never saw"] if HELD_WORDS in sources else []
    yield Figure(
        id="separation",
        title="Where harmful and harmless prompts separate",
        caption="AUC of held-out projections on the mean difference, by place"
        + (f"; in the menus: {' and '.join(beside)}." if beside else "."),
        kind="heatmap",
        table="separation",
        metric="auc",
        x="layer",
        y="position",
        choose=("model", "source", "stream"),
        start={"model": "model", "source": sources[0], "stream": streams[0]},
        hover=("d_prime", "lexical_auc", "auc_band"),
        limits=(0.5, 1.0),
        x_title="layer",
        y_title="position",
        value_title="AUC",
    )
    causal = measured.causal
    if causal is None:
        return
    yield Figure(
        id="causal_map",
        title="What the direction of each place causes",
        caption="Ablated everywhere (bypass, KL) or added at its place (induce), by where it was "
        "read. Pointwise intervals on hover.",
        kind="heatmap",
        table="causal_map",
        metric="bypass_effect",
        x="layer",
        y="position",
        where={"metric": ["bypass_effect", "induce_effect", "kl", "bypass", "induce"]},
        choose=("metric", "stream"),
        start={"metric": "bypass_effect", "stream": streams[0]},
        hover=("bypass_effect", "induce_effect", "kl"),
        x_title="layer",
        y_title="position",
        value_title="score",
    )
    yield Figure(
        id="causal_by_layer",
        title="Where the direction becomes causal",
        caption="Fall of the refusal score of harmful prompts when the direction read at that "
        f"layer ({causal.map.control_position}) is ablated, with the range of its controls in "
        "gray. Select split.",
        kind="lines",
        table="causal_map",
        metric="bypass_effect",
        where={"stream": "resid_pre", "position": causal.map.control_position},
        x="layer",
        null_metric="bypass_effect_controls",
        reference={"no effect": 0.0},
        x_title="layer",
        y_title="fall of the refusal score (log-odds)",
    )
    yield Figure(
        id="selection",
        title="How sure the choice is",
        caption="Share of resamplings in which each candidate is chosen.",
        kind="heatmap",
        table="selection",
        metric="frequency",
        x="layer",
        y="position",
        limits=(0.0, 1.0),
        x_title="layer",
        y_title="position",
        value_title="share of resamplings",
    )
    yield Figure(
        id="decay",
        title="How alike the directions of neighboring layers are",
        caption="Cosine with the next layer's direction; gray: the same under permuted labels.",
        kind="lines",
        table="decay",
        metric="cosine_next_layer",
        where={"stream": "resid_pre"},
        x="layer",
        choose=("position",),
        start={"position": str(measured.read.positions[-1])},
        null_metric="cosine_next_layer_controls",
        x_title="layer",
        y_title="cosine",
    )
    if causal.winner is not None:
        yield from _winner_figures(causal.winner)


def _winner_figures(winner: Winner) -> Iterator[Figure]:
    at = f"{winner.position}, {winner.site}"
    yield Figure(
        id="windows",
        title="Which layers carry the effect",
        caption=f"The direction of {at} ablated in layers first to last only, third split.",
        kind="matrix",
        table="windows",
        metric="effect",
        x="last",
        y="first",
        where={"metric": ["effect", "share"]},
        choose=("metric",),
        start={"metric": "effect"},
        hover=("effect", "share", "effect_controls"),
        x_title="last layer of the window",
        y_title="first layer",
        value_title="fall of the refusal score",
    )
    yield Figure(
        id="positions",
        title="Which tokens carry the effect",
        caption="The direction ablated in every layer, at these tokens only, third split.",
        kind="bars",
        table="positions",
        metric="effect",
        x="position",
        x_title="position",
        y_title="fall of the refusal score (log-odds)",
    )
    for side, title in (
        ("harmless", "Adding it: how much refuses harmless prompts"),
        ("harmful", "Subtracting it: how much bypasses"),
    ):
        yield Figure(
            id=f"doses_{side}",
            title=title,
            caption="Refusal score by dose (mean norms of the residual stream), one line a layer; "
            "the last is the output of the last block. Gray: all controls at all layers. Third "
            "split.",
            kind="lines",
            table="doses",
            metric="refusal_score",
            where={"prompts": side},
            x="dose",
            color="layer",
            null_metric="refusal_score_all_controls",
            reference={"even odds": 0.0},
            x_title="dose",
            y_title="refusal score (log-odds)",
        )
    yield Figure(
        id="writers",
        title="Which parts write the direction",
        caption="Share of the harmful − harmless difference of projections that each head, MLP and "
        "the embeddings add.",
        kind="bars",
        table="writers",
        metric="share",
        x="writer",
        color="kind",
        x_title="",
        y_title="share of the difference",
    )
