"""Column selection and interpolation from a second moment: Z ~ Z[:, J] T with G = E[z z^T] alone.

Everything here works on the second moment ``G`` (n, n) of n channels: the diagonally pivoted Cholesky
factorisation of G has the pivots of the column-pivoted QR factorisation of Z, and the trace of its
Schur complement is the squared error of interpolating all channels from the pivots
(Chee, Flynn, Damle, De Sa, "Model Preserving Compression for Neural Networks", NeurIPS 2022, section 3).
"""

from collections.abc import Callable

import torch

from rankwise.linalg.lowrank import principal_axes

Tensor = torch.Tensor

NOISE = 1e-12
"""Share of the largest diagonal entry below which a residual is taken for rounding error."""


def _eliminate(moment: Tensor, choose: Callable[[Tensor], int]) -> tuple[Tensor, Tensor]:
    """Cholesky with pivots chosen from the residual diagonal; channels already taken have entry -1."""
    n = moment.shape[0]
    moment = moment.double()
    rest = moment.diagonal().clone()
    floor = NOISE * float(rest.max()) if n else 0.0
    factor = torch.zeros(n, n, dtype=torch.float64)  # rows: one per pivot
    order, errors = [], [float(rest.sum())]
    for step in range(n):
        pivot = choose(rest)
        order.append(pivot)
        if float(rest[pivot]) > floor:
            row = moment[pivot] - factor[:step, pivot] @ factor[:step]
            factor[step] = row / rest[pivot].sqrt()
            taken = rest < 0
            rest = (rest - factor[step] ** 2).clamp_min(0.0)
            rest[taken] = -1.0
        rest[pivot] = -1.0
        errors.append(float(rest.clamp_min(0.0).sum()))
    errors[n] = 0.0
    return torch.tensor(order, dtype=torch.int64), torch.tensor(errors, dtype=torch.float64)


def pivoted_cholesky(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Channels by largest residual first, and the error curve.

    Args:
        moment: (n, n) second moment, positive semidefinite, rank-deficient allowed.

    Returns:
        order (n,): the first k entries are the pivots of a rank-k interpolative decomposition; and
        errors (n + 1,): entry k is E||z - T^T z_J||^2 for these k, non-increasing, entry n is 0.
    """
    return _eliminate(moment, lambda rest: int(rest.argmax()))


def diagonal_of_r(moment: Tensor) -> Tensor:
    """|r_11|, |r_22|, ... (n,) of the column-pivoted QR factorisation of the rows behind ``moment``."""
    diagonal: list[float] = []

    def choose(rest: Tensor) -> int:
        diagonal.append(max(0.0, float(rest.max())) ** 0.5)
        return int(rest.argmax())

    _eliminate(moment, choose)
    return torch.tensor(diagonal, dtype=torch.float64)


def randomly_pivoted(moment: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As :func:`pivoted_cholesky`, each pivot drawn with probability proportional to its residual.

    Source: Chen, Epperly, Tropp, Webber, "Randomly pivoted Cholesky", CPAM 2024, algorithm 2.1.
    """

    def draw(rest: Tensor) -> int:
        weights = rest.clamp_min(0.0)
        if float(weights.sum()) <= 0.0:
            weights = (rest >= 0).double()
        return int(torch.multinomial(weights, 1, generator=generator))

    return _eliminate(moment, draw)


def curve_of(moment: Tensor, order: Tensor) -> Tensor:
    """The error curve (n + 1,) of taking channels in the given order (n,)."""
    queue = iter(order.tolist())
    return _eliminate(moment, lambda rest: next(queue))[1]


def rank_for(errors: Tensor, eps: float) -> int:
    """Smallest k >= 1 with ||Z - Z_J T||_F <= eps ||Z||_F, from an error curve (n + 1,)."""
    reached = errors <= eps**2 * errors[0]
    return max(1, int(reached.double().argmax()))


def interpolation(moment: Tensor, kept: Tensor, cross: Tensor | None = None, ridge: float = 0.0) -> Tensor:
    """The matrix T (k, n) that best predicts all channels from the kept ones: z ~ T^T z_kept.

    Args:
        moment: (m, m) second moment of the channels that are read.
        kept: (k,) indices into it.
        cross: (m, n) second moment of what is read with the channels to be predicted; by default those
            are the channels read themselves. With the original network's channels this is the
            anchored refit (regression onto the original from the compressed network's input).
        ridge: added to the diagonal, relative to its mean.

    Returns:
        T (k, n). Without ``cross`` and ridge, T[:, kept] is the identity where the kept moment has full rank.
    """
    moment = moment.double()
    inner = moment[kept][:, kept]
    target = moment[kept] if cross is None else cross.double()[kept]
    if ridge > 0.0:
        inner = inner + ridge * inner.diagonal().mean() * torch.eye(len(kept), dtype=inner.dtype)
    values, vectors = principal_axes(inner)
    safe = values > NOISE * len(kept) * values[:1].clamp_min(torch.finfo(values.dtype).tiny)
    inverse = torch.where(safe, 1.0 / values.where(safe, torch.ones_like(values)), 0.0)
    return vectors @ (inverse[:, None] * (vectors.mT @ target))


def strong_rrqr(moment: Tensor, k: int, bound: float = 2.0, swaps: int = 1000) -> Tensor:
    """k channels (sorted) from which all others are interpolated with coefficients of at most ``bound``.

    Source: Gu and Eisenstat, "Efficient algorithms for computing a strong rank-revealing QR
    factorization", SISC 1996, algorithm 4, written for the second moment: a kept channel i and another
    one j change places while T_ij^2 + (residual of j / distance of i)^2 > bound^2. Every swap multiplies
    the volume of the kept channels by more than ``bound``; k beyond the numerical rank is left as it is.
    """
    moment = moment.double()
    order, errors = pivoted_cholesky(moment)
    kept, rest = order[:k].clone(), order[k:].clone()
    if not len(rest) or float(errors[k - 1]) <= NOISE * float(errors[0]):
        return kept.sort().values
    for _ in range(swaps):
        inverse = torch.linalg.pinv(moment[kept][:, kept], hermitian=True)
        table = inverse @ moment[kept][:, rest]  # (k, n - k)
        residual = (moment.diagonal()[rest] - (moment[kept][:, rest] * table).sum(0)).clamp_min(0.0)
        growth = table**2 + residual[None] * inverse.diagonal()[:, None]
        i, j = divmod(int(growth.argmax()), len(rest))
        if float(growth[i, j]) <= bound**2 * (1 + 1e-9):
            break
        kept[i], rest[j] = rest[j].clone(), kept[i].clone()
    return kept.sort().values


def adaptive_random(moment: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k channels (sorted) drawn one after the other by leverage in the k leading principal axes.

    Expected squared error: at most k + 1 times that of the best rank-k approximation.
    Source: Cortinovis and Kressner, "Adaptive randomized pivoting for column subset selection", 2024.
    """
    axes = principal_axes(moment)[1][:, :k].clone()  # (n, k) orthonormal columns
    kept: list[int] = []
    for _ in range(k):
        weights = (axes**2).sum(1)
        weights[kept] = 0.0
        if float(weights.sum()) <= NOISE:
            weights = torch.ones_like(weights)
            weights[kept] = 0.0
        pivot = int(torch.multinomial(weights, 1, generator=generator))
        kept.append(pivot)
        direction = axes[pivot] / axes[pivot].norm().clamp_min(torch.finfo(axes.dtype).tiny)
        axes = axes - torch.outer(axes @ direction, direction)
    return torch.tensor(sorted(kept), dtype=torch.int64)
