"""The metric in which a weight-space method measures what it cuts off: identity, inputs, or both sides."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch

from rankwise.linalg.lowrank import symmetric_power
from rankwise.linalg.metric import damped
from rankwise.methods.base import Statistic, Unit
from rankwise.methods.foldings import Folding, fold
from rankwise.network.layer import Geometry, Layer
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor
Metric = Literal["identity", "input", "two_sided"]
ROW_FLOOR = 1e-6
"""Smallest BatchNorm weight of a row, relative to the largest: rows of no consequence stay invertible."""
GRADIENT_DAMPING = 1.0
"""Added to E[g g^T], as a fraction of its mean diagonal."""


def check_metric(metric: str) -> None:
    """Raise ValueError where ``metric`` is not one of the three."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric={metric!r} was given; allowed: {', '.join(get_args(Metric))}.")


def metric_statistics(metric: Metric, inputs: Statistic = "input") -> frozenset[Statistic]:
    """The statistics that a metric reads; ``inputs`` is "output" where the output's moment says enough."""
    needed: dict[str, frozenset[Statistic]] = {
        "identity": frozenset(),
        "input": frozenset({inputs}),
        "two_sided": frozenset({inputs, "gradient"}),
    }
    return needed[metric]


def metric_unit(metric: Metric) -> Unit:
    """Unit of a squared error in this metric."""
    units: dict[str, Unit] = {"identity": "weight", "input": "output", "two_sided": "loss"}
    return units[metric]


def metric_factor(metric: Metric, layer: Layer) -> float:
    """What a squared error per output position is multiplied with to be in the metric's unit."""
    return {"identity": 1.0, "input": float(layer.positions), "two_sided": 0.5 * layer.positions}[metric]


@dataclass(frozen=True, eq=False)
class RowWeights:
    """Invertible symmetric weights (groups, rows, rows) on a layer's outputs, and their inverse."""

    weight: Tensor
    inverse: Tensor

    def apply(self, matrix: Tensor) -> Tensor:
        """Weigh the rows of (groups, rows, anything)."""
        return self.weight @ matrix

    def undo(self, decoder: Tensor) -> Tensor:
        """Take the weights off a decoder (groups, slices, rows * elements, rank)."""
        groups, slices, _, rank = decoder.shape
        rows = self.inverse.shape[-1]
        by_row = decoder.reshape(groups, slices, rows, -1)  # (G, k, f, D r)
        return (self.inverse[:, None] @ by_row).reshape(groups, slices, -1, rank)


def gradient_metric(statistics: LayerStatistics) -> Tensor:
    """E[g g^T] of the loss gradient at an output, damped by its mean diagonal (G, rows, rows)."""
    return damped(statistics.gradient_moment, GRADIENT_DAMPING)


def row_weights(
    layer: Layer, metric: Metric, statistics: LayerStatistics | None, batchnorm: bool
) -> RowWeights:
    """BatchNorm's |gamma| / sigma for "identity", nothing for "input", E[g g^T]^(1/2) for "two_sided"."""
    geometry = layer.geometry
    if metric == "two_sided":
        assert statistics is not None
        gradient = gradient_metric(statistics)
        return RowWeights(symmetric_power(gradient, 0.5), symmetric_power(gradient, -0.5))
    scale = torch.ones(geometry.out_channels, dtype=torch.float64)
    if metric == "identity" and batchnorm and layer.output_scale is not None:
        given = layer.output_scale.detach().to("cpu", torch.float64).abs()
        scale = given.maximum(ROW_FLOOR * given.max()) if bool(given.max() > 0) else scale
    by_group = scale.view(geometry.groups, geometry.rows)
    return RowWeights(torch.diag_embed(by_group), torch.diag_embed(1.0 / by_group))


def _split_patch(x: Tensor, geometry: Geometry, folding: Folding, slices: int) -> Tensor:
    """(groups, anything, columns) as (groups, anything, slices, decoder elements, inputs of a slice)."""
    channels = geometry.in_channels // geometry.groups // slices
    encoder, decoder = folding.elements(geometry)
    split = x.reshape(*x.shape[:2], slices, channels, *geometry.kernel_size)
    axes = [*(4 + a for a in folding.decoder), 3, *(4 + a for a in folding.encoder)]
    return split.permute(0, 1, 2, *axes).reshape(*x.shape[:2], slices, decoder, channels * encoder)


def _encode(x: Tensor, geometry: Geometry, folding: Folding, encoder: Tensor) -> Tensor:
    """Every row of (groups, rows, columns), seen as a patch, as what the decoder would read of it.

    The result is (groups, rows, q), q = rank * slices * decoder elements in that order, so that the
    features of smaller ranks come first.
    """
    groups, slices, rank, _ = encoder.shape
    split = _split_patch(x, geometry, folding, slices).transpose(1, 2)  # (G, k, rows, D, n)
    encoded = split.flatten(2, 3) @ encoder.mT  # (G, k, rows D, r)
    encoded = encoded.reshape(groups, slices, x.shape[1], -1, rank)
    return encoded.permute(0, 2, 4, 1, 3).reshape(groups, x.shape[1], -1)


@dataclass(frozen=True, eq=False)
class Target:
    """What a factorisation in a data metric is fitted to: a layer's weighed matrix on the layer's inputs."""

    layer: Layer
    statistics: LayerStatistics
    matrix: Tensor  # (groups, rows, columns)

    @property
    def geometry(self) -> Geometry:
        """The layer's."""
        return self.layer.geometry

    @cached_property
    def moment(self) -> Tensor:
        """E[u u^T], (groups, columns, columns)."""
        return self.statistics.input_moment

    @cached_property
    def gram(self) -> Tensor:
        """E[(A u)(A u)^T], (groups, rows, rows); the moment of u is not formed where rows are kept."""
        statistics = self.statistics
        if statistics.input_square is None and statistics.input_rows is not None:
            seen = statistics.input_rows @ self.matrix.mT  # (G, n, rows)
            return seen.mT @ seen / statistics.positions
        return self.matrix @ self.moment @ self.matrix.mT

    def folded(self, folding: Folding, slices: int) -> Tensor:
        """The folded slices of the matrix, (groups, slices, rows * decoder elements, slice columns)."""
        kernel = self.matrix.reshape(self.geometry.out_channels, -1, *self.geometry.kernel_size)
        return fold(kernel, self.geometry, folding, slices)


def slice_moments(moment: Tensor, geometry: Geometry, folding: Folding, slices: int) -> Tensor:
    """Second moment of what each encoder slice reads, averaged over the decoder's kernel positions.

    Args:
        moment: E[u u^T] of the input patches, (groups, columns, columns).
        geometry: of the layer.
        folding: says which kernel axes the encoder has.
        slices: blocks of input channels per group.

    Returns:
        (groups, slices, n, n), n the inputs of one slice.
    """
    rows = _split_patch(moment, geometry, folding, slices).flatten(2).mT  # (G, k D n, columns)
    both = _split_patch(rows, geometry, folding, slices)  # (G, k D n, k, D, n)
    both = both.reshape(both.shape[0], *both.shape[2:], *both.shape[2:])
    blocks = both.diagonal(dim1=1, dim2=4).diagonal(dim1=1, dim2=3)  # (G, n, n, k, D)
    return blocks.mean(-1).permute(0, 3, 1, 2)


def feature_moments(
    moment: Tensor, geometry: Geometry, folding: Folding, encoder: Tensor
) -> tuple[Tensor, Tensor]:
    """Second moments of what the decoder reads, and between that and the input patches.

    Args:
        moment: E[u u^T], (groups, columns, columns).
        geometry: of the layer.
        folding: of the chain.
        encoder: (groups, slices, rank, n).

    Returns:
        (groups, q, q) and (groups, q, columns), q = rank * slices * decoder elements in that order.
    """
    cross = _encode(moment, geometry, folding, encoder).mT
    return _encode(cross, geometry, folding, encoder), cross
