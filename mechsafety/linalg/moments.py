"""Streaming mean and covariance: what many batches leave behind when no row is kept."""

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import ActivationError


class Moments:
    r"""Count, mean and scatter of rows seen so far.

    The scatter $S = \sum_i (x_i - \bar x)(x_i - \bar x)^\top$ is updated around the running
    mean, so a mean that is large beside the spread costs no digits, as it does in
    $\sum x x^\top - n \bar x \bar x^\top$.

    Held: `8 d` bytes, and `8 d²` more with `second=True` (134 MB at d = 4096), in float64 on
    `device`, whatever the number of rows; an update also holds one float64 copy of its rows.

    Source: Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115, eq. 2.1.

    Args:
        width: Size of a row.
        second: Keep the scatter too. The mean alone is enough for difference in means.
        device: Where the sums live; rows are moved there. It must know float64.
    """

    def __init__(
        self, width: int, *, second: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        self.n = 0
        self._mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._scatter = (
            torch.zeros(width, width, dtype=torch.float64, device=device) if second else None
        )

    @property
    def width(self) -> int:
        """Size of a row."""
        return len(self._mean)

    @property
    def mean(self) -> Float[Tensor, " {self.width}"]:
        """Mean of the rows, in float64.

        Raises:
            ActivationError: No row has been seen.
        """
        if self.n == 0:
            raise ActivationError(
                "mean of Moments: no row has been seen. Call update(rows) with at least one."
            )
        return self._mean.clone()

    @property
    def covariance(self) -> Float[Tensor, "{self.width} {self.width}"]:
        r"""Unbiased covariance, $S / (n - 1)$, in float64.

        Raises:
            ActivationError: Fewer than two rows, or Moments that keep only the mean.
        """
        scatter = self._second("covariance")
        if self.n < 2:
            raise ActivationError(
                f"covariance of Moments: {self.n} row seen, and a covariance takes at least two."
            )
        return scatter / (self.n - 1)

    @property
    def second_moment(self) -> Float[Tensor, "{self.width} {self.width}"]:
        r"""$E[x x^\top] = S / n + \bar x \bar x^\top$ of the rows seen, in float64.

        Raises:
            ActivationError: No row, or Moments that keep only the mean.
        """
        scatter = self._second("second moment")
        return scatter / self.n + torch.outer(self.mean, self._mean)

    def update(self, rows: Float[Tensor, "row d"]) -> "Moments":
        """Take rows in; their order and batching change the result only by rounding.

        Raises:
            ActivationError: Another width, or a row that is not finite.
        """
        if rows.shape[1] != self.width:
            raise ActivationError(
                f"updating Moments of width {self.width} with rows of width {rows.shape[1]}. "
                "Use one Moments per site."
            )
        if len(rows) == 0:
            return self
        rows = rows.detach().to(self._mean)
        mean = rows.mean(dim=0)
        if not torch.isfinite(mean).all():
            bad = [int(row) for row in (~torch.isfinite(rows)).any(dim=1).nonzero()]
            raise ActivationError(
                f"updating Moments: rows {bad[:8]} of this batch are not finite. One such row "
                "would spoil the mean of all; find the prompt before going on."
            )
        if self._scatter is not None:
            centered = rows - mean
            # In place, so that an update never holds a second d × d matrix.
            self._scatter.addmm_(centered.T, centered)
        self._absorb(len(rows), mean)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Take in all that `other` has seen, as if its rows had been given here; `other` stays.

        Raises:
            ActivationError: Another width, or only one of the two keeps the scatter.
        """
        if other.width != self.width or (other._scatter is None) != (self._scatter is None):
            raise ActivationError(
                f"merging Moments of width {other.width} (second={other._scatter is not None}) "
                f"into Moments of width {self.width} (second={self._scatter is not None}): both "
                "must agree."
            )
        if other.n:
            if self._scatter is not None and other._scatter is not None:
                self._scatter += other._scatter.to(self._mean.device)
            self._absorb(other.n, other._mean.to(self._mean.device))
        return self

    def _absorb(self, n: int, mean: Tensor) -> None:
        """Move to the mean of both, given that the scatters are already added."""
        total = self.n + n
        shift = mean - self._mean
        if self._scatter is not None:
            self._scatter.addr_(shift, shift, alpha=self.n * n / total)
        self._mean += shift * (n / total)
        self.n = total

    def _second(self, what: str) -> Tensor:
        if self._scatter is None:
            raise ActivationError(
                f"{what} of Moments: only the mean was kept. Make it with second=True."
            )
        return self._scatter
