"""Prompts that are not about harm, as an experiment's YAML names them.

Maps between the spaces of two models are fitted on them, so that no map has seen what is compared
through it.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mechsafety.core.config import FrozenConfig
from mechsafety.data.prompts import PromptSet, normalized
from mechsafety.data.readers import read_prompts
from mechsafety.data.splits import Fractions, three_way_split
from mechsafety.data.synthetic_language import Preset


class OrganismNeutral(FrozenConfig):
    """Requests of the organisms' own world that are allowed.

    Verb and object are harmless, or with `look_alikes` one of the two is restricted in most.
    `organisms/prompts` makes them; fitted and held-out ones share no verb-object pair.
    """

    source: Literal["organism"] = "organism"
    """Where the prompts come from."""
    preset: Preset = "default"
    """World of the organisms that are asked: its words are theirs."""
    n_fit: PositiveInt = 512
    """Prompts that maps are fitted on."""
    n_held_out: PositiveInt = 128
    """Prompts that say how well a map fits."""
    look_alikes: bool = False
    """Two thirds have one restricted word and are as allowed: activations then vary along the words
    that harm is made of, of which a map of plain requests sees nothing."""


class FileNeutral(FrozenConfig):
    """Prompts from a file or data set of the user's, none of which may be among the pairs'."""

    source: Literal["files"]
    """Where the prompts come from."""
    prompts: str
    """`FILE`, `FILE[column]` or `hf:org/name@revision#split[column]`, slices as `train[:400]`."""
    n: PositiveInt | None = None
    """At most so many rows, from the first on; null takes all."""
    group: str | None = None
    """Column that groups rows (such as `category`); see `read_prompts` for the default."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the rows that say how well a map fits; the others fit it."""

    def read(self) -> PromptSet:
        """Read the prompts, unsplit."""
        return read_prompts(self.prompts, limit=self.n, name="neutral", group=self.group)


NeutralSource = Annotated[OrganismNeutral | FileNeutral, Field(discriminator="source")]
"""The type of a study's `neutral:` key."""


def split_neutral(prompts: PromptSet, held_out: float, seed: int) -> tuple[PromptSet, PromptSet]:
    """The prompts to fit a map on, and those held out: disjoint by group and by text.

    Args:
        prompts: At least three groups of them.
        held_out: Wanted share of the second part. Large groups make the real share differ.
        seed: The run's seed.

    Raises:
        PromptError: As `three_way_split`.
    """
    # One text may stand in two groups of a file, and must not be fitted and held out at once.
    groups = [(p.group, normalized(p.instruction)) for p in prompts]
    # What is held out is two of three parts together, so that one rule places groups everywhere.
    shares = Fractions(fit=1 - held_out, select=held_out / 2, evaluate=held_out / 2)
    rows = three_way_split(groups, shares, seed)
    return prompts.select(rows["fit"]), prompts.select(sorted(rows["select"] + rows["evaluate"]))
