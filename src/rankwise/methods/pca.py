"""PCA of a layer's outputs or inputs: project on the directions in which calibration data vary most."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from rankwise.linalg.lowrank import principal_axes, tail_sums
from rankwise.methods.base import Candidates, Choice, Method, Statistic, register
from rankwise.methods.low_rank import build_two_factors, rank_candidates, too_thin
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor


@register("pca")
@dataclass(frozen=True)
class PCA(Method):
    """Principal components of the output (or of the input patches), with the mean kept in the bias.

    Output y = W u + b with mean m and covariance C: B the leading eigenvectors of C, and
    y' = B B^T (y - m) + m, folded into W. The error E||y - y'||^2 is the sum of the eigenvalues left
    out, the least over all affine maps of rank r. On the input side the same is done with u, and the
    error is that of W (u - u').

    Args:
        side: "output" or "input" (patches).
        centred: subtract the mean; without it the second moment about zero is used and no mean is kept.
    """

    summary: ClassVar[str] = "principal components of the layer's outputs or input patches, mean kept exactly"
    source: ClassVar[str] = "Zhang et al. 2015, 1505.06798, section 3.1; pca-compress (Nichol 2020)"

    side: Literal["output", "input"] = "output"
    centred: bool = True

    def __post_init__(self) -> None:
        if self.side not in ("output", "input"):
            raise ValueError(f"side={self.side!r} was given; allowed are 'output' and 'input'.")

    @property
    def requires(self) -> frozenset[Statistic]:
        """Moments of the side that is projected."""
        return frozenset({"output"}) if self.side == "output" else frozenset({"input"})

    def supports(self, layer: Layer) -> str | None:
        """Refuses layers whose matrices are too thin to gain."""
        return too_thin(layer)

    def _mean(self, layer: Layer, statistics: LayerStatistics) -> Tensor:
        """What is subtracted before projecting, (G, o) or (G, d)."""
        mean = statistics.output_mean if self.side == "output" else statistics.input_mean
        return mean if self.centred else torch.zeros_like(mean)

    def _axes(self, layer: Layer, statistics: LayerStatistics) -> tuple[Tensor, Tensor]:
        if self.side == "output":
            return principal_axes(statistics.output_covariance if self.centred else statistics.output_moment)
        return principal_axes(statistics.input_covariance if self.centred else statistics.input_moment)

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Ranks 1 to full; error is the expected squared output error of one example."""
        assert statistics is not None
        geometry = layer.geometry
        full = min(geometry.rows, geometry.columns) if self.side == "output" else geometry.columns
        values, axes = self._axes(layer, statistics)
        if self.side == "input":  # input errors along different axes add up, being uncorrelated
            values = values * (layer.matrix() @ axes).square().sum(1)
        error = tail_sums(values).sum(0) * layer.positions
        error[full:] = 0.0
        return rank_candidates(layer, error[1 : full + 1].numpy(), "output", float(error[0]), bias=True)

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Output side: U_r^T W then U_r; input side: V_r^T then W V_r; the bias keeps the mean."""
        assert statistics is not None
        rank, weight = int(choice["rank"]), layer.matrix()
        basis = self._axes(layer, statistics)[1][:, :, :rank]  # (G, o or d, r)
        mean = self._mean(layer, statistics)[:, :, None]  # (G, o or d, 1)
        bias = layer.bias()
        bias = torch.zeros(layer.geometry.out_channels, dtype=torch.float64) if bias is None else bias
        bias = bias.view(layer.geometry.groups, -1, 1)  # (G, o, 1)
        if self.side == "output":
            if rank == layer.geometry.columns < layer.geometry.rows:
                basis = torch.linalg.qr(weight)[0]  # full rank: the span of W, exact off the data too
            decoder, encoder = basis, basis.mT @ weight
            bias = mean + basis @ (basis.mT @ (bias - mean))
        else:
            decoder, encoder = weight @ basis, basis.mT
            bias = bias + weight @ (mean - basis @ (basis.mT @ mean))
        return build_two_factors(layer, decoder, encoder, bias.flatten())
