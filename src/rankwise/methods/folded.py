"""What SVD, spatial SVD and ALDS share: candidates over foldings and slices, metrics, rank rules, build."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rankwise.linalg.group_svd import nested_gains, regression, slice_factors, slice_spectra
from rankwise.linalg.lowrank import principal_axes, tail_sums
from rankwise.methods.base import Candidates, Choice, Method, Statistic, Unit
from rankwise.methods.foldings import (
    Folding,
    assemble,
    build_folded,
    check_folding,
    chosen_foldings,
    fold,
    fold_factors,
    none_pays,
)
from rankwise.methods.metric import (
    Metric,
    Target,
    check_metric,
    feature_moments,
    metric_factor,
    metric_statistics,
    metric_unit,
    row_weights,
    slice_moments,
)
from rankwise.network.factors import chain_cost
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Folded(Method):
    """Group SVD of a kernel in one or more foldings; a base class without a name.

    Args:
        metric: "identity" measures the weights that are cut off.
            "input" measures the expected squared error of the layer's output: every slice is
            approximated in the second moment of its own inputs (averaged over the decoder's kernel
            positions), then the decoder is fitted to the output on all encoders together, so that the
            reported error is exact. "two_sided" weighs that output error with E[g g^T], g the gradient
            of the loss: half of it is the second-order change of the loss where labels are drawn from
            the model (Fisher = Hessian).
        folding: a name, "spatial" or "all" (:mod:`rankwise.methods.foldings`).
        batchnorm: for "identity", scale the rows by the gamma / sigma of the BatchNorm that reads the
            layer's output, so that the error is weighed as the network sees it. Off by default: with
            relative errors it cost accuracy on the pretrained ResNet-20 (docs/methods/svd.md).
        energy: offer one rank only: the smallest that keeps this share of the squared norm.
        error: offer one rank only: the smallest with at most this relative error (a norm, not squared).
        ratio: offer one rank only: the largest with at most this share of the layer's parameters.
    """

    metric: Metric = "identity"
    folding: str = "channel"
    batchnorm: bool = False
    energy: float | None = None
    error: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_folding(self.folding)
        given = {n: v for n in ("energy", "error", "ratio") if (v := getattr(self, n)) is not None}
        if len(given) > 1 or any(not 0.0 <= value <= 1.0 for value in given.values()):
            raise ValueError(f"{given} was given; allowed is one of energy, error, ratio, from 0 to 1.")

    @property
    def requires(self) -> frozenset[Statistic]:
        """What the metric reads; nothing for "identity"."""
        return metric_statistics(self.metric)

    @property
    def unit(self) -> Unit:
        """Unit of the candidates' errors."""
        return metric_unit(self.metric)

    def supports(self, layer: Layer) -> str | None:
        """Refuses layers without the folding, and those that rank 1 does not make smaller."""
        return none_pays(layer, self.offered(layer))

    @abstractmethod
    def offered(self, layer: Layer) -> list[tuple[Folding, int]]:
        """The (folding, slices) that are tried."""

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Every rank of every folding and slice count that is cheaper than the layer in some cost.

        Of the first folding and slice count offered all ranks are there, the exact full one included;
        they come last in the table.
        """
        whole = self.energy is None and self.error is None and self.ratio is None
        curves = []
        for order, (folding, slices, error, scale) in enumerate(self._curves(layer, statistics)):
            ranks = np.arange(1, len(error) + 1)
            factors = fold_factors(layer, folding, slices, ranks, layer.bias() is not None)
            params, macs = chain_cost(layer, factors)
            kept = (params < layer.cost.params) | (macs < layer.cost.macs)
            kept |= whole and order == 0
            choices = {
                "rank": ranks[kept],
                "slices": np.full(int(kept.sum()), slices),
                "folding": np.full(int(kept.sum()), folding.name),
            }
            part = Candidates(params[kept], macs[kept], error[kept], choices, self.unit, scale)
            curves.append(part if whole else _taken(part, self._rule(layer, part)))
        table = joined([*curves[1:], curves[0]])
        return table if whole else _taken(table, self._best(table))

    def _curves(
        self, layer: Layer, statistics: LayerStatistics | None
    ) -> Iterator[tuple[Folding, int, Floats, float]]:
        """Folding, slices, error of ranks 1.. and scale of everything that is offered."""
        weights = row_weights(layer, self.metric, statistics, self.batchnorm)
        matrix = weights.apply(layer.matrix())
        kernel = matrix.reshape(layer.kernel().shape)
        factor = metric_factor(self.metric, layer)
        target = None if statistics is None else Target(layer, statistics, matrix)
        for order, (folding, slices) in enumerate(self.offered(layer)):
            if self.metric == "identity":
                matrices = fold(kernel, layer.geometry, folding, slices)
                tails = tail_sums(slice_spectra(matrices).square()).sum((0, 1))
                yield folding, slices, tails[1:].numpy(), float(matrix.square().sum())
                continue
            assert target is not None
            useful = None if order == 0 else _largest_useful_rank(layer, folding, slices)
            tails = _output_tails(target, folding, slices, useful) * factor
            yield folding, slices, tails[1:].numpy(), float(tails[0])

    def _relative(self, table: Candidates) -> Floats:
        """Relative error as a norm."""
        relative = table.error / (table.scale or 1.0)
        return relative if self.unit == "operator" else np.sqrt(relative)

    def _rule(self, layer: Layer, table: Candidates) -> npt.NDArray[np.int64]:
        """Index of the one rank of a curve that the rule takes, or of none."""
        if self.ratio is not None:
            return np.flatnonzero(table.params <= self.ratio * layer.cost.params)[-1:]
        limit = float(self.error or 0.0) if self.energy is None else np.sqrt(1.0 - self.energy)
        return np.flatnonzero(self._relative(table) <= limit)[:1]

    def _best(self, table: Candidates) -> npt.NDArray[np.int64]:
        """Of the ranks that the rule took: the least error for a ratio, otherwise the fewest parameters."""
        first, second = (table.error, table.params) if self.ratio is not None else (table.params, table.error)
        return np.lexsort((table.macs, second, first))[:1]

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Encoder of one convolution group per slice, then the decoder, in the layer's own geometry."""
        geometry, rank, slices = layer.geometry, int(choice["rank"]), int(choice.get("slices", 1))
        folding = chosen_foldings(geometry, choice.get("folding", "channel"))[0]
        weights = row_weights(layer, self.metric, statistics, self.batchnorm)
        matrix = weights.apply(layer.matrix())
        if self.metric == "identity":
            matrices = fold(matrix.reshape(layer.kernel().shape), geometry, folding, slices)
            decoder, encoder = slice_factors(matrices, rank)
            return build_folded(layer, folding, weights.undo(decoder), encoder, layer.bias())
        assert statistics is not None
        target = Target(layer, statistics, matrix)
        if slices == 1 and not folding.decoder:  # projecting the output is the optimum
            basis = principal_axes(target.gram)[1][:, :, :rank]
            if rank == geometry.columns < geometry.rows:
                basis = torch.linalg.qr(matrix)[0]  # of W itself: exact off the data too
            decoder, encoder = basis[:, None], (basis.mT @ matrix)[:, None]
        else:
            decoder, encoder = _fitted(target, folding, slices, rank)
        return build_folded(layer, folding, weights.undo(decoder), encoder, layer.bias())


def _output_tails(target: Target, folding: Folding, slices: int, useful: int | None) -> Tensor:
    """Expected squared output error at one position for ranks 0 to the largest useful one (None: full)."""
    geometry, matrix = target.geometry, target.matrix
    if slices == 1 and not folding.decoder:
        tails = tail_sums(principal_axes(target.gram)[0]).sum(0)[: min(matrix.shape[1:]) + 1]
        tails[-1] = 0.0
        return tails[: None if useful is None else useful + 1]
    matrices = target.folded(folding, slices)
    full = min(matrices.shape[2:])
    rank = min(full if useful is None else useful, max(1, full - 1))
    blocks = slice_moments(target.moment, geometry, folding, slices)
    encoder = slice_factors(matrices, rank, blocks)[1]
    features, cross = feature_moments(target.moment, geometry, folding, encoder)
    total = target.gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)  # (G, 1)
    gains = nested_gains(features, cross @ matrix.mT, features.shape[-1] // rank)
    left = (total - gains).clamp_min(0.0).sum(0)
    exact = [] if useful is not None and useful < full else [left.new_zeros(1)]
    return torch.cat([total.sum(0), left[: full - 1], *exact])


def _fitted(target: Target, folding: Folding, slices: int, rank: int) -> tuple[Tensor, Tensor]:
    """Decoder and encoders: each slice in the moment of its own inputs, then the decoder by regression."""
    geometry, matrix = target.geometry, target.matrix
    blocks = slice_moments(target.moment, geometry, folding, slices)
    decoder, encoder = slice_factors(target.folded(folding, slices), rank, blocks)
    missing = matrix - assemble(geometry, folding, decoder, encoder).reshape(matrix.shape)
    features, cross = feature_moments(target.moment, geometry, folding, encoder)
    fitted = regression(features, cross @ missing.mT)  # (G, f, r k D)
    fitted = fitted.unflatten(-1, (rank, slices, -1)).permute(0, 3, 1, 4, 2)  # (G, k, f, D, r)
    return decoder + fitted.reshape(decoder.shape), encoder


def _largest_useful_rank(layer: Layer, folding: Folding, slices: int) -> int:
    """The largest rank at which the two factors have fewer parameters or MACs than the layer; at least 1."""
    geometry = layer.geometry
    encoder, decoder = folding.elements(geometry)
    columns = geometry.columns // geometry.kernel_elements // slices * encoder
    ranks = np.arange(1, min(geometry.rows * decoder, columns) + 1)
    params, macs = chain_cost(layer, fold_factors(layer, folding, slices, ranks, layer.bias() is not None))
    useful = np.flatnonzero((params < layer.cost.params) | (macs < layer.cost.macs))
    return int(ranks[useful[-1]]) if useful.size else 1


def _taken(table: Candidates, index: npt.NDArray[np.int64]) -> Candidates:
    return Candidates(
        table.params[index],
        table.macs[index],
        table.error[index],
        {name: values[index] for name, values in table.choices.items()},
        table.unit,
        table.scale,
    )


def joined(parts: list[Candidates]) -> Candidates:
    """Several foldings' or slice counts' candidates for one layer in one table; they share unit and scale."""
    first = parts[0]
    return Candidates(
        np.concatenate([p.params for p in parts]),
        np.concatenate([p.macs for p in parts]),
        np.concatenate([p.error for p in parts]),
        {name: np.concatenate([p.choices[name] for p in parts]) for name in first.choices},
        first.unit,
        first.scale,
    )
