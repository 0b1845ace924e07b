"""What the locality study measured, with the resamplings that its numbers share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.seeding import named_generator
from mechsafety.core.sites import ResidualSite
from mechsafety.effects.selection import Candidates, CandidateScores, Selection
from mechsafety.effects.selection_rule import Discarded, choose, discarded, kept
from mechsafety.effects.windows import Window
from mechsafety.metrics.intervals import wilson
from mechsafety.metrics.lexical import lexical_scores
from mechsafety.metrics.max_statistic import Band, adjusted_p, first_beyond, max_statistic_band
from mechsafety.metrics.resampling import (
    percentile_interval,
    weighted_auc,
)
from mechsafety.metrics.separation import (
    auc_by_row,
    d_prime_by_row,
    held_out_scores,
    permuted_auc,
)
from mechsafety.metrics.smallest_window import smallest_window
from mechsafety.studies.locating.held_out import Evaluated, Second
from mechsafety.studies.locating.partial import Doses, Where, Writers
from mechsafety.studies.locating.reading import ClassScores, Read
from mechsafety.studies.samples import Sample

# --- separation --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Separated:
    """How well every place of one model separates harmful from harmless prompts."""

    auc: Float[Tensor, "layer position"]
    d_prime: Float[Tensor, "layer position"]
    draws: Float[Tensor, "draw layer position"]
    """AUC of each resampling."""
    low: Float[Tensor, "layer position"]
    high: Float[Tensor, "layer position"]
    null: Float[Tensor, "n_relabelings layer position"]
    """AUC under permuted labels, the same relabelings in every cell and model."""
    band: Band
    """Over all cells of the map."""
    n: int
    n_units: int
    """Independent units among these prompts."""


def separated(
    read: Read, held: tuple[str, str], sample: Sample, paired: bool, draws: int, seed: int
) -> Separated:
    """The map of one model: directions from the fit split, scores on held-out prompts.

    Args:
        read: With the sets `harmful` and `harmless` of the fit split.
        held: Names of the held-out sets, harmful first.
        sample: Of the held-out prompts.
        paired: Rows of both held-out and fit classes are twins.
        draws: Relabelings of the null.
        seed: Of the run; every model of it gets the same relabelings.
    """
    fit_harmful, fit_harmless, held_harmful, held_harmless = (
        read.rows[name].flatten(1, 2) for name in ("harmful", "harmless", *held)
    )
    shape = read.rows["harmful"].shape[1:3]
    harmful, harmless = held_out_scores(fit_harmful, fit_harmless, held_harmful, held_harmless)
    null = permuted_auc(
        fit_harmful,
        fit_harmless,
        held_harmful,
        held_harmless,
        paired,
        draws,
        named_generator(seed, "permuted labels"),
    )
    resampled = torch.stack(
        [
            weighted_auc(h, s, sample.harmful, sample.harmless)
            for h, s in zip(harmful, harmless, strict=True)
        ],
        dim=1,
    )
    auc = auc_by_row(harmful, harmless)
    low, high = percentile_interval(resampled, sample.n_units)
    # Perfect separation leaves nothing to resample: each unit then counts as one trial.
    edge = wilson(sample.n_units, sample.n_units).low
    low = torch.where(auc == 1, torch.full_like(low, edge), low)
    high = torch.where(auc == 0, torch.full_like(high, 1 - edge), high)
    return Separated(
        auc=auc.reshape(shape),
        d_prime=d_prime_by_row(harmful, harmless).reshape(shape),
        draws=resampled.reshape(-1, *shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        null=null.reshape(-1, *shape),
        band=max_statistic_band(null, "greater"),
        n=len(held_harmful) + len(held_harmless),
        n_units=sample.n_units,
    )


@dataclass(frozen=True)
class Lexical:
    """What the words of the instruction separate by themselves."""

    auc: float
    draws: Float[Tensor, " draw"]
    low: float
    high: float


def lexical(read: Read, held: tuple[str, str], sample: Sample, paired: bool) -> Lexical:
    """A bag of tokens on the same splits as the map."""
    fit = [*read.instructions["harmful"], *read.instructions["harmless"]]
    n = len(read.instructions["harmful"])
    is_harmful = torch.arange(len(fit)) < n
    pairs = [*range(n), *range(n)] if paired else list(range(len(fit)))
    prompts = [*read.instructions[held[0]], *read.instructions[held[1]]]
    scores = lexical_scores(fit, is_harmful, prompts, pairs)
    n_held = len(read.instructions[held[0]])
    harmful, harmless = scores[:n_held], scores[n_held:]
    draws = weighted_auc(harmful, harmless, sample.harmful, sample.harmless)
    low, high = percentile_interval(draws, sample.n_units)
    value = float(auc_by_row(harmful[None], harmless[None])[0])
    edge = wilson(sample.n_units, sample.n_units).low
    return Lexical(
        value,
        draws,
        low=edge if value == 1 else float(low),
        high=1 - edge if value == 0 else float(high),
    )


# --- causal effects ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Searched:
    """A search over many places, held against the same search over controls."""

    p: Float[Tensor, " cell"]
    """Adjusted for the search; 1 where neither effect nor controls vary."""
    onset: int | None
    """The first cell beyond the max-statistic band, in the order given."""
    band: Band
    """In units of each cell's spread."""


def searched(observed: Float[Tensor, " cell"], null: Float[Tensor, "draw cell"]) -> Searched:
    """Adjusted p-values and onset of larger effects than any control has anywhere.

    Each cell from the mean of its controls and itself, in units of their spread: one whose
    controls vary more, or are shifted together, would otherwise set the band for all.
    """
    pooled = torch.cat([observed[None], null])
    mean, spread = pooled.mean(0), pooled.std(0)
    varies = spread > 1e-9
    p = torch.ones(len(observed), dtype=torch.float64)
    if not bool(varies.any()):
        return Searched(p, None, max_statistic_band(null, "greater"))
    effect, controls = (((one - mean) / spread)[..., varies] for one in (observed, null))
    p[varies] = adjusted_p(effect, controls, "greater")
    band = max_statistic_band(controls, "greater")
    first = first_beyond(effect, band)
    onset = None if first is None else int(varies.nonzero()[first])
    return Searched(p, onset, band)


@dataclass(frozen=True)
class CausalMap:
    """Effects of the direction read at every place, on the split that selects."""

    candidates: Candidates
    scores: CandidateScores
    clean: ClassScores
    sample: Sample
    controls: CandidateScores
    """Of energy- and norm-matched draws at every block input and the last output; the `position`
    axis runs over draws."""
    control_sites: tuple[ResidualSite, ...]
    control_position: str
    """Position at whose activations the controls match the direction."""

    def bypass(self) -> Float[Tensor, "n_harmful position layer"]:
        """How much ablation lowers each harmful prompt's refusal score."""
        return self.clean.harmful[:, None, None] - self.scores.bypass

    def induce(self) -> Float[Tensor, "n_harmless position layer"]:
        """How much addition raises each harmless prompt's refusal score."""
        return self.scores.induce - self.clean.harmless[:, None, None]

    def null(self, score: str) -> Float[Tensor, "draw layer"]:
        """The mean effect of each control draw at each of its sites."""
        if score == "bypass":
            return (self.clean.harmful[:, None, None] - self.controls.bypass).mean(0)
        return (self.controls.induce - self.clean.harmless[:, None, None]).mean(0)

    def at_control_sites(self, score: str) -> Float[Tensor, "prompt layer"]:
        """The effect of the real directions where the controls were drawn."""
        effect = self.bypass() if score == "bypass" else self.induce()
        columns = [self.candidates.sites.index(site) for site in self.control_sites]
        return effect[:, self.candidates.positions.index(self.control_position), columns]

    def searched(self, score: str) -> "Searched":
        """The search over layers, against the controls."""
        return searched(self.at_control_sites(score).mean(0), self.null(score))

    def discarded(self, selection: Selection) -> Discarded:
        """Why candidates of the selection fail, from the map's complete scores."""
        means = self._selection_means(selection)
        return discarded(
            selection.filters,
            self._n_layers(selection),
            *means,
            candidates=selection.candidates.real,
        )

    def choices(self, selection: Selection) -> Tensor:
        """The (position, layer) chosen in every resampling; −1 where nothing is kept."""
        columns = self._columns(selection)
        bypass, induce, kl = (
            resampling.means(scores[:, :, columns])
            for resampling, scores in (
                (self.sample.harmful, self.scores.bypass),
                (self.sample.harmless, self.scores.induce),
                (self.sample.harmless, self.scores.kl),
            )
        )
        allowed = kept(selection.filters, self._n_layers(selection), induce, kl, bypass)
        return choose(bypass, allowed & selection.candidates.real)

    def choice(self, selection: Selection) -> tuple[int, int]:
        """What the complete table chooses."""
        induce, kl, bypass = self._selection_means(selection)
        allowed = kept(selection.filters, self._n_layers(selection), induce, kl, bypass)
        position, layer = (int(i) for i in choose(bypass, allowed & selection.candidates.real))
        return position, layer

    def _columns(self, selection: Selection) -> list[int]:
        return [self.candidates.sites.index(site) for site in selection.candidates.sites]

    def _n_layers(self, selection: Selection) -> int:
        return len(selection.candidates.sites)

    def _selection_means(self, selection: Selection) -> tuple[Tensor, Tensor, Tensor]:
        columns = self._columns(selection)
        induce, kl, bypass = (
            scores.mean(0)[:, columns]
            for scores in (self.scores.induce, self.scores.kl, self.scores.bypass)
        )
        return induce, kl, bypass


@dataclass(frozen=True)
class Windows:
    """Partial ablations of the winner: chosen on the select split, measured on the third."""

    tried: tuple[Window, ...]
    select: Float[Tensor, "draw n_select n_windows"]
    """Effect (clean − ablated score) of the direction, then of its controls."""
    evaluate: Float[Tensor, "draw prompt n_windows"]
    positions: tuple[str, ...]
    by_position: Float[Tensor, "draw prompt position"]
    """Effect of ablating at one position's tokens alone, on the third split."""

    @staticmethod
    def of(
        found: Where,
        tried: Sequence[Window],
        positions: Sequence[str],
        clean: Float[Tensor, " prompt"],
        n_select: int,
    ) -> "Windows":
        """From scores of the select split's prompts, then those of the third."""
        effect = clean[None, :, None] - found.windows
        return Windows(
            tuple(tried),
            effect[:, :n_select],
            effect[:, n_select:],
            tuple(positions),
            (clean[None, :, None] - found.positions)[:, n_select:],
        )

    def grid(self, effects: Float[Tensor, "*draw n_windows"]) -> Float[Tensor, "*draw _ _"]:
        """Effects as [start, stop] over the tried ends, NaN where there is no window."""
        starts = sorted({first for first, _ in self.tried})
        stops = sorted({last for _, last in self.tried})
        grid = torch.full((*effects.shape[:-1], len(starts), len(stops)), torch.nan).double()
        for column, (first, last) in enumerate(self.tried):
            grid[..., starts.index(first), stops.index(last)] = effects[..., column].double()
        return grid

    def smallest(
        self, effects: Float[Tensor, "*draw n_windows"], share: float
    ) -> tuple[Tensor, Tensor]:
        """First and last layer of the smallest window that keeps the share; −1 where none does."""
        grid = self.grid(effects)
        found = smallest_window(grid, grid[..., 0, -1], share)
        starts = torch.tensor(sorted({first for first, _ in self.tried}))
        stops = torch.tensor(sorted({last for _, last in self.tried}))
        none = found.start < 0
        first = torch.where(none, -1, starts[found.start.clamp(min=0)])
        last = torch.where(none, -1, stops[found.stop.clamp(min=0)])
        return first, last


@dataclass(frozen=True)
class Winner:
    """Everything about the chosen direction."""

    position: str
    site: ResidualSite
    vector: Float[Tensor, " d_model"]
    evaluate: Sample
    windows: Windows
    induced: Doses
    """On harmless prompts of the third split."""
    subtracted: Doses
    """On its harmful prompts, doses below 0."""
    share: float
    """Share of the effect that a window, or the top writers, must keep."""
    doses: tuple[float, ...]
    dose_layers: tuple[int, ...]
    clean: ClassScores
    """Of the third split."""
    writers: Writers
    second: Second
    evaluated: Evaluated
    refits: Float[Tensor, "draw d_model"]


@dataclass(frozen=True)
class Causal:
    """The causal half of the study."""

    map: CausalMap
    selection: Selection
    refusal_ids: tuple[int, ...]
    winner: Winner | None
    """None where the filters keep no direction."""


@dataclass(frozen=True)
class Measured:
    """All that findings and tables are made of."""

    read: Read
    base: Read | None
    held: Sample
    separation: Mapping[tuple[str, str], Separated]
    """(model, source of the held-out prompts) → map; models are `model` and `base`."""
    lexical: Mapping[str, Lexical]
    """By source."""
    causal: Causal | None
    """None where the model does not refuse enough to be asked."""
    why_not: str
    """Why `causal` or its winner is None, with the observed scores; empty otherwise."""
    seed: int
