"""Reading every model on the same prompts, and refusing those that cannot be compared."""

import itertools
from collections.abc import Mapping

from mechsafety.core.context import Context
from mechsafety.core.errors import ConfigError, ModelError, PromptError
from mechsafety.core.layers import resolve_layer
from mechsafety.data.neutral import NeutralSource
from mechsafety.data.pairs import PairsSource
from mechsafety.data.prompts import PromptPairs
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.organisms.sources import NeutralPrompts, StudyPrompts
from mechsafety.studies.arms import ArmJob, ArmView, read_arm
from mechsafety.studies.comparing.claims import AtLayer
from mechsafety.studies.comparing.settings import (
    MapSettings,
    Pair,
    SimilaritySettings,
    organism_of,
    space_of,
)

Views = Mapping[str, ArmView]
NEUTRAL = "neutral"
"""Name of the neutral prompts among a view's contrasts: first to fit maps, second held out."""


def check_common_prompts(config: SimilaritySettings) -> None:
    """Refuse organisms of another world than the prompts', whose words they never saw.

    Raises:
        ConfigError: Models, or the neutral prompts, without a prompt set in common.
    """
    asked: dict[str, PairsSource | NeutralSource] = {
        "prompts": config.prompts,
        "neutral": config.neutral,
    }
    worlds: dict[str, str] = {
        key: source.preset for key, source in asked.items() if source.source == "organism"
    }
    if not worlds:
        return
    for name, one in config.models.items():
        organism = organism_of(one)
        if organism is not None:
            worlds[f"models.{name}"] = organism.preset
    if len(set(worlds.values())) > 1:
        listed = ", ".join(f"{key} {preset}" for key, preset in worlds.items())
        raise ConfigError(
            f"comparing models: they have no common prompt set. Worlds: {listed}. Each preset has "
            "words of its own, so one model could not read the other's prompts. Give organisms and "
            "prompts of one preset."
        )


def read_models(
    config: SimilaritySettings,
    context: Context,
    prompts: StudyPrompts,
    neutral: NeutralPrompts,
    judge: PhraseJudge,
    folders: Mapping[str, str],
) -> dict[str, ArmView]:
    """Activations and answers of every model: the fit split, and the neutral prompts."""
    asked = PromptPairs(NEUTRAL, neutral.fit, neutral.held_out, "list")
    views = context.map(
        read_arm,
        [
            ArmJob(
                arm=name,
                model=one.model.model_copy(update={"id": folders[one.model.id]}),
                runtime=config.runtime,
                chat=config.chat,
                judge=judge,
                max_new_tokens=config.answers_max_new_tokens,
                pairs=prompts.pairs["fit"],
                contrasts={NEUTRAL: asked},
                positions=(config.position,),
            )
            for name, one in config.models.items()
        ],
        "reading models",
    )
    return {view.arm: view for view in views}


def check_comparable(config: SimilaritySettings, views: Views, neutral: NeutralPrompts) -> None:
    """Refuse models whose numbers would not mean what the tables say.

    Raises:
        ConfigError: A position of several tokens, the layer `attacked`, which no model has here, or
            a refusal token that is not in the model's vocabulary.
        SiteError: A claim, or transfer, at a layer that a model does not have.
        ModelError: Chat templates that differ, a base of another width, or a width that no map
            bridges.
        PromptError: Too few neutral prompts for a map.
    """
    first = next(iter(views.values()))
    if len(first.positions) > 1:
        named = ", ".join(map(str, first.positions))
        raise ConfigError(
            f"position '{config.position}' names {len(first.positions)} tokens ({named}), and "
            "models are compared at one. Name one of them."
        )
    _check_layers(config, views)
    _check_refusal_tokens(config, views)
    _check_templates(config, views)
    _check_bases(config, views)
    _check_widths(config, views)
    _check_map_prompts(config, views, neutral)


def _check_layers(config: SimilaritySettings, views: Views) -> None:
    """Before hours of work: what is asked about a layer is resolved only when all is measured."""
    for claim in config.findings:
        if isinstance(claim.cell, AtLayer):
            for first, _ in claim.cell.pairs():
                resolve_layer(claim.cell.layer, views[first].dims.n_layers, None)
    if config.transfer is not None:
        for name in config.transfer.models or config.models:
            resolve_layer(config.transfer.layer, views[name].dims.n_layers, None)


def _check_refusal_tokens(config: SimilaritySettings, views: Views) -> None:
    for name, ids in config.refusal_tokens.items():
        n = views[name].dims.d_vocab
        beyond = [token for token in ids if not 0 <= token < n]
        if beyond:
            raise ConfigError(
                f"refusal_tokens.{name} names {', '.join(map(str, beyond))}, and the vocabulary of "
                f"'{name}' has {n} tokens: ids run from 0 to {n - 1}. Look the ids up in its own "
                "tokenizer, or leave the key out to have them found."
            )


def _check_templates(config: SimilaritySettings, views: Views) -> None:
    if config.templates == "own":
        return
    # The same words under another template are other tokens, and `last` is another of them.
    by_template: dict[str, list[str]] = {}
    for name, view in views.items():
        template = view.identity.get("template", "") if config.chat.chat_template is None else ""
        by_template.setdefault(template, []).append(name)
    if len(by_template) > 1:
        listed = "; ".join(
            f"{', '.join(names)}: {template[:8] or 'none'}"
            for template, names in by_template.items()
        )
        raise ModelError(
            f"comparing models: their chat templates differ (hash of each: {listed}), so position "
            f"'{config.position}' is another token in another context. Give one "
            "`chat.chat_template` for all, or say `templates: own` to read each under its own and "
            "have the page say so."
        )


def _check_bases(config: SimilaritySettings, views: Views) -> None:
    """Training keeps the width, so a base of another width is not the one."""
    first_of: dict[str, str] = {}
    for name, view in views.items():
        other = first_of.setdefault(space_of(name, config.models), name)
        here, there = view.dims.d_model, views[other].dims.d_model
        if here != there:
            raise ModelError(
                f"comparing models: by `base`, '{other}' and '{name}' share a space, but d_model "
                f"is {there} and {here}, so neither was trained from the other or from one base. "
                "Correct the `base` key, or leave it out and have them compared through a map."
            )


def _check_widths(config: SimilaritySettings, views: Views) -> None:
    if config.maps.methods:
        return
    widths = {name: view.dims.d_model for name, view in views.items()}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ModelError(
            f"comparing models of other widths (d_model: {listed}) without a map: a direction of "
            "one has no cosine with one of another. Give `maps.methods`, such as [ridge], or "
            "compare models of one width."
        )


def _check_map_prompts(config: SimilaritySettings, views: Views, neutral: NeutralPrompts) -> None:
    mapped = mapped_pairs(config, config.maps)
    if not mapped:
        return
    width, name = max((views[one].dims.d_model, one) for pair in mapped for one in pair)
    per_dimension = config.maps.rows_per_dimension
    needed = round(per_dimension * width)
    if len(neutral.fit) < needed:
        raise PromptError(
            f"fitting maps on {len(neutral.fit)} neutral prompts: '{name}' has d_model {width}, "
            f"and the rule is {per_dimension:g} prompts a dimension (maps.rows_per_dimension), so "
            f"{needed}. With fewer, some dimensions are seen by next to no prompt and the map "
            "invents them. Give more neutral prompts; or lower the rule, and trust only what the "
            "held-out R² supports."
        )


def mapped_pairs(config: SimilaritySettings, settings: MapSettings) -> tuple[Pair, ...]:
    """Ordered pairs between which maps are fitted."""
    if not settings.methods:
        return ()
    models = config.models
    spaces = {name: space_of(name, models) for name in models}
    chosen = settings.between or tuple(
        (a, b) for a, b in itertools.combinations(models, 2) if spaces[a] != spaces[b]
    )
    return tuple(dict.fromkeys(pair for a, b in chosen for pair in ((a, b), (b, a))))
