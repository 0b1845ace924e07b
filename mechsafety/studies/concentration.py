"""Does latent adversarial training concentrate refusal in fewer directions, and is it about harm?

For every arm × layer × position: the spectrum of harmful − harmless activations, in sample and
cross-fitted, under the channel controls and beside contrasts that are not about harm; then what
ablating each arm's direction does in every other arm. The published claim (arXiv:2504.18872) is
that LAT holds about 75 % of the variance in two components, against about 50 % for SSFT and AT.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, cast

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from mechsafety.core.config import Name, StudyConfig
from mechsafety.core.config_faults import values_read_as_others
from mechsafety.core.context import Context
from mechsafety.core.errors import ModelError
from mechsafety.core.layers import LayerRule, resolve_layer
from mechsafety.core.positions import Position, PositionText
from mechsafety.core.result import Result, Table, Tolerances
from mechsafety.core.seeding import derive_seed
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.pairs import PairsSource
from mechsafety.data.prompts import PromptPairs
from mechsafety.effects.ablation_matrix import Source
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.metrics.pairing import Pairing
from mechsafety.metrics.resampling import MIN_CLUSTERS
from mechsafety.models.spec import ModelSpec
from mechsafety.models.tokens import TokenUse
from mechsafety.organisms.sources import StudyPrompts, study_prompts
from mechsafety.studies.arms import (
    ORGANISM_NOTE,
    Arm,
    ArmJob,
    ArmView,
    cluster_word,
    clusters_of,
    common_refusal_ids,
    completion_lines,
    first_of,
    harmless_inputs,
    read_arm,
    subset,
)
from mechsafety.studies.attack import Attacked, AttackJob, AttackMatrix, attack_arm, source
from mechsafety.studies.behavior import behavior_table
from mechsafety.studies.concentration_findings import Claim, Measured, finding
from mechsafety.studies.concentration_tables import (
    ablation_table,
    figures,
    projections,
)
from mechsafety.studies.precision import precision_notes
from mechsafety.studies.samples import undivided
from mechsafety.studies.self_test import SelfTestJob, self_test, self_test_table
from mechsafety.studies.spectra import (
    Exclusions,
    SpectraJob,
    SpectraSettings,
    components_table,
    exclusions,
    spectra,
    spectra_table,
)
from mechsafety.studies.token_use import token_lines, token_provenance
from mechsafety.studies.tolerances import EXACT, EXTENT, RATE, RATES, SCORE, SHARE, each

MIN_REFUSALS: Final = 0.1
"""Share of harmful prompts that an arm must refuse to be attacked: else nothing can be lost."""


class Config(StudyConfig):
    """Settings of the concentration study."""

    arms: dict[Name, Arm]
    """Name → model. One arm is resident at a time (per worker)."""
    model: ModelSpec | None = None
    """Short for a run of one arm named `model`; it replaces `arms`."""
    prompts: PairsSource
    """The organisms' world, or files."""
    chat: ChatFormat = ChatFormat()
    """System prompt, thinking state and chat template."""
    judge: PhraseJudge | None = None
    """None: the organisms' phrases on organism prompts, else the anchored list."""
    refusal_tokens: tuple[NonNegativeInt, ...] | None = None
    """Ids that open a refusal; None finds them in each arm's own refusals."""
    positions: tuple[PositionText, ...] = Field(default=("last", "eoi"), min_length=1)
    """Token positions that are read."""
    cluster_by: str | None = None
    """Label of the prompts that resampling keeps together, such as `kind`; None: their group."""
    unattacked_layer: LayerRule = "depth:0.35"
    """The layer that `attacked` means in a run none of whose arms has an attacked layer."""
    answers_max_new_tokens: PositiveInt = 24
    """Length in tokens of the answers that say how each arm behaves on the fitted pairs."""
    spectra: SpectraSettings
    """How concentrated the contrast is, and others that are not about harm."""
    attack: AttackMatrix
    """What ablating each arm's directions does in it and in the others."""
    training_seeds: tuple[NonNegativeInt, ...] = ()
    """Organisms of these training seeds, for findings of scope `method`; empty: as `arms` says."""
    findings: tuple[Claim, ...] = ()
    """Claims with their primary cells, declared before anything is measured."""
    findings_for_model: tuple[Claim, ...] = ()
    """Claims of a run of one `model`, whose arm is called `model`; they then replace `findings`."""

    @model_validator(mode="wrap")
    @classmethod
    def _claims_of_this_run(cls, raw: Any, validate: Callable[[Any], "Config"]) -> "Config":
        # A slip in the claims that this run does not test would be found by the one that does.
        config = validate(raw)
        if not isinstance(raw, Mapping) or not config.findings_for_model:
            return config
        given = dict(cast("Mapping[str, Any]", raw))
        if faults := values_read_as_others(config, given):
            raise ValueError(faults[0])
        # Only the claims that this run tests stay in the config, because all that stand there are
        # recorded as declared.
        of_model = given.pop("findings_for_model")
        return validate({**given, "findings": of_model} if config.model else given)

    @model_validator(mode="after")
    def _arms_can_be_told_apart(self) -> "Config":
        if not self.arms and self.model is None:
            raise ValueError("`arms` holds none: give at least one arm, or a `model`")
        if self.training_seeds and self.model is not None:
            raise ValueError("training_seeds are of organisms' arms, and `model` is one model")
        if len(set(self.training_seeds)) < len(self.training_seeds):
            raise ValueError(
                "training_seeds names a seed twice; findings of scope `method` take each as a "
                "training of its own"
            )
        return self

    def compared(self) -> Mapping[str, Arm]:
        """The arms of this run."""
        return {"model": Arm(model=self.model)} if self.model is not None else self.arms


TOLERANCES: Final = Tolerances(
    metrics={
        **RATES,
        **each(
            SHARE,
            "cross_fitted_top2_share",
            "excess_over_harmless_harmless",
            "mean_energy_share",
            "share",
            "spatial_sign_top2_share",
            "top2_share",
            "top2_share_harmful_harmful_repaired",
            "top2_share_harmless_harmless_repaired",
            "top2_share_permuted_labels",
            "within_class_energy_share",
            "overlap_controls",
            "refusal_score_auc",
        ),
        **each(
            EXTENT,
            "effective_rank",
            "energy_effective_rank",
            "participation_ratio",
            "row_participation",
            "stable_rank",
            "highest_elsewhere",
            "massive_channel",
            "energy_ratio_controls",
        ),
        **each(
            SCORE,
            "cross_entropy_harmful",
            "cross_entropy_harmless",
            "kl_harmful",
            "kl_harmless",
            "refusal_score_harmful",
            "refusal_score_harmful_controls",
            "refusal_score_harmless",
        ),
        **each(RATE, "content_harmful", "content_harmless", "detection_rate"),
        **each(EXACT, "smallest_detected"),
    },
    tensors=1e-4,
    margins=0.1,
)


def run(config: Config, context: Context) -> Result:
    """Measure every arm, then every claim."""
    with context.stage("prompts"):
        prompts = study_prompts(config.prompts, config.seed)
        judge = config.judge or PhraseJudge(phrases="organism" if prompts.organism else "anchored")
    context.used("prompts", prompts.hashes)
    seeds = config.training_seeds or (None,)
    named = [arm.model.id for seed in seeds for arm in _arms_of_seed(config, seed).values()]
    folders = context.model_folders(named)
    runs = [_measure(config, context, prompts, judge, folders, seed) for seed in seeds]
    used = {label: sets for one in runs for label, sets in one.token_use().items()}
    context.keep_token_ids("token_ids", token_lines(used))
    with context.stage("findings"):
        notes = precision_notes("arms", runs[0].views)
        found = [finding(claim, [one.measured for one in runs], notes) for claim in config.findings]
    return Result(
        tables=_merged([one.tables for one in runs]),
        findings=tuple(found),
        figures=figures(
            runs[0].measured, config.compared(), seeds, len(prompts.pairs["fit"].first)
        ),
        tensors={name: t for one in runs for name, t in one.tensors.items()},
        notes=(ORGANISM_NOTE,) if prompts.organism else (),
        tolerances=TOLERANCES,
        provenance={
            "prompts": prompts.hashes,
            "judge": judge.name,
            "models": {_label(arm, one.seed): _about(v) for one in runs for arm, v in one.views},
            **token_provenance(used),
        },
    )


@dataclass(frozen=True)
class _Run:
    """The arms of one training seed, measured."""

    seed: int | None
    views: tuple[tuple[str, ArmView], ...]
    attacked: Mapping[str, Attacked]
    measured: Measured
    tables: tuple[Table, ...]
    tensors: Mapping[str, Tensor]

    def token_use(self) -> dict[str, Mapping[str, TokenUse]]:
        """Every prompt set that each arm saw."""
        return {
            _label(arm, self.seed): {
                **view.token_use,
                **(self.attacked[arm].token_use if arm in self.attacked else {}),
            }
            for arm, view in self.views
        }


def _measure(
    config: Config,
    context: Context,
    prompts: StudyPrompts,
    judge: PhraseJudge,
    folders: Mapping[str, str],
    training_seed: int | None,
) -> _Run:
    arms = _arms_of_seed(config, training_seed)
    specs = {
        name: arm.model.model_copy(update={"id": folders[arm.model.id]})
        for name, arm in arms.items()
    }
    fit, held_out = prompts.pairs["fit"], prompts.pairs["evaluate"]
    with context.stage("reading arms"):
        views = context.map(
            read_arm,
            [
                ArmJob(
                    arm=name,
                    model=spec,
                    runtime=config.runtime,
                    chat=config.chat,
                    judge=judge,
                    max_new_tokens=config.answers_max_new_tokens,
                    pairs=fit,
                    contrasts=prompts.contrasts,
                    positions=config.positions,
                )
                for name, spec in specs.items()
            ],
            "reading arms",
        )
    _refuse_mixed_depths(views)
    twins = fit.pairing == "twins"
    pairings: tuple[Pairing, ...] = ("list", "all") if twins else ("all",)
    refusing = [v.arm for v in views if _share(v.harmful.judged("refused")) >= MIN_REFUSALS]
    with context.stage("spectra"):
        out, massive = exclusions(views, config.spectra, twins, refusing)
        cells = dict(
            zip(
                specs,
                context.map(
                    spectra,
                    [_spectra_job(config, v, prompts, pairings, out) for v in views],
                    "spectra",
                ),
                strict=True,
            )
        )
    attacked_layers = _attacked_layers(config, arms, views[0].dims.n_layers)
    layer = min(attacked_layers.values())
    with context.stage("self-test"):
        jobs = [_self_test_job(config, view, layer) for view in views]
        curves = dict(zip(specs, context.map(self_test, jobs, "self-test"), strict=True))
    layers = _attack_layers(config, arms, views[0])
    with context.stage("ablation"):
        sources = [s for v in views for s in _sources(config, v, layers, pairings[0])]
        attacked = context.map(
            attack_arm,
            [
                _attack_job(config, view, views, specs[view.arm], judge, held_out, sources)
                for view in views
                if view.arm in refusing
            ],
            "ablating",
        )
    by_arm = {one.arm: one for one in attacked}
    _keep_completions(config, context, views, attacked, prompts, training_seed)
    measured = Measured(
        cells=cells,
        attacked=by_arm,
        attacked_layer=attacked_layers,
        n_layers=views[0].dims.n_layers,
        positions=tuple(map(str, views[0].positions)),
        pairings=pairings,
        massive=bool(out.massive),
        matrix=config.attack,
        clusters=clusters_of(subset(held_out.first, config.attack.n), config.cluster_by),
        harmless_clusters=clusters_of(subset(held_out.second, config.attack.n), config.cluster_by),
        seed=config.seed,
        resampling_notes=_resampling_notes(config, fit, held_out),
    )
    tables = (
        behavior_table(
            views,
            judge,
            fit,
            {
                "harmful": clusters_of(fit.first, config.cluster_by),
                "harmless": clusters_of(fit.second, config.cluster_by),
            },
        ),
        spectra_table(cells),
        components_table(cells),
        massive,
        self_test_table(curves),
        ablation_table(attacked, measured, judge),
    )
    return _Run(
        seed=training_seed,
        views=tuple((v.arm, v) for v in views),
        attacked=by_arm,
        measured=measured,
        tables=tuple(_of_seed(table, training_seed) for table in tables),
        tensors={
            **projections(views, layer, {v.arm: _label(v.arm, training_seed) for v in views}),
            **{_subspace_name(s, training_seed): s.subspace.basis for s in sources},
        },
    )


# --- jobs --------------------------------------------------------------------------------------


def _arms_of_seed(config: Config, training_seed: int | None) -> Mapping[str, Arm]:
    """The arms, as the organisms of one training seed where seeds are given."""
    arms = config.compared()
    if training_seed is None:
        return arms
    return {
        name: arm.model_copy(
            update={
                "model": arm.model.model_copy(update={"id": f"{arm.model.id}@seed={training_seed}"})
            }
        )
        for name, arm in arms.items()
    }


def _spectra_job(
    config: Config,
    view: ArmView,
    prompts: StudyPrompts,
    pairings: tuple[Pairing, ...],
    out: Exclusions,
) -> SpectraJob:
    clusters, second_clusters = undivided(prompts.pairs["fit"], config.cluster_by)
    return SpectraJob(
        arm=view.arm,
        pairs=view.pairs,
        contrasts=view.contrasts,
        positions=tuple(map(str, view.positions)),
        settings=config.spectra,
        pairings=pairings,
        exclusions=out,
        clusters=clusters,
        second_clusters=second_clusters,
        contrast_clusters={
            name: undivided(pairs, config.cluster_by)[0]
            for name, pairs in prompts.contrasts.items()
        },
        seed=derive_seed(config.seed, "spectra"),
    )


def _self_test_job(config: Config, view: ArmView, layer: int) -> SelfTestJob:
    at = view.positions.index(Position("last"))
    return SelfTestJob(
        view.arm, view.pairs.second[:, layer, at], derive_seed(config.seed, "self-test")
    )


def _sources(
    config: Config, view: ArmView, layers: Sequence[int], pairing: Pairing
) -> list[Source]:
    """The arm's subspaces at each layer of the matrix, read at `last`."""
    at = view.positions.index(Position("last"))
    return [
        source(
            view.arm,
            view.sites[layer],
            rank,
            view.pairs.first[:, layer, at],
            view.pairs.second[:, layer, at],
            pairing,
        )
        for layer in layers
        for rank in config.attack.ranks
    ]


def _attack_job(
    config: Config,
    view: ArmView,
    views: Sequence[ArmView],
    spec: ModelSpec,
    judge: PhraseJudge,
    held_out: PromptPairs,
    sources: Sequence[Source],
) -> AttackJob:
    return AttackJob(
        arm=view.arm,
        model=spec,
        runtime=config.runtime,
        chat=config.chat,
        judge=judge,
        settings=config.attack,
        pairs=first_of(held_out, config.attack.n),
        sources=tuple(
            s for s in sources if s.arm == view.arm or s.subspace.k in config.attack.cross_ranks
        ),
        harmless_rows=harmless_inputs(view, view.positions.index(Position("last"))),
        refusal_ids=config.refusal_tokens
        if config.refusal_tokens is not None
        else common_refusal_ids(view, views),
        seed=derive_seed(config.seed, "ablation"),
    )


def _keep_completions(
    config: Config,
    context: Context,
    views: Sequence[ArmView],
    attacked: Sequence[Attacked],
    prompts: StudyPrompts,
    training_seed: int | None,
) -> None:
    """Every answer with its prompt's id, for the private folder; texts of prompts stay out."""
    fit, held_out = prompts.pairs["fit"], prompts.pairs["evaluate"]
    clean = (
        row
        for view in views
        for side, answers in zip(fit.sets, (view.harmful, view.harmless), strict=True)
        for row in completion_lines(
            {"arm": view.arm, "prompts": side.name}, side, answers, config.cluster_by
        )
    )
    ablated = (
        row
        for one in attacked
        for cell in one.cells
        for side, found in zip(held_out.sets, (cell.harmful, cell.harmless), strict=True)
        for row in completion_lines(
            {
                "arm": one.arm,
                "prompts": side.name,
                "source": cell.source.arm,
                "site": str(cell.source.site),
                "form": cell.form,
                "rank": cell.source.subspace.k,
            },
            subset(side, len(found.answers.texts)),
            found.answers,
            config.cluster_by,
        )
    )
    suffix = "" if training_seed is None else f"_{training_seed}"
    context.keep_completions(f"answers{suffix}", clean)
    context.keep_completions(f"ablated{suffix}", ablated)


# --- layers ------------------------------------------------------------------------------------


def _attacked_layers(config: Config, arms: Mapping[str, Arm], n_layers: int) -> dict[str, int]:
    """What the rule `attacked` means for each arm: its own layer, else that of the first that has.

    An arm attacked at its embeddings (layer 0) has no differences there at template tokens, so
    it too is read where the latently attacked arms are.
    """
    known = [a.attacked_layer for a in arms.values() if a.attacked_layer]
    default = known[0] if known else resolve_layer(config.unattacked_layer, n_layers, None)
    return {name: arm.attacked_layer or default for name, arm in arms.items()}


def _attack_layers(config: Config, arms: Mapping[str, Arm], view: ArmView) -> tuple[int, ...]:
    n_layers = view.dims.n_layers
    attacked = next(iter(_attacked_layers(config, _latent_first(arms), n_layers).values()))
    layers = (resolve_layer(rule, n_layers, attacked) for rule in config.attack.layers)
    inputs = dict.fromkeys(min(layer, n_layers - 1) for layer in layers)
    return tuple(inputs)


def _latent_first(arms: Mapping[str, Arm]) -> Mapping[str, Arm]:
    return dict(sorted(arms.items(), key=lambda item: not item[1].attacked_layer))


def _refuse_mixed_depths(views: Sequence[ArmView]) -> None:
    shapes = {v.arm: (v.dims.n_layers, v.dims.d_model) for v in views}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{arm} {n} × {d}" for arm, (n, d) in shapes.items())
        raise ModelError(
            "comparing arms: they must share depth and width, and have (layers × d_model) "
            f"{listed}. Compare models of one architecture here."
        )


# --- small pieces ------------------------------------------------------------------------------


def _resampling_notes(config: Config, fit: PromptPairs, held_out: PromptPairs) -> tuple[str, ...]:
    """What the intervals of this run rest on."""
    by = cluster_word(fit.first, config.cluster_by)
    counts = [len(set(clusters_of(pairs.first, config.cluster_by))) for pairs in (fit, held_out)]
    if undivided(fit, config.cluster_by)[0] is not None:
        return (
            f"Intervals keep clusters ({by}) whole: {counts[0]} behind spectra, {counts[1]} behind "
            "rates.",
        )
    if counts[0] < MIN_CLUSTERS:
        return (
            f"Only {counts[0]} clusters ({by}), too few to resample: prompts behind spectra are "
            "treated as independent.",
        )
    return ()


def _about(view: ArmView) -> dict[str, object]:
    return {**view.identity, "probes": [asdict(probe) for probe in view.probes]}


def _label(arm: str, training_seed: int | None) -> str:
    return arm if training_seed is None else f"{arm}@{training_seed}"


def _subspace_name(one: Source, training_seed: int | None) -> str:
    return f"subspace.{_label(one.arm, training_seed)}.{one.site}.rank{one.subspace.k}"


def _of_seed(table: Table, training_seed: int | None) -> Table:
    """The table with the training seed as a dimension, where there are several."""
    if training_seed is None:
        return table
    rows = [replace(r, dimensions={"training_seed": training_seed, **r.dimensions}) for r in table]
    return Table(table.name, table.caption, rows)


def _merged(by_run: Sequence[tuple[Table, ...]]) -> tuple[Table, ...]:
    """Tables of the same name joined, rows of one training seed after those of another."""
    return tuple(
        Table(parts[0].name, parts[0].caption, [row for part in parts for row in part])
        for parts in zip(*by_run, strict=True)
    )


def _share(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes)
