"""ALDS: group SVD with freely chosen slices of the input channels, rank and folding for every layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from rankwise.linalg.group_svd import residual_norms, shifted, slice_spectra
from rankwise.methods.base import Unit, register
from rankwise.methods.folded import Floats, Folded
from rankwise.methods.foldings import Folding, chosen_foldings, fold, nearest_slices, slice_counts, sliceable
from rankwise.methods.metric import Metric, row_weights
from rankwise.network.layer import Geometry, Layer
from rankwise.statistics.record import LayerStatistics

Bound = Literal["max", "theorem", "operator", "energy"]
LARGEST_MOMENT = 8192
LARGEST_WORK = 1e11


def _work(geometry: Geometry, folding: Folding, slices: int) -> float:
    """Order of the operations of k decompositions: k times the cube of the smaller side of a slice."""
    encoder, decoder = folding.elements(geometry)
    columns = geometry.columns // geometry.kernel_elements // slices * encoder
    return geometry.groups * slices * float(min(geometry.rows * decoder, columns)) ** 3


@register("alds")
@dataclass(frozen=True)
class ALDS(Folded):
    """Cut the input channels into k slices, truncate the SVD of each at rank j: a k-group encoder, a decoder.

    Offers every divisor k of the input channels (per group), every rank j and every chosen folding.
    The original is ``metric="identity"`` with the allocator "minimax"; the default measures the error
    of the output on calibration data instead, which keeps far more accuracy (docs/methods/alds.md).

    Args:
        metric: "input" (default), "two_sided" or "identity" (no data).
        bound: what the error of (k, j) is for metric="identity"; ignored for the others. In the folded
            matrix W with slices W_i:
            "max": max_i sigma_{j+1}(W_i) / sigma_1(W), what the released code minimises;
            "theorem": that times sqrt(k), the bound on the operator norm that the paper prints;
            "operator": the operator norm of the assembled difference, exactly, over that of W;
            "energy": the squared Frobenius norm (unit "weight").
        groups: k fixed to the nearest possible number of slices; None tries all.
        folding, batchnorm, energy, error, ratio: see :class:`rankwise.methods.folded.Folded`.
    """

    summary: ClassVar[str] = "SVD of slices of the input channels: a grouped encoder and a decoder"
    source: ClassVar[str] = "ALDS (Liebenwein et al., NeurIPS 2021, 2107.11442)"

    metric: Metric = "input"
    folding: str = "all"
    bound: Bound = "max"
    groups: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound not in get_args(Bound):
            raise ValueError(f"bound={self.bound!r} was given; allowed: {', '.join(get_args(Bound))}.")
        if self.groups is not None and self.groups < 1:
            raise ValueError(f"groups={self.groups} was given; allowed: None, or 1 and above.")
        if self.energy is not None and self.unit == "operator":
            raise ValueError("energy= needs bound='energy' or a metric: other bounds are no sums of squares.")

    @property
    def unit(self) -> Unit:
        """ "operator" for the three relative norms."""
        return "operator" if self.metric == "identity" and self.bound != "energy" else super().unit

    def offered(self, layer: Layer) -> list[tuple[Folding, int]]:
        """The chosen foldings with every k that can be computed in reasonable time and memory.

        A linear layer on more than two dimensions has k = 1 only; so has one with more than 8,192 inputs
        under a data metric, where their second moment would be needed. An SVD of k slices that takes
        more than that of a 4,642 x 4,642 matrix is left out unless k = 1.
        """
        geometry = layer.geometry
        counts = slice_counts(geometry) if self.groups is None else [nearest_slices(geometry, self.groups)]
        if not sliceable(layer) or (self.metric != "identity" and geometry.columns > LARGEST_MOMENT):
            counts = [1]
        offers = [(folding, k) for folding in chosen_foldings(geometry, self.folding) for k in counts]
        return [
            (folding, k) for folding, k in offers if k == 1 or _work(geometry, folding, k) <= LARGEST_WORK
        ]

    def _curves(
        self, layer: Layer, statistics: LayerStatistics | None
    ) -> Iterator[tuple[Folding, int, Floats, float]]:
        if self.unit != "operator":
            yield from super()._curves(layer, statistics)
            return
        weights = row_weights(layer, self.metric, statistics, self.batchnorm)
        kernel = weights.apply(layer.matrix()).reshape(layer.kernel().shape)
        norms: dict[str, torch.Tensor] = {}
        for folding, slices in self.offered(layer):
            if folding.name not in norms:
                whole = fold(kernel, layer.geometry, folding, 1)
                norms[folding.name] = slice_spectra(whole).max().clamp_min(torch.finfo(whole.dtype).tiny)
            matrices = fold(kernel, layer.geometry, folding, slices)
            if self.bound == "operator":
                error = residual_norms(matrices, range(1, min(matrices.shape[2:]) + 1))
            else:
                error = shifted(slice_spectra(matrices))
            factor = np.sqrt(slices) if self.bound == "theorem" else 1.0
            yield folding, slices, (error / norms[folding.name] * factor).numpy(), 1.0
