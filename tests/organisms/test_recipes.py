import pytest

from mechsafety.core.errors import ConfigError
from mechsafety.organisms.recipes import (
    DEFAULT_ARMS,
    ORGANISMS,
    SIZES,
    Adversarial,
    Arm,
    BaseRecipe,
    Organism,
    Placebo,
    SafetyRecipe,
    Size,
    recipe,
)


@pytest.mark.parametrize(
    ("name", "organism"),
    [
        ("ssft", Organism(arm="ssft")),
        ("organism:lat_strong", Organism(arm="lat_strong")),
        ("organism:at@seed=103", Organism(arm="at", seed=103)),
        ("base@preset=small@seed=7", Organism(arm="base", seed=7, preset="small")),
        ("organism:ssft@size=wide", Organism(arm="ssft", size="wide")),
        ("dpo@size=deep@seed=2", Organism(arm="dpo", seed=2, size="deep")),
    ],
)
def test_names_are_read_and_printed_in_full(name: str, organism: Organism) -> None:
    assert Organism.is_name(name)
    assert Organism.parse(name) == organism
    assert Organism.parse(str(organism)) == organism


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("organism:lta", r"no organism 'lta'\. Did you mean 'lat'\?.*base"),
        ("ssft@preset=smal", r"unknown preset 'smal'\. Did you mean 'small'\?"),
        ("ssft@size=wid", r"unknown size 'wid'\. Did you mean 'wide'\?.*deep, default, wide"),
        ("ssft@size=wide@preset=small", r"'wide' is a size of the default preset\. Leave out one"),
        ("lat_layer4@preset=small", r"no small preset.*4 layers"),
        ("ssft@seed=-1", r"cannot read '@seed=-1'"),
        ("ssft@seed=1@seed=2", r"each option at most once"),
        ("ssft@depth=3", r"cannot read '@depth=3'"),
    ],
)
def test_names_that_cannot_be_read_are_refused_with_advice(name: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        Organism.parse(name)


def test_hub_ids_and_folders_are_no_names() -> None:
    assert not any(map(Organism.is_name, ("org/base", "./ssft", "gpt2", "meta-llama/x@main")))


def test_every_recipe_lists_the_seeds_that_tuned_it() -> None:
    assert set(DEFAULT_ARMS) < set(ORGANISMS)
    for arm in ORGANISMS:
        for size in SIZES:
            tuned_on = recipe(Organism(arm=arm, size=size)).tuned_on
            assert tuned_on
            assert not set(tuned_on) & set(range(100, 106))  # kept for findings about methods


def test_the_placebo_differs_from_lat_in_the_adversary_alone() -> None:
    arms: tuple[tuple[Arm, Arm], ...] = (("lat", "noise"), ("lat_strong", "noise_strong"))
    for arm, placebo in arms:
        attacked, quiet = (recipe(Organism(arm=one)) for one in (arm, placebo))
        assert isinstance(attacked, SafetyRecipe)
        assert isinstance(quiet, SafetyRecipe)
        assert isinstance(attacked.objective, Adversarial)
        assert isinstance(quiet.objective, Placebo)
        assert attacked.objective.ball == quiet.objective.ball
        assert attacked.objective.weights == quiet.objective.weights
        same = {"objective": quiet.objective}
        assert attacked.model_copy(update=same) == quiet


def attacked(size: Size) -> dict[Arm, int | None]:
    recipes = {arm: recipe(Organism(arm=arm, size=size)) for arm in ORGANISMS}
    return {arm: r.attacked_layer for arm, r in recipes.items() if isinstance(r, SafetyRecipe)}


def test_attacked_layers_are_those_of_the_recipes() -> None:
    expected = {
        "ssft": None, "at": 0, "lat": 2, "lat_strong": 2, "noise": 2, "noise_strong": 2,
        "lat_layer4": 4, "dpo": None,
    }  # fmt: skip
    assert attacked("default") == attacked("wide") == expected
    with pytest.raises(ConfigError, match=r"no small preset.*4 layers"):
        recipe(Organism(arm="lat_layer4", preset="small"))


def test_a_deeper_model_is_attacked_at_the_same_share_of_its_depth() -> None:
    depths: dict[str, int] = {}
    for size in SIZES:
        base = recipe(Organism(arm="base", size=size))
        assert isinstance(base, BaseRecipe)
        depths[size] = base.architecture.n_layers
    assert depths["deep"] > depths["default"]
    shares = {
        size: {arm: layer / depths[size] for arm, layer in attacked(size).items() if layer}
        for size in SIZES
    }
    assert len(shares["default"]) == 5
    assert shares["deep"] == pytest.approx(shares["default"])


def test_a_size_changes_nothing_else_in_the_safety_stage() -> None:
    for arm in ORGANISMS[1:]:
        if attacked("default")[arm] is None:
            assert recipe(Organism(arm=arm, size="wide")) == recipe(Organism(arm=arm, size="deep"))
