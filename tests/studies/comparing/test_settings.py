"""Which models share a space, and settings that cannot mean anything."""

import pytest

from mechsafety.core.errors import ConfigError
from mechsafety.studies.comparing.settings import Compared, seed_of, space_of, training_of
from tests.studies.similarity_runs import configured

MODELS = "{base: base, ssft: ssft, other: ssft@seed=1}"


def test_organisms_of_one_seed_share_the_space_of_their_base_and_others_do_not() -> None:
    models = configured(
        "{b: base, s: ssft, t: ssft@seed=1, c: base@seed=1, w: ssft@size=wide}"
    ).models
    spaces = {name: space_of(name, models) for name in models}
    assert spaces["b"] == spaces["s"] != spaces["t"] == spaces["c"]
    assert spaces["w"] not in (spaces["b"], spaces["t"])
    assert [training_of(name, models) for name in models] == [
        "base", "ssft", "ssft", "base", "ssft (wide)",
    ]  # fmt: skip
    assert [seed_of(name, models) for name in models] == [0, 0, 1, 1, 0]


def test_other_models_share_the_space_of_the_base_that_is_named() -> None:
    models = {
        "pretrained": Compared.model_validate("org/model"),
        "chat": Compared.model_validate({"model": "org/chat", "base": "pretrained", "seed": 3}),
        "tuned": Compared.model_validate({"model": "./tuned", "base": "chat", "training": "dpo"}),
        "stranger": Compared.model_validate("org/stranger"),
    }
    assert [space_of(name, models) for name in models] == [*["pretrained"] * 3, "stranger"]
    assert (training_of("tuned", models), training_of("chat", models)) == ("dpo", "chat")
    assert (seed_of("chat", models), seed_of("tuned", models)) == (3, None)


def test_a_model_trained_from_an_organism_shares_the_space_of_the_organisms_base() -> None:
    models = configured("{ssft: ssft, base: base, tuned: {model: ./tuned, base: ssft}}").models
    assert space_of("tuned", models) == space_of("base", models)


@pytest.mark.parametrize(
    ("bases", "text"),
    [
        (("c", "a", "b"), r"models.b.base closes a circle \(a from c from b from a\)"),
        (("null", "c", "b"), r"models.c.base closes a circle \(b from c from b\)"),
        (("a", "null", "null"), r"models.a.base closes a circle \(a from a\)"),
    ],
)
def test_bases_in_a_circle_are_found_before_the_run(bases: tuple[str, ...], text: str) -> None:
    def models(*bases: str) -> str:
        each = [f"{k}: {{model: ./{k}, base: {b}}}" for k, b in zip("abc", bases, strict=True)]
        return f"{{{', '.join(each)}}}"

    configured(models("null", "a", "b"))
    with pytest.raises(ConfigError, match=rf"{text}.*one of them has none"):
        configured(models(*bases))


@pytest.mark.parametrize("known", ["base: base", "training: lat", "seed: 0"])
def test_what_is_known_of_an_organism_is_not_stated_again(known: str) -> None:
    configured(f"{{base: base, other: {{model: ./other, {known}}}}}")
    with pytest.raises(ConfigError, match=rf"'ssft' is given {known[:4]}.*leave these"):
        configured(f"{{base: base, other: {{model: ssft, {known}}}}}")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("maps.between=[[base, sfft]]", r"maps.between names 'sfft'.*no model of this run.*ssft"),
        ("transfer.models=[lat]", r"transfer.models names 'lat'.*no model of this run"),
        ("refusal_tokens={sft: [1]}", r"refusal_tokens names 'sft'.*ssft"),
        ("maps.methods=[procrustes]", r"transfer.map is 'ridge'.*procrustes only"),
        ("maps.between=[[base, other], [ssft, ssft]]", r"'ssft' with itself.*needs no map"),
        ("transfer.models=[ssft, base, ssft]", r"names ssft twice"),
        ("maps.methods=[ridge, ridge]", r"names a method twice"),
        ("models.other.base=bass", r"models.other.base names 'bass'.*base"),
        (
            "findings=[{id: x, claim: x., scope: checkpoint, margin: 1.0, "
            "cell: {test: likeness, first: base, second: baes, layer: 2}}]",
            r"finding 'x' names 'baes'.*base",
        ),
        (
            "findings=[{id: x, claim: x., scope: method, margin: 1.0, cell: {test: angle, "
            "first: base, second: ssft, layer: 2, replicates: [[base, another]]}}]",
            r"finding 'x' names 'another'",
        ),
    ],
)
def test_a_name_that_is_no_model_is_found_before_the_run(override: str, text: str) -> None:
    models = "{base: base, ssft: ssft, other: {model: ./other}}"
    with pytest.raises(ConfigError, match=text):
        configured(models, override)


@pytest.mark.parametrize(
    "cell",
    [
        "{test: likeness, first: base, second: base, layer: 2}",
        "{test: angle, first: base, second: ssft, layer: 2, replicates: [[ssft, ssft]]}",
        "{test: layers_match, first: base, second: base}",
    ],
)
def test_a_claim_about_a_model_and_itself_is_found_before_the_run(cell: str) -> None:
    claim = "findings=[{id: x, claim: x., scope: checkpoint, margin: 1.0, cell: %s}]"
    with pytest.raises(ConfigError, match=r"compares '(base|ssft)' with itself.*two models"):
        configured(MODELS, claim % cell)
    # What a model's direction does in the model itself is a number.
    configured(MODELS, claim % "{test: transfer, first: base, second: base}")


def test_a_claim_via_a_map_that_is_not_fitted_is_found_before_the_run() -> None:
    claim = (
        "findings=[{id: x, claim: x., scope: checkpoint, margin: 1.0, cell: "
        "{test: likeness, first: ssft, second: other, layer: 2, via: procrustes}}]"
    )
    configured(MODELS, claim)
    with pytest.raises(ConfigError, match=r"'x' goes via 'procrustes', and maps.methods.*ridge"):
        configured(MODELS, claim, "maps.methods=[ridge]")


def test_one_model_is_nothing_to_compare() -> None:
    with pytest.raises(ConfigError, match=r"models.*at least 2"):
        configured("{ssft: ssft}")
