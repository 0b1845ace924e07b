"""Which layer of another model is most like each layer of this one, chosen and measured apart."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import DegenerateDirectionError
from mechsafety.metrics.spectral_intervals import Jackknifed


@dataclass(frozen=True, slots=True)
class BestMatch:
    """For each layer of the first model, the most similar one of the second."""

    frequency: Float[Tensor, "n_first n_second"]
    """Share of choices that fell on each layer of the second; NaN in rows without a direction."""
    value: Float[Tensor, " n_first"]
    """Cosine on half B of the layer that was chosen on half A, mean over splits and both ways."""
    null: Float[Tensor, "draw n_first"]
    """Largest cosine with any layer of the second under the same permuted labels in both models:
    the best match of nothing. Chosen and measured on the same rows, so it is stricter than the
    value needs."""
    base: Float[Tensor, " n_first"]
    """`value` with the few splits of the replicates."""
    replicates: Float[Tensor, "group n_first"]
    """`base` without each group; the choice is made anew in each."""
    left_out: Float[Tensor, " group"]
    """Share of the rows in each group."""
    fingerprint: str
    """Which rows each group holds."""

    def jackknifed(self, layer: int) -> Jackknifed:
        """The value at one layer of the first model, with its interval.

        Raises:
            DegenerateDirectionError: There is no direction at this layer.
        """
        if bool(self.value[layer].isnan()):
            raise DegenerateDirectionError(
                f"best match at index {layer} of the first model's layers: it has no direction "
                "there, so nothing matches it. Leave out layers whose value is NaN."
            )
        return Jackknifed(
            value=float(self.value[layer]),
            base=float(self.base[layer]),
            replicates=self.replicates[:, layer],
            left_out=self.left_out,
            fingerprint=self.fingerprint,
            lowest=-1.0,
            highest=1.0,
        )


def chosen_and_measured(
    one: Float[Tensor, "*draw n_first n_second"], other: Float[Tensor, "*draw n_first n_second"]
) -> tuple[Float[Tensor, "*draw n_first n_second"], Float[Tensor, "*draw n_first"]]:
    """Share of choices of each layer and the cosine there, both ways between two halves.

    The layer of the largest `one` is looked up in `other`, and the other way round: the largest of
    many noisy cosines is too large where it was chosen, and not where it was not. NaN cells are
    never chosen; rows that have nothing else stay NaN.
    """
    shares: list[Tensor] = []
    values: list[Tensor] = []
    for choosing, measuring in ((one, other), (other, one)):
        absent = choosing.isnan()
        chosen = choosing.masked_fill(absent, -float("inf")).argmax(dim=-1, keepdim=True)
        nothing = absent.all(dim=-1, keepdim=True)
        share = torch.zeros_like(choosing).scatter(-1, chosen, 1.0)
        shares.append(share.masked_fill(nothing, float("nan")))
        values.append(measuring.gather(-1, chosen).masked_fill(nothing, float("nan"))[..., 0])
    return (shares[0] + shares[1]) / 2, (values[0] + values[1]) / 2


def largest(cosines: Float[Tensor, "draw n_first n_second"]) -> Float[Tensor, "draw n_first"]:
    """Largest cosine with any layer of the second, NaN where there is none."""
    absent = cosines.isnan()
    found = cosines.masked_fill(absent, -float("inf")).amax(dim=-1)
    return found.masked_fill(absent.all(dim=-1), float("nan"))
