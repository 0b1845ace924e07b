"""Models that are activations alone: what two of them share is planted, and no model is run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mechsafety.core.positions import Position
from mechsafety.core.sites import ModelDims
from mechsafety.data.prompts import Prompt, PromptPairs, PromptSet
from mechsafety.effects.answers import Answers
from mechsafety.judges.phrases import Verdict
from mechsafety.linalg.typed import linalg
from mechsafety.organisms.sources import NeutralPrompts
from mechsafety.studies.arms import ArmView, PairRows, residual_sites
from mechsafety.studies.comparing.frame import Frame, framed
from mechsafety.studies.comparing.measured import Measured
from mechsafety.studies.similarity import Config, _geometry, _mapped
from tests.studies.test_concentration import InlineContext

D, N_LAYERS = 7, 4
N_TWINS, N_FIT, N_HELD_OUT = 18, 40, 23
SIZES = {"harmful": N_TWINS, "harmless": N_TWINS, "fit": N_FIT, "held_out": N_HELD_OUT}
REFUSED: tuple[Verdict, ...] = ("refused",) * N_TWINS
COMPLIED: tuple[Verdict, ...] = ("complied",) * N_TWINS


@dataclass(frozen=True)
class Streams:
    """Residual streams of one model, [prompt, layer, d]; layer 0 is the same for every prompt."""

    harmful: Tensor
    harmless: Tensor
    fit: Tensor
    held_out: Tensor

    def turned(self, matrix: Tensor) -> "Streams":
        """In other coordinates."""
        return self.mapped(lambda rows: rows @ matrix)

    def at_layers(self, layers: Sequence[int]) -> "Streams":
        """With these layers, in this order."""
        return self.mapped(lambda rows: rows[:, list(layers)])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Streams":
        return Streams(**{name: change(getattr(self, name)) for name in SIZES})


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def isometry(width: int, seed: int, d: int = D) -> Tensor:
    """[d, width] with orthonormal rows."""
    return linalg.qr(drawn(width, width, seed=seed))[0][:d]


def shift(seed: int, size: float = 3.0, n_layers: int = N_LAYERS) -> Tensor:
    """Harmful less harmless at each layer, none at layer 0."""
    found = drawn(n_layers + 1, D, seed=seed)
    found = size * found / found.norm(dim=1, keepdim=True)
    found[0] = 0
    return found


def streams(
    harm: Tensor,
    *,
    shared: float = 1.0,
    noise: float = 0.3,
    seed: int = 0,
    blind: bool = False,
    n_layers: int = N_LAYERS,
) -> Streams:
    """Features of the prompts that every model has, noise of its own, and what harm adds.

    Each layer adds to the one before, so that neighbors are alike. Neutral prompts vary in all
    dimensions, or (`blind`) in all but that of harm.
    """
    found: dict[str, Tensor] = {}
    for at, (name, n) in enumerate(SIZES.items()):
        added = shared * drawn(n, n_layers + 1, D, seed=100 + at)
        own = noise * drawn(n, n_layers + 1, D, seed=1000 * (seed + 1) + at)
        added[:, 0] = own[:, 0] = 0
        rows = added.cumsum(1) + own
        if blind and name in ("fit", "held_out"):
            unit = harm / harm.norm(dim=1, keepdim=True).clamp(min=1e-12)
            rows = rows - (rows * unit).sum(2, keepdim=True) * unit
        rows = rows + (harm if name == "harmful" else 0)
        rows[:, 0] = 1.0
        found[name] = rows
    return Streams(**found)


def view(
    name: str,
    read: Streams,
    *,
    harmful: Sequence[Verdict] = REFUSED,
    harmless: Sequence[Verdict] = COMPLIED,
    opens: tuple[int, int] = (5, 6),
    tokenizer: str = "words",
) -> ArmView:
    """The model as the study reads it; refusals open with token 5, other answers with 6."""
    n_layers, d = read.fit.shape[1] - 1, read.fit.shape[2]

    def answers(verdicts: Sequence[Verdict]) -> Answers:
        ids = tuple((opens[0] if one == "refused" else opens[1],) for one in verdicts)
        return Answers(("",) * len(verdicts), ids, tuple(verdicts), 12)

    rows = {each: getattr(read, each).float()[:, :, None] for each in SIZES}
    dims = ModelDims(
        n_layers=n_layers, d_model=d, n_heads=2, n_kv_heads=2, d_head=5, d_mlp=7, d_vocab=11
    )
    return ArmView(
        arm=name,
        dims=dims,
        identity={"tokenizer": tokenizer, "dtype": "float32"},
        probes=(),
        token_use={},
        sites=residual_sites(dims),
        positions=(Position("last"),),
        pairs=PairRows(rows["harmful"], rows["harmless"]),
        contrasts={"neutral": PairRows(rows["fit"], rows["held_out"])},
        harmful=answers(harmful),
        harmless=answers(harmless),
    )


def prompts(name: str, n: int) -> PromptSet:
    return PromptSet(name, tuple(Prompt.of(f"{name} {i}") for i in range(n)), "test")


PAIRS = PromptPairs("harm", prompts("harmful", N_TWINS), prompts("harmless", N_TWINS), "twins")
NEUTRAL = NeutralPrompts(prompts("fit", N_FIT), prompts("held out", N_HELD_OUT))


def frame_of(config: Config, read: Mapping[str, Streams]) -> Frame:
    """The models as the study reads them."""
    return framed(config, {name: view(name, one) for name, one in read.items()}, PAIRS, NEUTRAL)


def measured(config: Config, read: Mapping[str, Streams]) -> Measured:
    """All that the study measures but what directions do."""
    frame, context = frame_of(config, read), InlineContext(Path(), {})
    return _mapped(frame, _geometry(frame, context), context)
