"""The direction methods that an experiment's YAML can name."""

from typing import Annotated, TypeAlias

from pydantic import Field

from mechsafety.directions.difference_in_means import DifferenceInMeans
from mechsafety.directions.scav import Scav

DirectionMethod: TypeAlias = Annotated[DifferenceInMeans | Scav, Field(discriminator="method")]
"""Settings whose `fit` gives the one direction of two classes of activations."""
