"""The regression of one layer: from sums over calibration examples to new weights and an intercept."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import nn

from rankwise.linalg.factor_fit import Quadratic, fit_factors, reduced_rank
from rankwise.linalg.metric import anchored_regression, damped
from rankwise.network.chain import (
    Compose,
    Weights,
    balance_,
    leaves,
    linear_map,
    two_factor_rank,
)
from rankwise.network.layer import Geometry, Layer, geometry_of, store_kernel_
from rankwise.recovery.bias import biased
from rankwise.statistics import LayerStatistics

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Subject:
    """A layer of the original network and what stands in its place, seen as one matrix per group.

    ``path`` and ``module`` are what is refitted: all that replaced ``layer``, or only its last part
    where the whole cannot be written as a matrix. ``chain`` says that it has several factors.
    """

    layer: Layer
    path: str
    module: nn.Module
    geometry: Geometry
    chain: bool

    @classmethod
    def of(cls, layer: Layer, model: nn.Module) -> "Subject | None":
        """What ``model`` has in the place of ``layer``; None where nothing there can be refitted."""
        try:
            module = model.get_submodule(layer.name)
        except AttributeError:
            return None
        geometry = geometry_of(module)
        if geometry is not None:
            return cls(layer, layer.name, module, geometry, False)
        parts = leaves(module)
        ends = [geometry_of(part) for part in parts[:: max(1, len(parts) - 1)]]
        if len(parts) < 2 or ends[0] is None or ends[-1] is None:
            return None
        whole = replace(layer.geometry, in_channels=ends[0].in_channels, out_channels=ends[-1].out_channels)
        if linear_map(module, whole) is not None:
            return cls(layer, layer.name, module, whole, True)
        if isinstance(module, nn.Sequential) and module[-1] is parts[-1]:
            return cls(layer, f"{layer.name}.{len(module) - 1}", parts[-1], ends[-1], False)
        return None

    def matrix(self) -> Tensor:
        """What the module computes now, (groups, rows, columns), float64."""
        if self.chain:
            compose, weights = self.map(self.module)
            return compose(weights)
        return Layer(self.path, self.module, self.geometry).matrix()

    def map(self, chain: nn.Module) -> tuple[Compose, Weights]:
        """:func:`linear_map` of ``chain``, the module or a copy of it."""
        found = linear_map(chain, self.geometry)
        assert found is not None, "checked when the subject was made"
        return found

    def anchor(self) -> Tensor:
        """What the ridge holds on to: the original layer, where the shapes allow it."""
        same = self.chain and self.geometry == self.layer.geometry
        return self.layer.matrix() if same else self.matrix()


@dataclass(frozen=True, eq=False)
class Solution:
    """A layer's new weights and its error on held-out examples, ``before`` and ``after``.

    Errors are mean squares summed over channels, in the metric. ``intercept`` (out_channels,) is what
    is to be added to the layer's output; ``factors`` holds weights by name where there are several.
    """

    before: float
    after: float
    ridge: float
    matrix: Tensor
    intercept: Tensor
    factors: Mapping[str, Tensor]

    def store_(self, subject: Subject) -> None:
        """Put the weights into the module; the intercept is the caller's."""
        if not subject.chain:
            store_kernel_(subject.module, self.matrix)
            return
        parameters = dict(subject.module.named_parameters())
        with torch.no_grad():
            for name, value in self.factors.items():
                parameters[name].copy_(value.reshape(parameters[name].shape))


@dataclass(frozen=True, eq=False)
class Free:
    """A matrix of any rank, the ridge that it was found with, and its error on held-out examples."""

    error: float
    ridge: float
    matrix: Tensor


@dataclass(frozen=True, eq=False)
class Regression:
    """Regression of a target t on input patches u, of the rank and form that the module has.

    Args:
        fit: input and target moments of the examples to fit.
        held: those of the examples to judge on.
        centred: whether an intercept can be stored; without one, moments are about zero.
        metric: (groups, rows, rows) weight of output errors; None is the identity.
        ridges: weights of the anchor, relative to the mean variance of an input.
        iterations: Gauss-Newton steps where the factors have no closed form.
    """

    fit: LayerStatistics
    held: LayerStatistics
    centred: bool
    metric: Tensor | None
    ridges: tuple[float, ...]
    iterations: int

    def solve(self, subject: Subject, free: Free) -> Solution:
        """The module's new weights: ``free`` itself or, for factors, what comes closest to it."""
        now, fixed = subject.matrix(), biased(subject.module)
        constant = torch.zeros(now.shape[:2], dtype=now.dtype)
        if fixed is not None:
            constant = fixed.detach().to("cpu", torch.float64).view(now.shape[:2])
        ridge, matrix = free.ridge, free.matrix
        factors: Mapping[str, Tensor] = {}
        if subject.chain:
            goal = Quadratic(matrix, damped(self._moment(), ridge), self.metric)
            factors, matrix = self._factors(subject, goal)
        intercept = self._intercept(matrix)
        after = self._error(matrix, intercept)
        return Solution(self._error(now, constant), after, ridge, matrix, intercept.flatten(), factors)

    def free(self, subject: Subject) -> Free:
        """The matrix of any rank with the best of the ridges on held-out examples."""
        moment, cross = self._moment(), self.fit.cross_moment
        if self.centred:
            cross = cross - self.fit.target_mean[:, :, None] * self.fit.input_mean[:, None, :]
        anchor, tried = subject.anchor(), []
        for ridge in self.ridges:
            matrix = anchored_regression(anchor, moment, cross, ridge)
            tried.append(Free(self._error(matrix, self._intercept(matrix)), ridge, matrix))
        return min(tried, key=lambda one: one.error)

    def _moment(self) -> Tensor:
        return self.fit.input_covariance if self.centred else self.fit.input_moment

    def _factors(self, subject: Subject, goal: Quadratic) -> tuple[Mapping[str, Tensor], Tensor]:
        """Weights by name that come closest to the goal, and the matrix that they make."""
        chain = deepcopy(subject.module)
        if isinstance(chain, nn.Sequential):
            balance_(chain)
        compose, start = subject.map(chain)
        rank = two_factor_rank(chain, subject.geometry)
        if rank is None:
            factors = fit_factors(compose, start, goal, iterations=self.iterations)
        else:
            pairs = zip(start, reduced_rank(goal, rank), strict=True)
            factors = {name: value.reshape(start[name].shape) for name, value in pairs}
        return factors, compose(factors)

    def _intercept(self, matrix: Tensor) -> Tensor:
        """E[t] - A E[u], (groups, rows)."""
        if not self.centred:
            return torch.zeros(matrix.shape[:2], dtype=matrix.dtype)
        return self.fit.target_mean - (matrix @ self.fit.input_mean[:, :, None])[:, :, 0]

    def _error(self, matrix: Tensor, constant: Tensor) -> float:
        """Mean of (t - A u - c)' G (t - A u - c) over the held-out examples."""
        s = self.held
        rest = s.target_mean - (matrix @ s.input_mean[:, :, None])[:, :, 0]
        crossed = s.cross_moment @ matrix.mT
        square = s.target_moment - crossed - crossed.mT + matrix @ s.input_moment @ matrix.mT
        outer = rest[:, :, None] * constant[:, None, :]
        square = square - outer - outer.mT + constant[:, :, None] * constant[:, None, :]
        weighed = square if self.metric is None else self.metric @ square
        return float(weighed.diagonal(dim1=1, dim2=2).sum())
