"""Projections and regressions in a metric: what to keep when not all errors weigh the same."""

import torch

from rankwise.linalg.lowrank import principal_axes, symmetric_power

Tensor = torch.Tensor


def damped(metric: Tensor, damping: float) -> Tensor:
    """``metric + damping * mean(diag) * I``, positive definite for a positive damping.

    A metric that is zero becomes a negligible multiple of the identity.

    Args:
        metric: (..., n, n), positive semidefinite.
        damping: relative to the mean of the diagonal.
    """
    metric = metric.double()
    size = metric.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    identity = torch.eye(metric.shape[-1], dtype=metric.dtype, device=metric.device)
    return metric + torch.where(size > 0, damping * size, 1e-30) * identity


def metric_axes(moment: Tensor, metric: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The projections P of each rank r that minimise ``tr(metric (I - P) moment (I - P)^T)``.

    P = ``decoder[..., :r] @ encoder[..., :r, :]``, with U the eigenvectors of
    metric^(1/2) moment metric^(1/2): decoder = metric^(-1/2) U, encoder = U^T metric^(1/2). The
    minimum over all matrices P of rank r is ``values[..., r:].sum(-1)``.

    Args:
        moment: (..., n, n), positive semidefinite, of any rank.
        metric: (..., n, n), positive definite; None is the identity.

    Returns:
        values (..., n) in descending order, decoder (..., n, n), encoder (..., n, n).
    """
    if metric is None:
        values, vectors = principal_axes(moment)
        return values, vectors, vectors.mT
    root, inverse = symmetric_power(metric, 0.5), symmetric_power(metric, -0.5)
    values, vectors = principal_axes(root @ moment.double() @ root)
    return values, inverse @ vectors, vectors.mT @ root


def anchored_regression(anchor: Tensor, moment: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """argmin over A of E||t - A u||^2 + ridge * mean(diag(moment)) * ||A - anchor||^2.

    Computed as anchor + (cross - anchor moment)(moment + ridge ...)^(-1), so that nothing is lost
    where the anchor is the answer already. At ridge 0 the limit is taken: directions that u never
    takes keep the anchor.

    Args:
        anchor: (..., o, d).
        moment: (..., d, d), E[u u^T].
        cross: (..., o, d), E[t u^T].
        ridge: not negative.
    """
    missing = cross - anchor @ moment
    size = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    if ridge > 0 and bool((size > 0).all()):
        identity = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
        shifted = moment + ridge * size[..., None, None] * identity
        solved: Tensor = torch.linalg.solve(shifted, missing.mT)
        return anchor + solved.mT
    values, vectors = principal_axes(moment)
    known = values > 1e-10 * values[..., :1]
    inverse = torch.where(known, 1.0 / (values + ridge * size[..., None]), torch.zeros_like(values))
    return anchor + (missing @ vectors) * inverse[..., None, :] @ vectors.mT
