"""What one layer collects while batches stream by."""

from math import prod

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.layer import Geometry, Layer, geometry_of
from rankwise.statistics.moments import channel_sums, cross_sums, patch_sums, widened
from rankwise.statistics.patches import as_examples, patches
from rankwise.statistics.record import LayerStatistics, Statistic
from rankwise.statistics.samples import Reservoir

Tensor = torch.Tensor


def is_plain(module: nn.Module, geometry: Geometry) -> bool:
    """Whether ``module`` computes ``matrix @ patch + bias`` with a weight of its own."""
    return geometry_of(module) == geometry and isinstance(module._parameters.get("weight"), nn.Parameter)


class Accumulator:
    """Sums of one layer over the calls and batches seen so far.

    The output's moments follow from the input's, exactly and with less work, where the latter are
    collected anyway or the layer is pointwise with fewer inputs than outputs.
    """

    def __init__(
        self, layer: Layer, module: nn.Module, wanted: frozenset[Statistic], samples: int, seed: int
    ) -> None:
        geometry = layer.geometry
        self.name, self.geometry, self.module, self.wanted = layer.name, geometry, module, wanted
        narrow = geometry.pointwise and geometry.columns < geometry.rows
        derive = "output" in wanted and is_plain(module, geometry) and (narrow or "input" in wanted)
        self.derive = derive
        self.keep_input = bool({"input", "target"} & wanted)
        self.sum_input = self.keep_input or derive
        self.sum_output = "output" in wanted and not derive
        self.total = LayerStatistics()
        self.gradient: Tensor | None = None
        self.reservoir = Reservoir(samples, seed, layer.name) if "samples" in wanted else None

    @staticmethod
    def bytes_needed(layer: Layer, wanted: frozenset[Statistic], samples: int, positions: int | None) -> int:
        """Most bytes that the sums of ``layer`` take; ``positions`` is how many rows come, if known."""
        g, d, o = layer.geometry.groups, layer.geometry.columns, layer.geometry.rows
        columns = d if positions is None else min(d, max(1, positions))
        sizes = {
            "input": g * d * (columns + 1),
            "output": g * o * (o + 1),
            "gradient": g * o * o,
            "samples": samples * (g * (d + o) + 1),
            "target": g * (d * (columns + 1) + o * (o + d + 1)),
            "curvature": 3 * g * o * o,
        }
        return 8 * sum(sizes[name] for name in wanted)

    def _check(self, sums: Tensor, what: str) -> None:
        if not torch.isfinite(sums).all():
            raise CalibrationError(f"the {what} of layer {self.name!r} holds NaN or infinite values")

    def update(self, x: Tensor, y: Tensor, weights: Tensor | None, target: Tensor | None) -> None:
        """Take in one call: input, output, weight of each example, and the reference's output."""
        geometry = self.geometry
        x_rows, y_rows = as_examples(geometry, x), as_examples(geometry, y)
        if y_rows.numel() == 0:
            return  # an expert that no token was sent to
        w = None if weights is None else example_weights(geometry, x.shape, len(x_rows), weights)
        positions = prod(y_rows.shape[2:])
        seen = LayerStatistics(positions=positions * (len(y_rows) if w is None else float(w.sum())))
        self._check(y_rows.sum(dtype=torch.float64 if y_rows.device.type != "mps" else None), "output")
        if self.sum_input:
            self._update_input(seen, x_rows, w, positions * len(x_rows))
        if self.sum_output:
            seen.output_sum, seen.output_square = channel_sums(geometry.groups, y_rows, w)
        if target is not None:
            t_rows = as_examples(geometry, target)
            if t_rows.shape != y_rows.shape:
                raise CalibrationError(
                    f"the output of layer {self.name!r} has shape {tuple(y.shape)}, the reference's "
                    f"{tuple(target.shape)}; both networks must call it alike"
                )
            seen.target_sum, seen.target_square = channel_sums(geometry.groups, t_rows, w)
            self._check(seen.target_sum, "reference output")
            seen.cross = cross_sums(geometry, x_rows, t_rows, w)
        if self.reservoir is not None:
            self.reservoir.offer(geometry, x_rows, y_rows, w)
        self.total += seen

    def _update_input(self, seen: LayerStatistics, x: Tensor, w: Tensor | None, rows: int) -> None:
        held = self.total.input_rows
        few = rows + (0 if held is None else held.shape[1]) < self.geometry.columns
        if few and self.total.input_square is None:
            taken = patches(self.geometry, widened(x)).movedim(2, 0)  # (G, n, P, d)
            scaled = taken if w is None else taken * w.to(taken).view(1, -1, 1, 1)
            root = taken if w is None else taken * w.to(taken).sqrt().view(1, -1, 1, 1)
            seen.input_sum, seen.input_rows = scaled.sum((1, 2)), root.flatten(1, 2)
        else:
            seen.input_sum, seen.input_square = patch_sums(self.geometry, x, w)
        self._check(seen.input_sum, "input")

    def add_gradient(self, gradient: Tensor, weights: Tensor | None) -> None:
        """Take in the gradient of the summed loss at one call's output."""
        rows = as_examples(self.geometry, gradient)
        if rows.numel() == 0:
            return
        w = None if weights is None else example_weights(self.geometry, gradient.shape, len(rows), weights)
        total, square = channel_sums(self.geometry.groups, rows, w)
        self._check(total, "output gradient")
        self.gradient = square if self.gradient is None else self.gradient.add_(square)

    def finish(self, examples: float) -> LayerStatistics:
        """The statistics of all that was seen, on the CPU, in float64."""
        total = self.total
        total.examples = examples
        if self.derive and total.positions > 0:
            total.output_sum, total.output_square = self._derived(total)
        total.gradient_square = self.gradient
        if "gradient" in self.wanted and self.gradient is None and total.positions > 0:
            rows = self.geometry.rows  # the loss does not depend on this layer
            total.gradient_square = torch.zeros(self.geometry.groups, rows, rows, dtype=torch.float64)
        if self.reservoir is not None:
            self.reservoir.store(total)
        if not self.keep_input:
            total.input_sum = total.input_square = total.input_rows = None
        return LayerStatistics.from_tensors({k: v.cpu() for k, v in total.tensors().items()})

    def _derived(self, total: LayerStatistics) -> tuple[Tensor, Tensor]:
        """``sum w y`` and ``sum w y y^T`` of ``y = matrix @ u + bias``."""
        layer = Layer(self.name, self.module, self.geometry)
        assert total.input_sum is not None
        matrix = layer.matrix().to(total.input_sum)  # (G, o, d)
        fixed = layer.bias()
        bias = (
            matrix.new_zeros(matrix.shape[:2]) if fixed is None else fixed.to(matrix).view(matrix.shape[:2])
        )
        linear = (matrix @ total.input_sum[:, :, None]).squeeze(2)  # (G, o)
        if total.input_square is not None:
            square = matrix @ total.input_square @ matrix.transpose(1, 2)
        else:
            assert total.input_rows is not None
            rows = total.input_rows @ matrix.transpose(1, 2)  # (G, n, o)
            square = rows.transpose(1, 2) @ rows
        crossed = linear[:, :, None] * bias[:, None, :]
        constant = total.positions * bias[:, :, None] * bias[:, None, :]
        return linear + total.positions * bias, square + crossed + crossed.transpose(1, 2) + constant


def example_weights(geometry: Geometry, shape: torch.Size, count: int, weights: Tensor) -> Tensor:
    """The weight of each of ``count`` entries of a tensor of ``shape``, by ``weights`` per example.

    Raises:
        CalibrationError: the entries cannot be told apart by example.
    """
    batch = len(weights)
    if geometry.kind == "linear" and len(shape) > 2 and shape[0] != batch and shape[1] == batch:
        leading = shape[:-1]  # sequence first
        return weights.view(1, batch, *(1,) * (len(leading) - 2)).expand(leading).reshape(-1)
    if count % batch:
        raise CalibrationError(f"{count} rows do not split into {batch} examples, so weights cannot be given")
    return weights.repeat_interleave(count // batch)
