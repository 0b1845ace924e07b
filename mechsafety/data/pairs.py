"""Harmful and harmless prompts to contrast, and how an experiment's YAML names them."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import PromptError
from mechsafety.data.prompts import Pairing, PromptPairs, PromptSet, normalized
from mechsafety.data.readers import read_prompts
from mechsafety.data.splits import SPLITS, Fractions, Split
from mechsafety.data.synthetic_language import Preset

HARMFUL_HARMLESS = "harmful-harmless"


def pair_up(harmful: PromptSet, harmless: PromptSet, pairing: Pairing) -> PromptPairs:
    """The contrast harmful − harmless of two sets, which must not share a prompt.

    Raises:
        PromptError: An empty side, twins of unequal number, or one request on both sides.
    """
    for side in (harmful, harmless):
        if not len(side):
            raise PromptError(f"pairing prompts: '{side.name}' ({side.source}) has none.")
    shared = {normalized(p.instruction) for p in harmful} & {
        normalized(p.instruction) for p in harmless
    }
    if shared:
        ids = [p.id for p in harmless if normalized(p.instruction) in shared]
        raise PromptError(
            f"pairing '{harmful.name}' ({harmful.source}) with '{harmless.name}' "
            f"({harmless.source}): {len(shared)} requests are on both sides, so they say nothing "
            f"about harm (such as prompt {ids[0]}). Check that the two files differ, and remove "
            "the shared rows."
        )
    return PromptPairs(HARMFUL_HARMLESS, harmful, harmless, pairing)


def twins_of(pairs: Iterable[tuple[str, str]]) -> PromptPairs:
    """Pairs from (harmful, harmless) tuples of text, as notebooks have them.

    Raises:
        PromptError: A text on both sides.
    """
    texts = list(pairs)
    return pair_up(
        PromptSet.of("harmful", [harmful for harmful, _ in texts]),
        PromptSet.of("harmless", [harmless for _, harmless in texts]),
        "twins",
    )


def read_pairs(
    harmful: str,
    harmless: str,
    pairing: Pairing,
    n: int | None = None,
    *,
    group: str | None = None,
    labels: Sequence[str] = (),
) -> PromptPairs:
    """Pairs from two files or data sets, or from two columns of one.

    Args:
        harmful: As `read_prompts` takes it, such as `pairs.csv[harmful]`.
        harmless: As above.
        pairing: `twins` where row i of both is one content in two forms, else `list`.
        n: At most so many rows of each, from the first on.
        group: As for `read_prompts`; both sides have this column.
        labels: As for `read_prompts`.

    Raises:
        PromptError: As `read_prompts` and `pair_up`.
    """
    return pair_up(
        read_prompts(harmful, limit=n, name="harmful", group=group, labels=labels),
        read_prompts(harmless, limit=n, name="harmless", group=group, labels=labels),
        pairing,
    )


class OrganismPairs(FrozenConfig):
    """Twins of the organisms' own world: a forbidden request and an allowed one, otherwise equal.

    `organisms/prompts` makes them; their splits are disjoint by content by construction.
    """

    source: Literal["organism"] = "organism"
    """Where the prompts come from."""
    preset: Preset = "default"
    """World of the organisms that are asked: its words are theirs."""
    n: PositiveInt = 400
    """Twins over all three splits."""
    fractions: Fractions = Fractions()
    """Shares of the splits."""

    @model_validator(mode="after")
    def _every_split_has_a_twin(self) -> "OrganismPairs":
        counts = {split: self.count(split) for split in SPLITS}
        if not all(counts.values()):
            raise ValueError(f"{self.n} twins leave a split empty ({counts}): raise n")
        return self

    def count(self, split: Split) -> int:
        """Twins in one split, rounded to the nearest whole number."""
        return round(self.n * self.fractions.of(split))


class FilePairs(FrozenConfig):
    """Prompts from files or data sets of the user's."""

    source: Literal["files"]
    """Where the prompts come from."""
    harmful: str
    """`FILE`, `FILE[column]` or `hf:org/name@revision#split[column]`, slices as `train[:400]`."""
    harmless: str
    """As above. Two columns of one file are `pairs.csv[harmful]` and `pairs.csv[harmless]`."""
    pairing: Pairing = "list"
    """`twins` only where row i of both is one content in two forms."""
    n: PositiveInt | None = None
    """At most so many rows of each, from the first on; null takes all."""
    group: str | None = None
    """Column that groups rows (such as `category`); see `read_prompts` for the default."""
    labels: tuple[str, ...] = ()
    """Columns that tables may show."""
    fractions: Fractions = Fractions()
    """Shares of the splits."""

    def read(self) -> PromptPairs:
        """Read both sides, unsplit."""
        return read_pairs(
            self.harmful, self.harmless, self.pairing, self.n, group=self.group, labels=self.labels
        )


PairsSource = Annotated[OrganismPairs | FilePairs, Field(discriminator="source")]
"""The type of a study's `prompts:` key."""
