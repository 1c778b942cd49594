"""SVD of the weights: the closest low-rank matrix in the Frobenius norm, without data."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from rankwise.linalg.lowrank import singular_factors, tail_sums
from rankwise.methods.base import Candidates, Choice, Method, register
from rankwise.methods.low_rank import build_two_factors, rank_candidates, too_thin
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics


@register("svd")
@dataclass(frozen=True)
class SVD(Method):
    """Truncated SVD of the weight matrix (Eckart and Young 1936), one per group.

    Args:
        batchnorm: scale the rows by the gamma / sigma of the BatchNorm that reads the layer's output, so
            that the error is weighed as the network sees it; rows without one are left as they are.
    """

    summary: ClassVar[str] = "truncated SVD of the weights; no data"
    source: ClassVar[str] = "Eckart and Young 1936; Denton et al. 2014"

    batchnorm: bool = True

    def supports(self, layer: Layer) -> str | None:
        """Refuses layers whose matrices are too thin to gain."""
        return too_thin(layer)

    def _scale(self, layer: Layer) -> torch.Tensor:
        """Row weights (groups, rows, 1)."""
        geometry = layer.geometry
        scale = torch.ones(geometry.out_channels, dtype=torch.float64)
        if self.batchnorm and layer.output_scale is not None:
            given = layer.output_scale.double().abs()
            scale = torch.where(given > 1e-6 * given.max(), given, 1e-6 * given.max().clamp_min(1e-30))
        return scale.view(geometry.groups, geometry.rows, 1)

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Ranks 1 to full; error is the squared Frobenius norm of what is cut off."""
        values = torch.linalg.svdvals(layer.matrix() * self._scale(layer))  # (G, p)
        error = tail_sums(values.square()).sum(0)  # (p + 1,)
        return rank_candidates(layer, error[1:].numpy(), "weight", float(error[0]))

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Encoder sqrt(S) V^T and decoder U sqrt(S), rows unscaled again."""
        rank, scale = int(choice["rank"]), self._scale(layer)
        left, values, right = singular_factors(layer.matrix() * scale)
        root = values[:, :rank].sqrt()
        decoder = left[:, :, :rank] * root[:, None, :] / scale
        return build_two_factors(layer, decoder, root[:, :, None] * right[:, :rank], layer.bias())
