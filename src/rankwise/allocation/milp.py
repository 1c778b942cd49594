"""The integer programme of all allocators: choose one option per layer under limits, by HiGHS."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

RELATIVE_GAP = 1e-5
"""Largest relative distance between the returned objective and the true optimum, unless asked otherwise."""
NODES = 2_000
"""Nodes of the search after which the best choice so far is taken: equal layers make proofs endless."""
_SCALE = 1e4  # right-hand side of the limits, so that HiGHS' 1e-6 tolerance stays below one unit of cost


def _one_each(layer: npt.NDArray[np.int64]) -> Any:
    """The matrix (layers, options) whose rows sum up each layer's options."""
    _, row = np.unique(layer, return_inverse=True)
    options = np.arange(len(layer))
    return csr_array((np.ones(len(layer)), (row.reshape(-1), options)))


def choose_one_each(
    objective: npt.NDArray[np.float64],  # (options,)
    layer: npt.NDArray[np.int64],  # (options,)
    cost: npt.NDArray[np.int64],  # (options, measures)
    limit: npt.NDArray[np.int64],  # (measures,)
    floor: npt.NDArray[np.int64] | None = None,  # (measures,)
    size: float = 0.0,
    gap: float = RELATIVE_GAP,
) -> npt.NDArray[np.int64] | None:
    """Positions of one option per layer that minimise the summed objective within the limits.

    The objective is optimal to the relative ``gap``, if its optimum is not far below ``size`` (0: the
    largest single entry) and the search does not end at :data:`NODES`; the limits, and ``floor`` below
    them, are met exactly. None where no choice meets them. Deterministic.
    """
    lower = np.zeros_like(limit) if floor is None else floor
    if len(layer) == 0:
        return np.zeros(0, dtype=np.int64) if (limit >= 0).all() and (lower <= 0).all() else None
    scale = _SCALE / np.maximum(limit, 1)
    size = abs(size) or float(np.abs(objective).max()) or 1.0
    one_each = _one_each(layer)
    slack = np.zeros_like(limit)
    for _ in range(8):  # rounding may overstep a limit by a unit of cost: then a little tighter
        rows = [LinearConstraint(one_each, 1, 1)]
        if len(limit):
            rows.append(
                LinearConstraint(
                    csr_array((cost * scale).T), (lower + slack) * scale, (limit - slack) * scale
                )
            )
        result = milp(
            objective * (1e3 / size),
            integrality=np.ones(len(layer)),
            bounds=Bounds(0, 1),
            constraints=rows,
            options={"mip_rel_gap": gap, "node_limit": NODES},
        )
        if result.x is None:
            return None
        chosen = np.flatnonzero(result.x > 0.5)
        total = cost[chosen].sum(axis=0)
        if (total <= limit).all() and (total >= lower).all():
            return chosen[np.argsort(layer[chosen], kind="stable")]
        slack += 1
    return None


def shadow_prices(
    objective: npt.NDArray[np.float64],
    layer: npt.NDArray[np.int64],
    cost: npt.NDArray[np.int64],
    limit: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """What one unit of each limit is worth, (measures,) >= 0: the dual of the linear relaxation."""
    scale = _SCALE / np.maximum(limit, 1)
    size = float(np.abs(objective).max()) or 1.0
    one_each = _one_each(layer)
    result = linprog(
        objective / size,
        A_ub=csr_array((cost * scale).T),
        b_ub=limit * scale,
        A_eq=one_each,
        b_eq=np.ones(one_each.shape[0]),
        bounds=(0, 1),
        method="highs",
    )
    if result.x is None:
        return np.zeros(len(limit))
    return np.asarray(np.maximum(-result.ineqlin.marginals, 0.0) * size * scale, dtype=np.float64)
