"""Claims about the chosen direction."""

import torch
from torch import Tensor

from mechsafety.judges.rates import rate_name
from mechsafety.metrics.resampling import percentile_interval
from mechsafety.studies.claims import (
    Assessed,
    Effect,
    choice_key,
    rate_difference,
    share_words,
    span,
)
from mechsafety.studies.intervals import around, ends
from mechsafety.studies.locating.claims import WindowCell, WinnerCell, WritersCell
from mechsafety.studies.locating.measured import Measured, Winner
from mechsafety.studies.words import EFFECT_UNIT

LENGTHS = (0.25, 0.34, 0.5)
"""Lengths, as shares of the depth, that a reader would also call local."""


def winner_claim(cell: WinnerCell, winner: Winner, measured: Measured) -> Assessed:
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
        covered = ends(sum(before) / len(before) - controls.harmful_rate)
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
        null="range over "
        f"{len(done.cells[0].controls.harmful_rate) if done.cells[0].controls else 0} "
        "energy-matched directions ablated in the same form",
        unit=f"difference of {rate_name('refused', done.harmful.max_new_tokens)} (prompts)",
        notes=(f"Both forms: {'; '.join(kl)}.",),
    )


def _induce(cell: WinnerCell, winner: Winner, measured: Measured) -> Assessed:
    done = winner.evaluated
    before = done.harmless.judged("refused")
    clean = winner.clean.harmless
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    for added in done.added:
        after = added.answers.judged("refused")
        value, interval = rate_difference(
            after, before, winner.evaluate.harmless_clusters, measured.seed
        )
        covered = ends(added.control_rates - sum(before) / len(before))
        risen = added.control_scores - clean.mean()
        choices[choice_key({"dose": f"{added.dose:g}"})] = Effect(
            value=value,
            interval=interval,
            null=covered,
            n=len(after),
            words=f"Harmless prompts refused: {share_words(before)} before, {share_words(after)} "
            f"with {added.dose:g} × the mean difference added "
            f"({sum(added.answers.judged('degenerate'))} degenerate); directions of the same norm "
            f"change the rate by {span(covered)}. The refusal score rises by "
            f"{float((added.scores - clean).mean()):.2f}, theirs by {span(ends(risen))}.",
        )
    return Assessed(
        primary={"dose": f"{cell.dose:g}"},
        choices=choices,
        null=f"range over {len(done.added[0].control_rates)} directions of the same norm, drawn "
        "from harmless activations, added at the same layer",
        unit=f"difference of {rate_name('refused', done.harmless.max_new_tokens)} (prompts)",
    )


def window_claim(cell: WindowCell, winner: Winner, measured: Measured) -> Assessed:
    """Chosen on the select split, measured on the third."""
    found, n_layers = winner.windows, measured.read.dims.n_layers
    direction, controls = found.evaluate[0], found.evaluate[1:].mean(1)
    whole = _whole(winner)
    full = float(direction[:, whole].mean())
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    if _stands_out(winner):
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
            covered = ends(controls[:, chosen] / full)
            first, last = found.tried[chosen]
            choices[choice_key({"max_length": f"{length:g}"})] = Effect(
                value=value,
                interval=around(value, float(low), float(high)),
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


def _whole(winner: Winner) -> int:
    """Which window is the whole model."""
    tried = winner.windows.tried
    return tried.index(max(tried, key=lambda window: window[1] - window[0]))


def _stands_out(winner: Winner) -> bool:
    """Whether the effect of all layers is there at all, so that parts of it have a share.

    Beyond its controls, and above 0 in its interval: a share of what may be 0 has no bounds.
    """
    full = winner.windows.evaluate[:, :, _whole(winner)]
    sample = winner.evaluate.harmful
    low, _ = percentile_interval(sample.means(full[0]), sample.n_units)
    return float(full[0].mean()) > float(full[1:].mean(1).max()) and float(low) > 0


def _smallest_words(winner: Winner, n_layers: int, draws: Tensor) -> str:
    """The smallest window that keeps most of the effect, and how its length varies."""
    found, share = winner.windows, winner.share
    first, last = found.smallest(found.evaluate[0].mean(0), share)
    starts, stops = found.smallest(draws, share)
    lengths = torch.where(starts >= 0, stops - starts + 1, n_layers).double()
    low, high = percentile_interval(lengths, winner.evaluate.harmful.n_units)
    return (
        f"The smallest window with {share:.0%}: layers {int(first)} to {int(last)}, "
        f"{int(last - first) + 1} of {n_layers} ({float(low):.0f} to {float(high):.0f} over "
        "resamplings; short by luck, as the minimum over windows is)."
    )


def no_window(cell: WindowCell, winner: Winner) -> str:
    """Why there is no window to speak of."""
    found = winner.windows
    full = found.evaluate[0][:, _whole(winner)]
    controls = found.evaluate[1:].mean(1)[:, _whole(winner)]
    if _stands_out(winner):
        shortest = min(last - first + 1 for first, last in found.tried)
        return (
            f"No window of at most {cell.max_length:g} of the depth was tried; the shortest has "
            f"{shortest} of {max(last for _, last in found.tried) + 1} layers."
        )
    sample = winner.evaluate.harmful
    low, high = percentile_interval(sample.means(full), sample.n_units)
    return (
        f"Ablating in all layers lowers the refusal score by {float(full.mean()):.2f} "
        f"[{float(low):.2f}, {float(high):.2f}] and controls by {span(ends(controls))}: without an "
        "effect above 0 and beyond its controls no window is reported."
    )


# --- second direction and writers ----------------------------------------------------------------


def second_claim(winner: Winner) -> Assessed:
    found, clean = winner.second, winner.clean.harmful
    assert found.alone is not None
    assert found.controls is not None
    assert found.selection.chosen is not None
    effect = clean - found.alone
    low, high = percentile_interval(
        winner.evaluate.harmful.means(effect), winner.evaluate.harmful.n_units
    )
    covered = ends((clean[None] - found.controls).mean(1))
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
                interval=around(value, float(low), float(high)),
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
        unit=EFFECT_UNIT,
    )


def no_writers(winner: Winner) -> str:
    """Why the direction's writers were not ablated, or not held against others."""
    names = ", ".join(map(str, winner.writers.ablated))
    if not winner.writers.ablated:
        top = ", ".join(map(str, winner.writers.top))
        return f"The top writers ({top}) are no heads or MLPs, so that nothing ablates them."
    return (
        f"All heads and MLPs before the site are among its writers ({names}): no others are left."
    )


def writers_claim(cell: WritersCell, winner: Winner) -> Assessed:
    found, clean = winner.writers, winner.clean
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    top = ", ".join(map(str, found.top[:6])) + (" …" if len(found.top) > 6 else "")
    names = ", ".join(map(str, found.ablated))
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
        low, high = percentile_interval(draws, winner.evaluate.n_units)
        gap = float(clean.harmful.mean() - clean.harmless.mean())
        value = gap - float(one.harmful.mean() - one.harmless.mean())
        null = torch.stack([gap - (a.harmful.mean() - a.harmless.mean()) for a in others])
        covered = ends(null)
        shared = torch.tensor([a.overlap for a in others], dtype=torch.float64)
        choices[choice_key({"form": form})] = Effect(
            value=value,
            interval=around(value, float(low), float(high)),
            null=covered,
            n=len(one.harmful) + len(one.harmless),
            words=f"{len(found.top)} of {len(found.shares.writers)} writers add up to most of the "
            f"direction ({top}). The {form} ablation of {names}, which write the first part of it, "
            f"narrows the score gap between harmful and harmless prompts ({gap:.1f}) by "
            f"{value:.2f} [{float(low):.2f}, {float(high):.2f}] (harmful "
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
