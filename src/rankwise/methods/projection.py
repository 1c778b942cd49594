"""A layer followed by a projection of its output, as two plain layers: what pca, hessian and kfac share."""

import torch
from torch import nn

from rankwise.linalg.lowrank import tail_sums
from rankwise.methods.base import Candidates, Unit
from rankwise.methods.low_rank import build_two_factors, rank_candidates
from rankwise.network.layer import Layer

Tensor = torch.Tensor


def bias_by_group(layer: Layer) -> Tensor:
    """The bias, zero where there is none, as (groups, rows)."""
    bias = layer.bias()
    if bias is None:
        bias = torch.zeros(layer.geometry.out_channels, dtype=torch.float64)
    return bias.view(layer.geometry.groups, layer.geometry.rows)


def linear_moment(layer: Layer, mean: Tensor, moment: Tensor) -> Tensor:
    """E[(W u)(W u)^T], (groups, rows, rows), from the mean and second moment of y = W u + b."""
    bias = bias_by_group(layer)
    crossed = bias[:, :, None] * mean[:, None, :]
    return moment - crossed - crossed.mT + bias[:, :, None] * bias[:, None, :]


def projection_candidates(
    layer: Layer, values: Tensor, unit: Unit, bias: bool, full: int | None = None
) -> Candidates:
    """Candidates of ranks 1 to full, the error being the sum of the ``values`` left out.

    Args:
        layer: the layer that is projected.
        values: (groups, n) in descending order, not negative: the error that each direction costs at one
            output position.
        unit: of the error.
        bias: whether the result has a bias.
        full: the rank at which nothing is lost; by default that of the weight's shape.
    """
    full = min(layer.geometry.rows, layer.geometry.columns) if full is None else full
    error = tail_sums(values).sum(0) * layer.positions  # (n + 1,)
    error[full:] = 0.0
    return rank_candidates(layer, error[1 : full + 1].numpy(), unit, float(error[0]), bias)


def build_projection(layer: Layer, decoder: Tensor, encoder: Tensor, mean: Tensor | None) -> nn.Sequential:
    """Two plain layers computing y' = m + D E (y - m), y being the layer's output.

    The decoder is stored with orthonormal columns, so that both layers are well scaled whatever metric
    D and E come from. At a rank that equals the columns of W, the span of W takes the place of D and
    nothing is projected, which is exact for every input and not only for those seen in calibration.

    Args:
        layer: the layer that is replaced.
        decoder: (groups, rows, rank).
        encoder: (groups, rank, rows).
        mean: m, (groups, rows); None projects W u alone and keeps the layer's bias (if any) as it is.
    """
    weight, geometry = layer.matrix(), layer.geometry
    if decoder.shape[2] == geometry.columns < geometry.rows:
        span = torch.linalg.qr(weight)[0]
        bias = layer.bias() if mean is None else bias_by_group(layer).flatten()
        return build_two_factors(layer, span, span.mT @ weight, bias)
    basis, triangle = torch.linalg.qr(decoder)
    encoder = triangle @ encoder  # (G, r, o)
    if mean is None:
        return build_two_factors(layer, basis, encoder @ weight, layer.bias())
    offset = (bias_by_group(layer) - mean)[:, :, None]  # (G, o, 1)
    bias = mean + (basis @ (encoder @ offset))[:, :, 0]
    return build_two_factors(layer, basis, encoder @ weight, bias.flatten())
