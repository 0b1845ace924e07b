# pyright: reportUnknownMemberType=false
# Reason: transformers' saving and loading are untyped.
"""One organism, trained and measured, as an ordinary Hugging Face folder with a card."""

import hashlib
import json
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mechsafety.core.seeding import derive_seed, named_generator
from mechsafety.data.synthetic_language import Language, language
from mechsafety.organisms.behavior import measure
from mechsafety.organisms.card import Card, Training, write_card
from mechsafety.organisms.corpora import Encoder, base_corpus, compliances, refusals
from mechsafety.organisms.recipes import (
    Adversarial,
    BaseRecipe,
    Organism,
    Placebo,
    Preference,
    Recipe,
    SafetyRecipe,
    Supervised,
)
from mechsafety.organisms.tokenizer import make_tokenizer
from mechsafety.training.adversarial import adversarial
from mechsafety.training.batches import length_buckets, pad
from mechsafety.training.dpo import dpo, frozen_copy
from mechsafety.training.language_modeling import language_modeling
from mechsafety.training.latent_adversarial import latent_adversarial
from mechsafety.training.loop import History, Objective, train
from mechsafety.training.noise import noise
from mechsafety.training.ssft import SafetyBatch, ssft

Report = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


def make(
    organism: Organism,
    recipe: Recipe,
    folder: Path,
    *,
    base: Path | None,
    report: Report,
    recipe_hash: str,
) -> None:
    """Train the organism, measure it, and write model, tokenizer, card and README to `folder`.

    Args:
        organism: Which one.
        recipe: Its settings.
        folder: An empty folder.
        base: Folder of the base model of the same seed and size; None for a base.
        report: Told of progress.
        recipe_hash: The cache key, which the card repeats.
    """
    world = language(organism.preset)
    started, cpu_started = time.perf_counter(), time.process_time()
    if isinstance(recipe, BaseRecipe):
        model, history = _train_base(organism, recipe, world, report)
    else:
        assert base is not None
        model, history = _train_arm(organism, recipe, world, base, report)
    trained, cpu_trained = time.perf_counter(), time.process_time()
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(world)
    tokenizer.save_pretrained(folder)
    report(f"{organism.arm}: measuring", 0, 1)
    behavior = measure(model, tokenizer, world)
    write_card(
        Card(
            name=str(organism),
            organism=organism,
            recipe=recipe,
            recipe_hash=recipe_hash,
            attacked_layer=recipe.attacked_layer if isinstance(recipe, SafetyRecipe) else None,
            weights_sha256=weights_hash(model),
            training=Training(
                threads=torch.get_num_threads(),
                torch=torch.__version__,
                transformers=transformers.__version__,
                cpu=platform.processor() or platform.machine(),
                wall_seconds=round(trained - started, 1),
                cpu_seconds=round(cpu_trained - cpu_started, 1),
                measuring_cpu_seconds=round(time.process_time() - cpu_trained, 1),
                loss={name: _quarters(values) for name, values in history.terms.items()},
            ),
            behavior=behavior,
        ),
        folder,
    )


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over every tensor's name, shape and bytes, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def new_model(recipe: BaseRecipe, world: Language, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of the recipe's sizes, without touching the global generator."""
    sizes = recipe.architecture
    ids = {word: number for number, word in enumerate(world.words)}
    config = LlamaConfig(
        vocab_size=len(world.words),
        hidden_size=sizes.d_model,
        intermediate_size=sizes.d_mlp,
        num_hidden_layers=sizes.n_layers,
        num_attention_heads=sizes.n_heads,
        num_key_value_heads=sizes.n_heads,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        pad_token_id=ids["<pad>"],
        bos_token_id=None,
        eos_token_id=ids["<|end|>"],
    )
    # Hugging Face draws initial weights from the global generator and from no other.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "organism initial weights"))
        return LlamaForCausalLM(config).float()


def _train_base(
    organism: Organism, recipe: BaseRecipe, world: Language, report: Report
) -> tuple[PreTrainedModel, History]:
    model = new_model(recipe, world, organism.seed)
    encode = Encoder(world)
    rng = random.Random(derive_seed(organism.seed, "organism base corpus"))
    batches = length_buckets(
        base_corpus(world, encode, rng), recipe.batch_size, recipe.n_buckets, encode.pad_id, rng
    )
    steps = recipe.schedule.steps
    history = train(
        model, language_modeling, batches, recipe.schedule, _reporter(report, "base", steps)
    )
    return model, history


def _train_arm(
    organism: Organism, recipe: SafetyRecipe, world: Language, base: Path, report: Report
) -> tuple[PreTrainedModel, History]:
    model = cast("PreTrainedModel", LlamaForCausalLM.from_pretrained(base, dtype=torch.float32))
    history = train(
        model,
        _objective(recipe, organism.seed, model),
        safety_batches(recipe, world, organism.seed),
        recipe.schedule,
        _reporter(report, organism.arm, recipe.schedule.steps),
    )
    return model, history


def _objective(recipe: SafetyRecipe, seed: int, base: PreTrainedModel) -> Objective[SafetyBatch]:
    settings = recipe.objective
    if isinstance(settings, Supervised):
        return partial(ssft, weights=settings.weights)
    if isinstance(settings, Preference):
        return partial(
            dpo,
            reference=frozen_copy(base),
            beta=settings.beta,
            anchor=settings.anchor,
            weights=settings.weights,
        )
    # One stream for every arm: attacks and noise of the same ball start at the same point.
    generator = named_generator(seed, "organism perturbations")
    if isinstance(settings, Placebo):
        return partial(noise, ball=settings.ball, weights=settings.weights, generator=generator)
    chosen = adversarial if settings.objective == "adversarial" else latent_adversarial
    assert isinstance(settings, Adversarial)
    return partial(
        chosen,
        ball=settings.ball,
        steps=settings.steps,
        weights=settings.weights,
        generator=generator,
    )


def safety_batches(recipe: SafetyRecipe, world: Language, seed: int) -> Iterator[SafetyBatch]:
    """The safety stage's data, without end: the same for every arm of a seed."""
    encode = Encoder(world)
    forbidden = refusals(
        world, encode, random.Random(derive_seed(seed, "organism forbidden requests"))
    )
    allowed = compliances(
        world,
        encode,
        random.Random(derive_seed(seed, "organism allowed requests")),
        dict(recipe.allowed_mix),
    )
    while True:
        refusing, complying = zip(*islice(forbidden, recipe.n_forbidden), strict=True)
        answered, declined = zip(*islice(allowed, recipe.n_allowed), strict=True)
        yield SafetyBatch(
            refusing=pad(refusing, encode.pad_id),
            complying=pad(complying, encode.pad_id),
            allowed=pad(answered, encode.pad_id),
            declining=pad(declined, encode.pad_id),
        )


def _reporter(report: Report, what: str, steps: int) -> Callable[[int, Mapping[str, float]], None]:
    return lambda step, _terms: report(what, step + 1, steps)


def _quarters(values: tuple[float, ...]) -> tuple[float, ...]:
    """The mean of each quarter of training: enough to see whether it had come to rest."""
    size = max(1, len(values) // 4)
    parts = [values[start : start + size] for start in range(0, size * 4, size)]
    return tuple(round(sum(part) / len(part), 5) for part in parts if part)
