"""PCA of a layer's outputs or inputs: project on the directions in which calibration data vary most."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from rankwise.linalg.lowrank import principal_axes
from rankwise.methods.base import Candidates, Choice, Method, Statistic, register
from rankwise.methods.low_rank import build_two_factors, too_thin
from rankwise.methods.projection import bias_by_group, build_projection, projection_candidates
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

    def _axes(self, layer: Layer, statistics: LayerStatistics) -> tuple[Tensor, Tensor]:
        if self.side == "output":
            return principal_axes(statistics.output_covariance if self.centred else statistics.output_moment)
        return principal_axes(statistics.input_covariance if self.centred else statistics.input_moment)

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Ranks 1 to full; error is the expected squared output error of one example."""
        assert statistics is not None
        values, axes = self._axes(layer, statistics)
        bias = self.centred or layer.bias() is not None
        if self.side == "output":
            return projection_candidates(layer, values, "output", bias)
        # errors along different axes of the input add up, as they are uncorrelated
        values = values * (layer.matrix() @ axes).square().sum(1)
        return projection_candidates(layer, values, "output", bias, full=layer.geometry.columns)

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Output side: U_r^T W then U_r; input side: V_r^T then W V_r; the bias keeps the mean."""
        assert statistics is not None
        basis = self._axes(layer, statistics)[1][:, :, : int(choice["rank"])]  # (G, o or d, r)
        if self.side == "output":
            mean = statistics.output_mean if self.centred else None
            if mean is None and layer.bias() is not None:
                mean = basis.new_zeros(basis.shape[:2])
            return build_projection(layer, basis, basis.mT, mean)
        weight = layer.matrix()
        bias = layer.bias()
        if self.centred:
            mean = statistics.input_mean[:, :, None]  # (G, d, 1)
            left_out = weight @ (mean - basis @ (basis.mT @ mean))  # (G, o, 1)
            bias = (bias_by_group(layer) + left_out[:, :, 0]).flatten()
        return build_two_factors(layer, weight @ basis, basis.mT, bias)
