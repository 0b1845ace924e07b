"""Does a mirror keep everything? A record with awkward words, gaps, equal rows and directions."""

from typing import Literal

import torch

from mechsafety.core.config import FrozenConfig, StudyConfig
from mechsafety.core.context import Context
from mechsafety.core.result import Figure, Finding, Result, Table


class Model(FrozenConfig):
    """A model that is never opened."""

    id: str = "org/chat@main"


class Method(FrozenConfig):
    """A direction method that is never run."""

    method: Literal["difference_in_means"] = "difference_in_means"


class Config(StudyConfig):
    """Nothing is measured."""

    model: Model = Model()
    direction: Method = Method()
    position: str = "last"
    fail: bool = False
    """Ends without a result."""


def run(config: Config, context: Context) -> Result:
    generator = context.generator("directions", 0)
    if config.fail:
        raise ValueError("the study broke")
    tokens = Table("tokens", "Equal tokens are equal rows; no null.")
    for index, text in enumerate(("the", "<|end|>", "the", "\n", "a/b=c", "100%")):
        tokens.add("index", float(index), n=1, unit="index (tokens)", token=text)
    effects = Table("effects", "Effects; no null, a toy.")
    for layer in range(3):
        for form in ("zero", "mean/affine"):
            effects.add(
                "bypass",
                layer / 3,
                n=5 + layer,
                unit="share (prompts)",
                interval=(layer / 3 - 0.1, layer / 3 + 0.1),
                layer=layer,
                form=form,
                chosen=layer == 1,
            )
    effects.add("unmeasured", None, n=0, unit="share (prompts)", dose=0.1)
    finding = Finding(
        id="later_is_stronger",
        claim="Later layers matter more.",
        scope="checkpoint",
        value=0.5,
        ci_low=0.4,
        ci_high=0.6,
        null_low=-0.25,
        null_high=0.25,
        null="signs flipped, 100 draws",
        n=7,
        unit="share (prompts)",
        verdict="supported",
        margin=0.1,
        explanation="By 0.5 [0.4, 0.6].",
        cell={"layer": 2},
    )
    figures = tuple(
        Figure(
            id=name,
            title="Bypass <by> layer",
            caption="Interval ± 0.1; no null.",
            kind="lines",
            table="effects",
            metric="bypass",
            x=x,
            choose=("form", "chosen"),
        )
        for name, x in (("by_layer", "layer"), ("cannot_be_drawn", "nowhere"))
    )
    return Result(
        tables=(tokens, effects),
        findings=(finding,),
        figures=figures,
        tensors={
            "direction": torch.randn(8, generator=generator),
            "candidates": torch.randn(2, 3, 8, generator=generator).bfloat16(),
            "scores": torch.randn(5, 2, generator=generator),
        },
        provenance={"models": {"model": {"weights": "a" * 64, "tokenizer": "b" * 64}}},
    )
