"""The refusal direction of arXiv:2406.11717: the whole procedure, and its published geometry.

    python experiments/reproduce/refusal_direction.py --model ID|FOLDER|organism:NAME [--json]
        [--harmful TRAIN [VAL [TEST]] --harmless TRAIN [VAL [TEST]]] [--mode exhaustive|winner]
        [--filters kl_threshold=0.1 induce_threshold=-inf prune_layers=0.8] ...
    python experiments/reproduce/refusal_direction.py --geometry FILE [--json]
        [--position P --layer L]

`--model` fits a direction at every block input and template token, chooses one by bypass, induce
and KL, and measures on other prompts what removing and adding it does to answers. Models of the
paper are compared with its Table 5. One prompt file a class is split in three; with two or three,
prompts are drawn from them as the published code draws them. Organisms bring their own prompts.

`--geometry` takes a safetensors file with `mean_diffs` [position, layer, d_model]: mean harmful
minus mean harmless block input at the last positions of the prompt (position −1 last). Printed are
its size at layer 0 (zero in models whose positions enter by rotation: there a template token's
block input depends on nothing else), norms, cosines of neighbors and with the chosen direction, and
the spectrum of the layers at the chosen position. The tensors of the published runs are recognized
by their values, or claimed by the file's name, and are compared with `PUBLISHED`; others are only
reported.

Exit codes: 0 done, 1 a published number differs, no direction can be chosen or the computation
failed, 2 bad input.
"""

# safetensors ships load_file with a partly unknown type.
# pyright: reportUnknownVariableType=false

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mechsafety.activations.collecting import collect
from mechsafety.core.config import apply_overrides, parse_config
from mechsafety.core.errors import (
    ActivationError,
    DegenerateDirectionError,
    PositionError,
    PromptError,
    RecordError,
)
from mechsafety.core.positions import Position
from mechsafety.core.progress import say
from mechsafety.core.scripts import exit_code
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.pairs import read_pairs
from mechsafety.data.prompts import PromptPairs
from mechsafety.data.splits import SPLITS, Fractions, split_pairs
from mechsafety.data.synthetic_language import Preset
from mechsafety.effects.ablation import Edits, ZeroAblation, addition
from mechsafety.effects.answers import Answers, answer, clean_answer_cross_entropy
from mechsafety.effects.refusal_tokens import refusal_tokens_of
from mechsafety.effects.scores import first_token_logits
from mechsafety.effects.selection import (
    Candidates,
    Mode,
    Selection,
    Trial,
    make_trial,
    select_direction,
)
from mechsafety.effects.selection_rule import SelectionFilters, discarded
from mechsafety.judges.phrases import PhraseJudge, PhraseList
from mechsafety.linalg.typed import linalg
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.metrics.spectrum import variance_shares
from mechsafety.models.loading import open_model
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenizedPrompts, tokenize
from mechsafety.organisms.building import resolve
from mechsafety.organisms.card import CARD, read_card
from mechsafety.organisms.prompts import twins

RELATIVE: Final = 1e-3
"""How near a number must come to the published one, beside the rounding of its last digit."""
ZERO: Final = 1e-6
"""Largest |mean difference| that passes for zero; layers above have some of 1e-2 and more."""
ROUNDING: Final = 1e-9
"""Share of the largest norm below which a vector is rounding and has no direction."""
N_COMPONENTS: Final = 5


@dataclass(frozen=True)
class PublishedRun:
    """What was recomputed from one file of the public repository, digits as published."""

    values_hash: str
    """SHA-256 of shape and float32 values of `mean_diffs`."""
    shape: tuple[int, int, int]
    """Positions, layers, d_model."""
    chosen: tuple[int, int]
    """The authors' (position, layer)."""
    norms: dict[int, str]
    """Layer → norm at the chosen position, activation units."""
    layers: dict[int, str]
    """Layer → cosine with the chosen direction, at its position."""
    positions: dict[int, str]
    """Position → cosine with the chosen direction, at its layer."""
    spectrum: tuple[str, ...]
    """Shares of squared singular values of the layers at the chosen position, uncentered."""


PUBLISHED: Final = {
    "qwen-1_8b-chat": PublishedRun(
        "a316931d8844b2f2f1126161b72cbdfd54e81e8b817420a5ef5f1c38a875b32b",
        (5, 24, 2048),
        (-2, 15),
        {0: "0", 1: ".160", 2: ".369", 14: "16.17", 15: "26.2873", 23: "90.93"},
        {14: ".753", 15: "1", 16: ".800", 23: ".414"},
        {-5: ".213", -4: ".837", -3: ".229", -2: "1", -1: ".991"},
        (".849", ".074", ".025", ".014", ".010"),
    ),
    "gemma-2b-it": PublishedRun(
        "8f7ab9e17b5736049a91ec3696631c0db965ab467e2a921ed32164bb78fe9501",
        (5, 18, 2048),
        (-2, 10),
        {0: "0", 1: "2.04", 2: "1.87", 10: "10.0644", 17: "36.72"},
        {9: ".687", 10: "1", 11: ".764", 17: ".334"},
        {-5: ".222", -4: ".729", -3: ".296", -2: "1", -1: ".936"},
        (".774", ".120", ".042", ".019", ".014"),
    ),
}


@dataclass(frozen=True)
class Choice:
    """One published choice with its scores."""

    position: int
    layer: int
    bypass: float
    induce: float
    kl: float


@dataclass(frozen=True)
class PaperModel:
    """What the paper and its repository say of one model."""

    n_layers: int
    refusal_ids: tuple[int, ...]
    """Table 4: first tokens of refusals in this family."""
    choices: tuple[Choice, ...]
    """Table 5, then the run stored in the repository where it chose another position."""


QWEN, YI, GEMMA, LLAMA_2, LLAMA_3 = (40, 2121), (59597,), (235285,), (306,), (40,)
TABLE_5: Final = {
    "qwen-1_8b-chat": PaperModel(
        24, QWEN, (Choice(-1, 15, -4.415, 1.641, 0.077), Choice(-2, 15, -5.0575, 1.6514, 0.0658))
    ),
    "qwen-7b-chat": PaperModel(32, QWEN, (Choice(-1, 17, -5.355, 1.107, 0.069),)),
    "qwen-14b-chat": PaperModel(40, QWEN, (Choice(-1, 23, -5.085, 1.606, 0.014),)),
    "qwen-72b-chat": PaperModel(80, QWEN, (Choice(-1, 62, -4.246, 1.885, 0.034),)),
    "yi-6b-chat": PaperModel(32, YI, (Choice(-5, 20, -6.693, 1.968, 0.046),)),
    "yi-34b-chat": PaperModel(60, YI, (Choice(-1, 37, -11.14, 1.865, 0.069),)),
    "gemma-2b-it": PaperModel(18, GEMMA, (Choice(-2, 10, -14.435, 6.709, 0.067),)),
    "gemma-7b-it": PaperModel(28, GEMMA, (Choice(-1, 14, -12.239, 6.851, 0.091),)),
    "llama-2-7b-chat-hf": PaperModel(32, LLAMA_2, (Choice(-1, 14, -5.295, 5.941, 0.073),)),
    "llama-2-13b-chat-hf": PaperModel(40, LLAMA_2, (Choice(-1, 26, -4.377, 2.794, 0.092),)),
    "llama-2-70b-chat-hf": PaperModel(80, LLAMA_2, (Choice(-1, 21, -4.565, 5.191, 0.036),)),
    "meta-llama-3-8b-instruct": PaperModel(32, LLAMA_3, (Choice(-5, 12, -9.715, 7.681, 0.064),)),
    "meta-llama-3-70b-instruct": PaperModel(80, LLAMA_3, (Choice(-5, 25, -7.839, 0.126, 0.021),)),
}
SCORE_TOLERANCES: Final = {"bypass": 0.7, "induce": 0.7, "kl": 0.02}
"""Paper and repository, one procedure by one group, differ by up to 0.32, 0.33 and 0.005 where they
chose the same direction: twice that, and more for the KL, which rounding of bfloat16 moves."""
DRAWING_SEED: Final = 42
NOT_SCORED: Final = " NaN is a score that was not needed: an earlier filter had discarded its row."
NO_DIRECTION: Final = (
    " Those kept are of layer 0, where the classes have one mean: there is no direction to ablate."
)


@dataclass(frozen=True)
class Check:
    """One number held against a published one."""

    name: str
    expected: float
    value: float | None
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether they agree."""
        return self.value is not None and abs(self.value - self.expected) <= self.tolerance

    @staticmethod
    def of(name: str, published: str, value: float | None) -> "Check":
        """Against digits as published: within `RELATIVE`, and half a unit of the last digit."""
        expected = float(published)
        half_a_unit = 0.5 * 10.0 ** -len(published.partition(".")[2]) if "." in published else ZERO
        return Check(name, expected, value, RELATIVE * abs(expected) + half_a_unit)

    def row(self) -> dict[str, Any]:
        """As printed in JSON."""
        return {**vars(self), "ok": self.ok}


@dataclass(frozen=True)
class Geometry:
    """What is measured on one tensor of mean differences."""

    layer_0: float
    """Largest |mean difference| at layer 0, over positions; activation units."""
    norms: Float[Tensor, "position layer"]
    """Activation units."""
    next_layer: Float[Tensor, "position n_steps"]
    """Cosine of the directions of layers l and l + 1."""
    next_position: Float[Tensor, "n_steps layer"]
    """Cosine of the directions of positions i and i + 1."""
    to_layers: Float[Tensor, " layer"] | None
    """Cosine of the chosen direction with those of its position; None: none was chosen."""
    to_positions: Float[Tensor, " position"] | None
    """As above, with those of its layer."""
    spectrum: Float[Tensor, " component"] | None
    """Shares of squared singular values of the layers at the chosen position, uncentered."""


def read_mean_diffs(path: Path) -> Float[Tensor, "position layer d_model"]:
    """The tensor `mean_diffs` of one file, in float64.

    Raises:
        ActivationError: Damaged, or without such a tensor.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ActivationError(
            f"reading {path}: it is no whole safetensors file ({error}). Expected the tensor "
            "'mean_diffs' [position, layer, d_model]."
        ) from None
    if "mean_diffs" not in tensors:
        raise ActivationError(
            f"reading {path}: it holds {', '.join(sorted(tensors)) or 'no tensors'}. Expected "
            "'mean_diffs' [position, layer, d_model]."
        )
    found = tensors["mean_diffs"]
    if found.ndim != 3 or not found.is_floating_point() or not found.numel():
        raise ActivationError(
            f"reading {path}: 'mean_diffs' is {found.dtype} of shape {list(found.shape)}. Expected "
            "floats [position, layer, d_model]."
        )
    if not bool(found.isfinite().all()):
        bad = (~found.isfinite()).any(dim=2).nonzero()
        raise ActivationError(
            f"reading {path}: 'mean_diffs' has NaN or infinity in {len(bad)} of "
            f"{found.shape[0] * found.shape[1]} directions, first at position "
            f"{int(bad[0, 0]) - len(found)}, layer {int(bad[0, 1])}. Compute it again."
        )
    return found.double()


def published_name(path: Path, mean_diffs: Tensor) -> tuple[str | None, bool]:
    """The published run that a file is (True) or says by its name and shape to be (False)."""
    digest = hashlib.sha256(f"{tuple(mean_diffs.shape)}\n".encode())
    digest.update(mean_diffs.float().contiguous().numpy().tobytes())
    for name, run in PUBLISHED.items():
        if run.values_hash == digest.hexdigest():
            return name, True
    named = PUBLISHED.get(path.stem)
    claims = named is not None and named.shape == tuple(mean_diffs.shape)
    return (path.stem if claims else None), False


def measure(
    mean_diffs: Float[Tensor, "position layer d_model"], chosen: tuple[int, int] | None
) -> Geometry:
    """Norms, cosines and spectrum, in float64; a zero vector has no cosine (NaN)."""
    layer_0 = float(mean_diffs[:, 0].abs().max())
    norms = linalg.vector_norm(mean_diffs, dim=-1)
    # What rounding leaves at layer 0 has a direction of its own, which means nothing.
    mean_diffs = mean_diffs.masked_fill((norms <= ROUNDING * norms.max())[..., None], 0.0)
    to_layers = to_positions = spectrum = None
    if chosen is not None:
        position, layer = chosen
        direction = mean_diffs[position, layer]
        to_layers = cosines(mean_diffs[position], direction)
        to_positions = cosines(mean_diffs[:, layer], direction)
        spectrum = variance_shares(mean_diffs[position], centered=False, k=N_COMPONENTS)
    return Geometry(
        layer_0=layer_0,
        norms=norms,
        next_layer=cosines(mean_diffs[:, 1:], mean_diffs[:, :-1]),
        next_position=cosines(mean_diffs[1:], mean_diffs[:-1]),
        to_layers=to_layers,
        to_positions=to_positions,
        spectrum=spectrum,
    )


def cosines(
    a: Float[Tensor, "*batch d_model"], b: Float[Tensor, "*#batch d_model"]
) -> Float[Tensor, "*batch"]:
    """Cosine of each vector of `a` with that of `b`; NaN where one is zero."""
    product = (a * b).sum(-1)
    return product / (linalg.vector_norm(a, dim=-1) * linalg.vector_norm(b, dim=-1))


def check(found: Geometry, run: PublishedRun) -> list[Check]:
    """Every published number of one run."""
    assert found.to_layers is not None
    assert found.to_positions is not None
    assert found.spectrum is not None
    position, layer = run.chosen
    checks = [Check("largest |mean difference| at layer 0", 0.0, found.layer_0, ZERO)]
    checks += [
        Check.of(f"norm at position {position}, layer {at}", text, cell(found.norms[position], at))
        for at, text in run.norms.items()
    ]
    here = f"position {position}, layer {layer}"
    checks += [
        Check.of(f"cosine of {here} with layer {at}", text, cell(found.to_layers, at))
        for at, text in run.layers.items()
    ]
    checks += [
        Check.of(f"cosine of {here} with position {at}", text, cell(found.to_positions, at))
        for at, text in run.positions.items()
    ]
    checks += [
        Check.of(
            f"share of component {i + 1} at position {position}", text, cell(found.spectrum, i)
        )
        for i, text in enumerate(run.spectrum)
    ]
    return checks


def cell(values: Tensor, index: int) -> float | None:
    """One number; NaN is None, as JSON has it."""
    value = float(values[index])
    return None if value != value else value


def listed(values: Tensor | None) -> Any:
    """Nested lists for JSON, NaN as null."""
    if values is None:
        return None
    if values.ndim > 1:
        return [listed(row) for row in values]
    return [cell(values, i) for i in range(len(values))]


def geometry(options: argparse.Namespace) -> int:
    """Read, measure, compare, print."""
    path: Path = options.geometry
    mean_diffs = read_mean_diffs(path)
    name, exact = published_name(path, mean_diffs)
    run = PUBLISHED[name] if name else None
    chosen = chosen_cell(options, mean_diffs, run)
    found = measure(mean_diffs, chosen)
    checks = check(measure(mean_diffs, run.chosen), run) if run else []
    failed = [each for each in checks if not each.ok]
    if options.json:
        told: dict[str, Any] = {"ok": not failed, "published_as": name, "exact": exact}
        told |= {"shape": list(mean_diffs.shape), "chosen": chosen}
        told |= {key: listed(v) if key != "layer_0" else v for key, v in vars(found).items()}
        print(json.dumps(told | {"checks": [each.row() for each in checks]}, allow_nan=False))
    else:
        print_geometry(found, chosen, name, exact)
        if checks:
            print(f"\n{len(checks) - len(failed)} of {len(checks)} published numbers agree")
    say_differences(failed)
    if run is None:
        say("this is none of the published tensors, so nothing was compared")
        if found.layer_0 > ZERO:
            say(
                f"the mean differences at layer 0 reach {found.layer_0:.3g}. With rotary positions "
                "they are zero at template tokens; another value means wrong positions, a wrong "
                "hook, right padding, or a token that depends on the text before it"
            )
    return 1 if failed else 0


def say_differences(failed: Sequence[Check]) -> None:
    """Name the numbers that differ."""
    for each in failed:
        say(
            f"differs from the published value: {each.name} is {each.value}, expected "
            f"{each.expected} ± {each.tolerance:.2g}"
        )


def chosen_cell(
    options: argparse.Namespace, mean_diffs: Tensor, run: PublishedRun | None
) -> tuple[int, int] | None:
    """(position, layer) from the command line, else the authors'."""
    if (options.position is None) != (options.layer is None):
        raise PositionError("--position and --layer: one is given alone; give both or neither.")
    if options.position is None:
        return run.chosen if run else None
    n_positions, n_layers, _ = mean_diffs.shape
    if not (-n_positions <= options.position < 0 and 0 <= options.layer < n_layers):
        raise PositionError(
            f"--position {options.position} --layer {options.layer}: the file has positions "
            f"{-n_positions} to -1 and layers 0 to {n_layers - 1}."
        )
    return options.position, options.layer


def print_geometry(
    found: Geometry, chosen: tuple[int, int] | None, name: str | None, exact: bool
) -> None:
    """Tables for people."""
    n_positions, n_layers = found.norms.shape
    if name:
        print(f"{name}, " + ("the published tensor" if exact else "by its name and shape"))
    print(f"{n_positions} positions, {n_layers} layers")
    print(f"largest |mean difference| at layer 0: {found.layer_0:.3g}")
    for i in range(n_positions):
        print(f"\nposition {i - n_positions}")
        print(f"  norm by layer            {numbers(found.norms[i])}")
        print(f"  cosine with next layer   {numbers(found.next_layer[i])}")
        if i + 1 < n_positions:
            print(
                f"  cosine with position {i + 1 - n_positions:2}  {numbers(found.next_position[i])}"
            )
    if chosen is None:
        return
    assert found.to_layers is not None
    assert found.to_positions is not None
    assert found.spectrum is not None
    print(f"\nposition {chosen[0]}, layer {chosen[1]}")
    print(f"  cosine by layer          {numbers(found.to_layers)}")
    print(f"  cosine by position       {numbers(found.to_positions)}")
    print(f"  spectrum of the layers   {numbers(found.spectrum)}")


def numbers(values: Tensor) -> str:
    """A row of numbers, a dash where there is none."""
    return " ".join("     –" if v is None else f"{v:6.3f}" for v in listed(values))


@dataclass(frozen=True)
class Data:
    """Prompts of the procedure: fit on `train`, choose on `val`, measure answers on `test`."""

    train: PromptPairs
    val: PromptPairs
    test: PromptPairs | None
    """None where only training and validation prompts were given."""


def read_data(options: argparse.Namespace, preset: Preset | None) -> Data:
    """Prompts of an organism's world, or of the files given.

    Raises:
        PromptError: No prompts, or files that do not fit together.
    """
    sizes = options.n_train, options.n_val, options.n_test
    harmful: list[str] = options.harmful or []
    harmless: list[str] = options.harmless or []
    if not harmful and not harmless and preset is not None:
        splits = zip(sizes, SPLITS, strict=True)
        return Data(*(twins(n, DRAWING_SEED, split, preset=preset) for n, split in splits))
    if not 1 <= len(harmful) == len(harmless) <= 3:
        raise PromptError(
            f"--harmful gives {len(harmful)} and --harmless {len(harmless)} prompt files. Expected "
            "equally many of both: one each, which is split in three, or training, validation and "
            "perhaps test files. Only organisms bring their own prompts."
        )
    both = list(zip(harmful, harmless, strict=True))
    if len(both) == 1:
        whole = read_pairs(*both[0], "list")
        split = split_pairs(whole, Fractions(), DRAWING_SEED)
        parts = [split[name] for name in SPLITS]
    else:
        parts = [read_pairs(*files, "list") for files in both]
    # The published code seeds once and then draws in this order, harmless test prompts first.
    rng = random.Random(DRAWING_SEED)
    train, val = (draw(parts[i], sizes[i], rng, harmful_first=True) for i in (0, 1))
    test = draw(parts[2], sizes[2], rng, harmful_first=False) if len(parts) > 2 else None
    return Data(train, val, test)


def draw(pairs: PromptPairs, n: int, rng: random.Random, harmful_first: bool) -> PromptPairs:
    """At most `n` prompts of each class; the order of the draws is the published one."""
    sides = list(pairs.sets) if harmful_first else [pairs.second, pairs.first]
    drawn = [s if len(s) <= n else s.select(rng.sample(range(len(s)), n)) for s in sides]
    first, second = drawn if harmful_first else reversed(drawn)
    return PromptPairs(pairs.name, first, second, "list")


@dataclass(frozen=True)
class Setting:
    """The model, and all that stays the same over the procedure."""

    model: Model
    chat: ChatFormat
    judge: PhraseJudge
    refusal_ids: tuple[int, ...]
    batch_tokens: int

    def tokens(self, pairs: PromptPairs) -> list[TokenizedPrompts]:
        """Harmful and harmless prompts as the model receives them."""
        return [tokenize(self.model, side, self.chat) for side in pairs.sets]


def refusal_tokens(
    setting: Setting, sides: Sequence[TokenizedPrompts], max_new_tokens: int
) -> tuple[int, ...]:
    """First tokens of the model's own refusals.

    Raises:
        DegenerateDirectionError: It refuses nothing.
    """
    model, judge = setting.model, setting.judge
    harmful, harmless = (
        answer(model, side, judge, max_new_tokens, setting.batch_tokens) for side in sides
    )
    found = refusal_tokens_of(harmful, harmless)
    if not found:
        counts = [f"{sum(a.judged('refused'))} of {len(a.ids)}" for a in (harmful, harmless)]
        raise DegenerateDirectionError(
            f"finding refusal tokens: by {judge.name} the model refuses {counts[0]} harmful and "
            f"{counts[1]} harmless prompts, and no token opens refusals alone. Check the chat "
            "template and the judge, give --refusal-tokens, or take a model that refuses."
        )
    return found


def as_the_model_answers(
    setting: Setting, sides: Sequence[TokenizedPrompts], what: str
) -> list[TokenizedPrompts]:
    """Harmful prompts with a refusal score above 0, and harmless ones with one below.

    Raises:
        DegenerateDirectionError: A class is left without prompts; tells the scores.
    """
    ids = torch.tensor(setting.refusal_ids)
    harmful, harmless = (
        refusal_score(first_token_logits(setting.model, side, setting.batch_tokens), ids)
        for side in sides
    )
    refused, answered = harmful > 0, harmless < 0
    if not bool(refused.any()) or not bool(answered.any()):
        raise DegenerateDirectionError(
            f"filtering the {what} prompts: {int(refused.sum())} of {len(refused)} harmful prompts "
            f"have a refusal score above 0 (observed {spread(harmful)}), and {int(answered.sum())} "
            f"of {len(answered)} harmless ones have one below (observed {spread(harmless)}). This "
            "model does not refuse, or not so: check the chat template and --refusal-tokens "
            f"{list(setting.refusal_ids)}, or keep all prompts with --all-prompts."
        )
    rows = [[int(row) for row in keep.nonzero()] for keep in (refused, answered)]
    return [side.select(kept) for side, kept in zip(sides, rows, strict=True)]


def spread(scores: Tensor) -> str:
    """Smallest, mean and largest."""
    return (
        f"{float(scores.min()):.2f} to {float(scores.max()):.2f}, mean {float(scores.mean()):.2f}"
    )


def mean_differences(setting: Setting, sides: Sequence[TokenizedPrompts]) -> Candidates:
    """Mean harmful minus mean harmless block input at every template token, in float64.

    Raises:
        PositionError: No template token follows the instructions, or not the same in all.
    """
    model = setting.model
    positions = sides[0].positions(Position("eoi"))
    if not positions or positions != sides[1].positions(Position("eoi")):
        raise PositionError(
            f"reading mean differences: {len(positions)} template tokens follow the harmful "
            f"instructions and {len(sides[1].positions(Position('eoi')))} the harmless ones. "
            "Expected as many, and at least one: candidates are read there. Check --chat-template."
        )
    sites = tuple(ResidualSite(layer, "resid_pre") for layer in range(model.dims.n_layers))
    means: list[Tensor] = []
    for side in sides:
        read = collect(model, side, sites, positions, batch_tokens=setting.batch_tokens)
        by_position = [[read.rows(s, p).double().mean(0) for s in sites] for p in positions]
        means.append(torch.stack([torch.stack(by_layer) for by_layer in by_position]))
    return Candidates(tuple(map(str, positions)), sites, means[0] - means[1])


def answers(
    setting: Setting, pairs: PromptPairs, vector: Tensor, site: ResidualSite, length: int
) -> dict[str, Any]:
    """Refused shares, and cross-entropy of the model's own harmless answers, under each edit."""
    harmful, harmless = setting.tokens(pairs)
    edits: dict[str, Edits | None] = {
        "clean": None,
        "ablated": ZeroAblation((vector / linalg.vector_norm(vector)).float()[None]),
        "subtracted": addition(site, vector.float(), -1.0),
        "added": addition(site, vector.float(), 1.0),
    }
    model, size = setting.model, setting.batch_tokens
    shares: dict[str, dict[str, float]] = {"harmful": {}, "harmless": {}}
    clean: Answers | None = None
    for of_class, tokens, names in (
        ("harmful", harmful, ("clean", "ablated", "subtracted")),
        ("harmless", harmless, ("clean", "added")),
    ):
        for name in names:
            given = answer(model, tokens, setting.judge, length, size, edits[name])
            shares[of_class][name] = sum(given.judged("refused")) / len(given.ids)
            clean = given if (of_class, name) == ("harmless", "clean") else clean
    assert clean is not None
    own = {
        name: cell(
            clean_answer_cross_entropy(model, harmless, clean, size, edits[name]).nanmean()[None], 0
        )
        for name in ("clean", "ablated", "subtracted")
    }
    return {
        "n_harmful": len(harmful),
        "n_harmless": len(harmless),
        "judge": setting.judge.name,
        "max_new_tokens": length,
        "refused": shares,
        "own_answers_cross_entropy": own,
    }


def procedure(options: argparse.Namespace) -> int:
    """Open, fit, choose, measure, compare, print."""
    filters = parse_config(SelectionFilters, apply_overrides({}, options.filters), "--filters")
    chat = parse_config(
        ChatFormat,
        {"chat_template": options.chat_template, "system": options.system},
        "--chat-template, --system",
    )
    named: str = options.model
    folder = resolve(named) if named.startswith("organism:") else Path(named)
    card = read_card(folder) if (folder / CARD).is_file() else None
    data = read_data(options, card.organism.preset if card else None)
    paper = TABLE_5.get(Path(named).name.lower())
    say(f"opening {named}")
    model = open_model(
        folder if card else named, dtype=options.dtype, device=options.device, format=chat
    )
    try:
        phrases = options.judge or ("organism" if card else "arditi12")
        known = tuple(options.refusal_tokens or (paper.refusal_ids if paper else ()))
        setting = Setting(model, chat, PhraseJudge(phrases=phrases), known, options.batch_tokens)
        train, val = setting.tokens(data.train), setting.tokens(data.val)
        if not known:
            ids = refusal_tokens(setting, train, options.opening_tokens)
            setting = replace(setting, refusal_ids=ids)
        if not options.all_prompts:
            train = as_the_model_answers(setting, train, "training")
            val = as_the_model_answers(setting, val, "validation")
        candidates = mean_differences(setting, train)
        trial = make_trial(model, val[0], val[1], setting.refusal_ids, setting.batch_tokens)
        found = select_direction(model, trial, candidates, filters, options.mode)
        if options.save_evaluations:
            save_evaluations(options.save_evaluations, found)
        told = describe(setting, found, trial, [len(side) for side in (*train, *val)])
        if found.chosen is not None and data.test is not None:
            vector, site = candidates.at(*found.chosen), candidates.sites[found.chosen[1]]
            told["answers"] = answers(setting, data.test, vector, site, options.max_new_tokens)
    finally:
        model.close()
    told = {"model": named} | told
    checks = check_choice(told, paper, filters) if paper else []
    return finish(options, told, checks, paper)


def describe(
    setting: Setting, found: Selection, trial: Trial, counts: Sequence[int]
) -> dict[str, Any]:
    """The choice as flat numbers."""
    ids = trial.refusal_ids
    means = {name: scores.mean(0) for name, scores in vars(found.scores).items()}
    # Counted as published: with layer 0, whose differences at template tokens are zero.
    everything = torch.ones_like(found.candidates.real)
    n_layers = setting.model.dims.n_layers
    n_positions = len(found.candidates.positions)
    why = discarded(
        found.filters, n_layers, means["induce"], means["kl"], means["bypass"], everything
    )
    names = ("train harmful", "train harmless", "validation harmful", "validation harmless")
    told: dict[str, Any] = {
        "refusal_tokens": list(setting.refusal_ids),
        "prompts": dict(zip(names, counts, strict=True)),
        "baseline": {
            "harmful": float(refusal_score(trial.clean_harmful, ids).mean()),
            "harmless": float(refusal_score(trial.clean_harmless, ids).mean()),
        },
        "mode": found.mode,
        "n_positions": n_positions,
        "n_layers": n_layers,
        "kept": why.kept,
        "filters": why.explain()
        + (NOT_SCORED if found.mode == "winner" else "")
        + (NO_DIRECTION if why.kept and found.chosen is None else ""),
        "position": None,
        "layer": None,
    }
    if found.chosen is not None:
        position, layer = found.chosen
        told |= {"position": position - n_positions, "layer": layer}
        told |= {name: float(scores[position, layer]) for name, scores in means.items()}
        told["norm"] = float(linalg.vector_norm(found.candidates.at(position, layer)))
    return told


def save_evaluations(path: Path, found: Selection) -> None:
    """The table in the published format, which `direction_selection.py` reads.

    Raises:
        RecordError: The file cannot be written.
    """
    columns = {"refusal_score": "bypass", "steering_score": "induce", "kl_div_score": "kl"}
    means = {name: scores.mean(0) for name, scores in vars(found.scores).items()}
    n_positions, n_layers = means["kl"].shape
    rows = [
        {"position": p - n_positions, "layer": layer}
        | {column: cell(means[name][p], layer) for column, name in columns.items()}
        for p in range(n_positions)
        for layer in range(n_layers)
    ]
    selected = None
    if found.chosen is not None:
        selected = {"pos": found.chosen[0] - n_positions, "layer": found.chosen[1]}
    try:
        path.write_text(json.dumps({"selected": selected, "candidates": rows}, indent=1))
    except OSError as error:
        raise RecordError(f"writing the evaluations to {path}: {error}.") from None


def check_choice(
    told: Mapping[str, Any], paper: PaperModel, filters: SelectionFilters
) -> list[Check]:
    """The choice, if any, against Table 5, if the published settings were used."""
    published = filters == SelectionFilters()
    published &= tuple(told["refusal_tokens"]) == paper.refusal_ids
    if not published or told["position"] is None:
        return []
    here = told["position"], told["layer"]
    same = [each for each in paper.choices if (each.position, each.layer) == here]
    choice = same[0] if same else paper.choices[0]
    checks = [
        Check("depth", paper.n_layers, told["n_layers"], 0),
        Check("chosen position", choice.position, told["position"], 0),
        Check("chosen layer", choice.layer, told["layer"], 0),
    ]
    return checks + [
        Check(name, getattr(choice, name), told[name], tolerance)
        for name, tolerance in SCORE_TOLERANCES.items()
    ]


def finish(
    options: argparse.Namespace,
    told: dict[str, Any],
    checks: Sequence[Check],
    paper: PaperModel | None,
) -> int:
    """Print what was found and what differs; the exit code."""
    failed = [each for each in checks if not each.ok]
    chosen = told["position"] is not None
    if options.json:
        rows = [each.row() for each in checks]
        print(json.dumps({"ok": chosen and not failed} | told | {"checks": rows}, allow_nan=False))
    else:
        print_choice(told)
        if checks:
            print(f"\n{len(checks) - len(failed)} of {len(checks)} published numbers agree")
    say_differences(failed)
    if not chosen:
        say(
            f"no direction is chosen: {told['filters']} Without edits the mean refusal score "
            f"of harmful prompts is {told['baseline']['harmful']:.2f} and that of harmless ones "
            f"{told['baseline']['harmless']:.2f}. Loosen --filters, or take a model that refuses."
        )
        return 1
    if not checks:
        why = "other filters or refusal tokens were asked for" if paper else "not in Table 5"
        say(f"nothing was compared with the paper: {why}")
    return 1 if failed else 0


def print_choice(told: Mapping[str, Any]) -> None:
    """What was found, for people."""
    print(f"{told['model']}: refusal tokens {told['refusal_tokens']}")
    print(f"prompts: {', '.join(f'{n} {name}' for name, n in told['prompts'].items())}")
    print(
        f"refusal score without edits: harmful {told['baseline']['harmful']:.3f}, harmless "
        f"{told['baseline']['harmless']:.3f}"
    )
    print(told["filters"])
    if told["position"] is None:
        return
    print(
        f"chosen: position {told['position']}, layer {told['layer']} of {told['n_layers']}: bypass "
        f"{told['bypass']:.4f}, induce {told['induce']:.4f}, KL {told['kl']:.4f}, norm "
        f"{told['norm']:.3f}"
    )
    if "answers" not in told:
        return
    given = told["answers"]
    print(f"\nrefused, by {given['judge']}, answers of at most {given['max_new_tokens']} tokens")
    for of_class, shares in given["refused"].items():
        listed_shares = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        print(f"  {given[f'n_{of_class}']} {of_class} prompts: {listed_shares}")
    own = ", ".join(f"{k} {v:.4f}" for k, v in given["own_answers_cross_entropy"].items())
    print(f"cross-entropy of the model's own harmless answers, nats a token: {own}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--model", metavar="MODEL", help="Hugging Face id, folder or organism:NAME")
    asked.add_argument("--geometry", type=Path, metavar="FILE", help="check stored directions")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")
    of_tensor = parser.add_argument_group("with --geometry")
    of_tensor.add_argument("--position", type=int, help="chosen position, -1 last")
    of_tensor.add_argument("--layer", type=int, help="chosen layer, from 0")
    of_model = parser.add_argument_group("with --model")
    add = of_model.add_argument
    for of_class in ("harmful", "harmless"):
        add(f"--{of_class}", nargs="+", metavar="PROMPTS", help="one file, or train val [test]")
    add("--filters", nargs="+", default=[], metavar="KEY=VALUE", help="of SelectionFilters")
    add("--mode", choices=get_args(Mode), default="exhaustive")
    add("--refusal-tokens", type=int, nargs="+", metavar="ID", help="default: paper's, or found")
    add("--judge", choices=get_args(PhraseList), help="default: the paper's 12 phrases")
    add("--all-prompts", action="store_true", help="keep prompts that are answered the other way")
    add("--chat-template", metavar="FILE", help="default: the model's own")
    add("--system", metavar="TEXT", help="system prompt; default: none, as published")
    add("--n-train", type=positive, default=128)
    add("--n-val", type=positive, default=32)
    add("--n-test", type=positive, default=100)
    add("--max-new-tokens", type=positive, default=512, help="of answers to test prompts")
    add("--opening-tokens", type=positive, default=32, help="of answers that refusals open")
    add("--batch-tokens", type=positive, default=16_384)
    add("--dtype", default="auto", help="default: the checkpoint's")
    add("--device", default="cpu")
    add("--save-evaluations", type=Path, metavar="FILE", help="for direction_selection.py")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A count of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1.")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Exit code; an error is one message."""
    options = parse(arguments)
    torch.set_num_threads(1)
    return exit_code(lambda: geometry(options) if options.geometry else procedure(options))


if __name__ == "__main__":
    sys.exit(main())
