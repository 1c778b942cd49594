"""The data-aware CP problem: the expected squared error of a layer's output, exactly.

With the weight as ``(out, in, *kernel)`` and ``u`` the input patch at one output position, the
expected squared output error is ``tr((W - What) M (W - What)')`` where ``M = E[u u']`` couples
channels and kernel positions. No whitening of single modes gives this objective, because M is not a
Kronecker product; but whitening by the nearest one makes the remaining metric close to the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.linalg.cp_solver import (
    Euclidean,
    Factors,
    Linearisation,
    contract,
    khatri_rao,
    solve_gram,
)


class Weighted:
    """The squared distance to ``tensor`` in a metric over all modes but the first.

    Args:
        tensor: ``(dim_0, dim_1, ...)``, float64.
        metric: positive semidefinite ``(P, P)`` with ``P = prod(dim_1, ...)``; should be near a
            multiple of the identity for fast convergence, see :func:`frame_of`.
    """

    def __init__(self, tensor: Tensor, metric: Tensor) -> None:
        matrix = tensor.flatten(1)
        self.tensor, self.metric = tensor, metric
        self._single = metric.float()
        self._weighted = matrix @ metric  # (dim_0, P)
        self._square = float((self._weighted * matrix).sum())

    def value(self, factors: Factors) -> float:
        """The squared error, at least 0."""
        first, rest = factors[0], khatri_rao(factors[1:])  # (dim_0, R), (P, R)
        inner = ((self._weighted @ rest) * first).sum()
        square = ((first.T @ first) * (rest.T @ (self.metric @ rest))).sum()
        return max(self._square - 2 * float(inner) + float(square), 0.0)

    def solve_first(self, factors: Factors) -> Tensor:
        """The best first factor for the other factors as they are."""
        rest = khatri_rao(factors[1:])
        return solve_gram(rest.T @ (self.metric @ rest), self._weighted @ rest)

    def linearise(self, factors: Factors) -> Linearisation:
        """The normal equations around ``factors``; one product with the metric for each application.

        Products are made in single precision: they only give directions, whose gain is judged in double.
        """
        first, rest = factors[0], khatri_rao(factors[1:])
        weighted = self.metric @ rest  # (P, R)
        outer, inner = first.T @ first, rest.T @ weighted  # (R, R) both

        singles = [f.float() for f in factors]
        single = [t.float() for t in (rest, weighted, outer, inner)]

        def product(steps: Factors) -> Factors:
            around, weighed, out, into = single
            by = [step.float() for step in steps]
            moved = torch.zeros_like(around)
            for mode in range(1, len(singles)):
                moved += khatri_rao([by[n] if n == mode else singles[n] for n in range(1, len(singles))])
            slope = self._single @ (moved @ out + around @ (by[0].T @ singles[0]))
            leading = by[0] @ into + singles[0] @ (moved.T @ weighed)
            return [t.double() for t in (leading, *_pulled_back(slope, singles))]

        downhill = self._weighted.T @ first - weighted @ outer
        squares = [f.T @ f for f in factors]
        grams = [inner]
        for mode in range(1, len(factors)):
            gram = torch.ones_like(inner)
            for n, square in enumerate(squares):
                if n != mode:
                    gram = gram * square
            grams.append(gram)
        leading = self._weighted @ rest - first @ inner
        return Linearisation([leading, *_pulled_back(downhill, factors)], grams, product)


def _pulled_back(slope: Tensor, factors: Factors) -> Factors:
    """The gradient for each later factor of a gradient ``(P, R)`` for their Khatri-Rao product."""
    full = slope.unflatten(0, [f.shape[0] for f in factors[1:]])
    return [contract(full, factors[1:], mode) for mode in range(len(factors) - 1)]


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates in which the metric of a problem is the identity, or close to it.

    ``euclidean`` is the problem in these coordinates with the nearest separable metric, ``exact``
    the one with the whole metric (None where they agree, or where the metric is too large).
    """

    euclidean: Euclidean
    exact: Weighted | None
    roots: tuple[Tensor | None, ...]
    inverses: tuple[Tensor | None, ...]

    def apply(self, factors: Factors) -> Factors:
        """Factors of the original tensor in these coordinates."""
        return [f if root is None else root @ f for f, root in zip(factors, self.roots, strict=True)]

    def restore(self, factors: Factors) -> Factors:
        """Factors in these coordinates as factors of the original tensor."""
        return [
            f if inverse is None else inverse @ f for f, inverse in zip(factors, self.inverses, strict=True)
        ]


def frame_of(
    tensor: Tensor,
    input_metric: Tensor | None,
    output_metric: Tensor | None,
    floor: float,
    exact_limit: int,
) -> Frame:
    """The frame of ``tr(G (W - What) M (W - What)')``.

    Args:
        tensor: W, ``(dim_0, dim_1, ...)``, float64.
        input_metric: M, ``(P, P)`` over all modes but the first, or None for the identity.
        output_metric: G, ``(dim_0, dim_0)``, or None for the identity.
        floor: share of the mean eigenvalue added to each metric.
        exact_limit: largest P for which M is used whole.

    Raises:
        ValueError: a metric has another size.
    """
    dims = tuple(tensor.shape)
    inputs = tensor[0].numel()
    roots: list[Tensor | None] = [None] * len(dims)
    inverses: list[Tensor | None] = [None] * len(dims)
    for metric, size, what in ((output_metric, dims[0], "output"), (input_metric, inputs, "input")):
        if metric is not None and metric.shape != (size, size):
            raise ValueError(
                f"An {what} metric of shape {tuple(metric.shape)} was given for a tensor of shape {dims}; "
                f"needs ({size}, {size})."
            )
    if output_metric is not None:
        roots[0], inverses[0] = metric_roots(output_metric.double(), floor)
    exact = None
    if input_metric is not None:
        metric = anchored(input_metric.double(), floor)
        parts = separable_parts(metric, dims[1:])
        for mode, part in enumerate(parts, start=1):
            roots[mode], inverses[mode] = metric_roots(part, 1e-9)
        tensor = mode_products(tensor, roots)
        if len(dims) > 2 and inputs <= exact_limit:
            whitened = metric.reshape(*dims[1:], *dims[1:])
            whitened = mode_products(whitened, inverses[1:] + inverses[1:])
            exact = Weighted(tensor, whitened.reshape(inputs, inputs))
    else:
        tensor = mode_products(tensor, roots)
    return Frame(Euclidean(tensor), exact, tuple(roots), tuple(inverses))


def anchored(metric: Tensor, floor: float) -> Tensor:
    """The symmetric part of ``metric`` with ``floor`` times its mean eigenvalue added; I where it is zero."""
    mean = metric.diagonal().mean()
    level = floor * mean if mean > 0 else torch.ones_like(mean)  # no data at all: plain distance
    return (metric + metric.T) / 2 + level * torch.eye(metric.shape[0], dtype=metric.dtype)


def metric_roots(metric: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse, the floor added to the eigenvalues."""
    metric = anchored(metric, floor)
    values, vectors = torch.linalg.eigh(metric)
    root = values.clamp_min(floor * values.mean().clamp_min(1e-300)).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def separable_parts(metric: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """Matrices whose Kronecker product has the partial traces of ``metric``.

    Args:
        metric: positive semidefinite ``(P, P)``, ``P = prod(dims)``.
        dims: the modes.

    Returns:
        one ``(dim, dim)`` matrix per mode; the trace of their Kronecker product is that of ``metric``.
    """
    full = metric.reshape(*dims, *dims)
    count = len(dims)
    mean = metric.diagonal().mean()
    parts = []
    for mode in range(count):
        rows = list(range(count))
        columns = [count if n == mode else n for n in rows]
        trace = torch.einsum(full, rows + columns, [mode, count])
        parts.append(trace * dims[mode] / metric.shape[0])  # mean diagonal: that of the metric
    return [part if mode == 0 else part / mean for mode, part in enumerate(parts)]


def mode_products(tensor: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """``tensor`` with each mode multiplied by its matrix from the left (None: left alone)."""
    for mode, matrix in enumerate(matrices):
        if matrix is not None:
            tensor = torch.tensordot(matrix, tensor, ([1], [mode])).movedim(0, mode)
    return tensor
