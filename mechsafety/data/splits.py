"""Three-way splits by content: fit a direction, select its site, evaluate it, on other requests."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Final, Literal, get_args

from pydantic import PositiveFloat, model_validator

from mechsafety.core.config import FrozenConfig
from mechsafety.core.errors import PromptError
from mechsafety.core.seeding import derive_seed
from mechsafety.data.prompts import PromptPairs, PromptSet

Split = Literal["fit", "select", "evaluate"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)


class Fractions(FrozenConfig):
    """Shares of the rows; they sum to 1, and groups that cannot be cut make them approximate."""

    fit: PositiveFloat = 0.5
    """Share of the rows that directions and means are fitted on."""
    select: PositiveFloat = 0.25
    """Share of the rows on which a layer, position or strength is chosen."""
    evaluate: PositiveFloat = 0.25
    """Share of the rows that every reported effect is measured on."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> "Fractions":
        total = self.fit + self.select + self.evaluate
        if abs(total - 1) > 1e-9:
            raise ValueError(f"fit, select and evaluate must sum to 1, and sum to {total:g}")
        return self

    def of(self, split: Split) -> float:
        """The share of one split."""
        return {"fit": self.fit, "select": self.select, "evaluate": self.evaluate}[split]


def three_way_split(
    groups: Sequence[str | tuple[str, ...]],
    fractions: Fractions,
    seed: int,
    sides: Sequence[Hashable] | None = None,
) -> dict[Split, list[int]]:
    """Row indices of each split, ascending; every row is in exactly one.

    Rows that share a group, directly or through other rows (union-find), stay together. Which
    split they go to depends on the seed and on the groups' names and sizes, not on the order of
    the rows; it is the same in every process.

    Args:
        groups: One a row; a tuple where a row has several, as twins do.
        fractions: Wanted shares of the rows. Large groups make the real shares differ.
        seed: The run's seed.
        sides: One a row; each side's rows are balanced by themselves, as for two lists of
            prompts that are split together because they may share groups.

    Raises:
        PromptError: Fewer than three independent groups (on some side), so a split would be empty.
    """
    kinds = [0] * len(groups) if sides is None else sides
    components = _components(groups)
    # A random order that depends on the names alone, and not on the rows' order.
    order = sorted(components, key=lambda name: (derive_seed(seed, "split", name), name))
    placed = _place([Counter(kinds[row] for row in components[name]) for name in order], fractions)
    rows: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for name, split in zip(order, placed, strict=True):
        rows[split] += components[name]
    for split in SPLITS:
        missing = sorted(map(str, set(kinds) - {kinds[row] for row in rows[split]}))
        if missing or not rows[split]:
            where = f" of {missing[0]}" if sides is not None and missing else ""
            raise PromptError(
                f"splitting {len(groups)} prompts in {len(components)} independent groups into "
                f"{', '.join(SPLITS)}: '{split}' would hold no prompts{where}. Expected at least "
                "three groups, and many more for the shares to come near "
                f"{'/'.join(f'{fractions.of(s):g}' for s in SPLITS)}. Give more prompts, or group "
                "by another column (`group:`; the instruction's own column groups by its text)."
            )
    return {split: sorted(rows[split]) for split in SPLITS}


def _place(sizes: Sequence[Counter[Hashable]], fractions: Fractions) -> list[Split]:
    """A split for each component, given its rows by side: where such rows are most wanting."""
    totals = sum(sizes, Counter[Hashable]())
    need = {s: {side: n * fractions.of(s) for side, n in totals.items()} for s in SPLITS}
    without: dict[Hashable, set[Split]] = {side: set(SPLITS) for side in totals}
    left = Counter[Hashable](side for size in sizes for side in size)
    placed: list[Split] = []
    for size in sizes:
        # A split that still lacks a side must get it from the last components that have it.
        must = [without[side] for side in size if left[side] <= len(without[side])]
        allowed = must[0] if must and must[0] else set(SPLITS)
        want = {s: sum(need[s][side] for side in size) for s in SPLITS}
        candidates: list[Split] = [s for s in SPLITS if s in allowed]
        best = max(candidates, key=lambda s: want[s])
        placed.append(best)
        for side, n in size.items():
            need[best][side] -= n
            without[side].discard(best)
            left[side] -= 1
    return placed


def _components(groups: Sequence[str | tuple[str, ...]]) -> dict[str, list[int]]:
    """Rows that are connected through shared groups, under their alphabetically first group."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            # Path halving keeps long chains of twins linear.
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    names = [(group,) if isinstance(group, str) else group for group in groups]
    if () in names:
        raise PromptError(f"splitting prompts: row {names.index(())} has no group. Give each one.")
    for first, *others in names:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    members: dict[str, list[int]] = defaultdict(list)
    for row, (first, *_) in enumerate(names):
        members[root(first)].append(row)
    return dict(members)


def split_prompts(prompts: PromptSet, fractions: Fractions, seed: int) -> dict[Split, PromptSet]:
    """A set in three, disjoint by group.

    Raises:
        PromptError: As `three_way_split`.
    """
    rows = three_way_split(prompts.groups, fractions, seed)
    return {split: prompts.select(rows[split]) for split in SPLITS}


def split_pairs(pairs: PromptPairs, fractions: Fractions, seed: int) -> dict[Split, PromptPairs]:
    """Pairs in three: twins stay together, and no group lies in two splits, on either side.

    Raises:
        PromptError: As `three_way_split`.
    """
    first, second = pairs.first, pairs.second
    if pairs.pairing == "twins":
        both = list(zip(first.groups, second.groups, strict=True))
        rows = three_way_split(both, fractions, seed)
        return {split: pairs.select(rows[split]) for split in SPLITS}
    sides = [first.name] * len(first) + [second.name] * len(second)
    rows = three_way_split((*first.groups, *second.groups), fractions, seed, sides)
    n = len(first)
    return {
        split: pairs.select(
            [row for row in rows[split] if row < n], [row - n for row in rows[split] if row >= n]
        )
        for split in SPLITS
    }
