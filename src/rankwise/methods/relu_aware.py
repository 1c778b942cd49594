"""ReLU-aware reconstruction: errors that the ReLU behind a layer swallows cost nothing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from rankwise.linalg.lowrank import principal_axes
from rankwise.linalg.rectified_fit import rectified_fit
from rankwise.methods.base import Candidates, Choice, Method, Statistic, register
from rankwise.methods.low_rank import build_two_factors, too_thin
from rankwise.methods.projection import bias_by_group, build_projection, projection_candidates
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor

_SCALE_FLOOR = (
    1e-6  # relative to the largest scale, so that a channel that BatchNorm switches off can be undone
)


@register("relu_aware")
@dataclass(frozen=True)
class ReLUAware(Method):
    """min over M of rank r and c of sum_i ||relu(y_i) - relu(M y_i + c)||^2 on sampled outputs y_i.

    y is what the ReLU reads: the layer's output, or what the BatchNorm between them makes of it. The
    solver starts from PCA and alternates between an auxiliary z in the place of M y + c and
    reduced-rank regression of z on y, first with a small penalty on their distance, then with 1. Of all
    steps the best is kept. M, c and BatchNorm's scale and shift are then folded into the layer.

    Candidates are those of PCA of y: their error bounds the error behind the ReLU from above.

    Args:
        penalties: weights of ||z - (M y + c)||^2, one after the other.
        iterations: per penalty.
        ridge: weight that holds M at the identity, relative to the mean variance of y.
    """

    summary: ClassVar[str] = "least error behind the ReLU that reads the layer, by an alternating solver"
    source: ClassVar[str] = "Zhang et al. 2015, 1505.06798, section 3.2.1 (the nonlinear case)"
    rectified: ClassVar[bool] = True
    """Asks for ``Layer.rectifier``."""

    penalties: tuple[float, ...] = (0.01, 1.0)
    iterations: int = 25
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalties", tuple(self.penalties))
        if not self.penalties or min(self.penalties) <= 0 or self.iterations < 0 or self.ridge < 0:
            raise ValueError(
                f"penalties={self.penalties}, iterations={self.iterations} and ridge={self.ridge} were "
                "given; penalties must be positive, the others not negative."
            )

    @property
    def requires(self) -> frozenset[Statistic]:
        """The output's moments, and rows of it."""
        return frozenset({"output", "samples"})

    def supports(self, layer: Layer) -> str | None:
        """Refuses layers that are too thin, and those whose output something else than a ReLU reads."""
        if layer.rectifier is None:
            return "its output is not read by a ReLU alone (directly or through a BatchNorm)"
        return too_thin(layer)

    def _affine(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Scale, never zero, and shift, each (groups, rows)."""
        assert layer.rectifier is not None
        scale, shift = (v.to("cpu", torch.float64) for v in layer.rectifier)
        least = _SCALE_FLOOR * scale.abs().max().clamp_min(1e-30)
        scale = torch.where(scale.abs() < least, least, scale)
        shape = (layer.geometry.groups, layer.geometry.rows)
        return scale.view(shape), shift.view(shape)

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Ranks 1 to full; error is that of PCA of what the ReLU reads, at least that behind the ReLU."""
        assert statistics is not None
        scale, _ = self._affine(layer)
        covariance = scale[:, :, None] * statistics.output_covariance * scale[:, None, :]
        return projection_candidates(layer, principal_axes(covariance)[0], "output", True)

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Encoder ``right`` scale W and decoder scale^(-1) ``left``, the rest in the bias."""
        assert statistics is not None and statistics.sample_outputs is not None
        rank, weight = int(choice["rank"]), layer.matrix()
        if rank >= min(layer.geometry.rows, layer.geometry.columns):
            basis = torch.eye(layer.geometry.rows, dtype=torch.float64)[:, :rank]
            basis = basis.expand(layer.geometry.groups, -1, -1)
            return build_projection(layer, basis, basis.mT, statistics.output_mean)
        scale, shift = self._affine(layer)
        rows = statistics.sample_outputs.double().transpose(0, 1) * scale[:, None] + shift[:, None]
        fits = [rectified_fit(y, rank, self.penalties, self.iterations, self.ridge) for y in rows]
        left, right, offset = (torch.stack(parts) for parts in zip(*fits, strict=True))
        encoder = right * scale[:, None, :]  # (G, r, o), reads W u
        constant = (left @ (right @ (scale * bias_by_group(layer) + shift)[:, :, None]))[:, :, 0]
        bias = (constant + offset - shift) / scale
        basis, triangle = torch.linalg.qr(left / scale[:, :, None])
        return build_two_factors(layer, basis, triangle @ encoder @ weight, bias.flatten())
