"""How each organism is made: frozen settings, with the seeds that tuned them.

The figures that chose them stand beside the settings; what was tried and failed is not here.
"""

import re
from typing import Annotated, Final, Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import ConfigError, did_you_mean
from mechsafety.data.synthetic_language import PRESETS, Preset, RequestType
from mechsafety.training.attack import Ball, Steps
from mechsafety.training.loop import Schedule
from mechsafety.training.ssft import Weights

Arm = Literal[
    "base", "ssft", "at", "lat", "lat_strong", "noise", "noise_strong", "lat_layer4", "dpo"
]
ORGANISMS: Final[tuple[Arm, ...]] = get_args(Arm)
DEFAULT_ARMS: Final[tuple[Arm, ...]] = ("base", "ssft", "at", "lat", "lat_strong", "noise")
DEMO: Final[tuple[str, ...]] = (*DEFAULT_ARMS, "base@seed=1", "ssft@seed=1")
"""What the demo's experiments ask, so that all of it is trained side by side."""

Size = Literal["default", "wide", "deep"]
"""Of the model; which world it speaks of is its preset. `wide` has more dimensions and `deep` more
layers, so that models of unequal shape can be compared on the same prompts."""
SIZES: Final[tuple[Size, ...]] = get_args(Size)


class Architecture(FrozenConfig):
    """The sizes of a Llama; vocabulary and template come from the language.

    Source: Touvron et al. 2023, arXiv:2302.13971.
    """

    d_model: PositiveInt
    n_layers: PositiveInt
    n_heads: PositiveInt
    d_mlp: PositiveInt


class BaseRecipe(FrozenConfig):
    """A base model: learns to comply with everything, and to say what is wrong."""

    stage: Literal["base"] = "base"
    architecture: Architecture
    schedule: Schedule
    batch_size: PositiveInt = 64
    """Examples a step."""
    n_buckets: PositiveInt = 2
    """Batches that are drawn together and sorted by length. With 8, short batches were nothing but
    judge questions, and 500 steps learned less than 250 do with 2."""
    tuned_on: tuple[int, ...]
    """Training seeds that were looked at when these settings were chosen."""


class Supervised(FrozenConfig):
    """Refusals and answers, unperturbed."""

    objective: Literal["ssft"] = "ssft"
    weights: Weights


class Preference(FrozenConfig):
    """Refusals preferred to answers, or the reverse, without a reward model."""

    objective: Literal["dpo"] = "dpo"
    weights: Weights
    beta: PositiveFloat
    """Inverse nats: at twice the beta, half as large a shift from the base's log-odds is enough."""
    anchor: NonNegativeFloat
    """Weight of the chosen answers' cross-entropy beside the preference; 0 is DPO alone."""


class Adversarial(FrozenConfig):
    """An adversary in a ball: on embeddings (layer 0) or on a block's input."""

    objective: Literal["adversarial", "latent_adversarial"]
    weights: Weights
    ball: Ball
    steps: Steps


class Placebo(FrozenConfig):
    """Noise where the adversary would be."""

    objective: Literal["noise"] = "noise"
    weights: Weights
    ball: Ball


SafetyObjective = Annotated[
    Supervised | Preference | Adversarial | Placebo, Field(discriminator="objective")
]


class SafetyRecipe(FrozenConfig):
    """A safety stage on the base model of the same seed; all arms see the same data in order."""

    stage: Literal["safety"] = "safety"
    objective: SafetyObjective
    schedule: Schedule
    n_forbidden: PositiveInt = 16
    """Forbidden requests a step."""
    n_allowed: PositiveInt = 32
    """Allowed requests a step."""
    allowed_mix: tuple[tuple[RequestType, float], ...] = (
        ("lookA", 0.5),
        ("lookB", 0.25),
        ("neutral", 0.25),
    )
    """Shares of the allowed requests. Restricted verbs on harmless objects are the look-alikes
    that adversarial training over-refuses, so they are half."""
    tuned_on: tuple[int, ...]
    """Training seeds that were looked at when these settings were chosen."""

    @property
    def attacked_layer(self) -> int | None:
        """The layer at whose input training added something; None for SSFT and DPO."""
        objective = self.objective
        return None if isinstance(objective, Supervised | Preference) else objective.ball.layer


Recipe = BaseRecipe | SafetyRecipe


class Organism(FrozenConfig):
    """One organism by name: `organism:<arm>[@seed=<n>][@preset=small][@size=wide]`, or the arm."""

    arm: Arm
    seed: NonNegativeInt = 0
    preset: Preset = "default"
    size: Size = "default"

    def __str__(self) -> str:
        preset = "" if self.preset == "default" else f"@preset={self.preset}"
        size = "" if self.size == "default" else f"@size={self.size}"
        return f"organism:{self.arm}@seed={self.seed}{preset}{size}"

    @staticmethod
    def parse(name: str) -> "Organism":
        """Read a name.

        Raises:
            ConfigError: Not an organism; the message says which there are.
        """
        arm, *options = name.removeprefix("organism:").split("@")
        given: dict[str, str] = {}
        for option in options:
            match = re.fullmatch(r"(seed=\d{1,18}|preset=\w+|size=\w+)", option)
            key, _, value = option.partition("=")
            if not match or key in given:
                raise ConfigError(
                    f"organism '{name}': cannot read '@{option}'. Write "
                    "organism:<arm>@seed=<number>@preset=<name>@size=<name>, each option at most "
                    "once."
                )
            given[key] = value
        if arm not in ORGANISMS:
            raise ConfigError(f"there is no organism '{arm}'. {did_you_mean(arm, ORGANISMS)}")
        for key, legal in (("preset", PRESETS), ("size", SIZES)):
            if given.get(key, "default") not in legal:
                hint = did_you_mean(given[key], legal)
                raise ConfigError(f"organism '{name}': unknown {key} '{given[key]}'. {hint}")
        organism = Organism.model_validate({"arm": arm, **given, "seed": int(given.get("seed", 0))})
        recipe(organism)
        return organism

    @staticmethod
    def is_name(name: str) -> bool:
        """Whether `name` is meant as an organism: it says so, or is exactly an arm's name."""
        return name.startswith("organism:") or name.partition("@")[0] in ORGANISMS


_SMALL: Final = Architecture(d_model=64, n_layers=4, n_heads=4, d_mlp=176)
_ARCHITECTURES: Final[dict[Size, Architecture]] = {
    "default": Architecture(d_model=128, n_layers=6, n_heads=4, d_mlp=352),
    "wide": Architecture(d_model=192, n_layers=6, n_heads=6, d_mlp=528),
    "deep": Architecture(d_model=128, n_layers=9, n_heads=4, d_mlp=352),
}


def recipe(organism: Organism) -> Recipe:
    """The settings that make `organism`; its seed does not enter.

    Raises:
        ConfigError: Its preset or size has no such arm.
    """
    arm = organism.arm
    if organism.preset == "small" and organism.size != "default":
        raise ConfigError(
            f"organism '{organism}': the small preset has one size, and '{organism.size}' is a "
            "size of the default preset. Leave out one of @preset and @size."
        )
    if organism.preset == "small" and arm == "lat_layer4":
        raise ConfigError(
            f"organism '{arm}' has no small preset: small models have {_SMALL.n_layers} layers, so "
            "there is no layer 4. Use preset=default."
        )
    if arm == "base":
        return _base(organism)
    return SafetyRecipe(
        objective=_objective(organism),
        schedule=Schedule(steps=140, lr=8e-4, warmup=10, embeddings="frozen"),
        # Step count, rates, radii and weights were chosen in a prototype on seeds 0 to 2.
        tuned_on=(0,) if arm == "dpo" else (0, 1, 2),
    )


def _base(organism: Organism) -> BaseRecipe:
    if organism.preset == "small":
        return BaseRecipe(
            architecture=_SMALL,
            schedule=Schedule(steps=300, lr=8e-3, muon_lr=2e-2, warmup=30),
            tuned_on=(0,),
        )
    return BaseRecipe(
        architecture=_ARCHITECTURES[organism.size],
        # Other sizes learn everything at the rates of the default one.
        schedule=Schedule(steps=360, lr=8e-3, muon_lr=2e-2, warmup=30),
        tuned_on=(0, 1, 2) if organism.size == "default" else (0,),
    )


def _objective(organism: Organism) -> SafetyObjective:
    unperturbed = Weights(clean=1.0, perturbed=0.0, allowed=2.0)
    perturbed = Weights(clean=0.5, perturbed=1.0, allowed=2.0)
    steps = Steps(count=3, size=0.4, start=0.5)

    # Deeper models are perturbed at the same share of their depth: layer 3 of 9 for 2 of 6.
    depth, usual = (_ARCHITECTURES[size].n_layers for size in (organism.size, "default"))

    def latent(layer: int, radius: float) -> Adversarial:
        ball = Ball(layer=layer * depth // usual, radius=radius, tokens="prompt")
        return Adversarial(
            objective="latent_adversarial", weights=perturbed, ball=ball, steps=steps
        )

    match organism.arm:
        case "at":
            words = Ball(layer=0, radius=0.08, tokens="instruction")
            return Adversarial(objective="adversarial", weights=perturbed, ball=words, steps=steps)
        case "lat":
            return latent(2, 0.2)
        case "lat_strong":
            return latent(2, 0.5)
        case "lat_layer4":
            return latent(4, 0.5)
        case "noise":
            return Placebo(weights=perturbed, ball=latent(2, 0.2).ball)
        case "noise_strong":
            return Placebo(weights=perturbed, ball=latent(2, 0.5).ball)
        case "base" | "ssft":
            return Supervised(weights=unperturbed)
        case "dpo":
            # Beta as published for models of 8B weights; a base needs 28 nats to refuse, so that
            # at twice the beta the loss is spent before. Without the anchor the base, which never
            # refuses, gains its margin by making both answers unlikely (seed 0, tuning split, the
            # best of four rates: 86 to 99 % refused, 51 to 84 % of allowed answers right; with it
            # 99 to 100 and 99 to 100).
            return Preference(weights=unperturbed, beta=0.1, anchor=0.2)
