"""Symmetric matrices fitted to what is known of their products and quadratic forms, by one solve each."""

import torch

Tensor = torch.Tensor

_FLOOR = 1e-10  # relative size below which a direction of the points counts as not sampled


def fit_products(square: Tensor, cross: Tensor) -> Tensor:
    """The symmetric M that minimises sum_i ||M p_i - y_i||^2, from sums over i.

    The normal equations are R M + M R = B + B^T, solved in the eigenvectors of R. Entries between
    directions that no p_i has are 0.

    Args:
        square: R = sum p p^T, (..., n, n).
        cross: B = sum p y^T, (..., n, n).
    """
    values, vectors = torch.linalg.eigh(square.double())
    both = vectors.mT @ (cross + cross.mT).double() @ vectors
    sums = values[..., :, None] + values[..., None, :]
    known = sums > _FLOOR * values[..., -1:, None].clamp_min(torch.finfo(sums.dtype).tiny)
    inner = torch.where(known, both / torch.where(known, sums, 1.0), 0.0)
    fitted: Tensor = vectors @ inner @ vectors.mT
    return fitted


def fit_quadratic_form(points: Tensor, values: Tensor) -> Tensor:
    """The symmetric M that minimises sum_i (values_i - p_i^T M p_i)^2; of several, the smallest one.

    Solved for the n (n + 1) / 2 entries of M, or for one multiplier per point where these are fewer.

    Args:
        points: p_i in the rows, (m, n).
        values: (m,).
    """
    points, values = points.double(), values.double()
    count, size = points.shape
    if count <= size * (size + 1) // 2:
        weights = _solve((points @ points.mT).square(), values)
        return points.mT @ (weights[:, None] * points)
    rows, columns = torch.triu_indices(size, size)
    twice = torch.where(rows == columns, 1.0, 2.0).double()
    features = points[:, rows] * points[:, columns] * twice.sqrt()  # (m, n (n + 1) / 2), orthonormal basis
    entries = _solve(features.mT @ features, features.mT @ values) / twice.sqrt()
    fitted = points.new_zeros(size, size)
    fitted[rows, columns] = entries
    fitted[columns, rows] = entries
    return fitted


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The smallest solution of a positive semidefinite system."""
    values, vectors = torch.linalg.eigh(matrix)
    known = values > _FLOOR * values[-1:].clamp_min(torch.finfo(values.dtype).tiny)
    inverse = torch.where(known, 1.0 / torch.where(known, values, 1.0), 0.0)
    solution: Tensor = vectors @ (inverse * (vectors.mT @ right))
    return solution
