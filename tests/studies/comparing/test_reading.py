"""Models that cannot be compared are refused, with what would make them comparable."""

from dataclasses import replace

import pytest
import torch

from mechsafety.core.errors import ConfigError, ModelError, PromptError, SiteError
from mechsafety.core.positions import Position
from mechsafety.core.sites import ModelDims
from mechsafety.data.prompts import Prompt, PromptSet
from mechsafety.effects.answers import Answers
from mechsafety.organisms.sources import NeutralPrompts
from mechsafety.studies.arms import ArmView, PairRows
from mechsafety.studies.comparing.reading import (
    check_common_prompts,
    check_comparable,
    mapped_pairs,
)
from tests.studies.similarity_runs import configured

MODELS = "{base: base@preset=small, ssft: ssft@preset=small, other: ssft@seed=1@preset=small}"


def view(name: str, d_model: int = 10, template: str = "abc") -> ArmView:
    rows = PairRows(torch.zeros(3, 2, 1, d_model), torch.zeros(4, 2, 1, d_model))
    nothing = Answers((), (), (), 4)
    return ArmView(
        arm=name,
        dims=ModelDims(
            n_layers=1, d_model=d_model, n_heads=2, n_kv_heads=2, d_head=5, d_mlp=7, d_vocab=11
        ),
        identity={"template": template},
        probes=(),
        token_use={},
        sites=(),
        positions=(Position("last"),),
        pairs=rows,
        contrasts={},
        harmful=nothing,
        harmless=nothing,
    )


def neutral(n: int) -> NeutralPrompts:
    prompts = PromptSet("neutral", tuple(Prompt.of(f"describe {i}") for i in range(n)), "test")
    return NeutralPrompts(prompts, prompts)


def views(**d_model: int) -> dict[str, ArmView]:
    widths = {"base": 10, "ssft": 10, "other": 10, **d_model}
    return {name: view(name, width) for name, width in widths.items()}


def test_comparable_models_are_compared() -> None:
    check_comparable(configured(MODELS), views(), neutral(10))
    check_comparable(configured(MODELS), views(other=20), neutral(20))


def test_a_layer_that_a_model_does_not_have_is_found_once_the_models_are_known() -> None:
    claim = (
        "findings=[{id: x, claim: x., scope: method, margin: 1.0, cell: {test: angle, first: ssft, "
        "second: base, layer: %s, replicates: [[other, base]]}}]"
    )
    deep = replace(view("ssft").dims, n_layers=3)
    given = {**views(), "ssft": replace(view("ssft"), dims=deep)}
    check_comparable(configured(MODELS, claim % 1), given, neutral(10))
    # The replication's first model has one block only.
    with pytest.raises(SiteError, match=r"layer 3, but the model has 1 layers"):
        check_comparable(configured(MODELS, claim % 3), given, neutral(10))
    with pytest.raises(SiteError, match=r"layer 4, but the model has 3 layers"):
        check_comparable(configured(MODELS, claim % 4), given, neutral(10))
    with pytest.raises(ConfigError, match=r"'attacked'.*no arm of this run"):
        check_comparable(configured(MODELS, claim % "attacked"), given, neutral(10))
    with pytest.raises(SiteError, match=r"layer 2, but the model has 1 layers"):
        check_comparable(configured(MODELS, "transfer.layer=2"), given, neutral(10))
    check_comparable(
        configured(MODELS, "transfer.layer=2", "transfer.models=[ssft]"), given, neutral(10)
    )


@pytest.mark.parametrize(
    "override", ["models.other=ssft@seed=1", "prompts.preset=default", "neutral.preset=default"]
)
def test_organisms_of_another_world_have_no_prompts_in_common(override: str) -> None:
    check_common_prompts(configured(MODELS))
    with pytest.raises(
        ConfigError,
        match=r"no common prompt set.*default.*small.*one preset|small.*default.*one preset",
    ):
        check_common_prompts(configured(MODELS, override))


def test_another_width_needs_a_map() -> None:
    config = configured(MODELS, "maps.methods=[]")
    check_comparable(config, views(), neutral(1))
    with pytest.raises(
        ModelError, match=r"base 10, ssft 10, other 20.*without a map.*maps.methods"
    ):
        check_comparable(config, views(other=20), neutral(1000))


def test_a_base_of_another_width_is_not_the_one() -> None:
    tuned = MODELS.replace("other: ssft@seed=1@preset=small", "other: {model: ./other, base: ssft}")
    assert tuned != MODELS
    for overrides in ((), ("maps.methods=[]",)):
        check_comparable(configured(tuned, *overrides), views(), neutral(40))
        with pytest.raises(
            ModelError, match=r"by `base`, 'base' and 'other' share a space.*10 and 20.*`base` key"
        ):
            check_comparable(configured(tuned, *overrides), views(other=20), neutral(40))


def test_refusal_tokens_are_in_the_vocabulary() -> None:
    check_comparable(configured(MODELS, "refusal_tokens={ssft: [0, 10]}"), views(), neutral(10))
    with pytest.raises(ConfigError, match=r"tokens.ssft names 11, 99, .*11 tokens.*0 to 10"):
        check_comparable(
            configured(MODELS, "refusal_tokens={ssft: [3, 11, 99]}"), views(), neutral(10)
        )


def test_a_map_needs_as_many_neutral_prompts_as_the_rule_says() -> None:
    config = configured(MODELS, "maps.rows_per_dimension=2.0")
    check_comparable(config, views(other=20), neutral(40))
    with pytest.raises(
        PromptError, match=r"39 neutral prompts.*'other' has d_model 20.*2 prompts a dimension.*40"
    ):
        check_comparable(config, views(other=20), neutral(39))
    # Models of one base need no map, and so no prompts for it.
    only = configured("{base: base@preset=small, ssft: ssft@preset=small}")
    check_comparable(only, {name: view(name) for name in ("base", "ssft")}, neutral(1))


def test_chat_templates_that_differ_are_refused_unless_each_is_wanted() -> None:
    given = views()
    given["other"] = view("other", template="xyz")
    with pytest.raises(
        ModelError, match=r"chat templates differ.*base, ssft: abc; other: xyz.*templates: own"
    ):
        check_comparable(configured(MODELS), given, neutral(10))
    check_comparable(configured(MODELS, "templates=own"), given, neutral(10))
    # One template for all replaces their own.
    check_comparable(configured(MODELS, "chat.chat_template=none"), given, neutral(10))


def test_models_are_compared_at_one_token() -> None:
    given = {
        name: replace(one, positions=(Position("eoi", -2), Position("last")))
        for name, one in views().items()
    }
    with pytest.raises(ConfigError, match=r"position 'eoi' names 2 tokens.*eoi\[-2\], last"):
        check_comparable(configured(MODELS, "position=eoi"), given, neutral(10))


def test_maps_go_both_ways_between_models_that_share_no_space() -> None:
    config = configured(MODELS)
    assert mapped_pairs(config, config.maps) == (
        ("base", "other"), ("other", "base"), ("ssft", "other"), ("other", "ssft"),
    )  # fmt: skip
    chosen = configured(MODELS, "maps.between=[[ssft, other]]")
    assert mapped_pairs(chosen, chosen.maps) == (("ssft", "other"), ("other", "ssft"))
    without = configured(MODELS, "maps.methods=[]")
    assert mapped_pairs(without, without.maps) == ()
