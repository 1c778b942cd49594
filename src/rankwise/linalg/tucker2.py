"""Tucker-2 in a metric that couples the input channels with the kernel positions, and its rank grid.

Minimises ``tr(G (W - What) M (W - What)')`` over ``What[t, s, k] = A[t, i] C[i, j, k] B[s, j]``. For given
B the best A and C are a reduced-rank regression, in closed form; for given A and C the best B is a
linear least-squares problem, solved by conjugate gradients.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.linalg.cp import metric_error
from rankwise.linalg.cp_metric import anchored, metric_roots, separable_parts
from rankwise.linalg.cp_solver import solve_gram
from rankwise.linalg.lowrank import principal_axes
from rankwise.linalg.tucker import TuckerFit, hosvd, hosvd_errors, tucker

_CG_STEPS = 10


@dataclass(frozen=True)
class Tucker2Options:
    """How a Tucker-2 model is fitted.

    Args:
        sweeps: alternations; with an input metric each is one regression and one set of conjugate
            gradients.
        floor: share of the mean eigenvalue added to the metrics.
        exact_limit: largest input metric used whole; above it its partial trace over kernel positions
            whitens the channels.
    """

    sweeps: int = 4
    floor: float = 1e-3
    exact_limit: int = 1200


def tucker2(
    tensor: Tensor,
    rank_out: int,
    rank_in: int,
    *,
    input_metric: Tensor | None = None,
    output_metric: Tensor | None = None,
    options: Tucker2Options | None = None,
) -> TuckerFit:
    """A Tucker model of modes 0 and 1 of ``tensor``; see :func:`tucker2_grid`."""
    grid = [(rank_out, rank_in)]
    return tucker2_grid(
        tensor, grid, input_metric=input_metric, output_metric=output_metric, options=options
    )[0]


def tucker2_grid(
    tensor: Tensor,
    ranks: Iterable[tuple[int, int]],
    *,
    input_metric: Tensor | None = None,
    output_metric: Tensor | None = None,
    options: Tucker2Options | None = None,
) -> list[TuckerFit]:
    """Tucker models of modes 0 and 1 at several pairs of ranks.

    Args:
        tensor: ``(out, in, *kernel)``.
        ranks: pairs ``(out, in)``; 0 leaves a mode whole (Tucker-1 in the other), ``(0, 0)`` is the
            tensor itself.
        input_metric: M, ``(P, P)``, ``P = in * prod(kernel)``, positive semidefinite; identity if None.
        output_metric: G, ``(out, out)``, positive semidefinite; identity if None.
        options: see :class:`Tucker2Options`.

    Returns:
        one fit per pair, errors in the metrics.
    """
    options = options or Tucker2Options()
    tensor = tensor.detach().to("cpu", torch.float64)
    scale = metric_error(tensor, input_metric, output_metric)
    root = inverse = torch.eye(tensor.shape[0], dtype=torch.float64)
    if output_metric is not None:
        root, inverse = metric_roots(output_metric.double(), options.floor)
    rotated = torch.tensordot(root, tensor, 1)
    metric = None if input_metric is None else anchored(input_metric.double(), options.floor)
    fits = []
    for rank_out, rank_in in ranks:
        core, left, right = _fit(rotated, rank_out, rank_in, metric, options)
        factors = {}
        if left is None:
            core = torch.tensordot(inverse, core, 1)
        else:
            factors[0] = inverse @ left
        if right is not None:
            factors[1] = right
        fit = TuckerFit(core, factors, 0.0, scale)
        error = metric_error(tensor - fit.tensor(), input_metric, output_metric)
        fits.append(TuckerFit(core, factors, error, scale))
    return fits


def tucker2_errors(
    tensor: Tensor,
    ranks: Sequence[tuple[int, int]],
    *,
    input_metric: Tensor | None = None,
    output_metric: Tensor | None = None,
    options: Tucker2Options | None = None,
) -> list[float]:
    """Errors for pairs of ranks, arguments as for :func:`tucker2_grid`, the cheapest way.

    In a whole input metric they are those of the fits. Otherwise they come from one HOSVD for all pairs
    and are an upper bound (where the input metric is too large to be used whole: in the channels'
    metric).
    """
    options = options or Tucker2Options()
    if input_metric is not None and input_metric.shape[0] <= options.exact_limit:
        fits = tucker2_grid(
            tensor, ranks, input_metric=input_metric, output_metric=output_metric, options=options
        )
        return [fit.error for fit in fits]
    metrics = {} if output_metric is None else {0: output_metric}
    if input_metric is not None:
        metrics[1] = _channel_metric(tensor, input_metric.double())
    errors = hosvd_errors(tensor, [0, 1], metrics=metrics)
    return [float(errors[a or tensor.shape[0], b or tensor.shape[1]]) for a, b in ranks]


def _channel_metric(tensor: Tensor, metric: Tensor) -> Tensor:
    """The input metric averaged over the kernel positions, ``(in, in)``."""
    channels = tensor.shape[1]
    return separable_parts(metric, (channels, metric.shape[0] // channels))[0]


def _fit(
    tensor: Tensor, rank_out: int, rank_in: int, metric: Tensor | None, options: Tucker2Options
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Core ``(out or rank_out, in or rank_in, *kernel)`` and the factors, None for a mode left whole."""
    ranks = {mode: rank for mode, rank in ((0, rank_out), (1, rank_in)) if rank > 0}
    if not ranks:
        return tensor, None, None
    if metric is None or metric.shape[0] > options.exact_limit:
        metrics = {} if metric is None else {1: _channel_metric(tensor, metric)}
        found = tucker(tensor, ranks, metrics=metrics, sweeps=options.sweeps)
        return found.core, found.factors.get(0), found.factors.get(1)
    mean = _channel_metric(tensor, metric)
    right = None
    if rank_in > 0:  # the start: input channels whitened by their own second moment
        root, inverse = metric_roots(mean, options.floor)
        white = torch.tensordot(root, tensor, ([1], [1])).movedim(0, 1)
        if rank_out > 0:
            basis = tucker(white, ranks, sweeps=1).factors[1]
        else:
            basis = hosvd(white, [1])[1][:, :rank_in]
        right = torch.linalg.qr(inverse @ basis)[0]
    core, left = _regress(tensor, right, rank_out, metric)
    for _ in range(options.sweeps if right is not None else 0):
        assert right is not None
        right = torch.linalg.qr(_best_right(tensor, core, left, right, metric))[0]
        core, left = _regress(tensor, right, rank_out, metric)
    return core, left, right


def _regress(
    tensor: Tensor, right: Tensor | None, rank_out: int, metric: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The best core, and left factor of ``rank_out`` columns (None for 0), for a given right factor."""
    matrix = tensor.flatten(1)  # (T, P)
    kernel = tensor.shape[2:]
    reduced = matrix
    gram = metric
    if right is not None:
        expanded = _expanded(metric, right)  # (P, r K)
        gram = _expanded(expanded.T, right).T  # (r K, r K)
        # the metric is anchored, so the Gram matrix is positive definite
        reduced = torch.linalg.solve(gram, (matrix @ expanded).T).T  # (T, r K)
    channels = tensor.shape[1] if right is None else right.shape[1]
    if rank_out == 0:
        return reduced.reshape(-1, channels, *kernel), None
    left = principal_axes(reduced @ gram @ reduced.T)[1][:, :rank_out]
    return (left.T @ reduced).reshape(rank_out, channels, *kernel), left


def _expanded(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix @ kron(right, I)``: columns ``(in, K)`` to ``(rank, K)``."""
    columns = matrix.unflatten(1, (right.shape[0], -1))  # (n, S, K)
    return torch.einsum("nsk,sj->njk", columns, right).flatten(1)


def _best_right(tensor: Tensor, core: Tensor, left: Tensor | None, right: Tensor, metric: Tensor) -> Tensor:
    """Improves the right factor for given core and left factor by conjugate gradients from ``right``."""
    target = tensor.flatten(1) if left is None else left.T @ tensor.flatten(1)  # (i, P)
    middle = core.reshape(*core.shape[:2], -1)  # (i, j, K)

    def model(factor: Tensor) -> Tensor:
        return torch.einsum("ijk,sj->isk", middle, factor).flatten(1)

    def pull_back(slope: Tensor) -> Tensor:
        return torch.einsum("isk,ijk->sj", slope.unflatten(1, (right.shape[0], -1)), middle)

    inner = torch.einsum("ijk,ilk->jl", middle, middle)
    spread = _channel_metric(tensor, metric)

    def precondition(residual: Tensor) -> Tensor:
        solution: Tensor = torch.linalg.solve(spread, solve_gram(inner, residual))
        return solution

    residual = pull_back((target - model(right)) @ metric)
    direction = preconditioned = precondition(residual)
    energy = first = float((residual * preconditioned).sum())
    for _ in range(_CG_STEPS):
        if energy <= 1e-8 * first or energy <= 0:
            break
        image = pull_back(model(direction) @ metric)
        curvature = float((direction * image).sum())
        if curvature <= 0:
            break
        right = right + energy / curvature * direction
        residual = residual - energy / curvature * image
        preconditioned = precondition(residual)
        before, energy = energy, float((residual * preconditioned).sum())
        direction = preconditioned + energy / before * direction
    return right
