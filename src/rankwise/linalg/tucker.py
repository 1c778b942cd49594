"""Tucker decompositions of some modes of a tensor, in a metric per mode or in one over all inputs.

HOSVD: De Lathauwer, De Moor, Vandewalle, SIMAX 21 (2000); HOOI: the same authors, SIMAX 21 (2000),
"On the best rank-1 and rank-(R1, ..., RN) approximation of higher-order tensors".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankwise.linalg.cp_metric import metric_roots, mode_products
from rankwise.linalg.cp_solver import unfold
from rankwise.linalg.lowrank import principal_axes

_FLOOR = 1e-9  # relative eigenvalue floor of a metric


@dataclass(frozen=True, eq=False)
class TuckerFit:
    """A Tucker model: ``core`` multiplied along each decomposed mode by its ``factors[mode]``.

    ``factors`` maps a mode to ``(dim, rank)``; the core keeps the sizes of the other modes. ``error`` is
    the squared error and ``scale`` the squared norm of the tensor, both in the metric of the fit.
    """

    core: Tensor
    factors: dict[int, Tensor]
    error: float
    scale: float

    def tensor(self) -> Tensor:
        """The approximation, of the shape of the tensor that was given."""
        return _multiply(self.core, self.factors)


def tucker(
    tensor: Tensor,
    ranks: Mapping[int, int],
    *,
    metrics: Mapping[int, Tensor] | None = None,
    sweeps: int = 10,
    tolerance: float = 1e-8,
) -> TuckerFit:
    """A Tucker model with ``ranks[mode]`` for each mode in ``ranks``; other modes are left whole.

    Starts at the truncated HOSVD and improves one mode after another (HOOI), so the error never
    rises from sweep to sweep.

    Args:
        tensor: any order.
        ranks: rank per mode, 1 to the mode's size; one mode is Tucker-1, two Tucker-2.
        metrics: positive semidefinite ``(dim, dim)`` per mode; the error is that of the tensor with
            each mode multiplied by its metric's square root. Identity where missing.
        sweeps: most rounds over the modes; 0 is the truncated HOSVD.
        tolerance: stop when a round lowers the error by less than this share of the tensor's norm.

    Raises:
        ValueError: a rank outside of 1 to the mode's size.
    """
    tensor = tensor.detach().to("cpu", torch.float64)
    for mode, rank in ranks.items():
        if not 1 <= rank <= tensor.shape[mode]:
            raise ValueError(
                f"Rank {rank} was given for mode {mode} of size {tensor.shape[mode]}; allowed: 1 to the size."
            )
    whitened, inverses = _whitened(tensor, metrics or {})
    bases = {mode: basis[:, : ranks[mode]] for mode, basis in hosvd(whitened, list(ranks)).items()}
    return _hooi(whitened, bases, inverses, sweeps, tolerance)


def _hooi(
    whitened: Tensor, bases: dict[int, Tensor], inverses: Mapping[int, Tensor], sweeps: int, tolerance: float
) -> TuckerFit:
    scale = float(whitened.square().sum())
    error = _projection_error(whitened, bases, scale)
    for _ in range(sweeps if len(bases) > 1 else 0):  # a single mode is optimal already
        for mode, basis in bases.items():
            others = {m: b for m, b in bases.items() if m != mode}
            bases = bases | {mode: _leading(_project(whitened, others), mode)[:, : basis.shape[1]]}
        before, error = error, _projection_error(whitened, bases, scale)
        if before - error <= tolerance * scale:
            break
    core = _project(whitened, bases)
    for mode, inverse in inverses.items():
        if mode not in bases:
            core = torch.tensordot(inverse, core, ([1], [mode])).movedim(0, mode)
    factors = {m: inverses[m] @ b if m in inverses else b for m, b in bases.items()}
    return TuckerFit(core, factors, error, scale)


def hosvd(tensor: Tensor, modes: Sequence[int]) -> dict[int, Tensor]:
    """Orthonormal bases ``(dim, dim)`` of the given modes, the leading direction first."""
    return {mode: _leading(tensor, mode) for mode in modes}


def hosvd_errors(
    tensor: Tensor, modes: Sequence[int], *, metrics: Mapping[int, Tensor] | None = None
) -> npt.NDArray[np.float64]:
    """Squared errors of the truncated HOSVD for every combination of ranks, from one decomposition.

    An upper bound on the error of :func:`tucker` for the same ranks.

    Returns:
        an array with one axis per mode of ``modes``, of length ``dim + 1``; index = rank.
    """
    tensor = tensor.detach().to("cpu", torch.float64)
    whitened, _ = _whitened(tensor, metrics or {})
    core = _project(whitened, hosvd(whitened, modes)).square()
    rest = [mode for mode in range(core.ndim) if mode not in modes]
    energy = core.permute(*modes, *rest).flatten(len(modes)).sum(-1)
    total = float(energy.sum())
    for axis in range(len(modes)):
        zero = torch.zeros_like(energy.narrow(axis, 0, 1))
        energy = torch.cat([zero, energy], dim=axis).cumsum(axis)
    errors: npt.NDArray[np.float64] = (total - energy).clamp_min(0.0).numpy()
    return errors


def _leading(tensor: Tensor, mode: int) -> Tensor:
    matrix = unfold(tensor, mode)
    return principal_axes(matrix @ matrix.T)[1]


def _project(tensor: Tensor, bases: Mapping[int, Tensor]) -> Tensor:
    return _multiply(tensor, {mode: basis.T for mode, basis in bases.items()})


def _multiply(tensor: Tensor, matrices: Mapping[int, Tensor]) -> Tensor:
    return mode_products(tensor, [matrices.get(mode) for mode in range(tensor.ndim)])


def _projection_error(tensor: Tensor, bases: Mapping[int, Tensor], scale: float) -> float:
    return max(scale - float(_project(tensor, bases).square().sum()), 0.0)


def _whitened(tensor: Tensor, metrics: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """The tensor with the metrics' square roots applied, and what undoes each."""
    pairs = {mode: metric_roots(metric.double(), _FLOOR) for mode, metric in metrics.items()}
    whitened = _multiply(tensor, {mode: root for mode, (root, _) in pairs.items()})
    return whitened, {mode: inverse for mode, (_, inverse) in pairs.items()}
