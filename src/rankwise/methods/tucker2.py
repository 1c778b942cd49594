"""Tucker-2: a convolution as pointwise, small convolution and pointwise, with a rank on either side."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.linalg.cp import metric_error
from rankwise.linalg.cp_solver import unfold
from rankwise.linalg.evbmf import evbmf_rank
from rankwise.linalg.lowrank import principal_axes, tail_sums
from rankwise.linalg.tucker import TuckerFit
from rankwise.linalg.tucker2 import Tucker2Options, tucker2, tucker2_errors
from rankwise.methods.base import Candidates, Choice, Method, Statistic, register
from rankwise.methods.metric import Metric, check_metric, metric_factor, metric_statistics, metric_unit
from rankwise.methods.tensor_problem import TensorProblem, mean_keeping_bias, stacked, tensor_problems
from rankwise.network.factors import Factor, build_chain, chain_cost
from rankwise.network.layer import Geometry, Layer
from rankwise.statistics.record import LayerStatistics

_POINTS = 8
Pair = tuple[int, int]


def tucker2_factors(geometry: Geometry, pair: Pair, bias: bool) -> list[Factor]:
    """Up to three layers; a rank of 0 leaves out the pointwise layer on that side."""
    rank_out, rank_in = pair
    groups = geometry.groups
    inner = rank_in * groups or geometry.in_channels
    outer = rank_out * groups or geometry.out_channels
    chain = [Factor(geometry.in_channels, inner, (), groups)] if rank_in else []
    last = rank_out == 0
    chain.append(Factor(inner, outer, tuple(range(geometry.ndim)), groups, bias and last))
    if not last:
        chain.append(Factor(outer, geometry.out_channels, (), groups, bias))
    return chain


def side_ranks(size: int) -> list[int]:
    """Up to 8 ranks below ``size``, evenly spaced (multiples of 8, 4 or 2 where there are enough), and 0."""
    step = next((s for s in (8, 4, 2) if size > s * _POINTS), 1)
    points = {max(round(size * i / (_POINTS + 1) / step), 1) * step for i in range(1, _POINTS + 1)}
    return [*sorted(p for p in points if p < size), 0]


@register("tucker2")
@dataclass(frozen=True)
class Tucker2(Method):
    """A small convolution between two pointwise ones: W = core times a factor for out and in channels.

    ``rank_out`` and ``rank_in`` of a choice are the core's channels; 0 means that this side has no
    factor (Tucker-1), both 0 the layer itself. Data-free it is HOSVD improved by HOOI; with data the
    expected squared output error is minimised over all three factors
    (:mod:`rankwise.linalg.tucker2`).

    Args:
        metric: "identity" for the weight's squared error, "input" for the expected squared output
            error, "two_sided" for the second-order change of the loss.
        centred: with data, keep the mean output exactly by the bias; the metric is the covariance then.
        sweeps: alternations between the factors.
        evbmf: offer one pair only: the EVBMF ranks of the two unfoldings at unit RMS, weakened to
            ``full - evbmf * (full - found)``; 1 is plain EVBMF. A side without signal stays whole.
        energy: offer one pair only: per side the smallest rank that keeps this share of the squared norm.
        fraction: offer one pair only: this share of the channels on both sides.
        min_rank: smallest rank that such a rule may give.
    """

    summary: ClassVar[str] = "Tucker-2: pointwise, small convolution, pointwise; a rank for either side"
    source: ClassVar[str] = "Kim et al. 2016, 1511.06530"

    metric: Metric = "identity"
    centred: bool = True
    sweeps: int = 4
    evbmf: float | None = None
    energy: float | None = None
    fraction: float | None = None
    min_rank: int = 1

    def __post_init__(self) -> None:
        check_metric(self.metric)
        given = {n: v for n in ("evbmf", "energy", "fraction") if (v := getattr(self, n)) is not None}
        if len(given) > 1 or any(not 0 <= value <= 1 for value in given.values()):
            raise ValueError(f"{given} was given; allowed is one of evbmf, energy, fraction, from 0 to 1.")

    @property
    def requires(self) -> frozenset[Statistic]:
        """What the metric reads; nothing for "identity"."""
        return metric_statistics(self.metric)

    def supports(self, layer: Layer) -> str | None:
        """Refuses what has no kernel over space, and kernels too small to gain."""
        geometry = layer.geometry
        if geometry.kernel_elements == 1:
            return "its kernel has one element: Tucker-2 of a matrix is its SVD, so use a matrix method"
        sides = [(a, b) for a in (0, 1) for b in (0, 1) if a + b]
        least = min(int(chain_cost(layer, tucker2_factors(geometry, p, False))[0][0]) for p in sides)
        if least < layer.weight.numel():
            return None
        what = "depthwise" if geometry.depthwise else "small"
        return f"{what}: Tucker-2 of rank 1 has {least} weights, the layer has {layer.weight.numel()}"

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """All pairs of up to 9 ranks per side that save something, by size; the layer itself comes last.

        For "identity" the error is that of the HOSVD, from one decomposition for all pairs; HOOI makes that
        of the built layer a little smaller.
        """
        offered = self._offered(layer)
        chosen = [pair for _, _, pair in offered]
        problems = self._problems(layer, statistics)
        unit = metric_factor(self.metric, layer)
        error = np.sum([self._errors(problem, chosen) for problem in problems], axis=0) * unit
        scale = sum(metric_error(p.tensor, p.input_metric, p.output_metric) for p in problems)
        return Candidates(
            np.array([params for params, _, _ in offered], np.int64),
            np.array([macs for _, macs, _ in offered], np.int64),
            error,
            {
                "rank_out": np.array([a for a, _ in chosen], np.int64),
                "rank_in": np.array([b for _, b in chosen], np.int64),
            },
            metric_unit(self.metric),
            scale * unit,
        )

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Pointwise to ``rank_in`` channels, the core in the layer's geometry, pointwise with the bias."""
        pair = (int(choice["rank_out"]), int(choice["rank_in"]))
        fits = [self._fit(p, pair) for p in self._problems(layer, statistics)]
        matrices = torch.stack([fit.tensor().flatten(1) for fit in fits])  # (G, o, d)
        bias = mean_keeping_bias(layer, statistics, matrices, self._keeps_mean)
        weights = [stacked([fit.core for fit in fits])]
        if pair[1]:
            weights.insert(0, stacked([fit.factors[1].T for fit in fits]))
        if pair[0]:
            weights.append(stacked([fit.factors[0] for fit in fits]))
        biases: list[Tensor | None] = [None] * (len(weights) - 1)
        chain = tucker2_factors(layer.geometry, pair, bias is not None)
        return build_chain(layer, chain, weights, [*biases, bias])

    @property
    def _keeps_mean(self) -> bool:
        return self.centred and self.metric != "identity"

    def _offered(self, layer: Layer) -> list[tuple[int, int, Pair]]:
        """Parameters, MACs and ranks of every pair that is offered, ordered, the layer itself last."""
        geometry, rule = layer.geometry, self._rule(layer)
        bias = layer.bias() is not None or self._keeps_mean
        sides = side_ranks(geometry.rows), side_ranks(geometry.in_channels // geometry.groups)
        offered = []
        for pair in rule or product(*sides):
            params, macs = chain_cost(layer, tucker2_factors(geometry, pair, bias))
            saves = params[0] < layer.cost.params or macs[0] < layer.cost.macs
            if rule or saves or pair == (0, 0):
                offered.append((int(params[0]), int(macs[0]), pair))
        return sorted(offered, key=lambda row: (row[2] == (0, 0), row))

    def _problems(self, layer: Layer, statistics: LayerStatistics | None) -> list[TensorProblem]:
        kernel = (layer.geometry.kernel_elements,)
        return tensor_problems(layer, statistics, self.metric, self._keeps_mean, kernel)

    def _errors(self, problem: TensorProblem, pairs: Sequence[Pair]) -> list[float]:
        return tucker2_errors(
            problem.tensor,
            pairs,
            input_metric=problem.input_metric,
            output_metric=problem.output_metric,
            options=Tucker2Options(sweeps=self.sweeps),
        )

    def _fit(self, problem: TensorProblem, pair: Pair) -> TuckerFit:
        return tucker2(
            problem.tensor,
            *pair,
            input_metric=problem.input_metric,
            output_metric=problem.output_metric,
            options=Tucker2Options(sweeps=self.sweeps),
        )

    def _rule(self, layer: Layer) -> list[Pair]:
        """The one pair that a rule gives, by the weights of the largest rank over the groups; else none."""
        if self.evbmf is None and self.energy is None and self.fraction is None:
            return []
        kernels = [
            p.tensor
            for p in tensor_problems(layer, None, "identity", False, (layer.geometry.kernel_elements,))
        ]
        pair = [max(self._side_rank(kernel, mode) for kernel in kernels) for mode in (0, 1)]
        sizes = kernels[0].shape
        found = [0 if rank >= size else rank for rank, size in zip(pair, sizes, strict=False)]
        return [(found[0], found[1])]

    def _side_rank(self, kernel: Tensor, mode: int) -> int:
        """The rank of one side; 0 where EVBMF finds no signal, so that the side is left whole."""
        size = kernel.shape[mode]
        if self.fraction is not None:
            return min(max(round(self.fraction * size), self.min_rank), size)
        matrix = unfold(kernel, mode)
        if self.evbmf is not None:
            if self.evbmf == 1.0 and evbmf_rank(matrix) == 0:
                return 0
            return evbmf_rank(matrix, weakening=self.evbmf, minimum=self.min_rank)
        assert self.energy is not None
        tail = tail_sums(principal_axes(matrix @ matrix.T)[0])
        enough = int((tail <= (1 - self.energy) * tail[0] * (1 + 1e-12)).nonzero()[0, 0])
        return min(max(enough, self.min_rank), size)
