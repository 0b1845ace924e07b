"""The claims of the locality study: each with interval, null and the choices that would flip it."""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from mechsafety.core.config import FrozenConfig
from mechsafety.core.layers import LayerRule, resolve_layer
from mechsafety.core.positions import PositionText
from mechsafety.core.result import DeclaredFinding, Finding
from mechsafety.effects.ablation import AblationForm
from mechsafety.judges.rates import rate_name
from mechsafety.metrics.intervals import Interval
from mechsafety.metrics.max_statistic import adjusted_p, first_beyond
from mechsafety.metrics.resampling import percentile_interval
from mechsafety.studies.claims import (
    Assessed,
    Effect,
    assembled,
    choice_key,
    null_range,
    rate_difference,
    share_words,
    span,
    unmeasured,
)
from mechsafety.studies.locality_measured import Causal, Measured, Separated, Winner
from mechsafety.studies.locality_tables import place
from mechsafety.studies.refusal_proxy import VALID, proxy_auc

LENGTHS = (0.25, 0.34, 0.5)
"""Lengths, as shares of the depth, that a reader would also call local."""


class SeparationCell(FrozenConfig):
    """AUC of held-out prompts at one place, minus what it is compared with."""

    test: Literal["separation"]
    layer: LayerRule
    """Block input; the number of layers is the output of the last block."""
    position: PositionText = "last"
    versus: Literal["chance", "lexical", "base"] = "chance"
    """`chance`: 0.5; `lexical`: a bag of tokens; `base`: the same place of the base model."""


class CausalCell(FrozenConfig):
    """How much ablating (or adding) the direction read at one layer moves the refusal score."""

    test: Literal["causal"]
    layer: LayerRule
    score: Literal["bypass", "induce"] = "bypass"


class WinnerCell(FrozenConfig):
    """Refusals that the chosen direction takes from harmful prompts, or gives to harmless ones."""

    test: Literal["winner"]
    effect: Literal["bypass", "induce"] = "bypass"
    form: AblationForm = "zero"
    """Of the ablation, for `bypass`."""
    dose: PositiveFloat = 1.0
    """Multiple of the mean difference, for `induce`; one of `evaluate.addition_doses`."""


class WindowCell(FrozenConfig):
    """The share of the effect that one window of at most so many layers carries."""

    test: Literal["window"]
    max_length: PositiveFloat = 0.5
    """Longest window that counts as local, as a share of the depth. The claim's margin is the
    share of the effect that it must carry."""


class SecondDirectionCell(FrozenConfig):
    """What the direction refitted after removal of the first does by itself."""

    test: Literal["second_direction"]


class WritersCell(FrozenConfig):
    """How much of the score gap between the classes the top writers carry."""

    test: Literal["writers"]
    form: Literal["zero", "mean"] = "mean"


ClaimCell = Annotated[
    SeparationCell | CausalCell | WinnerCell | WindowCell | SecondDirectionCell | WritersCell,
    Field(discriminator="test"),
]
Claim = DeclaredFinding[ClaimCell]


def finding(claim: Claim, measured: Measured) -> Finding:
    """One declared claim as a finding."""
    cell = claim.cell
    if isinstance(cell, SeparationCell):
        if cell.versus == "base" and measured.base is None:
            return unmeasured(claim, "No base model was given (`base`).", ())
        return assembled(claim, _separation(cell, measured), measured.resampling_notes)
    causal = measured.causal
    if causal is None or (causal.winner is None and not isinstance(cell, CausalCell)):
        return unmeasured(claim, measured.why_not, ())
    notes = (*measured.resampling_notes, *_proxy_notes(causal))
    if isinstance(cell, CausalCell):
        return assembled(claim, _causal(cell, causal, measured), notes)
    winner = causal.winner
    assert winner is not None
    if isinstance(cell, WinnerCell):
        doses = [added.dose for added in winner.evaluated.added]
        if cell.effect == "induce" and cell.dose not in doses:
            tried = ", ".join(f"{dose:g}" for dose in doses)
            return unmeasured(claim, f"Dose {cell.dose:g} was not tried; {tried} were.", notes)
        return assembled(claim, _winner(cell, winner, measured), notes)
    if isinstance(cell, WindowCell):
        assessed = _window(cell, winner, measured)
        if choice_key(assessed.primary) not in assessed.choices:
            return unmeasured(claim, _no_window(winner), notes)
        return assembled(claim, assessed, notes)
    if isinstance(cell, SecondDirectionCell):
        if winner.second.alone is None:
            why = "No refitted direction passes the filters once the first is ablated."
            return unmeasured(claim, why, notes)
        return assembled(claim, _second(winner), notes)
    assessed = _writers(cell, winner)
    if choice_key(assessed.primary) not in assessed.choices:
        why = "Every head and MLP before the site is a top writer, so there are no controls."
        return unmeasured(claim, why, notes)
    return assembled(claim, assessed, notes)


def _proxy_notes(causal: Causal) -> tuple[str, ...]:
    """Whether the refusal score stands in for the judge on the third split (evidence.md 14)."""
    if causal.winner is None:
        return ("The refusal score was not held against the judge: no direction was evaluated.",)
    done = causal.winner.evaluated
    conditions = {"clean": (done.scores.harmful, done.scores.harmless, done.harmful, done.harmless)}
    for cell in done.cells:
        harmful, harmless = cell.harmful.refusal_score, cell.harmless.refusal_score
        assert harmful is not None
        assert harmless is not None
        conditions[cell.form] = (harmful, harmless, cell.harmful.answers, cell.harmless.answers)
    told: list[str] = []
    valid = True
    for name, (harmful, harmless, first, second) in conditions.items():
        found, _ = proxy_auc(torch.cat([harmful, harmless]), [*first.verdicts, *second.verdicts])
        told.append(f"{name} {'one verdict only' if found is None else format(found, '.2f')}")
        valid &= found is None or found >= VALID
    word = "" if valid else "Proxy unvalidated. "
    return (f"{word}AUC of the refusal score against the judge: {', '.join(told)}.",)


# --- separation --------------------------------------------------------------------------------


def _separation(cell: SeparationCell, measured: Measured) -> Assessed:
    read = measured.read
    layer = resolve_layer(cell.layer, read.dims.n_layers, None)
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    words = _onset_words(cell, measured)
    for source in dict.fromkeys(source for _, source in measured.separation):
        for s, site in enumerate(read.sites):
            at = place(site)
            if int(str(at["layer"])) < layer:
                continue
            for p, position in enumerate(read.positions):
                settings = {
                    "layer": str(at["layer"]),
                    "stream": str(at["stream"]),
                    "position": str(position),
                    "source": source,
                }
                choices[choice_key(settings)] = _separation_effect(
                    cell, measured, source, s, p, words
                )
    source = next(source for _, source in measured.separation)
    return Assessed(
        primary={
            "layer": str(layer),
            "stream": "resid_pre",
            "position": cell.position,
            "source": source,
        },
        choices=choices,
        null=_separation_null(cell, measured),
        unit="difference of AUC (prompts)",
    )


def _separation_null(cell: SeparationCell, measured: Measured) -> str:
    found = measured.separation["model", next(source for _, source in measured.separation)]
    n = len(found.null)
    if cell.versus == "chance":
        return (
            f"max-statistic band over all places of the map, {n} relabelings of fit and held-out "
            f"prompts (error {found.band.error:.3g} for the whole map)"
        )
    if cell.versus == "base":
        return f"the same difference under {n} relabelings that both models share; pointwise"
    return f"AUC less 0.5 under {n} relabelings; pointwise"


def _separation_effect(
    cell: SeparationCell, measured: Measured, source: str, s: int, p: int, words: str
) -> Effect:
    found = measured.separation["model", source]
    value, draws = float(found.auc[s, p]), found.draws[:, s, p]
    if cell.versus == "chance":
        other, other_draws = 0.5, torch.full_like(draws, 0.5)
        null = (0.5 - found.band.high, found.band.high - 0.5)
    elif cell.versus == "lexical":
        baseline = measured.lexical[source]
        other, other_draws = baseline.auc, baseline.draws
        null = null_range(found.null[:, s, p] - 0.5)
    else:
        base = measured.separation["base", source]
        other, other_draws = float(base.auc[s, p]), base.draws[:, s, p]
        null = null_range(found.null[:, s, p] - base.null[:, s, p])
    low, high = percentile_interval(draws - other_draws, measured.held.harmful.n_units)
    return Effect(
        value=value - other,
        interval=_around(value - other, float(low), float(high)),
        null=null,
        n=found.n,
        words=f"AUC {value:.2f} [{float(found.low[s, p]):.2f}, {float(found.high[s, p]):.2f}] "
        f"against {other:.2f} ({cell.versus}); null {span(null)}. {words}",
    )


def _onset_words(cell: SeparationCell, measured: Measured) -> str:
    """The first layer above the band at this position, and how often resampling agrees."""
    source = next(source for _, source in measured.separation)
    told: list[str] = []
    for model in ("model", "base"):
        found = measured.separation.get((model, source))
        if found is not None:
            told.append(f"{model}: {_onset(found, cell.position, measured)}")
    lexical = measured.lexical[source]
    return (
        f"First layer above the band at {cell.position}: {'; '.join(told)}. Words alone: AUC "
        + (f"{lexical.auc:.2f}.")
    )


def _onset(found: Separated, position: str, measured: Measured) -> str:
    read = measured.read
    p = [str(one) for one in read.positions].index(position)
    columns = [s for s, site in enumerate(read.sites) if place(site)["stream"] == "resid_pre"]
    onset = first_beyond(found.auc[columns, p], found.band)
    if onset is None:
        return "none"
    beyond = found.draws[:, columns, p] > found.band.high
    agree = (beyond.int().argmax(1) == onset) & beyond.any(1)
    return f"{onset} (in {float(agree.double().mean()):.0%} of resamplings)"


# --- causal map --------------------------------------------------------------------------------


def _causal(cell: CausalCell, causal: Causal, measured: Measured) -> Assessed:
    found = causal.map
    layer = resolve_layer(cell.layer, measured.read.dims.n_layers, None)
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    effects = found.at_control_sites(cell.score)
    sample = found.sample.harmful if cell.score == "bypass" else found.sample.harmless
    draws = sample.means(effects)
    null = found.null(cell.score)
    observed, standardized, varies = found.standardized(cell.score)
    p_values = torch.ones(len(varies), dtype=torch.float64)
    p_values[varies] = adjusted_p(observed[varies], standardized[:, varies], "greater")
    band = found.band(cell.score)
    onset = first_beyond(observed[varies], band)
    layers = [int(str(place(site)["layer"])) for site in found.control_sites]
    varying = [one for one, known in zip(layers, varies, strict=True) if known]
    first = "none" if onset is None else str(varying[onset])
    for column, at in enumerate(layers):
        if at < layer:
            continue
        low, high = percentile_interval(draws[:, column], sample.n_units)
        value = float(effects[:, column].mean())
        covered = (float(null[:, column].min()), float(null[:, column].max()))
        choices[choice_key({"layer": str(at)})] = Effect(
            value=value,
            interval=_around(value, float(low), float(high)),
            null=covered,
            n=len(effects),
            words=f"At layer {at} the refusal score of "
            + ("harmful prompts falls" if cell.score == "bypass" else "harmless prompts rises")
            + f" by {value:.2f} [{float(low):.2f}, {float(high):.2f}]; controls change it by "
            f"{span(covered)}. Adjusted for the search over layers p = "
            f"{float(p_values[column]):.3f} (no finer than {band.resolution:.3f}). First layer "
            f"beyond the max-statistic band: {first}.",
        )
    return Assessed(
        primary={"layer": str(layer)},
        choices=choices,
        null=f"range over {len(null)} directions of the same "
        f"{'energy' if cell.score == 'bypass' else 'norm'} at that layer, "
        f"{found.control_position}",
        unit="change in log-odds of a refusal token (prompts)",
        notes=("Select split, conditional on the fitted directions.",),
    )


# --- the winner ----------------------------------------------------------------------------------


def _winner(cell: WinnerCell, winner: Winner, measured: Measured) -> Assessed:
    return (
        _bypass(cell, winner, measured)
        if cell.effect == "bypass"
        else _induce(cell, winner, measured)
    )


def _bypass(cell: WinnerCell, winner: Winner, measured: Measured) -> Assessed:
    done = winner.evaluated
    before = done.harmful.judged("refused")
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    kl: list[str] = []
    for one in done.cells:
        after = one.harmful.answers.judged("refused")
        controls = one.controls
        if controls is None:
            continue
        value, interval = rate_difference(
            before, after, winner.evaluate.harmful_clusters, measured.seed
        )
        covered = null_range(sum(before) / len(before) - controls.harmful_rate)
        degenerate = sum(one.harmful.answers.judged("degenerate"))
        harmless = share_words(one.harmless.answers.judged("refused"))
        kl.append(
            f"{one.form}: harmless KL {float(one.harmless.kl.mean()):.2f} nats, harmless refused "
            f"{harmless}, controls overlap the direction by up to "
            f"{float(controls.overlap.max()):.2f}"
        )
        choices[choice_key({"form": one.form})] = Effect(
            value=value,
            interval=interval,
            null=covered,
            n=len(before),
            words=f"Harmful prompts refused: {share_words(before)} before, {share_words(after)} "
            f"under {one.form} ablation ({degenerate} degenerate); energy-matched controls lower "
            f"the rate by {span(covered)}.",
        )
    return Assessed(
        primary={"form": cell.form},
        choices=choices,
        null=f"{len(done.cells[0].controls.harmful_rate) if done.cells[0].controls else 0} "
        "energy-matched directions ablated in the same form",
        unit=f"difference of {rate_name('refused', done.harmful.max_new_tokens)} (prompts)",
        notes=(f"Both forms: {'; '.join(kl)}.",),
    )


def _induce(cell: WinnerCell, winner: Winner, measured: Measured) -> Assessed:
    done = winner.evaluated
    before = done.harmless.judged("refused")
    clean = winner.clean.harmless
    # Controls generate no answers under addition, so the null is in the score that they do have.
    layer = winner.dose_layers.index(
        min(winner.dose_layers, key=lambda one: abs(one - winner.site.layer))
    )
    control_scores = winner.induced.response[1:, :, layer].mean(1)
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    for added in done.added:
        after = added.answers.judged("refused")
        effect = added.scores - clean
        low, high = percentile_interval(
            winner.evaluate.harmless.means(effect), winner.evaluate.harmless.n_units
        )
        nearest = _nearest_dose(added.dose, winner, measured)
        null = control_scores[:, nearest] - clean.mean()
        covered = (float(null.min()), float(null.max()))
        value = float(effect.mean())
        choices[choice_key({"dose": f"{added.dose:g}"})] = Effect(
            value=value,
            interval=_around(value, float(low), float(high)),
            null=covered,
            n=len(after),
            words=f"Harmless prompts refused: {share_words(before)} before, {share_words(after)} "
            f"with {added.dose:g} × the mean difference added; the refusal score rises by "
            f"{value:.2f} [{float(low):.2f}, {float(high):.2f}]. Controls of dose "
            f"{winner.doses[nearest]:g} change it by {span(covered)}.",
        )
    return Assessed(
        primary={"dose": f"{cell.dose:g}"},
        choices=choices,
        null=f"range over {len(control_scores)} energy-drawn directions added at the same layer "
        "(or the nearest tried), at the smallest tried dose of at least that norm",
        unit="change in log-odds of a refusal token (prompts)",
    )


def _nearest_dose(dose: float, winner: Winner, measured: Measured) -> int:
    """Index of the smallest tried dose of at least this norm, else of the largest."""
    norm = float(winner.vector.double().square().sum().sqrt()) * dose
    relative = norm / measured.read.norms[winner.site.layer]
    enough = [i for i, tried in enumerate(winner.doses) if tried >= relative]
    return min(enough, key=lambda i: winner.doses[i]) if enough else len(winner.doses) - 1


# --- windows -----------------------------------------------------------------------------------


def _window(cell: WindowCell, winner: Winner, measured: Measured) -> Assessed:
    """Chosen on the select split, measured on the third."""
    found, n_layers = winner.windows, measured.read.dims.n_layers
    direction, controls = found.evaluate[0], found.evaluate[1:].mean(1)
    whole = found.tried.index((0, n_layers - 1))
    full = float(direction[:, whole].mean())
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    if full > float(controls[:, whole].max()):
        draws = winner.evaluate.harmful.means(direction)
        words = _smallest_words(winner, n_layers, draws)
        for length in dict.fromkeys((cell.max_length, *LENGTHS)):
            short = [i for i, (a, b) in enumerate(found.tried) if b - a + 1 <= length * n_layers]
            if not short:
                continue
            chosen = max(short, key=lambda i: float(found.select[0][:, i].mean()))
            shares = draws[:, chosen] / draws[:, whole]
            low, high = percentile_interval(shares, winner.evaluate.harmful.n_units)
            value = float(direction[:, chosen].mean()) / full
            covered = _ends(controls[:, chosen] / full)
            first, last = found.tried[chosen]
            choices[choice_key({"max_length": f"{length:g}"})] = Effect(
                value=value,
                interval=_around(value, float(low), float(high)),
                null=covered,
                n=len(direction),
                words=f"Layers {first} to {last} (chosen on the select split) carry {value:.0%} "
                f"[{float(low):.0%}, {float(high):.0%}] of the effect of all layers, "
                f"{full:.2f}; controls there come to {covered[0]:+.0%} to {covered[1]:+.0%} of "
                f"it. {words}",
            )
    return Assessed(
        primary={"max_length": f"{cell.max_length:g}"},
        choices=choices,
        null=f"range over {len(controls)} energy-matched directions ablated in the same window, as "
        "a share of the direction's own full effect",
        unit="share of the effect of ablating in all layers (prompts)",
    )


def _smallest_words(winner: Winner, n_layers: int, draws: Tensor) -> str:
    """The smallest window that keeps most of the effect, and how its length varies."""
    found, share = winner.windows, 0.9
    first, last = found.smallest(found.evaluate[0].mean(0), share)
    starts, stops = found.smallest(draws, share)
    lengths = torch.where(starts >= 0, stops - starts + 1, n_layers).double()
    low, high = percentile_interval(lengths, winner.evaluate.harmful.n_units)
    return (
        f"The smallest window with {share:.0%}: layers {int(first)} to {int(last)}, "
        f"{int(last - first) + 1} of {n_layers} ({float(low):.0f} to {float(high):.0f} over "
        "resamplings; short by luck, as the minimum over windows is)."
    )


def _no_window(winner: Winner) -> str:
    found = winner.windows
    whole = found.tried.index(max(found.tried, key=lambda window: window[1] - window[0]))
    full = float(found.evaluate[0][:, whole].mean())
    controls = found.evaluate[1:].mean(1)[:, whole]
    return (
        f"Ablating in all layers lowers the refusal score by {full:.2f} and controls by "
        f"{span(_ends(controls))}: without an effect beyond its controls no window is reported."
    )


# --- second direction and writers ----------------------------------------------------------------


def _second(winner: Winner) -> Assessed:
    found, clean = winner.second, winner.clean.harmful
    assert found.alone is not None
    assert found.controls is not None
    assert found.selection.chosen is not None
    effect = clean - found.alone
    low, high = percentile_interval(
        winner.evaluate.harmful.means(effect), winner.evaluate.harmful.n_units
    )
    covered = _ends((clean[None] - found.controls).mean(1))
    zero = winner.evaluated.cells[0].harmful.refusal_score
    assert zero is not None
    value, first = float(effect.mean()), float((clean - zero).mean())
    position, layer = found.selection.chosen
    independence = found.independence
    return Assessed(
        primary={"refit": "best"},
        choices={
            choice_key({"refit": "best"}): Effect(
                value=value,
                interval=_around(value, float(low), float(high)),
                null=covered,
                n=len(clean),
                words=f"The refitted direction (layer {layer}, "
                f"{found.selection.candidates.positions[position]}) alone lowers the refusal score "
                f"by {value:.2f} [{float(low):.2f}, {float(high):.2f}], the first by {first:.2f}; "
                f"controls change it by {span(covered)}."
                + (
                    ""
                    if independence is None
                    else f" Independence: {independence[0]:.4f} of the first from the second, "
                    f"{independence[1]:.4f} of the second from the first."
                ),
            )
        },
        null=f"range over {len(found.controls)} directions that match the refitted one in energy",
        unit="change in log-odds of a refusal token (prompts)",
    )


def _writers(cell: WritersCell, winner: Winner) -> Assessed:
    found, clean = winner.writers, winner.clean
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    names = ", ".join(map(str, found.top[:6])) + (" …" if len(found.top) > 6 else "")
    for form in ("zero", "mean"):
        drawn = [a for a in found.ablations if a.form == form]
        mine = [a for a in drawn if a.control is None]
        others = [a for a in drawn if a.control is not None]
        if not mine or not others:
            continue
        one = mine[0]
        draws = winner.evaluate.harmful.means(
            clean.harmful - one.harmful
        ) - winner.evaluate.harmless.means(clean.harmless - one.harmless)
        low, high = percentile_interval(draws, winner.evaluate.harmful.n_units)
        gap = float(clean.harmful.mean() - clean.harmless.mean())
        value = gap - float(one.harmful.mean() - one.harmless.mean())
        null = torch.stack([gap - (a.harmful.mean() - a.harmless.mean()) for a in others])
        covered = _ends(null)
        shared = torch.tensor([a.overlap for a in others], dtype=torch.float64)
        choices[choice_key({"form": form})] = Effect(
            value=value,
            interval=_around(value, float(low), float(high)),
            null=covered,
            n=len(one.harmful),
            words=f"{len(found.top)} of {len(found.shares.writers)} writers add up to the share "
            f"({names}). Their {form} ablation narrows the score gap between harmful and harmless "
            f"prompts ({gap:.1f}) by {value:.2f} [{float(low):.2f}, {float(high):.2f}] (harmful "
            f"{float(one.harmful.mean()):.1f}, harmless {float(one.harmless.mean()):.1f} after); "
            f"as many others (sharing {float(shared.mean()):.0%} of them) narrow it by "
            f"{span(covered)}.",
        )
    return Assessed(
        primary={"form": cell.form},
        choices=choices,
        null="range over sets of as many other heads and MLPs, drawn at random",
        unit="narrowing of the harmful − harmless refusal score (prompts)",
    )


# --- shared ------------------------------------------------------------------------------------


def _ends(draws: Tensor) -> tuple[float, float]:
    """Smallest and largest of a few controls, for which quantiles would be invented."""
    return float(draws.min()), float(draws.max())


def _around(value: float, low: float, high: float) -> Interval:
    """An interval that holds its estimate: few clusters can leave it just outside."""
    return Interval(min(low, value), max(high, value))
