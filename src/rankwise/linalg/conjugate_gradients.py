"""Preconditioned conjugate gradients on lists of tensors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Tensors = list[Tensor]
Linear = Callable[[Tensors], Tensors]


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Sum of the products of all entries."""
    return float(sum((a * b).sum() for a, b in zip(left, right, strict=True)))


def add(left: Sequence[Tensor], scale: float, right: Sequence[Tensor]) -> Tensors:
    """``left + scale * right``, tensor by tensor."""
    return [torch.add(a, b, alpha=scale) for a, b in zip(left, right, strict=True)]


def conjugate_gradients(
    apply: Linear, wanted: Tensors, precondition: Linear, steps: int, forcing: float
) -> Tensors:
    """Approximate solution x of ``apply(x) = wanted`` (Hestenes and Stiefel 1952).

    Args:
        apply: symmetric, positive definite.
        wanted: the right side.
        precondition: an approximate inverse of ``apply``, symmetric and positive definite.
        steps: most products with ``apply``.
        forcing: stops when the residual, in the norm of ``precondition``, has fallen by this factor.
    """
    solution = [torch.zeros_like(w) for w in wanted]
    residual = wanted
    direction = preconditioned = precondition(residual)
    energy = first = dot(residual, preconditioned)
    for _ in range(steps):
        if energy <= forcing**2 * first or energy <= 0:
            break
        image = apply(direction)
        curvature = dot(direction, image)
        if curvature <= 0:
            break
        length = energy / curvature
        solution = add(solution, length, direction)
        residual = add(residual, -length, image)
        preconditioned = precondition(residual)
        energy, before = dot(residual, preconditioned), energy
        direction = add(preconditioned, energy / before, direction)
    return solution
