"""Truncated decompositions of matrices and of symmetric second moments, batched, in float64."""

import torch

Tensor = torch.Tensor


def _fixed_signs(vectors: Tensor) -> Tensor:
    """Signs (..., 1, r) that make the largest entry of each column of (..., n, r) positive."""
    largest = vectors.abs().argmax(dim=-2, keepdim=True)
    return torch.where(vectors.gather(-2, largest) < 0, -1.0, 1.0).to(vectors.dtype)


def singular_factors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD with fixed signs: ``matrix = left @ diag(values) @ right``.

    Args:
        matrix: (..., m, n).

    Returns:
        left (..., m, p), values (..., p) in descending order, right (..., p, n), p = min(m, n), float64.
    """
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    signs = _fixed_signs(left)
    return left * signs, values, right * signs.mT


def principal_axes(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (clipped at 0) and eigenvectors of a symmetric positive semidefinite matrix.

    Args:
        moment: (..., n, n); its symmetric part is used.

    Returns:
        values (..., n) in descending order and vectors (..., n, n) in the columns, float64.
    """
    moment = moment.double()
    values, vectors = torch.linalg.eigh((moment + moment.mT) / 2)
    values, vectors = values.flip(-1).clamp_min(0.0), vectors.flip(-1)
    return values, vectors * _fixed_signs(vectors)


def tail_sums(values: Tensor) -> Tensor:
    """Sums of the entries that a truncation leaves out: entry r is ``values[..., r:].sum()``, r = 0..p.

    Args:
        values: (..., p), non-negative.

    Returns:
        (..., p + 1); the last entry is exactly 0.
    """
    sums = values.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([sums, torch.zeros_like(sums[..., :1])], dim=-1)


def symmetric_power(moment: Tensor, power: float, floor: float = 1e-12) -> Tensor:
    """``moment ** power`` of a symmetric positive semidefinite matrix through its eigenvectors.

    Eigenvalues below ``floor`` times the largest are raised to that floor for a negative power (so
    that a rank-deficient moment has a bounded inverse) and set to 0 otherwise.

    Args:
        moment: (..., n, n).
        power: for instance 0.5 or -0.5.
        floor: relative eigenvalue floor.
    """
    values, vectors = principal_axes(moment)
    smallest = values[..., :1] * floor
    if power < 0:
        tiny = torch.finfo(values.dtype).tiny
        powered = values.maximum(smallest).clamp_min(tiny) ** power
    else:
        powered = torch.where(values > smallest, values, torch.zeros_like(values)) ** power
    return (vectors * powered[..., None, :]) @ vectors.mT
