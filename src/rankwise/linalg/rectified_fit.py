"""Low-rank maps fitted behind a ReLU, by alternating between the map and an auxiliary variable."""

from collections.abc import Sequence

import torch

from rankwise.linalg.lowrank import principal_axes
from rankwise.linalg.metric import anchored_regression

Tensor = torch.Tensor
Affine = tuple[Tensor, Tensor, Tensor]  # left (o, r), right (r, o), offset (o,)


def best_auxiliary(target: Tensor, mapped: Tensor, penalty: float) -> Tensor:
    """argmin over z, entry by entry, of (target - relu(z))^2 + penalty (z - mapped)^2.

    The two branches z <= 0 and z >= 0 have closed forms; the better one is taken.
    Source: Zhang et al. 2015, 1505.06798, section 3.2.1, equations 8 to 11.
    """
    below = mapped.clamp_max(0.0)
    above = ((penalty * mapped + target) / (penalty + 1.0)).clamp_min(0.0)
    cost_below = target.square() + penalty * (below - mapped).square()
    cost_above = (target - above).square() + penalty * (above - mapped).square()
    return torch.where(cost_above < cost_below, above, below)


def rectified_fit(
    rows: Tensor, rank: int, penalties: Sequence[float], iterations: int, ridge: float
) -> Affine:
    """An affine map of rank r that nearly minimises sum_i ||relu(y_i) - relu(left right y_i + offset)||^2.

    Starts from PCA of the rows. With z in the place of the map's output, alternates between z
    (:func:`best_auxiliary`) and the reduced-rank regression of z on y, ``iterations`` times per penalty.
    Of all maps on the way the best one is returned, so it is never worse than PCA on ``rows``.

    Args:
        rows: y, (n, o), float64.
        rank: r.
        penalties: weights of ||z - map(y)||^2, ascending.
        iterations: per penalty.
        ridge: weight that holds the map at the identity, relative to the mean variance of y.
    """
    mean = rows.mean(0)
    centred = rows - mean
    moment = centred.mT @ centred / len(rows)
    identity = torch.eye(rows.shape[1], dtype=rows.dtype)
    axes = principal_axes(moment)[1][:, :rank]
    target = rows.clamp_min(0.0)

    def mapped(by: Affine) -> Tensor:
        return rows @ (by[0] @ by[1]).mT + by[2]

    def loss(by: Affine) -> float:
        return float((target - mapped(by).clamp_min(0.0)).square().sum())

    current: Affine = (axes, axes.mT, mean - axes @ (axes.mT @ mean))
    best, least = current, loss(current)
    for penalty in penalties:
        for _ in range(iterations):
            z = best_auxiliary(target, mapped(current), penalty)
            z_mean = z.mean(0)
            full = anchored_regression(identity, moment, (z - z_mean).mT @ centred / len(rows), ridge)
            left = principal_axes(full @ moment @ full.mT)[1][:, :rank]
            right = left.mT @ full
            current = (left, right, z_mean - left @ (right @ mean))
            if (now := loss(current)) < least:
                best, least = current, now
    return best
