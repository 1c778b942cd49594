"""Whitened SVD: the low-rank matrix with the smallest expected squared output error on calibration data."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from rankwise.linalg.lowrank import principal_axes
from rankwise.methods.base import Candidates, Choice, Method, Statistic, register
from rankwise.methods.low_rank import too_thin
from rankwise.methods.projection import build_projection, linear_moment, projection_candidates
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics


@register("whitened")
@dataclass(frozen=True)
class Whitened(Method):
    """argmin over rank-r matrices A of E||(W - A) u||^2, exactly, whatever the rank of the data.

    With M = E[u u^T] the minimiser is U_r U_r^T W, U the eigenvectors of W M W^T in descending order
    (substitute A = B M^(-1/2) in Eckart-Young; M^(-1/2) cancels). W M W^T is the second moment of the
    bias-free output, which calibration streams, so M is neither formed nor inverted and a singular M
    needs no care. Family: DRONE (Chen et al. 2021), SVD-LLM (2024), BALF (2025).
    """

    summary: ClassVar[str] = "least expected squared output error over all low-rank matrices"
    source: ClassVar[str] = "DRONE (Chen et al., NeurIPS 2021); BALF 2509.25136"

    @property
    def requires(self) -> frozenset[Statistic]:
        """Output mean and second moment."""
        return frozenset({"output"})

    def supports(self, layer: Layer) -> str | None:
        """Refuses layers whose matrices are too thin to gain."""
        return too_thin(layer)

    def _axes(self, layer: Layer, statistics: LayerStatistics | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues and eigenvectors of the second moment of the output without its bias."""
        assert statistics is not None
        return principal_axes(linear_moment(layer, statistics.output_mean, statistics.output_moment))

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Ranks 1 to full; error is the expected squared output error of one example."""
        values, _ = self._axes(layer, statistics)
        return projection_candidates(layer, values, "output", layer.bias() is not None)

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Encoder U_r^T W, decoder U_r."""
        basis = self._axes(layer, statistics)[1][:, :, : int(choice["rank"])]  # (G, o, r)
        return build_projection(layer, basis, basis.mT, None)
