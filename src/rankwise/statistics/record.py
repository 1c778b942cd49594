"""What calibration knows about one layer: weighted float64 sums that merge by ``+``."""

from dataclasses import dataclass, fields

import torch

from rankwise.errors import CalibrationError

Tensor = torch.Tensor


@dataclass
class LayerStatistics:
    """Sums over output positions of one layer; G groups, d columns, o rows per group.

    A row is one output position of one example, with weight w (the example's weight). What was not
    asked for is None. ``output`` is the layer's output with its bias. ``target`` is the output of a
    reference network for the same example and position, where one was given.
    """

    examples: float = 0.0
    positions: float = 0.0
    input_sum: Tensor | None = None  # (G, d)       sum of w u
    input_square: Tensor | None = None  # (G, d, d)    sum of w u u^T
    input_rows: Tensor | None = None  # (G, n, d)    rows sqrt(w) u, kept instead of input_square while n < d
    output_sum: Tensor | None = None  # (G, o)
    output_square: Tensor | None = None  # (G, o, o)
    gradient_square: Tensor | None = None  # (G, o, o)    sum of w g g^T, g the loss gradient at the output
    target_sum: Tensor | None = None  # (G, o)
    target_square: Tensor | None = None  # (G, o, o)
    cross: Tensor | None = None  # (G, o, d)    sum of w target u^T
    sample_inputs: Tensor | None = None  # (n, G, d)    a fixed number of rows, for iterating methods
    sample_outputs: Tensor | None = None  # (n, G, o)

    def _mean(self, name: str) -> Tensor:
        value = getattr(self, name)
        if value is None:
            raise CalibrationError(f"The statistic {name!r} was not collected; collected: {self._present()}.")
        if self.positions <= 0:
            raise CalibrationError("The statistics are empty: no calibration example reached the layer.")
        return value / self.positions  # type: ignore[no-any-return]

    def _present(self) -> str:
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), torch.Tensor)]
        return ", ".join(names) or "nothing"

    @property
    def input_mean(self) -> Tensor:
        """E[u], ``(G, d)``."""
        return self._mean("input_sum")

    @property
    def input_moment(self) -> Tensor:
        """E[u u^T], ``(G, d, d)``."""
        if self.input_square is None and self.input_rows is not None:
            rows = self.input_rows
            return rows.transpose(1, 2) @ rows / self.positions
        return self._mean("input_square")

    @property
    def input_covariance(self) -> Tensor:
        """Covariance of u, ``(G, d, d)``."""
        mean = self.input_mean
        return self.input_moment - mean[:, :, None] * mean[:, None, :]

    @property
    def output_mean(self) -> Tensor:
        """E[y], ``(G, o)``."""
        return self._mean("output_sum")

    @property
    def output_moment(self) -> Tensor:
        """E[y y^T], ``(G, o, o)``."""
        return self._mean("output_square")

    @property
    def output_covariance(self) -> Tensor:
        """Covariance of y, ``(G, o, o)``."""
        mean = self.output_mean
        return self.output_moment - mean[:, :, None] * mean[:, None, :]

    @property
    def gradient_moment(self) -> Tensor:
        """E[g g^T], ``(G, o, o)``, g the gradient of the loss with respect to the output."""
        return self._mean("gradient_square")

    @property
    def target_mean(self) -> Tensor:
        """E[target], ``(G, o)``."""
        return self._mean("target_sum")

    @property
    def target_moment(self) -> Tensor:
        """E[target target^T], ``(G, o, o)``."""
        return self._mean("target_square")

    @property
    def cross_moment(self) -> Tensor:
        """E[target u^T], ``(G, o, d)``."""
        return self._mean("cross")
