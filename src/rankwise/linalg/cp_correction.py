"""Error-preserving correction: the least sensitive CP model whose error stays under a bound.

Phan, Tichavsky, Cichocki: "Error preserving correction: a method for CP decomposition at a target
error bound", IEEE TSP 67 (2019); Phan et al.: "Stable low-rank tensor decomposition for compression
of convolutional neural network", ECCV 2020 (2008.05441), section 3.
"""

import torch
from torch import Tensor

from rankwise.linalg.cp_solver import Factors, balanced, khatri_rao, unfold

_BISECTIONS = 60


def sensitivity(factors: Factors) -> float:
    """Expected squared change of the tensor for factor entries disturbed by unit-variance noise.

    ``sum_r sum_n I_n prod_(m != n) |f_m,r|^2`` with ``I_n`` the size of mode n; to first order.
    """
    squares = torch.stack([f.square().sum(0) for f in factors])  # (modes, R)
    total = torch.zeros(squares.shape[1], dtype=squares.dtype)
    for mode, factor in enumerate(factors):
        others = [n for n in range(len(factors)) if n != mode]
        total += factor.shape[0] * squares[others].prod(0)
    return float(total.sum())


def error_preserving_correction(
    tensor: Tensor, factors: Factors, bound: float, *, sweeps: int = 50, tolerance: float = 1e-4
) -> Factors:
    """Lower the sensitivity of a CP model while its squared error stays at most ``bound``.

    Each mode in turn is replaced by the factor of least sensitivity within the bound, a ridge
    regression whose weight is found by bisection; so the sensitivity never rises.

    Args:
        tensor: the tensor that is approximated, float64.
        factors: the model, one ``(dim_n, rank)`` matrix per mode.
        bound: largest squared error that is allowed; at least that of ``factors``.
        sweeps: most rounds over the modes.
        tolerance: stop when a round lowers the sensitivity by less than this share.

    Raises:
        ValueError: the model's error is above the bound already.
    """
    error = float((tensor - (factors[0] @ khatri_rao(factors[1:]).T).reshape(tensor.shape)).square().sum())
    if error > bound * (1 + 1e-9) + 1e-12 * float(tensor.square().sum()):
        raise ValueError(
            f"The model's squared error is {error:.6g}, above the bound {bound:.6g}; raise the bound."
        )
    factors = balanced(factors)
    before = sensitivity(factors)
    for _ in range(sweeps):
        for mode in range(len(factors)):
            better = _least_sensitive(tensor, factors, mode, bound)
            if better is not None:
                factors = [better if n == mode else f for n, f in enumerate(factors)]
        factors = balanced(factors)
        after = sensitivity(factors)
        if before - after <= tolerance * before:
            break
        before = after
    return factors


def _mode_weights(factors: Factors, mode: int) -> Tensor:
    """Factor ``(R,)`` of ``|f_mode,r|^2`` in the sensitivity."""
    squares = torch.stack([f.square().sum(0) for f in factors])
    weights = torch.zeros(squares.shape[1], dtype=squares.dtype)
    for other, factor in enumerate(factors):
        if other != mode:
            rest = [n for n in range(len(factors)) if n not in (mode, other)]
            weights += factor.shape[0] * squares[rest].prod(0)
    return weights


def _least_sensitive(tensor: Tensor, factors: Factors, mode: int, bound: float) -> Tensor | None:
    """The factor of ``mode`` that minimises ``sum_r w_r |f_r|^2`` with squared error at most ``bound``.

    With columns scaled by ``sqrt(w)`` it is the ridge solution whose error is the bound. None where
    the others cannot reach the bound (rounding) or where a component is empty.
    """
    weights = _mode_weights(factors, mode)
    if not bool((weights > 0).all()):
        return None
    design = khatri_rao([f for n, f in enumerate(factors) if n != mode]) / weights.sqrt()  # (P, R)
    values, vectors = torch.linalg.eigh(design.T @ design)
    values = values.clamp_min(0)
    projected = unfold(tensor, mode) @ (design @ vectors)  # (dim, R)
    energy = projected.square().sum(0)
    square = float(tensor.square().sum())
    usable = values > values[-1] * 1e-13

    def shrunk(weight: float) -> Tensor:
        return torch.where(usable, 1 / (values + weight).clamp_min(1e-300), 0.0)

    def error(weight: float) -> float:
        inverse = shrunk(weight)
        return square - float((energy * (2 * inverse - values * inverse.square())).sum())

    if error(0.0) > bound:
        return None
    low, high = 0.0, float(values[-1])
    while error(high) <= bound and high < 1e12 * float(values[-1]):
        low, high = high, high * 16
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) <= bound else (low, middle)
    solution: Tensor = (projected * shrunk(low)) @ vectors.T / weights.sqrt()
    return solution
