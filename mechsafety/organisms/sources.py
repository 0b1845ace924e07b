"""The prompts of a study: the organisms' own world, or files of the user's, split by content."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from mechsafety.core.errors import PromptError
from mechsafety.core.seeding import derive_seed
from mechsafety.data.neutral import FileNeutral, OrganismNeutral, split_neutral
from mechsafety.data.pairs import FilePairs, OrganismPairs
from mechsafety.data.prompts import PromptPairs, PromptSet, normalized
from mechsafety.data.splits import Split, split_pairs
from mechsafety.organisms.prompts import contrasts, neutral, twins


@dataclass(frozen=True, slots=True)
class StudyPrompts:
    """Harmful and harmless prompts of each split, and contrasts that are not about harm."""

    pairs: Mapping[Split, PromptPairs]
    """Fit a direction, select its site, evaluate it: disjoint by content."""
    contrasts: Mapping[str, PromptPairs]
    """Pairs that differ in something other than harm (fit split); none for files, whose
    unrelated contrasts are re-pairings within a class."""
    organism: bool
    """Whether the prompts are the synthetic world's."""

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every set, for the record."""
        named = {**{f"split.{s}": p for s, p in self.pairs.items()}, **self.contrasts}
        return {name: pairs.hash for name, pairs in named.items()}


def study_prompts(source: OrganismPairs | FilePairs, seed: int) -> StudyPrompts:
    """Make or read the prompts, and split them.

    Raises:
        PromptError: A file that cannot be read or split; says which and why.
    """
    if isinstance(source, FilePairs):
        pairs = split_pairs(source.read(), source.fractions, derive_seed(seed, "splits"))
        return StudyPrompts(pairs, {}, organism=False)
    splits: tuple[Split, ...] = ("fit", "select", "evaluate")
    drawn: dict[Split, PromptPairs] = {
        split: twins(source.count(split), seed, split, preset=source.preset) for split in splits
    }
    unrelated = contrasts(source.count("fit"), seed, "fit", preset=source.preset)
    return StudyPrompts(drawn, dict(unrelated), organism=True)


@dataclass(frozen=True, slots=True)
class NeutralPrompts:
    """Prompts that are not about harm, and that no contrast of the study holds."""

    fit: PromptSet
    """Maps between models are fitted on these."""
    held_out: PromptSet
    """How well a map fits is measured on these: no content of `fit` is among them."""

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of both sets, for the record."""
        return {"neutral.fit": self.fit.hash, "neutral.held_out": self.held_out.hash}


def neutral_prompts(
    source: OrganismNeutral | FileNeutral, pairs: StudyPrompts, seed: int
) -> NeutralPrompts:
    """Make or read neutral prompts: two parts, disjoint by content, without the study's prompts.

    Prompts of the organisms' world are drawn past those of the study (all splits and contrasts);
    a file that shares some with it is refused, since which rows to drop is not ours to say.

    Raises:
        PromptError: A file that cannot be read or split, or that holds prompts of the study.
    """
    contrasted = [*pairs.pairs.values(), *pairs.contrasts.values()]
    taken = {
        normalized(prompt.instruction)
        for contrast in contrasted
        for side in contrast.sets
        for prompt in side
    }
    if isinstance(source, OrganismNeutral):
        # The splits of the world's verb-object pairs keep content apart, as they do for twins.
        draw = partial(neutral, look_alikes=source.look_alikes, preset=source.preset, avoid=taken)
        return NeutralPrompts(
            fit=draw(source.n_fit, seed, "fit"),
            held_out=draw(source.n_held_out, seed, "evaluate"),
        )
    read = source.read()
    shared = [prompt.id for prompt in read if normalized(prompt.instruction) in taken]
    if shared:
        raise PromptError(
            f"reading neutral prompts from {read.source}: {len(shared)} of its {len(read)} rows "
            f"are also among the harmful and harmless prompts (such as prompt {shared[0]}), so a "
            "map fitted on them would have seen what is compared through it. Remove these rows "
            "from the neutral file, or give a file of other prompts; case and spacing do not make "
            "another prompt."
        )
    return NeutralPrompts(*split_neutral(read, source.held_out, derive_seed(seed, "neutral")))
