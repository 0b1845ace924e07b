import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mechsafety.data.synthetic_language import language
from mechsafety.organisms import making
from mechsafety.organisms.card import read_card
from mechsafety.organisms.making import make, new_model, safety_batches, weights_hash
from mechsafety.organisms.recipes import (
    SIZES,
    Arm,
    BaseRecipe,
    Organism,
    SafetyRecipe,
    recipe,
)
from mechsafety.training.loop import Schedule

ARMS: tuple[Arm, ...] = ("ssft", "at", "lat", "noise", "dpo")


def short(arm: Arm) -> BaseRecipe | SafetyRecipe:
    """The small recipe, cut to so few steps that nothing is learned."""
    full = recipe(Organism(arm=arm, preset="small"))
    changed = full.schedule.model_dump() | {"steps": 2, "warmup": 1}
    return full.model_copy(update={"schedule": Schedule.model_validate(changed)})


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = making.measure
    monkeypatch.setattr(making, "measure", lambda *args: whole(*args, n=2))


def made(
    arm: Arm, folder: Path, base: Path | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    folder.mkdir()
    organism = Organism(arm=arm, seed=seed, preset="small")
    make(organism, short(arm), folder, base=base, report=lambda *_: None, recipe_hash="not cached")
    return load_file(folder / "model.safetensors")


def test_the_same_seed_gives_the_same_bits_for_every_arm_and_leaves_the_global_generator(
    tmp_path: Path,
) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    base = made("base", tmp_path / "base")
    other = made("base", tmp_path / "other", seed=1)
    assert not torch.equal(base["lm_head.weight"], other["lm_head.weight"])
    for arm in ARMS:
        one = made(arm, tmp_path / f"{arm}-1", tmp_path / "base")
        two = made(arm, tmp_path / f"{arm}-2", tmp_path / "base")
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
        moved = {name for name, tensor in one.items() if not torch.equal(tensor, base[name])}
        assert moved == set(base) - {"model.embed_tokens.weight", "lm_head.weight"}
        hashes = [read_card(tmp_path / f"{arm}-{n}").weights_sha256 for n in (1, 2)]
        assert hashes[0] == hashes[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_folders_hold_what_hugging_face_needs(tmp_path: Path) -> None:
    made("base", tmp_path / "base")
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "card.json", "README.md",
    }  # fmt: skip
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_every_arm_of_a_seed_sees_the_same_data() -> None:
    world = language("small")
    recipes = [recipe(Organism(arm=arm, preset="small")) for arm in ARMS]
    streams = [safety_batches(one, world, 0) for one in recipes if isinstance(one, SafetyRecipe)]
    assert len(streams) == len(ARMS)
    for _ in range(2):
        first, *others = [next(stream) for stream in streams]
        assert first.refusing.input_ids.shape[0] == 16
        assert first.allowed.input_ids.shape[0] == 32
        for other in others:
            assert torch.equal(first.refusing.input_ids, other.refusing.input_ids)
            assert torch.equal(first.allowed.input_ids, other.allowed.input_ids)
        # Row for row the same requests, so that one answer can be preferred to the other.
        for one, other in ((first.refusing, first.complying), (first.allowed, first.declining)):
            asked = one.prompt_mask.sum(1)
            assert torch.equal(asked, other.prompt_mask.sum(1))
            for row, n in enumerate(asked.tolist()):
                assert torch.equal(one.input_ids[row, :n], other.input_ids[row, :n])


def test_the_weights_hash_sees_names_shapes_and_values() -> None:
    base = recipe(Organism(arm="base", preset="small"))
    assert isinstance(base, BaseRecipe)
    model = new_model(base, language("small"), seed=0)
    before = weights_hash(model)
    assert before == weights_hash(new_model(base, language("small"), seed=0))
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1e-3
    assert weights_hash(model) != before


def test_sizes_are_wider_or_deeper_in_the_same_vocabulary() -> None:
    world = language("default")
    shapes: dict[str, tuple[int, int, int]] = {}
    for size in SIZES:
        settings = recipe(Organism(arm="base", size=size))
        assert isinstance(settings, BaseRecipe)
        config = new_model(settings, world, seed=0).config
        shapes[size] = (config.hidden_size, config.num_hidden_layers, config.vocab_size)
    d_model, n_layers, n_words = shapes["default"]
    assert shapes["wide"][0] > d_model
    assert shapes["wide"][1:] == (n_layers, n_words)
    assert shapes["deep"][1] > n_layers
    assert shapes["deep"][::2] == (d_model, n_words)
