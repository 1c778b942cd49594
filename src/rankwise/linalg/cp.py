"""CP decompositions: one fit, and the whole curve of error against rank.

A CP model of rank R writes a tensor as a sum of R rank-one terms. It is found by growing: the fit
of one rank plus new terms fitted to what is left is the start of the next rank, which is then
refined by damped Gauss-Newton; so a curve costs little more than its last point and never rises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rankwise.linalg.cp_metric import Frame, frame_of
from rankwise.linalg.cp_solver import (
    Euclidean,
    Factors,
    Problem,
    als_sweeps,
    balanced,
    component_norms,
    gauss_newton,
    khatri_rao,
    unfold,
)

DEGENERATE = 100.0
"""Cancellation above which a fit suffers from rounding and fine-tuning."""
_START_SWEEPS = 8
_GROWTH_SWEEPS = 3
_INNER = 30
_INNER_POLISH = 15  # more, less exact steps: on ResNet-20's layers the same error in a third of the time


@dataclass(frozen=True, eq=False)
class CPFit:
    """A CP model of a tensor.

    ``factors`` holds one ``(dim_n, rank)`` matrix per mode, norms balanced over the modes. ``error``
    is the squared error and ``scale`` the squared norm of the tensor, both in the metric of the fit.
    ``cancellation`` is the sum of the squared norms of the rank-one terms over the squared norm of
    the tensor: about 1 or less for a healthy fit, unbounded where terms grow and cancel each other.
    """

    factors: tuple[Tensor, ...]
    error: float
    scale: float
    cancellation: float

    @property
    def rank(self) -> int:
        """Number of rank-one terms."""
        return self.factors[0].shape[1]

    @property
    def relative_error(self) -> float:
        """Root of the squared error relative to the tensor's, 0 to about 1."""
        return float((self.error / self.scale) ** 0.5) if self.scale > 0 else 0.0

    @property
    def degenerate(self) -> bool:
        """Whether the terms cancel so strongly (factor 100) that rounding and fine-tuning suffer."""
        return self.cancellation > DEGENERATE

    def tensor(self) -> Tensor:
        """The approximation, of the shape of the tensor that was given."""
        return cp_tensor(self.factors)


@dataclass(frozen=True)
class CPOptions:
    """How hard to try.

    Args:
        iterations: most Gauss-Newton steps per rank in the (whitened) Euclidean problem.
        metric_iterations: most steps per rank in the exact metric, where there is one.
        ridge: weight of the factors' squared norms relative to the mean diagonal of the normal
            equations; bounds the norms of the terms. 0 allows degenerate fits.
        starts: fits per rank, of which the best is kept: one grown from the smaller rank (the first
            from singular vectors), the others from random factors.
        seed: of the random starting points.
        floor: share of the mean eigenvalue that is added to the metrics, so that directions without
            data stay anchored to the tensor.
        exact_limit: largest size of an input metric that is used exactly; above it the nearest
            Kronecker product stands in.
        effort: about the most work for a whole curve, in 1e9 floating-point operations; fewer and
            coarser steps are made per rank where the iterations would cost more (at least one).
    """

    iterations: int = 12
    metric_iterations: int = 10
    ridge: float = 1e-3
    starts: int = 1
    seed: int = 0
    floor: float = 1e-3
    exact_limit: int = 1200
    effort: float = 100.0


@dataclass(frozen=True)
class _Steps:
    """Gauss-Newton steps in the two problems, and conjugate-gradient products in each."""

    euclidean: int
    euclidean_inner: int
    exact: int
    exact_inner: int


def cp_tensor(factors: Sequence[Tensor]) -> Tensor:
    """The tensor ``(dim_0, dim_1, ...)`` that CP factors stand for."""
    shape = [f.shape[0] for f in factors]
    return (factors[0] @ khatri_rao(list(factors[1:])).T).reshape(shape)


def metric_error(
    difference: Tensor, input_metric: Tensor | None = None, output_metric: Tensor | None = None
) -> float:
    """``tr(G D M D')`` for ``D`` the difference with all modes but the first flattened.

    Args:
        difference: ``(dim_0, dim_1, ...)``.
        input_metric: M, ``(P, P)`` with ``P = prod(dim_1, ...)``; identity if None.
        output_metric: G, ``(dim_0, dim_0)``; identity if None.
    """
    left = right = difference.flatten(1)
    if input_metric is not None:
        right = right @ input_metric
    if output_metric is not None:
        right = output_metric @ right
    return max(float((left * right).sum()), 0.0)


def cp(
    tensor: Tensor,
    rank: int,
    *,
    input_metric: Tensor | None = None,
    output_metric: Tensor | None = None,
    options: CPOptions | None = None,
) -> CPFit:
    """A CP model of ``tensor`` with ``rank`` terms; see :func:`cp_curve`."""
    path = [rank]
    while path[0] > 16:
        path.insert(0, path[0] // 2)
    return cp_curve(tensor, path, input_metric=input_metric, output_metric=output_metric, options=options)[-1]


def cp_curve(
    tensor: Tensor,
    ranks: Sequence[int],
    *,
    input_metric: Tensor | None = None,
    output_metric: Tensor | None = None,
    options: CPOptions | None = None,
) -> list[CPFit]:
    """CP models of ``tensor`` at every rank of ``ranks``; the errors never increase.

    Minimises ``tr(G (W - What) M (W - What)')``, W being the tensor with all modes but the first
    flattened.

    Args:
        tensor: order 2 or more.
        ranks: strictly increasing, from 1.
        input_metric: M, positive semidefinite ``(P, P)``, ``P = prod(dim_1, ...)``: the second moment
            (or covariance) of the input patches. Identity if None.
        output_metric: G, positive semidefinite ``(dim_0, dim_0)``. Identity if None.
        options: see :class:`CPOptions`.

    Returns:
        one fit per rank, in float64.

    Raises:
        ValueError: ranks that do not increase, or a metric of another size.
    """
    options = options or CPOptions()
    tensor = tensor.detach().to("cpu", torch.float64)
    if not ranks or min(ranks) < 1 or any(a >= b for a, b in pairwise(ranks)):
        raise ValueError(f"ranks={list(ranks)} were given; allowed are strictly increasing ranks from 1.")
    if tensor.ndim < 2:
        raise ValueError(f"A tensor of shape {tuple(tensor.shape)} was given; CP needs order 2 or more.")
    frame = frame_of(tensor, input_metric, output_metric, options.floor, options.exact_limit)
    generator = torch.Generator().manual_seed(options.seed)
    scale = metric_error(tensor, input_metric, output_metric)
    square = float(tensor.square().sum())
    fits: list[CPFit] = []
    factors: Factors = [torch.zeros(dim, 0, dtype=torch.float64) for dim in tensor.shape]
    for rank in ranks:
        steps = _steps(frame, rank, len(ranks), options)
        factors = _next_fit(frame, factors, rank, steps, options, generator)
        original = balanced(frame.restore(factors))
        error = metric_error(tensor - cp_tensor(original), input_metric, output_metric)
        if fits and error > fits[-1].error:  # the ridge or the floor went the other way: add empty terms
            padding = rank - fits[-1].rank
            original = [torch.nn.functional.pad(f, (0, padding)) for f in fits[-1].factors]
            error = fits[-1].error
        norms = component_norms(original)
        cancellation = float(norms.square().sum()) / square if square > 0 else 0.0
        fits.append(CPFit(tuple(original), error, scale, cancellation))
    return fits


def refine(
    tensor: Tensor,
    fit: CPFit,
    *,
    input_metric: Tensor | None = None,
    output_metric: Tensor | None = None,
    options: CPOptions | None = None,
) -> CPFit:
    """More Gauss-Newton steps on ``fit``; the result's error is at most that of ``fit``.

    ``options.iterations`` steps are made (in the exact metric where there is one), within
    ``options.effort``.
    """
    options = options or CPOptions()
    tensor = tensor.detach().to("cpu", torch.float64)
    frame = frame_of(tensor, input_metric, output_metric, options.floor, options.exact_limit)
    found = _steps(frame, fit.rank, 1, options, options.iterations, _INNER_POLISH)
    problem: Problem = frame.euclidean if frame.exact is None else frame.exact
    factors = gauss_newton(
        problem,
        frame.apply(list(fit.factors)),
        iterations=found.euclidean if frame.exact is None else found.exact,
        inner=found.euclidean_inner if frame.exact is None else found.exact_inner,
        ridge=_ridge(frame, fit.rank, options),
    )
    original = balanced(frame.restore(factors))
    error = metric_error(tensor - cp_tensor(original), input_metric, output_metric)
    if error >= fit.error:
        return fit
    square = float(tensor.square().sum())
    return CPFit(tuple(original), error, fit.scale, float(component_norms(original).square().sum()) / square)


def _next_fit(
    frame: Frame,
    factors: Factors,
    rank: int,
    steps: _Steps,
    options: CPOptions,
    generator: torch.Generator,
) -> Factors:
    """The fit of ``rank`` in the frame's coordinates, grown from a smaller (or empty) one."""
    ridge = _ridge(frame, rank, options)
    candidates = []
    empty = [f[:, :0] for f in factors]
    for attempt in range(options.starts):
        start = _grown(frame, empty if attempt else factors, rank, generator, use_vectors=attempt == 0)
        fit = gauss_newton(
            frame.euclidean, start, iterations=steps.euclidean, inner=steps.euclidean_inner, ridge=ridge
        )
        if frame.exact is not None:
            fit = min(fit, start, key=frame.exact.value)
            fit = gauss_newton(frame.exact, fit, iterations=steps.exact, inner=steps.exact_inner, ridge=ridge)
        candidates.append(fit)
    problem: Problem = frame.euclidean if frame.exact is None else frame.exact
    return min(candidates, key=problem.value)


def _grown(
    frame: Frame, factors: Factors, rank: int, generator: torch.Generator, *, use_vectors: bool
) -> Factors:
    """``factors`` with new terms, fitted to what they leave, up to ``rank`` terms."""
    have = factors[0].shape[1]
    residual = frame.euclidean.tensor
    if have:
        residual = residual - cp_tensor(factors)
    start = _starting_point(residual, rank - have, generator, use_vectors)
    sweeps = _GROWTH_SWEEPS if have else _START_SWEEPS
    added = als_sweeps(Euclidean(residual), start, sweeps)
    grown = [torch.cat(pair, dim=1) for pair in zip(factors, added, strict=True)]
    if frame.exact is not None:
        grown[0] = frame.exact.solve_first(grown)
    return grown


def _starting_point(tensor: Tensor, rank: int, generator: torch.Generator, use_vectors: bool) -> Factors:
    """Unit columns: leading singular vectors of each unfolding, then random ones."""
    factors = []
    for mode, dim in enumerate(tensor.shape):
        factor = torch.randn(dim, rank, dtype=torch.float64, generator=generator)
        if use_vectors:
            matrix = unfold(tensor, mode)
            vectors = torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)[:, :rank]
            factor[:, : vectors.shape[1]] = vectors
        factors.append(factor / factor.norm(dim=0).clamp_min(1e-12))
    return factors


def _ridge(frame: Frame, rank: int, options: CPOptions) -> float:
    """Absolute ridge: relative to the Gram diagonals of ``rank`` equal terms that make up the tensor."""
    order = frame.euclidean.tensor.ndim
    square = float(frame.euclidean.tensor.square().sum())
    return float(options.ridge * (square / rank) ** ((order - 1) / order))


def _steps(
    frame: Frame, rank: int, curve_length: int, options: CPOptions, exact_steps: int | None = None,
    inner: int = _INNER,
) -> _Steps:  # fmt: skip
    """The steps that the effort allows for one rank of a curve; at least one of 4 products each."""
    shape = frame.euclidean.tensor.shape
    size, inputs, total = frame.euclidean.tensor.numel(), frame.euclidean.tensor[0].numel(), sum(shape)
    allowed = options.effort * 1e9 / curve_length
    wanted = options.metric_iterations if exact_steps is None else exact_steps
    euclidean = (4 * len(shape) * size * rank, 6 * total * rank**2)
    exact = (4 * size * rank + 2 * inputs**2 * rank, 2 * inputs**2 * rank + 6 * inputs * rank**2)
    if frame.exact is None:
        return _Steps(*_affordable(allowed, *euclidean, options.iterations, inner), 0, 0)
    share = allowed / 2 if exact_steps is None else allowed
    return _Steps(
        *_affordable(share, *euclidean, options.iterations, inner),
        *_affordable(share, *exact, wanted, inner),
    )


def _affordable(allowed: float, fixed: int, product: int, wanted: int, most: int) -> tuple[int, int]:
    """Steps and products per step: all products and fewer steps, or fewer products in one or two steps."""
    steps = int(allowed / (fixed + most * product))
    if steps >= 2:
        return min(steps, wanted), most
    steps = min(2 if allowed >= 2 * (fixed + 4 * product) else 1, wanted)
    return steps, min(max(int((allowed / max(steps, 1) - fixed) / product), 4), most)
