"""Low-rank approximation of a matrix cut into column slices, each slice on its own (group SVD).

``W = [W_1 .. W_k]`` is approximated by ``[D_1 E_1 .. D_k E_k]`` with r columns in every D_i. All
functions are batched over the leading dimensions and work in float64. A slice may come with the
second moment Q_i of its inputs; distances are then ``tr(R_i Q_i R_i^T)`` in place of ``|R_i|_F^2``.
"""

from collections.abc import Sequence

import torch

from rankwise.linalg.lowrank import principal_axes, singular_factors, symmetric_power

Tensor = torch.Tensor
_DIRECT = 64  # up to this smaller side the SVD itself is as fast as the Gram matrix


def slice_spectra(slices: Tensor, moments: Tensor | None = None) -> Tensor:
    """Singular values of every slice, in the metric of ``moments`` where given.

    Slices whose smaller side exceeds 64, and all with moments, go through the Gram matrix of that
    side: a value then has an absolute error of about 1e-8 of the largest one.

    Args:
        slices: (..., k, m, n).
        moments: (..., k, n, n) symmetric positive semidefinite, or None for the identity.

    Returns:
        (..., k, p), descending, p = min(m, n).
    """
    small = min(slices.shape[-2:])
    if moments is None and small <= _DIRECT:
        direct: Tensor = torch.linalg.svdvals(slices)
        return direct
    if slices.shape[-2] <= slices.shape[-1]:
        gram = slices @ (slices.mT if moments is None else moments @ slices.mT)
    else:
        gram = slices.mT @ slices
        if moments is not None:
            root = symmetric_power(moments, 0.5, floor=0.0)
            gram = root @ gram @ root
    values: Tensor = torch.linalg.eigvalsh((gram + gram.mT) / 2).flip(-1)
    return values.clamp_min(0.0).sqrt()


def slice_factors(slices: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Decoders (..., k, m, rank) and encoders (..., k, rank, n) of the best approximation of every slice.

    Without moments the singular values are shared out evenly between both. With moments the decoder
    is orthonormal and the encoder its transpose times the slice, which needs no inverse of a moment;
    where the moment leaves directions open, the product still equals the slice at full rank.
    """
    if moments is None:
        left, values, right = singular_factors(slices)
        root = values[..., :rank].sqrt()
        return left[..., :rank] * root[..., None, :], root[..., :, None] * right[..., :rank, :]
    rows, columns = slices.shape[-2:]
    if rank == columns < rows:
        basis = torch.linalg.qr(slices)[0]
    elif rows <= columns:
        basis = principal_axes(slices @ moments @ slices.mT)[1][..., :rank]
    else:
        basis = singular_factors(slices @ symmetric_power(moments, 0.5, floor=0.0))[0][..., :rank]
    return basis, basis.mT @ slices


def shifted(spectra: Tensor) -> Tensor:
    """The largest value that each number of kept ranks 1..p leaves out, the largest over all slices.

    Args:
        spectra: (..., k, p) descending; all leading dimensions are slices of block-diagonal parts.

    Returns:
        (p,); the last entry is 0.
    """
    largest = spectra.flatten(0, -2).amax(0)
    return torch.cat([largest[1:], torch.zeros_like(largest[:1])])


def residual_norms(slices: Tensor, ranks: Sequence[int]) -> Tensor:
    """Spectral norm of the assembled difference ``[W_1 - D_1 E_1 .. W_k - D_k E_k]``, exactly.

    Args:
        slices: (groups, k, m, n); the groups are diagonal blocks, so their largest norm counts.
        ranks: numbers of kept ranks.

    Returns:
        (len(ranks),).
    """
    left, values, _ = singular_factors(slices)
    groups, _, rows, _ = left.shape
    scaled = left * values[..., None, :]  # (G, k, m, p)
    norms = []
    for rank in ranks:
        tail = scaled[..., rank:].permute(0, 2, 1, 3).reshape(groups, rows, -1)  # (G, m, k (p - r))
        if not tail.shape[-1]:
            norms.append(torch.zeros((), dtype=tail.dtype))
            continue
        gram = tail @ tail.mT if rows <= tail.shape[-1] else tail.mT @ tail
        norms.append(torch.linalg.eigvalsh(gram).amax().clamp_min(0.0).sqrt())
    return torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float64)


def nested_gains(moment: Tensor, cross: Tensor, block: int) -> Tensor:
    """What a regression on the first 1, 2, .. blocks of features explains, from one Cholesky factor.

    Args:
        moment: (..., q, q) second moment of the features, q = blocks * block.
        cross: (..., q, t) second moment between features and targets.
        block: features per step.

    Returns:
        (..., blocks): explained sum of squares of the targets, not decreasing.
    """
    lower, scale = scaled_cholesky(moment)
    solved = torch.linalg.solve_triangular(lower, cross * scale[..., None], upper=False)
    steps: Tensor = solved.square().sum(-1).unflatten(-1, (-1, block)).sum(-1)
    return steps.cumsum(-1)


def regression(moment: Tensor, cross: Tensor) -> Tensor:
    """Coefficients ``(..., t, q)`` of the least-squares fit of targets by features, with a tiny ridge.

    Args:
        moment: (..., q, q) second moment of the features.
        cross: (..., q, t) second moment between features and targets.
    """
    lower, scale = scaled_cholesky(moment)
    return (torch.cholesky_solve(cross * scale[..., None], lower) * scale[..., None]).mT


def scaled_cholesky(moment: Tensor, ridge: float = 1e-10) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factor of ``S moment S + ridge I``, and the diagonal S that makes the diagonal 1.

    The ridge bounds what directions without data can do; it grows until rounding leaves the matrix
    positive. Features whose variance is below 1e-12 of the largest are not scaled up further.

    Args:
        moment: (..., q, q) positive semidefinite up to rounding.
        ridge: to begin with.

    Returns:
        lower (..., q, q) and the scale (..., q).
    """
    variance = moment.diagonal(dim1=-2, dim2=-1)
    floor = 1e-12 * variance.amax(-1, keepdim=True).clamp_min(torch.finfo(moment.dtype).tiny * 1e12)
    scale = variance.maximum(floor).rsqrt()
    scaled = moment * scale[..., :, None] * scale[..., None, :]
    eye = torch.eye(moment.shape[-1], dtype=moment.dtype)
    while True:
        lower, failed = torch.linalg.cholesky_ex(scaled + ridge * eye)
        if not failed.any():
            return lower, scale
        ridge *= 10.0
