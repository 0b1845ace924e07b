"""What the model said, for the private folder of a run that keeps it."""

from collections.abc import Iterator

from mechsafety.data.prompts import PromptSet
from mechsafety.effects.answers import Answers
from mechsafety.studies.arms import completion_lines
from mechsafety.studies.locating.frame import Frame
from mechsafety.studies.locating.measured import Measured, Winner
from mechsafety.studies.locating.separating import wrapped_prompts

Line = dict[str, object]


def keep_completions(frame: Frame, measured: Measured) -> None:
    """Keep every answer with its prompt's id, so that it can be judged again (evidence.md 17).

    Texts of prompts stay out. Where the config keeps nothing, nothing is written.
    """
    fit, by = frame.prompts.pairs["fit"], frame.config.cluster_by
    sets = {"harmful": fit.first, "harmless": fit.second, **wrapped_prompts(frame.config)}
    frame.context.keep_completions(
        "answers",
        (
            line
            for name, answers in measured.read.answers.items()
            for line in completion_lines({"prompts": name}, sets[name], answers, by)
        ),
    )
    causal = measured.causal
    if causal is not None and causal.winner is not None:
        held_out = frame.prompts.pairs["evaluate"].sets
        frame.context.keep_completions("winner", _of_winner(causal.winner, *held_out, by))


def _of_winner(
    winner: Winner, harmful: PromptSet, harmless: PromptSet, by: str | None
) -> Iterator[Line]:
    done = winner.evaluated
    edits: list[tuple[Line, Answers | None, Answers]] = [
        ({"form": "none"}, done.harmful, done.harmless),
        *(
            ({"form": cell.form}, cell.harmful.answers, cell.harmless.answers)
            for cell in done.cells
        ),
        *(({"form": "add", "dose": one.dose}, None, one.answers) for one in done.added),
    ]
    for at, on_harmful, on_harmless in edits:
        if on_harmful is not None:
            yield from completion_lines({"prompts": "harmful", **at}, harmful, on_harmful, by)
        yield from completion_lines({"prompts": "harmless", **at}, harmless, on_harmless, by)
