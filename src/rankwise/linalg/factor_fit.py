"""Factors of a linear map fitted to a matrix in a metric: damped Gauss-Newton, whatever the factors are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from rankwise.linalg.conjugate_gradients import Tensors, add, conjugate_gradients
from rankwise.linalg.lowrank import symmetric_power

Tensor = torch.Tensor
Factors = dict[str, Tensor]
Map = Callable[[Mapping[str, Tensor]], Tensor]
_TRIALS = 6
_FORCING = 1e-5


@dataclass(frozen=True, eq=False)
class Quadratic:
    """``sum over g of tr(G_g (A_g - T_g) M_g (A_g - T_g)')`` as a function of matrices A.

    Args:
        target: T, (groups, rows, columns).
        moment: M, (groups, columns, columns), positive semidefinite.
        metric: G, (groups, rows, rows), positive semidefinite; None is the identity.
    """

    target: Tensor
    moment: Tensor
    metric: Tensor | None = None

    def weigh(self, difference: Tensor) -> Tensor:
        """G D M, half the gradient at D."""
        weighed = difference @ self.moment
        return weighed if self.metric is None else self.metric @ weighed

    def value(self, matrix: Tensor) -> float:
        """The quadratic at A = ``matrix``."""
        difference = matrix - self.target
        return max(float((difference * self.weigh(difference)).sum()), 0.0)


def reduced_rank(goal: Quadratic, rank: int) -> tuple[Tensor, Tensor]:
    """The factors R (groups, rank, columns) and L (groups, rows, rank) whose product L R minimises ``goal``.

    With G^(1/2) T M^(1/2) = U S V' the minimiser is G^(-1/2) U_r S_r V_r' M^(-1/2) (Eckart-Young); the
    metrics must be positive definite. L has orthogonal columns of the same norm as the rows of R, on
    average, so that both can be trained.
    """
    root, inverse = symmetric_power(goal.moment, 0.5), symmetric_power(goal.moment, -0.5)
    weighed = goal.target @ root
    if goal.metric is not None:
        weighed = symmetric_power(goal.metric, 0.5) @ weighed
    u, s, v = torch.linalg.svd(weighed, full_matrices=False)
    left = u[:, :, :rank] * s[:, None, :rank]
    if goal.metric is not None:
        left = symmetric_power(goal.metric, -0.5) @ left
    basis, triangle = torch.linalg.qr(left)
    right = triangle @ v[:, :rank] @ inverse
    scale = (
        right.square().mean((1, 2), keepdim=True).clamp_min(1e-300).sqrt()
        / basis.square().mean((1, 2), keepdim=True).clamp_min(1e-300).sqrt()
    )
    return right / scale.sqrt(), basis * scale.sqrt()


class _Derivative:
    """A map at some factors: its matrix there, its derivative and the adjoint of that.

    The adjoint is linear in what it is applied to, and its own adjoint is the derivative: one graph
    serves every product.
    """

    def __init__(self, compose: Map, at: Factors) -> None:
        self._names = list(at)
        with torch.enable_grad():
            self._at = [factor.detach().requires_grad_() for factor in at.values()]
            self._matrix = compose(dict(zip(self._names, self._at, strict=True)))
            self._given = torch.zeros_like(self._matrix, requires_grad=True)
            self._adjoint = torch.autograd.grad(self._matrix, self._at, self._given, create_graph=True)
        self.matrix = self._matrix.detach()

    def push(self, direction: Factors) -> Tensor:
        """The change of the matrix along ``direction``."""
        along = [direction[name] for name in self._names]
        return torch.autograd.grad(self._adjoint, self._given, along, retain_graph=True)[0]

    def pull(self, weighed: Tensor) -> Factors:
        """The gradient of the product of ``weighed`` and the matrix."""
        found = torch.autograd.grad(self._matrix, self._at, weighed, retain_graph=True)
        return dict(zip(self._names, found, strict=True))


def fit_factors(
    compose: Map,
    factors: Factors,
    goal: Quadratic,
    *,
    iterations: int = 8,
    inner: int = 20,
    tolerance: float = 1e-4,
) -> Factors:
    """Factors near ``factors`` whose matrix ``compose(factors)`` has a smaller value of ``goal``.

    Levenberg-Marquardt steps (Levenberg 1944, Marquardt 1963) whose normal equations are solved by
    conjugate gradients and never formed; the damping is relative to the mean diagonal per factor. The
    value never rises.

    Args:
        compose: differentiable, from factors by name to (groups, rows, columns).
        factors: where to start, float64.
        goal: what is minimised.
        iterations: most steps.
        inner: most conjugate-gradient products per step.
        tolerance: stops where a step gains less than this share of the value.
    """
    damping, value = 1e-3, goal.value(compose(factors))
    generator = torch.Generator().manual_seed(0)
    for _ in range(iterations):
        model = _Model.at(compose, factors, goal, generator)
        for _ in range(_TRIALS):
            trial = model.moved(factors, damping, inner)
            reached = goal.value(compose(trial))
            if reached < value:
                break
            damping *= 8
        else:
            return factors
        gain, value, factors = value - reached, reached, trial
        damping = max(damping / 4, 1e-6)
        if gain < tolerance * value:
            break
    return factors


@dataclass(frozen=True, eq=False)
class _Model:
    """The Gauss-Newton model of a goal around some factors."""

    gradient: Factors
    curvature: Callable[[Factors], Factors]
    mean: dict[str, Tensor]  # mean diagonal of the curvature, per factor

    @classmethod
    def at(cls, compose: Map, factors: Factors, goal: Quadratic, generator: torch.Generator) -> "_Model":
        here = _Derivative(compose, factors)

        def curvature(direction: Factors) -> Factors:
            return here.pull(goal.weigh(here.push(direction)))

        mean = _mean_diagonal(curvature, factors, generator)
        return cls(here.pull(goal.weigh(here.matrix - goal.target)), curvature, mean)

    def moved(self, factors: Factors, damping: float, inner: int) -> Factors:
        """``factors`` moved to the minimum of the model plus ``damping`` times the mean diagonal."""
        names, mean = list(factors), list(self.mean.values())

        def damped(direction: Tensors) -> Tensors:
            product = self.curvature(dict(zip(names, direction, strict=True)))
            return [product[n] + damping * m * d for n, m, d in zip(names, mean, direction, strict=True)]

        step = conjugate_gradients(
            damped,
            [-self.gradient[name] for name in names],
            lambda residual: [r / m for r, m in zip(residual, mean, strict=True)],
            inner,
            _FORCING,
        )
        return dict(zip(names, add(list(factors.values()), 1.0, step), strict=True))


def _mean_diagonal(
    apply: Callable[[Factors], Factors], like: Factors, generator: torch.Generator
) -> dict[str, Tensor]:
    """The mean diagonal of each factor's block (Hutchinson's estimate from one draw of signs)."""
    means = {}
    for name in like:
        signs = {n: torch.zeros_like(f) for n, f in like.items()}
        signs[name] = torch.randint(0, 2, like[name].shape, generator=generator).double() * 2 - 1
        product = apply(signs)[name]
        means[name] = ((product * signs[name]).mean()).clamp_min(1e-30)
    return means
