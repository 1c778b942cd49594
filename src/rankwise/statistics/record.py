"""What calibration knows about one layer: weighted float64 sums that merge by ``+``."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch

from rankwise.errors import CalibrationError

Tensor = torch.Tensor
Statistic = Literal["input", "output", "gradient", "samples", "target", "curvature"]

SUMS = (
    "input_sum", "output_sum", "output_square", "gradient_square", "target_sum", "target_square", "cross",
    "curvature_sum",
)  # fmt: skip
"""Fields that simply add up; the input's second moment and the samples have rules of their own."""


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
    curvature_sum: Tensor | None = None  # (G, o, o)    examples times :attr:`curvature`
    sample_inputs: Tensor | None = None  # (n, G, d)    a fixed number of rows, for iterating methods
    sample_outputs: Tensor | None = None  # (n, G, o)
    sample_keys: Tensor | None = None  # (n,) in (0, 1), ascending; the rows of the smallest keys are kept
    sample_limit: int = 0  # how many rows the sample may hold

    @property
    def without_gradient(self) -> bool:
        """Whether examples came, and gradients or curvature that were asked for are nothing but zeros."""
        asked = [s for s in (self.gradient_square, self.curvature_sum) if s is not None]
        return self.positions > 0 and any(not sums.any() for sums in asked)

    def __add__(self, other: "LayerStatistics") -> "LayerStatistics":
        """The statistics of both sets of examples together; raises as ``+=`` does."""
        if not isinstance(other, LayerStatistics):
            return NotImplemented
        merged = LayerStatistics.from_tensors({k: v.clone() for k, v in self.tensors().items()})
        merged += other
        return merged

    def __iadd__(self, other: "LayerStatistics") -> "LayerStatistics":
        """Take in the statistics of further examples, changing the tensors held here in place.

        Raises:
            CalibrationError: one holds a statistic that the other, not empty, lacks, or shapes differ.
        """
        for name in SUMS:
            setattr(self, name, self._added(other, name))
        self._add_moment(other)
        self._add_samples(other)
        self.examples += other.examples
        self.positions += other.positions
        return self

    def _added(self, other: "LayerStatistics", name: str) -> Tensor | None:
        first, second = getattr(self, name), getattr(other, name)
        if first is None and second is None:
            return None
        if first is None or second is None:
            if self.positions > 0 and other.positions > 0:
                raise CalibrationError(
                    f"Statistics cannot be added: only one side holds {name!r}. "
                    f"Held: {self._present()}; and: {other._present()}."
                )
            return second.clone() if first is None else first  # type: ignore[no-any-return] # by getattr
        if first.shape != second.shape:
            raise CalibrationError(
                f"Statistics cannot be added: {name!r} has shapes {tuple(first.shape)} and "
                f"{tuple(second.shape)}; both must come from the same layer."
            )
        return first.add_(second)  # type: ignore[no-any-return] # by getattr

    def _add_moment(self, other: "LayerStatistics") -> None:
        """Rows stay rows while there are fewer than d of them; then the moment takes their place."""
        rows = [r for r in (self.input_rows, other.input_rows) if r is not None]
        count = sum(r.shape[1] for r in rows)
        factored = self.input_square is None and other.input_square is None
        if factored and (not rows or count < rows[0].shape[2]):
            self.input_rows = torch.cat(rows, 1) if rows else None
            return
        for part in (self.input_rows, other.input_rows):
            if part is not None:
                self._add_square(part.transpose(1, 2) @ part)
        if other.input_square is not None:
            self._add_square(other.input_square)
        self.input_rows = None

    def _add_square(self, square: Tensor) -> None:
        self.input_square = square.clone() if self.input_square is None else self.input_square.add_(square)

    def _add_samples(self, other: "LayerStatistics") -> None:
        """Keep the rows with the smallest keys of both samples: a sample of the union."""
        self.sample_limit = max(self.sample_limit, other.sample_limit)
        if other.sample_keys is None or other.sample_inputs is None or other.sample_outputs is None:
            return
        keys, inputs, outputs = other.sample_keys, other.sample_inputs, other.sample_outputs
        if (
            self.sample_keys is not None
            and self.sample_inputs is not None
            and self.sample_outputs is not None
        ):
            keys = torch.cat([self.sample_keys, keys])
            inputs = torch.cat([self.sample_inputs, inputs])
            outputs = torch.cat([self.sample_outputs, outputs])
        order = torch.argsort(keys, stable=True)[: self.sample_limit]
        self.sample_keys, self.sample_inputs, self.sample_outputs = keys[order], inputs[order], outputs[order]

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors; :meth:`from_tensors` reads it back."""
        counts = torch.tensor([self.examples, self.positions, self.sample_limit], dtype=torch.float64)
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"counts": counts} | {k: v for k, v in held.items() if isinstance(v, torch.Tensor)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "LayerStatistics":
        """The statistics that :meth:`tensors` gave."""
        examples, positions, limit = tensors["counts"].tolist()
        held = {name: value for name, value in tensors.items() if name != "counts"}
        return cls(examples, positions, sample_limit=int(limit), **held)

    def _mean(self, name: str) -> Tensor:
        value = getattr(self, name)
        if value is None:
            raise CalibrationError(f"The statistic {name!r} was not collected; collected: {self._present()}.")
        if self.positions <= 0:
            raise CalibrationError("The statistics are empty: no calibration example reached the layer.")
        return value / self.positions  # type: ignore[no-any-return] # by getattr

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

    @property
    def curvature(self) -> Tensor:
        """H, ``(G, o, o)``: p^T H p is the loss of one example when direction p is projected out."""
        return self._mean("curvature_sum") * (self.positions / self.examples)
