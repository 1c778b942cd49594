"""Fitting a CP model by alternating least squares and by damped Gauss-Newton.

Both work on a *problem*: the squared distance between a tensor and its model, in some metric. The
Gauss-Newton system is never formed; it is solved by preconditioned conjugate gradients, with
products that cost about as much as one matrix product of the factors.

Sources: Tomasi, Bro: "A comparison of algorithms for fitting the PARAFAC model", CSDA 50 (2006);
Phan, Tichavsky, Cichocki: "Low complexity damped Gauss-Newton algorithms for CANDECOMP/PARAFAC",
SIMAX 34 (2013), section 3; Sorber, Van Barel, De Lathauwer, SIOPT 23 (2013), section 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from rankwise.linalg.conjugate_gradients import add, conjugate_gradients, dot

Factors = list[Tensor]  # one (dim_n, rank) matrix per mode

_TINY = 1e-150  # below any norm that matters, above the squares that underflow
_LARGEST_DAMPING = 1e8
_FORCING = 1e-2  # relative residual at which conjugate gradients stop


@dataclass(frozen=True)
class Linearisation:
    """The least-squares problem around given factors.

    ``downhill`` is minus the gradient of half the squared error; ``grams`` hold one
    ``(rank, rank)`` matrix per mode that, applied from the right, approximates the diagonal blocks
    of the Gauss-Newton matrix; ``product`` applies the whole of it.
    """

    downhill: Factors
    grams: list[Tensor]
    product: Callable[[Factors], Factors]


class Problem(Protocol):
    """A squared error as a function of CP factors."""

    @property
    def tensor(self) -> Tensor:
        """The tensor that is approximated."""
        ...

    def value(self, factors: Factors) -> float:
        """The squared error."""
        ...

    def linearise(self, factors: Factors) -> Linearisation:
        """The normal equations around ``factors``."""
        ...

    def solve_first(self, factors: Factors) -> Tensor:
        """The best first factor, ``(dim_0, rank)``, for the other factors as they are."""
        ...


def khatri_rao(matrices: Sequence[Tensor]) -> Tensor:
    """Column-wise Kronecker product of ``(dim_n, rank)`` matrices: ``(prod(dim_n), rank)``."""
    result = matrices[0]
    for matrix in matrices[1:]:
        result = (result[:, None, :] * matrix[None, :, :]).flatten(0, 1)
    return result


def contract(full: Tensor, factors: Factors, mode: int) -> Tensor:
    """Multiply ``full`` ``(dim_0, ..., R)`` with all factors but ``mode`` and sum: ``(dim_mode, R)``."""
    for n in reversed(range(len(factors))):
        if n != mode:
            shape = [1] * full.ndim
            shape[n], shape[-1] = factors[n].shape
            full = (full * factors[n].view(shape)).sum(n, keepdim=True)
    return full.reshape(factors[mode].shape)


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """Mode-``mode`` unfolding ``(dim_mode, prod(other dims))``, the other modes in their order."""
    return tensor.movedim(mode, 0).flatten(1)


def component_norms(factors: Factors) -> Tensor:
    """Norms of the rank-one components, ``(rank,)``."""
    return torch.stack([factor.norm(dim=0) for factor in factors]).prod(0)


def balanced(factors: Factors) -> Factors:
    """The same model with every component's norm shared equally by its modes."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors]).clamp_min(_TINY)
    share = norms.log().mean(0).exp()
    return [factor * (share / norm) for factor, norm in zip(factors, norms, strict=True)]


def solve_gram(gram: Tensor, right: Tensor, ridge: float = 0.0) -> Tensor:
    """``right @ pinv(gram + ridge * mean diagonal)``, for a positive semidefinite ``gram``."""
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0) + ridge * gram.diagonal().mean()
    inverse = torch.where(values > values[-1] * 1e-13, 1 / values.clamp_min(_TINY), 0.0)
    solution: Tensor = ((right @ vectors) * inverse) @ vectors.T
    return solution


class Euclidean:
    """The squared Frobenius distance to ``tensor``."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._unfoldings = [unfold(tensor, mode) for mode in range(tensor.ndim)]
        self._square = float(tensor.square().sum())

    def _mttkrp(self, factors: Factors, mode: int) -> Tensor:
        """The unfolding of ``mode`` times the Khatri-Rao product of the others, (dim_mode, rank).

        The largest other mode is summed over first, so that the product is never formed.
        """
        others = [m for m in range(len(factors)) if m != mode]
        largest = max(others, key=lambda m: factors[m].shape[0])
        left = [m for m in range(len(factors)) if m != largest]
        partial = self._unfoldings[largest].T @ factors[largest]
        full = partial.unflatten(0, [factors[m].shape[0] for m in left])
        return contract(full, [factors[m] for m in left], left.index(mode))

    def value(self, factors: Factors) -> float:
        """The squared distance, at least 0."""
        gram = _products([f.T @ f for f in factors])
        inner = (self._mttkrp(factors, 0) * factors[0]).sum()
        return max(self._square - 2 * float(inner) + float(gram.sum()), 0.0)

    def solve_first(self, factors: Factors) -> Tensor:
        """The best first factor for the other factors as they are."""
        return self.solve_mode(factors, 0)

    def solve_mode(self, factors: Factors, mode: int, ridge: float = 0.0) -> Tensor:
        """The best factor of ``mode`` for the other factors as they are."""
        gram = _products([f.T @ f for m, f in enumerate(factors) if m != mode])
        return solve_gram(gram, self._mttkrp(factors, mode), ridge)

    def linearise(self, factors: Factors) -> Linearisation:
        """The normal equations around ``factors``, by the Gram matrices alone."""
        modes = range(len(factors))
        squares = [f.T @ f for f in factors]
        grams = [_products([squares[m] for m in modes if m != n]) for n in modes]
        ones = torch.ones_like(squares[0])
        cross = {
            (n, m): _products([ones, *(squares[k] for k in modes if k not in (n, m))])
            for n in modes
            for m in modes
            if n != m
        }
        downhill = [self._mttkrp(factors, n) - factors[n] @ grams[n] for n in modes]

        def product(steps: Factors) -> Factors:
            inner = [step.T @ factor for step, factor in zip(steps, factors, strict=True)]
            mixed = [torch.stack([cross[n, m] * inner[m] for m in modes if m != n]).sum(0) for n in modes]
            return [steps[n] @ grams[n] + factors[n] @ mixed[n] for n in modes]

        return Linearisation(downhill, grams, product)


def _products(matrices: Sequence[Tensor]) -> Tensor:
    """Elementwise product of all ``matrices``."""
    return reduce(torch.mul, matrices)


def als_sweeps(problem: Euclidean, factors: Factors, sweeps: int, ridge: float = 1e-10) -> Factors:
    """``sweeps`` rounds of alternating least squares, each mode solved exactly in turn."""
    factors = list(factors)
    for _ in range(sweeps):
        for mode in range(len(factors)):
            factors[mode] = problem.solve_mode(factors, mode, ridge)
        factors = balanced(factors)
    return factors


def _step(system: Linearisation, damping: float, downhill: Factors, steps: int) -> Factors:
    """Approximate solution of ``(J'J + damping) step = downhill``, block-Jacobi preconditioned."""
    eye = torch.eye(system.grams[0].shape[0], dtype=downhill[0].dtype)
    inverses = [torch.cholesky_inverse(torch.linalg.cholesky(g + damping * eye)) for g in system.grams]
    return conjugate_gradients(
        lambda direction: add(system.product(direction), damping, direction),
        downhill,
        lambda residual: [r @ inverse for r, inverse in zip(residual, inverses, strict=True)],
        steps,
        _FORCING,
    )


def gauss_newton(
    problem: Problem,
    factors: Factors,
    *,
    iterations: int = 30,
    inner: int = 30,
    ridge: float = 0.0,
    tolerance: float = 1e-4,
) -> Factors:
    """Minimise ``problem.value(F) + ridge * sum ||F_n||^2`` from ``factors``, never going uphill.

    Args:
        problem: the squared error.
        factors: the start, one ``(dim_n, rank)`` matrix per mode.
        iterations: most damped Gauss-Newton steps.
        inner: most conjugate-gradient products per step.
        ridge: absolute weight of the factors' squared norms; balanced factors make it a bound on the
            components' norms.
        tolerance: stop when a step lowers the objective by less than this share of it.

    Returns:
        balanced factors.
    """
    factors = balanced(factors)

    def objective(candidate: Factors) -> float:
        return problem.value(candidate) + ridge * dot(candidate, candidate)

    current, damping = objective(factors), 1e-2
    for _ in range(iterations):
        system = problem.linearise(factors)
        scale = float(torch.stack([g.diagonal().mean() for g in system.grams]).mean())
        if scale <= 0:
            break
        downhill = add(system.downhill, -ridge, factors)
        before = current
        while damping < _LARGEST_DAMPING:
            weight = damping * scale + ridge
            step = _step(system, weight, downhill, inner)
            candidate = balanced(add(factors, 1.0, step))
            value = objective(candidate)
            predicted = dot(step, add(downhill, damping * scale, step))
            gain = (current - value) / max(predicted, _TINY)
            if value < current:
                damping = max(damping * (0.3 if gain > 0.75 else 1.0 if gain > 0.25 else 3.0), 1e-10)
                factors, current = candidate, value
                break
            damping *= 5
        if before - current <= tolerance * before:
            break
    return factors
