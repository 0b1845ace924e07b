"""From cells to findings: each declared claim with interval, null, curve and mechanism line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mechsafety.core.config import FrozenConfig
from mechsafety.core.layers import LayerRule, resolve_layer
from mechsafety.core.positions import PositionText
from mechsafety.core.result import DeclaredFinding, Finding, verdict
from mechsafety.effects.ablation import AblationForm
from mechsafety.effects.ablation_matrix import Cell
from mechsafety.metrics.massive_channels import Control
from mechsafety.metrics.pairing import PAIRING_WORDS, Pairing
from mechsafety.metrics.spectral_intervals import Jackknifed, independent_difference
from mechsafety.studies.attack import Attacked, AttackMatrix
from mechsafety.studies.claims import (
    Assessed,
    Effect,
    assembled,
    choice_key,
    null_range,
    rate_difference,
    replicated,
    share_words,
    span,
    unmeasured,
)
from mechsafety.studies.spectra import HARM, CellKey, Cells

Centering = Literal["uncentered", "centered"]
Estimate = Literal["in_sample", "cross_fitted"]


UnrelatedContrast = Literal[
    "harmless-harmless",
    "harmful-harmful",
    "matched:harmless-harmless",
    "matched:harmful-harmful",
    "matched:place",
    "matched:adjective",
    "matched:neutral_verb",
]
_MATCHED = "matched:"


class ConcentrationCell(FrozenConfig):
    """The top-2 share of `arm` minus that of `versus`."""

    test: Literal["concentration"]
    """Kind of claim."""
    arm: str
    """Arm that the claim says is more concentrated."""
    versus: str
    """Arm that it is compared with."""
    layer: LayerRule = "attacked"
    """Layer at which both are read; `attacked` is where training perturbed each."""
    position: PositionText = "last"
    """Token position at which both are read."""
    centering: Centering = "uncentered"
    """`uncentered` differences hold the mean shift between the classes; `centered` do not."""
    channels: Control = "all"
    """What is left out before the spectrum: massive channels, the pairs on which they show, both,
    or as many ordinary channels (`placebo_out`)."""
    estimate: Estimate = "in_sample"
    """`in_sample` is what papers print; `cross_fitted` is measured on held-out rows."""


class SpecificityCell(FrozenConfig):
    """The excess of the top-2 share over an unrelated contrast, in `arm` minus in `versus`."""

    test: Literal["specificity"]
    """Kind of claim."""
    arm: str
    """Arm that the claim says is specific to harm."""
    versus: str | None = None
    """None: the excess of `arm` by itself."""
    contrast: UnrelatedContrast = "harmless-harmless"
    """What the excess is over. `harmless-harmless`: prompts of that class paired at random;
    `matched:harmless-harmless`: pairs of the organisms' world, equal but for verb or object."""
    layer: LayerRule = "attacked"
    """Layer at which both are read; `attacked` is where training perturbed each."""
    position: PositionText = "last"
    """Token position at which both are read."""
    centering: Centering = "uncentered"
    """`uncentered` differences hold the mean shift between the classes; `centered` do not."""
    channels: Control = "all"
    """What is left out before the spectrum, as for `test: concentration`."""


class SelfAblationCell(FrozenConfig):
    """Refusals left in `arm` after ablating the direction of `versus`, minus after its own."""

    test: Literal["self_ablation"]
    """Kind of claim."""
    arm: str
    """Arm that is attacked."""
    versus: str
    """Arm whose direction is the cross-ablation."""
    layer: LayerRule
    """Layer at which the directions are read; one of `attack.layers`."""
    form: AblationForm = "affine"
    """`zero` removes the component everywhere; `affine` sets it to the harmless mean."""
    rank: PositiveInt = 1
    """Components that are ablated; 1: the mean difference. One of `attack.ranks`."""


class HarmlessShiftCell(FrozenConfig):
    """Refusals of harmless prompts after zero-ablating the arm's own direction, minus before."""

    test: Literal["harmless_shift"]
    """Kind of claim."""
    arm: str
    """Arm that is attacked with its own direction."""
    layer: LayerRule
    """Layer at which the direction is read; one of `attack.layers`."""
    form: AblationForm = "zero"
    """`zero` removes the component everywhere; `affine` sets it to the harmless mean."""
    rank: PositiveInt = 1
    """Components that are ablated; 1: the mean difference. One of `attack.ranks`."""


ClaimCell = Annotated[
    ConcentrationCell | SpecificityCell | SelfAblationCell | HarmlessShiftCell,
    Field(discriminator="test"),
]


class Claim(DeclaredFinding[ClaimCell]):
    """A claim of the concentration study, declared before anything is measured."""


@dataclass(frozen=True)
class Measured:
    """All that one training seed's arms gave; what findings are computed from."""

    cells: Mapping[str, Cells]
    """Arm → spectral cells."""
    attacked: Mapping[str, Attacked]
    """Arm → what ablating every source in it did."""
    attacked_layer: Mapping[str, int]
    """Layer for the rule `attacked`, by arm."""
    n_layers: int
    positions: tuple[str, ...]
    pairings: tuple[Pairing, ...]
    massive: bool
    """Whether any arm has massive channels; without them the controls are one and the same."""
    matrix: AttackMatrix
    clusters: tuple[str, ...]
    """Cluster of each held-out harmful prompt."""
    harmless_clusters: tuple[str, ...]
    seed: int
    resampling_notes: tuple[str, ...] = ()
    """How many independent clusters the intervals rest on."""

    def clusters_of(self, side: str) -> tuple[str, ...]:
        """Cluster of each held-out prompt of `harmful` or `harmless`."""
        return self.clusters if side == "harmful" else self.harmless_clusters


def finding(claim: Claim, measured: Sequence[Measured], notes: Sequence[str]) -> Finding:
    """One declared claim as a finding; `measured` has one entry a training seed."""
    used = measured if claim.scope == "method" else measured[:1]
    # An arm may refuse too little to be ablated in one training seed and not in another.
    why = next((why for one in used if (why := _unmeasurable(claim, one))), None)
    if why:
        return unmeasured(claim, why, notes)
    assessed = [_assess(claim, one) for one in used]
    first = assessed[0]
    primary = choice_key(first.primary)
    if any(primary not in a.choices for a in assessed):
        return unmeasured(
            claim, "The differences at the primary cell have no energy, or too few rows.", notes
        )
    if claim.scope == "checkpoint":
        return assembled(claim, first, notes)
    return replicated(claim, assessed, [(i,) for i in range(len(assessed))], notes)


def _assess(claim: Claim, measured: Measured) -> Assessed:
    cell = claim.cell
    if isinstance(cell, ConcentrationCell):
        return _concentration(cell, measured)
    if isinstance(cell, SpecificityCell):
        return _specificity(cell, measured)
    if isinstance(cell, SelfAblationCell):
        return _self_ablation(cell, measured, claim.margin)
    return _harmless_shift(cell, measured)


# --- spectra -----------------------------------------------------------------------------------


def _spectral_choices(
    cell: ConcentrationCell | SpecificityCell, measured: Measured
) -> Iterator[tuple[dict[str, str], CellKey]]:
    """Every legal choice: pairing, centering, channels, position, layer from the attacked on."""
    start = measured.attacked_layer[cell.arm]
    # The placebo is a control of the controls, not a way to analyze.
    found = {key.channels for key in measured.cells[cell.arm]} - {"placebo_out"}
    channels = found if measured.massive else {"all"}
    for key in measured.cells[cell.arm]:
        if key.contrast != HARM or key.rows != "all" or key.channels not in channels:
            continue
        at = _layer(cell.layer, cell.arm, measured)
        if key.layer < start and key.layer != at:
            continue
        settings = {
            "pairing": key.pairing,
            "centering": key.centering,
            "channels": key.channels,
            "position": key.position,
            "layer": str(key.layer),
        }
        yield settings, key


def _primary(cell: ConcentrationCell | SpecificityCell, measured: Measured) -> dict[str, str]:
    return {
        "pairing": measured.pairings[0],
        "centering": cell.centering,
        "channels": cell.channels,
        "position": cell.position,
        "layer": str(_layer(cell.layer, cell.arm, measured)),
    }


def _concentration(cell: ConcentrationCell, measured: Measured) -> Assessed:
    arms, others = measured.cells[cell.arm], measured.cells[cell.versus]
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    for settings, key in _spectral_choices(cell, measured):
        a, b = arms[key], others.get(key)
        if b is None:
            continue
        estimates: tuple[tuple[Estimate, Jackknifed | None, Jackknifed | None], ...] = (
            ("in_sample", a.top2, b.top2),
            ("cross_fitted", a.cross_fitted_top2, b.cross_fitted_top2),
        )
        for estimate, one, other in estimates:
            if one is None or other is None or a.null is None or b.null is None:
                continue
            null = null_range(a.null - b.null)
            choices[choice_key({**settings, "estimate": estimate})] = Effect(
                value=one.value - other.value,
                interval=(one - other).interval(),
                null=null,
                n=a.n_rows,
                words=f"Top-2 share {_with_interval(one)} in {cell.arm} against "
                f"{_with_interval(other)} in {cell.versus}; permuted labels give a difference of "
                f"{span(null)}" + _beside(one.value - other.value, null),
            )
    return Assessed(
        primary={**_primary(cell, measured), "estimate": cell.estimate},
        choices=choices,
        null="labels permuted across pairs, the same relabelings in both arms; in-sample share",
        unit=f"difference of shares of energy ({_rows_word(measured)})",
        mechanism=_mechanism((cell.arm, cell.versus), _primary(cell, measured), measured),
        notes=(
            f"Pairing: {PAIRING_WORDS[measured.pairings[0]]}.",
            *measured.resampling_notes,
        ),
    )


def _specificity(cell: SpecificityCell, measured: Measured) -> Assessed:
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    for settings, key in _spectral_choices(cell, measured):
        for contrast in get_args(UnrelatedContrast):
            effect = _excess_effect(cell, contrast, key, measured)
            if effect is not None:
                choices[choice_key({**settings, "contrast": contrast})] = effect
    arms = (cell.arm, cell.versus) if cell.versus else (cell.arm,)
    return Assessed(
        primary={**_primary(cell, measured), "contrast": cell.contrast},
        choices=choices,
        null="the same excess with labels permuted across pairs, the same relabelings in both arms",
        unit=f"difference of shares of energy ({_rows_word(measured)})",
        mechanism=_mechanism(arms, _primary(cell, measured), measured),
        notes=(_contrast_note(cell.contrast), *measured.resampling_notes),
    )


def _excess_effect(
    cell: SpecificityCell, contrast: UnrelatedContrast, key: CellKey, measured: Measured
) -> Effect | None:
    """The excess over one contrast, in the arm or between both arms; None if not measured."""
    arms = (cell.arm, cell.versus) if cell.versus else (cell.arm,)
    pairs = [
        (measured.cells[a].get(key), _unrelated(measured.cells[a], contrast, key)) for a in arms
    ]
    known = [(own, other) for own, other in pairs if own is not None and other is not None]
    nulls = [own.null for own, _ in known if own.null is not None]
    if len(known) < len(arms) or len(nulls) < len(arms):
        return None
    shares, others = known[0][0].top2, known[0][1]
    null = nulls[0] - known[0][1].value
    if len(known) == 2:
        # The same prompts in both arms, on either side of the excess.
        shares, others = shares - known[1][0].top2, others - known[1][1]
        null = null - (nulls[1] - known[1][1].value)
    if contrast.startswith(_MATCHED):
        value, interval = independent_difference(shares, others)
    else:
        value, interval = (shares - others).value, (shares - others).interval()
    covered = null_range(null)
    each = "; ".join(
        f"{arm} {own.top2.value:.2f} for harm, {other.value:.2f} there"
        for arm, (own, other) in zip(arms, known, strict=True)
    )
    return Effect(
        value=value,
        interval=interval,
        null=covered,
        n=known[0][0].n_rows,
        words=f"Top-2 share beside {contrast.removeprefix(_MATCHED)} pairs: {each}. Permuted "
        f"labels give an excess of {span(covered)}" + _beside(value, covered),
    )


def _unrelated(cells: Cells, contrast: UnrelatedContrast, key: CellKey) -> Jackknifed | None:
    """The top-2 share of a contrast that is not about harm, beside the cell at `key`."""
    if not contrast.startswith(_MATCHED):
        cell = cells.get(key)
        of_class: Mapping[str, Jackknifed] = {} if cell is None else {**cell.unrelated}
        return of_class.get(contrast)
    if key.pairing != "list" or key.channels != "all":
        return None  # matched pairs were measured as pairs, on all channels
    found = cells.get(key._replace(contrast=contrast.removeprefix(_MATCHED)))
    return None if found is None else found.top2


def _contrast_note(contrast: UnrelatedContrast) -> str:
    if contrast.startswith(_MATCHED):
        return f"{contrast}: pairs that differ in that alone and in nothing about harm."
    return (
        f"{contrast}: prompts of one class paired with each other at random, the mean over "
        "re-pairings; they differ in more than twins do."
    )


def _mechanism(arms: Sequence[str], settings: Mapping[str, str], measured: Measured) -> str | None:
    """Where the energy is: mean shift, spread within the pairs, few rows, or few channels."""
    parts: list[str] = []
    for arm in arms:
        for key, cell in measured.cells[arm].items():
            at = {**key._asdict(), "layer": str(key.layer)}
            if (
                key.contrast == HARM
                and key.rows == "all"
                and all(at[name] == value for name, value in settings.items())
            ):
                parts.append(
                    f"{arm}: mean shift {cell.mean_energy_share:.2f} of the energy, within pairs "
                    f"{cell.within_energy_share:.2f}, first component carried by "
                    f"{cell.row_participation:.0f} of {cell.n_rows} rows"
                )
    channels = "massive channels present" if measured.massive else "no massive channels"
    return "; ".join((*parts, channels)) + "." if parts else None


# --- ablation ----------------------------------------------------------------------------------


def _matrix_cells(measured: Measured, target: str, source: str) -> dict[tuple[str, str, str], Cell]:
    """(layer, form, rank) → cell of one source in one target."""
    return {
        (str(source_layer(cell)), cell.form, str(cell.source.subspace.k)): cell
        for cell in measured.attacked[target].cells
        if cell.source.arm == source
    }


def _self_ablation(cell: SelfAblationCell, measured: Measured, margin: float) -> Assessed:
    own = _matrix_cells(measured, cell.arm, cell.arm)
    cross = _matrix_cells(measured, cell.arm, cell.versus)
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    kl: dict[str, str] = {}
    verdicts: dict[str, str] = {}
    primary = {
        "layer": str(_layer(cell.layer, cell.arm, measured)),
        "form": cell.form,
        "rank": str(cell.rank),
    }
    for key, mine in own.items():
        theirs = cross.get(key)
        if theirs is None or mine.controls is None:
            continue
        layer, form, rank = key
        left, mine_left = theirs.harmful.answers, mine.harmful.answers
        effect = rate_effect(
            left.judged("refused"),
            mine_left.judged("refused"),
            measured.clusters,
            _differences(mine.controls.harmful_rate),
            measured,
            f"Refusals of {cell.arm} left after ablating its own direction: "
            f"{share_words(mine_left.judged('refused'))} ({sum(mine_left.judged('degenerate'))} "
            f"degenerate); after {cell.versus}'s: {share_words(left.judged('refused'))} "
            f"({sum(left.judged('degenerate'))} degenerate)",
        )
        settings = {"layer": layer, "form": form, "rank": rank}
        worst = max(float(c.harmless.kl.mean()) for c in (mine, theirs))
        if worst < measured.matrix.kl_bound or settings == primary:
            choices[choice_key(settings)] = effect
        if layer == primary["layer"] and rank == primary["rank"]:
            kl[form] = f"{form}: harmless KL up to {worst:.2f} nats"
            if worst < measured.matrix.kl_bound:
                verdicts[form] = verdict(effect.value, *effect.interval, margin, effect.null)
    agreed = len(set(verdicts.values())) <= 1
    notes = (
        f"Both forms: {'; '.join(kl.values())}. "
        + (
            "Forms below the KL bound agree."
            if agreed
            else "Forms below the KL bound disagree "
            f"({', '.join(f'{f} {v}' for f, v in verdicts.items())}), so no verdict stands."
        ),
    )
    return Assessed(
        primary=primary,
        choices=choices,
        null="differences between refusal rates under two ablations that are not about refusal: "
        f"{measured.matrix.answer_draws} controls of the own direction's energy, pair by pair",
        unit="difference of refusal rates, judged at "
        f"{measured.matrix.max_new_tokens} tokens (prompts)",
        notes=(*notes, *measured.resampling_notes),
        agrees=agreed,
    )


def _harmless_shift(cell: HarmlessShiftCell, measured: Measured) -> Assessed:
    before = [v == "refused" for v in measured.attacked[cell.arm].baseline.harmless]
    choices: dict[tuple[tuple[str, str], ...], Effect] = {}
    for (layer, form, rank), mine in _matrix_cells(measured, cell.arm, cell.arm).items():
        if mine.controls is None or form != cell.form:
            continue
        after = mine.harmless.answers.judged("refused")
        settings = {"layer": layer, "form": form, "rank": rank}
        choices[choice_key(settings)] = rate_effect(
            after,
            before,
            measured.harmless_clusters,
            mine.controls.harmless_rate - sum(before) / len(before),
            measured,
            f"Harmless prompts refused by {cell.arm}: {share_words(before)} before, "
            f"{share_words(after)} under {form} ablation of its own direction; mean KL "
            f"{float(mine.harmless.kl.mean()):.2f} nats",
        )
    return Assessed(
        primary={
            "layer": str(_layer(cell.layer, cell.arm, measured)),
            "form": cell.form,
            "rank": str(cell.rank),
        },
        choices=choices,
        null=f"{measured.matrix.answer_draws} energy-matched controls ablated in the same form",
        unit="difference of refusal rates, judged at "
        f"{measured.matrix.max_new_tokens} tokens (prompts)",
    )


def rate_effect(
    first: Sequence[bool],
    second: Sequence[bool],
    clusters: Sequence[str],
    null: Tensor,
    measured: Measured,
    words: str,
) -> Effect:
    """Difference of two rates of the same prompts, beside that of its controls."""
    value, interval = rate_difference(first, second, clusters, measured.seed)
    covered = null_range(null)
    return Effect(
        value=value,
        interval=interval,
        null=covered,
        n=len(first),
        words=f"{words}; controls give {span(covered)}.",
    )


def _differences(rates: Tensor) -> Tensor:
    """Every rate minus every other one."""
    others = ~torch.eye(len(rates), dtype=torch.bool)
    return (rates[:, None] - rates[None, :])[others]


def source_layer(cell: Cell) -> int:
    """Layer whose input the source was read at; the number of layers for the last output."""
    site = cell.source.site
    return site.layer + (site.stream == "resid_post")


# --- shared ------------------------------------------------------------------------------------


def _unmeasurable(claim: Claim, measured: Measured) -> str | None:
    """Why the claim's arms cannot be measured, if they cannot."""
    cell = claim.cell
    versus = None if isinstance(cell, HarmlessShiftCell) else cell.versus
    absent = [arm for arm in (cell.arm, versus) if arm is not None and arm not in measured.cells]
    if absent:
        present = ", ".join(measured.cells)
        return f"This run has no arm named {' or '.join(absent)}; it has {present}."
    ablates = isinstance(cell, SelfAblationCell | HarmlessShiftCell)
    if ablates and cell.arm not in measured.attacked:
        return f"{cell.arm} refuses hardly any harmful prompt, so there is no refusal to ablate."
    return None


def _layer(rule: LayerRule, arm: str, measured: Measured) -> int:
    return resolve_layer(rule, measured.n_layers, measured.attacked_layer.get(arm))


def _rows_word(measured: Measured) -> str:
    return "rows" if measured.pairings[0] == "all" else "pairs"


def _with_interval(found: Jackknifed) -> str:
    interval = found.interval()
    return f"{found.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _beside(value: float, null: tuple[float, float]) -> str:
    """What it means that a positive effect does not exceed its null."""
    if value <= 0 or value > null[1]:
        return "."
    if value < null[0]:
        return ", which is more: the effect is not about harm."
    return ", which covers the effect: it may not be about harm."
