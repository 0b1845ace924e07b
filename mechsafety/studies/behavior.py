"""What unedited models do with the prompts that directions are fitted on."""

from collections.abc import Mapping, Sequence

from mechsafety.core.result import Table
from mechsafety.data.prompts import PromptPairs
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.judges.rates import rates
from mechsafety.studies.arms import ArmView


def behavior_table(
    views: Sequence[ArmView],
    judge: PhraseJudge,
    pairs: PromptPairs,
    clusters: Mapping[str, Sequence[str]],
) -> Table:
    """What each unedited arm does with the pairs that its directions are fitted on."""
    table = Table(
        "behavior",
        f"Answers of the unedited arms to the {len(pairs.first)} harmful and {len(pairs.second)} "
        f"harmless prompts of the fit split, judged by {judge.name}. Intervals are Wilson, 95 %, "
        "with clusters undivided.",
    )
    for view in views:
        for side, answers in (("harmful", view.harmful), ("harmless", view.harmless)):
            found = rates(answers.verdicts, answers.max_new_tokens, judge.name, clusters[side])
            found.add_to(table, arm=view.arm, prompts=side)
    return table
