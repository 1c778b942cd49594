"""CP: a convolution as pointwise, depthwise and pointwise layers, fitted to weights or to data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.linalg.cp import DEGENERATE, CPFit, CPOptions, cp_curve, cp_tensor, metric_error, refine
from rankwise.linalg.cp_correction import error_preserving_correction
from rankwise.linalg.cp_solver import component_norms
from rankwise.methods.base import Candidates, Choice, Method, Statistic, register
from rankwise.methods.metric import Metric, check_metric, metric_factor, metric_statistics, metric_unit
from rankwise.methods.recall import Recall
from rankwise.methods.tensor_problem import TensorProblem, mean_keeping_bias, stacked, tensor_problems
from rankwise.network.factors import Count, Factor, build_chain, chain_cost
from rankwise.network.layer import Geometry, Layer
from rankwise.statistics.record import LayerStatistics

_POINTS = 20
_POINTS_LARGE = 8
_INTERPOLATED = 80
_SMALLER = (2, 4)  # of the smallest rank of the grid: a layer that hardly matters is best off with few
_LARGE = 400_000  # weights


def bytes_of(fits: Sequence[CPFit]) -> int:
    """What the factors of ``fits`` take in memory; the curve of a layer of 512 channels takes 85 MB."""
    return sum(factor.nbytes for fit in fits for factor in fit.factors)


_recalled: Recall[list[CPFit]] = Recall(256, 2**31, bytes_of)


def kernel_axes(geometry: Geometry, factors: int) -> list[tuple[int, ...]]:
    """The spatial axes that each depthwise layer carries: all in one for 3 factors, else one each.

    An axis whose kernel has one element goes with the first that has more (it may be strided or padded).
    """
    axes = range(geometry.ndim)
    long = [axis for axis in axes if geometry.kernel_size[axis] > 1]
    if factors == 3 or len(long) < 2:
        return [tuple(axes)]
    short = [axis for axis in axes if axis not in long]
    return [tuple(sorted([long[0], *short])), *((axis,) for axis in long[1:])]


def cp_factors(geometry: Geometry, rank: Count, factors: int, bias: bool) -> list[Factor]:
    """The chain: pointwise to ``rank`` channels per group, depthwise layers, pointwise."""
    middle = np.asarray(rank) * geometry.groups if isinstance(rank, np.ndarray) else rank * geometry.groups
    depthwise = [Factor(middle, middle, axes, middle) for axes in kernel_axes(geometry, factors)]
    first = Factor(geometry.in_channels, middle, (), geometry.groups)
    return [first, *depthwise, Factor(middle, geometry.out_channels, (), geometry.groups, bias)]


def rank_grid(layer: Layer, factors: int, points: int = _POINTS) -> list[int]:
    """Up to ``points`` ranks, evenly spaced up to the largest that saves parameters or MACs.

    8 ranks at most for layers of more than 400,000 weights. Multiples of 8, where there are enough of them,
    so that ``multiple_of=8`` finds options.
    """
    params, macs = chain_cost(layer, cp_factors(layer.geometry, 1, factors, False))
    top = max((layer.weight.numel() - 1) // int(params[0]), (layer.cost.macs - 1) // max(int(macs[0]), 1), 1)
    count = points if layer.weight.numel() < _LARGE else min(points, _POINTS_LARGE)
    step = next((s for s in (8, 4, 2) if top >= s * count), 1)
    ranks = {step * max(round(top * i / count / step), 1) for i in range(1, count + 1)}
    return sorted(min(rank, top) for rank in ranks)


@register("cp")
@dataclass(frozen=True)
class CP(Method):
    """A convolution kernel as a sum of R products of one vector per mode (CP, CANDECOMP/PARAFAC).

    With W[t, s, k] = sum over r of a[t, r] b[s, r] c[k, r] the convolution is a pointwise layer to R
    channels (b), a depthwise convolution (c) and a pointwise layer (a). Found by growing the rank and
    damped Gauss-Newton steps in float64 (:mod:`rankwise.linalg.cp`). Where the metric is not the
    identity, the expected squared output error itself is minimised, with channels and kernel positions
    coupled as in the calibration data. A choice's ``cancellation`` is that of
    :class:`rankwise.linalg.cp.CPFit`.

    Args:
        factors: 3 keeps the kernel's axes together in one depthwise layer, 4 gives each axis its own
            (for a Conv2d four layers in all), 0 offers both.
        metric: "identity" for the weight's squared error, "input" for the expected squared output
            error, "two_sided" for the second-order change of the loss.
        centred: with data, keep the mean output exactly by the bias; the metric is the covariance then.
        polish: further Gauss-Newton steps on the rank that was chosen, so that the error is at most the
            predicted one; 0 makes the prediction exact.
        ridge: relative weight of the factors' norms, which bounds those of the terms.
        starts: fits per rank from different starting points.
        seed: of random starting points.
        effort: most work per layer and factor count, for all ranks, in 1e9 floating-point operations.
        corrected: after polishing, give the error that was won back for the least sensitivity to changes
            of the factors (error-preserving correction, for "identity" alone): helps rounding and
            fine-tuning, not accuracy.
        degenerate: offer fits whose terms cancel each other too; otherwise they are left out.
        points: ranks fitted per layer and factor count, at most.
        interpolated: fit a half and a quarter of the smallest of these too, and offer many more ranks, with
            errors interpolated on a log scale between the fitted ones; the rank that is chosen is fitted
            for itself.
    """

    summary: ClassVar[str] = "CP: pointwise, depthwise, pointwise; fitted to weights, inputs or both sides"
    source: ClassVar[str] = "Lebedev et al. 2015, 1412.6553; Phan et al. 2020, 2008.05441"

    factors: Literal[0, 3, 4] = 3
    metric: Metric = "identity"
    centred: bool = True
    polish: int = 30
    ridge: float = 1e-3
    starts: int = 1
    seed: int = 0
    effort: float = 100.0
    corrected: bool = False
    degenerate: bool = False
    points: int = _POINTS
    interpolated: bool = False

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if self.factors not in (0, 3, 4):
            raise ValueError(f"factors={self.factors!r} was given; allowed are 3, 4 and 0 (both).")
        if self.points < 1:
            raise ValueError(f"points={self.points} was given; it must be at least 1.")
        if self.corrected and (self.metric != "identity" or self.polish == 0):
            raise ValueError(
                f"corrected=True was given with metric={self.metric!r}, polish={self.polish}; "
                "it is defined for metric='identity' after polishing."
            )

    @property
    def requires(self) -> frozenset[Statistic]:
        """What the metric reads; nothing for "identity"."""
        return metric_statistics(self.metric)

    def supports(self, layer: Layer) -> str | None:
        """Refuses what has no kernel over space, and kernels too small to gain."""
        geometry = layer.geometry
        if geometry.kernel_elements == 1:
            return "its kernel has one element: CP of a matrix is its SVD, so use a matrix method"
        least = min(
            int(chain_cost(layer, cp_factors(geometry, 1, count, False))[0][0])
            for count in self._counts(geometry)
        )
        if least < layer.weight.numel():
            return None
        what = "depthwise" if geometry.depthwise else "small"
        return f"{what}: CP of rank 1 has {least} weights, no fewer than the layer's {layer.weight.numel()}"

    def candidates(self, layer: Layer, statistics: LayerStatistics | None) -> Candidates:
        """Ranks per factor count, up to where the chain is as large as the layer."""
        bias = layer.bias() is not None or self._keeps_mean
        unit = metric_factor(self.metric, layer)
        rows: list[tuple[int, int, float, float, int, int, bool]] = []
        scale = 0.0
        for count in self._counts(layer.geometry):
            fitted = self._fitted(layer, count)
            curves = [self._curve(p, fitted) for p in self._problems(layer, statistics, count)]
            scale = sum(curve[0].scale for curve in curves) * unit
            errors = np.array([sum(curve[i].error for curve in curves) * unit for i in range(len(fitted))])
            worst = np.array([max(curve[i].cancellation for curve in curves) for i in range(len(fitted))])
            ranks = fitted
            if self.interpolated:
                ranks = sorted(
                    {*fitted, *(r for r in rank_grid(layer, count, _INTERPOLATED) if r > fitted[0])}
                )
                errors, worst = between(fitted, errors, ranks), between(fitted, worst, ranks)
            params, macs = chain_cost(layer, cp_factors(layer.geometry, np.array(ranks), count, bias))
            for i, rank in enumerate(ranks):
                if self.degenerate or worst[i] <= DEGENERATE:
                    rows.append(
                        (rank, count, worst[i], errors[i], int(params[i]), int(macs[i]), rank in fitted)
                    )
        table = np.array(rows, np.float64).reshape(-1, 7)
        choices = {
            "rank": table[:, 0].astype(np.int64),
            "factors": table[:, 1].astype(np.int64),
            "cancellation": table[:, 2].round(3),
        }
        params, macs = table[:, 4].astype(np.int64), table[:, 5].astype(np.int64)
        known = table[:, 6] > 0 if self.interpolated else None
        return Candidates(params, macs, table[:, 3], choices, metric_unit(self.metric), scale, known)

    def build(self, layer: Layer, statistics: LayerStatistics | None, choice: Choice) -> nn.Module:
        """Pointwise (the inputs' factor), depthwise per axis or all axes, pointwise with the bias."""
        rank, count = int(choice["rank"]), int(choice.get("factors", self.factors or 3))
        fits = [self._fit(layer, p, rank, count) for p in self._problems(layer, statistics, count)]
        matrices = torch.stack([fit.tensor().flatten(1) for fit in fits])  # (G, o, d)
        bias = mean_keeping_bias(layer, statistics, matrices, self._keeps_mean)
        modes = [stacked([fit.factors[m].T for fit in fits]) for m in range(1, len(fits[0].factors))]
        weights = [*modes, stacked([fit.factors[0] for fit in fits])]
        chain = cp_factors(layer.geometry, rank, count, bias is not None)
        biases: list[Tensor | None] = [None] * (len(chain) - 1)
        return build_chain(layer, chain, weights, [*biases, bias])

    @property
    def _keeps_mean(self) -> bool:
        return self.centred and self.metric != "identity"

    @property
    def _options(self) -> CPOptions:
        return CPOptions(ridge=self.ridge, starts=self.starts, seed=self.seed, effort=self.effort)

    def _counts(self, geometry: Geometry) -> list[int]:
        """The factor counts to offer: 3 and 4 are the same where one axis has all the kernel."""
        if len(kernel_axes(geometry, 4)) == 1:
            return [3]
        return [3, 4] if self.factors == 0 else [self.factors]

    def _fitted(self, layer: Layer, count: int) -> list[int]:
        """The ranks that are fitted; with interpolation also smaller ones than a coarse grid has."""
        ranks = rank_grid(layer, count, self.points)
        small = {max(1, ranks[0] // share) for share in _SMALLER} if self.interpolated else set()
        return sorted({*ranks, *small})

    def _problems(self, layer: Layer, statistics: LayerStatistics | None, count: int) -> list[TensorProblem]:
        sizes = layer.geometry.kernel_size
        modes = tuple(prod(sizes[axis] for axis in axes) for axes in kernel_axes(layer.geometry, count))
        return tensor_problems(layer, statistics, self.metric, self._keeps_mean, modes)

    def _curve(self, problem: TensorProblem, ranks: Sequence[int], share: float = 1.0) -> list[CPFit]:
        metrics = {"input_metric": problem.input_metric, "output_metric": problem.output_metric}
        options = replace(self._options, effort=share * self.effort)
        return _recalled(
            (problem.tensor, *metrics.values(), list(ranks), options),
            lambda: cp_curve(problem.tensor, ranks, options=options, **metrics),
        )

    def _fit(self, layer: Layer, problem: TensorProblem, rank: int, count: int) -> CPFit:
        """The fit of ``rank`` on the curve that the candidates came from, or for itself; polished."""
        ranks = self._fitted(layer, count)
        share = 1.0
        if rank not in ranks and self.interpolated:
            ranks, share = [rank], 1 / len(ranks)
        elif rank not in ranks:
            ranks = [r for r in ranks if r < rank] + [rank]
        fit = self._curve(problem, ranks, share)[ranks.index(rank)]
        if self.polish == 0:
            return fit
        metrics = {"input_metric": problem.input_metric, "output_metric": problem.output_metric}
        options = replace(self._options, iterations=self.polish)
        key = (problem.tensor, *metrics.values(), rank, ranks, share, options, self.corrected)

        def polished() -> list[CPFit]:
            better = refine(problem.tensor, fit, options=options, **metrics)
            return [corrected(problem.tensor, better, fit.error) if self.corrected else better]

        return _recalled(key, polished)[0]


def between(ranks: Sequence[int], values: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Positive ``values`` at ``ranks``, interpolated linearly in the logarithm at the ranks ``wanted``."""
    found: np.ndarray = np.exp(np.interp(wanted, ranks, np.log(np.maximum(values, 1e-300))))
    return found


def corrected(tensor: Tensor, fit: CPFit, bound: float) -> CPFit:
    """``fit`` made as insensitive as a squared error of ``bound``, in the plain metric, allows."""
    factors = error_preserving_correction(tensor, list(fit.factors), max(bound, fit.error))
    difference = tensor - cp_tensor(factors)
    cancellation = float(component_norms(factors).square().sum() / tensor.square().sum().clamp_min(1e-300))
    return CPFit(tuple(factors), metric_error(difference), fit.scale, cancellation)
