"""Where does the refusal direction live?

Published work picks one (layer, position) and stops (arXiv:2406.11717). This study maps the whole
model: how well every place separates harmful from harmless prompts, what ablating and adding the
direction read there causes, in which layers and at which tokens that effect arises, which heads
and MLPs write the direction, and whether there is a second one; each with its control.
"""

from dataclasses import asdict
from typing import Final

from mechsafety.core.context import Context
from mechsafety.core.result import Result, Tolerances
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.organisms.sources import study_prompts
from mechsafety.studies.arms import ORGANISM_NOTE, let_go
from mechsafety.studies.locating.causing import causes
from mechsafety.studies.locating.claims import check_layers
from mechsafety.studies.locating.completions import keep_completions
from mechsafety.studies.locating.figures import figures
from mechsafety.studies.locating.findings import finding
from mechsafety.studies.locating.frame import Frame, ask_of
from mechsafety.studies.locating.output import tables, tensors, token_use
from mechsafety.studies.locating.separating import read_models, separation_of
from mechsafety.studies.locating.settings import LocalitySettings
from mechsafety.studies.token_use import token_lines, token_provenance
from mechsafety.studies.tolerances import EXACT, EXTENT, RATE, RATES, SCORE, SHARE, each


class Config(LocalitySettings):
    """Settings of the locality study."""


TOLERANCES: Final = Tolerances(
    metrics={
        **RATES,
        **each(
            SHARE,
            "auc",
            "auc_band",
            "lexical_auc",
            "cosine_harm_refusal",
            "corrected_cosine_harm_refusal",
            "cosine_naive_harm",
            "cosine_naive_refusal",
            "cosine_next_layer",
            "cosine_next_layer_controls",
            "cosine_next_position",
            "cosine_next_position_controls",
            "cosine_to_winner",
            "overlap_controls",
            "refusal_score_auc",
            "independence_first_from_second",
            "independence_second_from_first",
        ),
        **each(
            SCORE,
            "d_prime",
            "bypass",
            "bypass_effect",
            "bypass_effect_controls",
            "induce",
            "induce_effect",
            "induce_effect_controls",
            "kl",
            "cross_entropy",
            "refusal_score",
            "refusal_score_controls",
            "refusal_score_all_controls",
            "direct_logit_effect",
            "effect",
            "effect_alone",
            "effect_both",
            "effect_controls",
            "effect_first",
            "score_gap",
            "score_gap_controls",
        ),
        **each(
            RATE,
            "adjusted_p",
            "bypass_effect_adjusted_p",
            "induce_effect_adjusted_p",
            "content",
            "frequency",
            "no_candidate_kept",
            "share",
        ),
        **each(EXTENT, "energy_ratio_controls"),
        **each(EXACT, "token", "prompts_in_cell"),
    },
    tensors=1e-4,
    margins=0.1,
)


def run(config: Config, context: Context) -> Result:
    """Read the model, map it, choose the direction and locate it."""
    with context.stage("prompts"):
        prompts = study_prompts(config.prompts, config.seed)
        judge = config.judge or PhraseJudge(phrases="organism" if prompts.organism else "anchored")
    context.used("prompts", prompts.hashes)
    named = [config.model.id] + ([config.base.id] if config.base else [])
    folders = context.model_folders(named)
    frame = Frame(config, context, prompts, judge, ask_of(config, config.model, folders))
    try:
        with context.stage("reading"):
            read, base = read_models(frame, folders)
        # Now, because a claim about a layer that is not there must not end a night's work.
        check_layers(config.findings, read.dims.n_layers)
        with context.stage("separation"):
            measured = separation_of(frame, read, base)
        measured = causes(frame, measured)
    finally:
        let_go()
    keep_completions(frame, measured)
    used = token_use(measured)
    context.keep_token_ids("token_ids", token_lines(used))
    with context.stage("findings"):
        found = [finding(claim, measured) for claim in config.findings]
    return Result(
        tables=tables(measured, prompts, judge, config.localize.two_by_two_min),
        findings=tuple(found),
        figures=figures(measured),
        tensors=tensors(measured),
        notes=(ORGANISM_NOTE,) if prompts.organism else (),
        tolerances=TOLERANCES,
        provenance={
            "prompts": prompts.hashes,
            "judge": judge.name,
            "models": {
                name: {**one.identity, "probes": [asdict(probe) for probe in one.probes]}
                for name, one in (("model", read), ("base", base))
                if one is not None
            },
            **token_provenance(used),
            "refusal_tokens": list(measured.causal.refusal_ids) if measured.causal else [],
        },
    )
