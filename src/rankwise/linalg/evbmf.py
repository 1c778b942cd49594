"""Rank by the analytic solution of empirical variational Bayes matrix factorisation.

Nakajima, Sugiyama, Babacan, Tomioka: "Global analytic solution of fully-observed variational
Bayesian matrix factorization", JMLR 14 (2013), theorem 4 and corollary 1 (unknown noise variance).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

_GRID_POINTS = 1024
_SMALLEST_VARIANCE = 1e-20  # relative to the mean square; reached by exactly low-rank matrices

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EvbmfFit:
    """What EVBMF says about a matrix.

    ``rank`` singular values exceed ``threshold``; ``noise_variance`` is the estimated variance of
    the entries' noise. Threshold and variance are in the units of the matrix that was given.
    """

    rank: int
    noise_variance: float
    threshold: float


def free_energy(log_variance: Values, squares: Values, rows: int, columns: int) -> Values:
    """Free energy of EVBMF as a function of the noise variance, up to a constant and a factor.

    Args:
        log_variance: natural logarithms of the noise variance, any shape.
        squares: the ``rows`` squared singular values.
        rows: the smaller dimension L.
        columns: the larger dimension M.

    Returns:
        ``sum psi(x_h) + L log variance`` with ``x_h = squares_h / (M variance)``, without the terms
        that do not depend on the variance; the shape of ``log_variance``.
    """
    alpha = rows / columns
    variance = np.exp(log_variance)[..., None]
    x = squares / (columns * variance)
    kept = x > _detection_limit(alpha)
    safe = np.where(kept, x, 4.0)  # any value above the limit: its result is not used
    tau = 0.5 * (safe - (1 + alpha) + np.sqrt((safe - 1 - alpha) ** 2 - 4 * alpha))
    signal = safe - tau + np.log(tau + 1) + alpha * np.log(tau / alpha + 1)
    # Noise and signal both have a term -log x = log variance + constant, which adds up to the last term.
    energy: Values = np.where(kept, signal, x).sum(-1) + rows * log_variance
    return energy


def _detection_limit(alpha: float) -> float:
    tau = 2.5129 * np.sqrt(alpha)
    return float((1 + tau) * (1 + alpha / tau))


def evbmf_spectrum(singular_values: Values, shape: tuple[int, int]) -> EvbmfFit:
    """EVBMF of a matrix given by its singular values.

    Args:
        singular_values: all ``min(shape)`` singular values, any order.
        shape: shape of the matrix.

    Returns:
        the fit; rank 0 where nothing stands out of the noise, and for the zero matrix.

    Raises:
        ValueError: wrong number of values, or a value is negative, NaN or infinite.
    """
    rows, columns = min(shape), max(shape)
    values = np.sort(np.asarray(singular_values, np.float64))[::-1]
    if values.shape != (rows,) or rows == 0:
        raise ValueError(
            f"EVBMF was given {values.size} singular values for a matrix of shape {shape}; needs all {rows}."
        )
    if not np.isfinite(values).all() or values[-1] < 0:
        raise ValueError("EVBMF was given negative, NaN or infinite singular values; they must be finite.")
    scale = float(np.sqrt(np.mean((values / max(values[0], 1e-300)) ** 2) / columns) * values[0])
    if scale == 0:
        return EvbmfFit(0, 0.0, 0.0)
    squares = (values / scale) ** 2  # of the matrix at unit RMS, so that no absolute tolerance matters
    limit = _detection_limit(rows / columns)
    variance = _best_variance(squares, rows, columns, limit)
    threshold = float(np.sqrt(columns * variance * limit))
    rank = int((np.sqrt(squares) > threshold).sum())
    return EvbmfFit(rank, variance * scale**2, threshold * scale)


def _best_variance(squares: Values, rows: int, columns: int, limit: float) -> float:
    """Global minimiser of the free energy in the interval of the 2013 paper's theorem on the variance."""
    most = min(int(np.ceil(rows * columns / (rows + columns))) - 1, rows - 1)
    tail = squares[most:]
    low = max(tail[0] / (columns * limit), tail.mean() / columns, _SMALLEST_VARIANCE)
    high = squares.sum() / (rows * columns)
    if high <= low:
        return float(high)
    # The free energy has several local minima: it is smooth only between the values at which one
    # more singular value is taken for noise. So: a grid with those values in it, then a refinement.
    breaks = np.log(np.maximum(squares / (columns * limit), low))
    grid = np.linspace(np.log(low), np.log(high), _GRID_POINTS)
    grid = np.unique(np.concatenate([grid, breaks[(breaks > grid[0]) & (breaks < grid[-1])]]))
    parts = np.array_split(grid, 16)  # bounds the memory
    energies = np.concatenate([free_energy(part, squares, rows, columns) for part in parts])
    best = int(energies.argmin())
    bracket = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    refined = minimize_scalar(
        lambda x: float(free_energy(np.asarray(x), squares, rows, columns)),
        bounds=bracket,
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(np.exp(refined.x if refined.fun <= energies[best] else grid[best]))


def evbmf(matrix: Tensor) -> EvbmfFit:
    """EVBMF of ``matrix`` (two-dimensional, any orientation, any scale).

    The rank does not depend on the scale of the matrix, nor on its transposition.
    """
    if matrix.ndim != 2:
        raise ValueError(f"EVBMF was given a tensor of shape {tuple(matrix.shape)}; needs a matrix.")
    values = torch.linalg.svdvals(matrix.to("cpu", torch.float64))
    return evbmf_spectrum(values.numpy(), (matrix.shape[0], matrix.shape[1]))


def evbmf_rank(matrix: Tensor, *, weakening: float = 1.0, minimum: int = 0) -> int:
    """Rank of ``matrix`` by EVBMF, moved towards full rank by ``weakening``.

    ``rank = full - weakening * (full - evbmf)``, rounded to the nearest integer, at least
    ``minimum`` and at most full: 1 is plain EVBMF, 0 keeps full rank. A result of 0 says that the
    matrix cannot be told from noise: leave it dense.
    """
    if not 0 <= weakening <= 1:
        raise ValueError(f"weakening={weakening} was given; allowed: 0 (full rank) to 1 (plain EVBMF).")
    full = min(matrix.shape)
    found = evbmf(matrix).rank
    return min(max(round(full - weakening * (full - found)), minimum), full)
