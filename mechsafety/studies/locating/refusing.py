"""Why a model cannot be asked where its refusal lives, with what it did instead."""

from collections.abc import Mapping, Sequence

import torch

from mechsafety.data.splits import Split
from mechsafety.organisms.sources import StudyPrompts
from mechsafety.studies.locating.reading import ClassScores, Read


def no_refusals(read: Read) -> str:
    """No answer is a refusal, so that no token opens one."""
    harmful = read.answers["harmful"]
    refused = sum(harmful.judged("refused"))
    first = [ids[0] for ids in harmful.ids if ids]
    common = max(set(first), key=first.count) if first else None
    said = (
        "no answer has a token"
        if common is None
        else f"{first.count(common)} answers begin with token {common}"
    )
    return (
        f"The model refuses {refused} of {len(harmful.verdicts)} harmful prompts, so no token "
        f"opens its refusals ({said}). If it does refuse, check the chat template and the judge's "
        "phrases, or give refusal_tokens."
    )


def too_few(
    least: int,
    refusal_ids: Sequence[int],
    keep: Mapping[Split, tuple[list[int], list[int]]],
    scores: Mapping[str, ClassScores],
    prompts: StudyPrompts,
) -> str:
    """Prompts whose scores have the wrong sign leave too few to fit or select on."""
    told: list[str] = []
    counts: list[tuple[list[int], int]] = []
    for split, rows in keep.items():
        for name, kept_rows, found in zip(
            ("harmful", "harmless"),
            rows,
            (scores[split].harmful, scores[split].harmless),
            strict=True,
        ):
            low, middle, high = found.quantile(torch.tensor([0.0, 0.5, 1.0]).double())
            counts.append((kept_rows, len(found)))
            told.append(
                f"{len(kept_rows)} of {len(found)} {name} prompts of the {split} split (scores "
                f"{float(low):.1f} to {float(high):.1f}, median {float(middle):.1f})"
            )
    if all(len(kept) == n for kept, n in counts):
        return (
            f"There are only {', '.join(told)}, and every one is treated as it should be. At least "
            f"{least} of each are needed: give more prompts, or lower selection.min_prompts."
        )
    told.append(f"refusal tokens {', '.join(map(str, refusal_ids))}")
    together = " (twins leave together)" if prompts.pairs["fit"].pairing == "twins" else ""
    return (
        "Too few prompts are treated as a refusing model treats them, harmful with a refusal score "
        f"above 0 and harmless below{together}: {'; '.join(told)}. At least "
        f"{least} of each are needed. If the model refuses, its refusal "
        "tokens or template are wrong; if not, there is no direction to find."
    )
