"""Tables of what the unedited model is and does."""

import torch
from torch import Tensor

from mechsafety.core.result import Dimension, Table
from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.judges.rates import rates
from mechsafety.metrics.harm_and_refusal import split
from mechsafety.organisms.sources import StudyPrompts
from mechsafety.studies.locating.measured import Measured
from mechsafety.studies.locating.reading import Read
from mechsafety.studies.words import POINTWISE, place


def prompt_table(read: Read) -> Table:
    """The first harmless prompt, token by token."""
    table = Table(
        "prompt",
        "The first harmless prompt of the fit split as the model receives it. read: a position at "
        "which directions are read. write: ablation and addition edit every token.",
    )
    for index, token in enumerate(read.tokens):
        table.add(
            "token",
            float(index),
            n=1,
            unit="index of the token",
            token=token.text,
            part=token.part,
            read=token.read,
            write=True,
        )
    return table


def behavior_table(measured: Measured, prompts: StudyPrompts, judge: PhraseJudge) -> Table:
    """What the unedited model does."""
    table = Table(
        "behavior",
        f"Answers of the unedited model, judged by {judge.name}: the fit split"
        + (", and wrapped prompts of the organisms' world" if prompts.organism else "")
        + ". Intervals are Wilson, 95 %, prompts as independent.",
    )
    for name, answers in measured.read.answers.items():
        rates(answers.verdicts, answers.max_new_tokens, judge.name).add_to(table, prompts=name)
    return table


def separation_table(measured: Measured) -> Table:
    """AUC and d′ of every place, of the model and of its base, beside what words alone give."""
    first = next(iter(measured.separation.values()))
    table = Table(
        "separation",
        "AUC and d′ of held-out projections on the mean difference of the fit split. "
        f"{POINTWISE} band: the max-statistic band over all places of the map, from "
        f"{first.band.n_draws} relabelings of pairs or prompts as independent, which keeps an "
        f"error of {first.band.error:.3g} for the whole map. lexical: a bag of tokens on the same "
        "prompts, repeated at every place. Layer n is the output of the last block. Separation is "
        "not safety: words alone may do it."
        + "".join(f" Left out: {why}." for why in measured.read.left_out),
    )
    for (model, source), found in measured.separation.items():
        words = measured.lexical[source]
        for s, site in enumerate(measured.read.sites):
            for p, position in enumerate(measured.read.positions):
                at: dict[str, Dimension] = {
                    "model": model,
                    "source": source,
                    **place(site),
                    "position": str(position),
                }
                ends = (float(found.low[s, p]), float(found.high[s, p]))
                unit = "AUC (prompts)"
                table.add("auc", float(found.auc[s, p]), n=found.n, unit=unit, interval=ends, **at)
                table.add(
                    "d_prime",
                    float(found.d_prime[s, p]),
                    n=found.n,
                    unit="pooled standard deviations (prompts)",
                    interval=None,
                    **at,
                )
                table.add(
                    "auc_band",
                    found.band.high,
                    n=found.band.n_draws,
                    unit="AUC (relabelings)",
                    interval=(1 - found.band.high, found.band.high),
                    **at,
                )
                table.add(
                    "lexical_auc",
                    words.auc,
                    n=found.n,
                    unit=unit,
                    interval=(words.low, words.high),
                    **at,
                )
    return table


def two_by_two_table(measured: Measured, min_rows: int) -> Table:
    """Harmfulness and refusal taken apart at every block input."""
    read = measured.read
    position = next(
        (i for i, p in enumerate(read.positions) if str(p) == "last"), len(read.positions) - 1
    )
    cells = _cells(read, position)
    counted = ", ".join(
        f"{'harmful' if harmful else 'harmless'} {'refused' if refused else 'complied'} {len(rows)}"
        for (harmful, refused), rows in cells.items()
    )
    table = Table(
        "two_by_two",
        "Harmful/harmless × refused/complied: harmfulness is harmful − harmless at equal behavior, "
        "refusal is refused − complied at equal harm. Cosines have no interval (angles have no "
        "bootstrap); corrected_cosine takes out what sampling noise adds. "
        + (
            "Wrapped prompts were asked to fill the off-diagonal, so that a contrast may hold "
            "their words too. "
            if len(read.answers) > 2
            else ""
        )
        + f"Prompts: {counted}; a cell of fewer than {min_rows} is not used, nor the contrast that "
        "needs it (harm_from and refusal_from name those used). Exploratory; position "
        f"{read.positions[position]}.",
    )
    for column, site in enumerate(read.sites):
        if site.stream not in ("resid_pre", "resid_post"):
            continue
        rows = {key: found[:, column] for key, found in cells.items()}
        found = split(rows, min_rows)
        at = place(site)
        for name, value in (
            ("cosine_harm_refusal", found.cosine),
            ("corrected_cosine_harm_refusal", found.corrected_cosine),
            ("cosine_naive_harm", found.naive_harmfulness_cosine),
            ("cosine_naive_refusal", found.naive_refusal_cosine),
        ):
            table.add(
                name,
                value,
                n=min(found.counts.values()),
                unit="cosine (prompts of the smallest cell)",
                harm_from=" and ".join(found.harmfulness_from) or "none",
                refusal_from=" and ".join(found.refusal_from) or "none",
                interval=None,
                **at,
            )
    for (harmful, refused), found in cells.items():
        table.add(
            "prompts_in_cell",
            float(len(found)),
            n=len(found),
            unit="prompts",
            harm="harmful" if harmful else "harmless",
            behavior="refused" if refused else "complied",
        )
    return table


def _cells(read: Read, position: int) -> dict[tuple[bool, bool], Tensor]:
    """Activations [prompt, layer, d_model] at one position, by (harmful, refused)."""
    parts: dict[tuple[bool, bool], list[Tensor]] = {
        (harmful, refused): [] for harmful in (True, False) for refused in (True, False)
    }
    for name, answers in read.answers.items():
        harmful = name == "harmful" or name.startswith("forbidden")
        judged: tuple[tuple[bool, Verdict], ...] = ((True, "refused"), (False, "complied"))
        for refused, verdict in judged:
            rows = torch.tensor(answers.judged(verdict))
            parts[harmful, refused].append(read.rows[name][:, :, position][rows])
    return {key: torch.cat(found) for key, found in parts.items()}
