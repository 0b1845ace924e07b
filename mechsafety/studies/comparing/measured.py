"""What the similarity study measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mechsafety.metrics.direction_stacks import DirectionStack
from mechsafety.metrics.layer_overlaps import LayerOverlaps
from mechsafety.studies.comparing.carrying import Untried
from mechsafety.studies.comparing.frame import Frame
from mechsafety.studies.comparing.geometry import ActivationLikeness, Geometry, Likeness
from mechsafety.studies.comparing.mapping import FittedMap, Place
from mechsafety.studies.comparing.settings import Pair
from mechsafety.studies.comparing.transferring import TransferCell, Transferred
from mechsafety.studies.samples import Sample


@dataclass(frozen=True)
class Transfers:
    """What every direction does in every target that it was carried into."""

    targets: Mapping[str, Transferred]
    sample: Sample
    """Of the held-out prompts."""
    untried: tuple[Untried, ...]

    @property
    def n_words(self) -> str:
        """How many prompts there were, which can be fewer than asked for."""
        counts = len(self.sample.harmful_clusters), len(self.sample.harmless_clusters)
        return " + ".join(map(str, dict.fromkeys(counts)))

    def cell(self, source: str, target: str) -> TransferCell | str:
        """One direction in one target; a string says why there is none."""
        found = self.targets.get(target)
        for cell in found.cells if found is not None else ():
            if cell.source.model == source:
                return cell
        for one in self.untried:
            if (one.source, one.target) == (source, target):
                return f"{source} → {target}: {one.why}."
        return f"The transfer matrix of this run does not hold {source} → {target}."


@dataclass(frozen=True)
class Measured:
    """All parts of the study."""

    frame: Frame
    stacks: Mapping[str, DirectionStack]
    places: Mapping[Pair, tuple[Place, ...]]
    likenesses: tuple[Likeness, ...]
    activations: tuple[ActivationLikeness, ...]
    overlaps: Mapping[Pair, LayerOverlaps]
    maps: Mapping[Pair, tuple[FittedMap, ...]]
    transfers: Transfers | None
    """None where the config asks for geometry alone."""

    @staticmethod
    def of(frame: Frame, geometry: Geometry) -> "Measured":
        """What is known before anything is mapped or tried."""
        return Measured(
            frame=frame,
            stacks=geometry.stacks,
            places=geometry.places,
            likenesses=geometry.likenesses,
            activations=geometry.activations,
            overlaps=geometry.overlaps,
            maps={},
            transfers=None,
        )

    def compared(
        self, pair: Pair, *places: Place
    ) -> Iterator[tuple[Likeness, tuple[int, int], Place]]:
        """Every comparison of two models at these places, with the cell that holds it."""
        for one in self.likenesses:
            held = (one.first, one.second)
            # A cosine has no order: without a map two models are held once. A map has a way.
            turned = one.via == "none" and held != pair
            if (held[::-1] if turned else held) != pair:
                continue
            for place in places:
                i, j = place.first, place.second
                cell = one.cells.get((j, i) if turned else (i, j))
                if cell is not None:
                    yield one, cell, place

    def directions(self) -> dict[str, Float[Tensor, "layer d"]]:
        """Each model's direction at every layer."""
        return {name: stack.whole for name, stack in self.stacks.items()}
