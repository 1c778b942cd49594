"""Column selection from second moments against scipy's pivoted QR and least squares."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.linalg.interpolative import (
    adaptive_random,
    curve_of,
    diagonal_of_r,
    interpolation,
    pivoted_cholesky,
    randomly_pivoted,
    rank_for,
    strong_rrqr,
)


def _data(seed: int, rows: int = 60, n: int = 9, rank: int | None = None) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, n, generator=g, dtype=torch.float64) @ torch.diag(torch.logspace(0, -2, n).double())
    if rank is not None:
        z = z[:, :rank] @ torch.randn(rank, n, generator=g, dtype=torch.float64)
    return z @ torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]


@given(st.integers(0, 10_000))
def test_pivots_and_errors_are_those_of_pivoted_qr(seed: int) -> None:
    z = _data(seed)
    order, errors = pivoted_cholesky(z.T @ z)
    _, r, pivots = scipy.linalg.qr(z.numpy(), mode="economic", pivoting=True)
    assert order.tolist() == pivots.tolist()
    expected = [np.linalg.norm(r[k:, k:]) ** 2 for k in range(10)]
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert (errors.diff() <= 1e-9).all()
    np.testing.assert_allclose(diagonal_of_r(z.T @ z).numpy(), np.abs(np.diag(r)), rtol=1e-5, atol=1e-7)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_interpolation_is_least_squares_and_identity_on_the_kept(seed: int, k: int) -> None:
    z = _data(seed)
    order, errors = pivoted_cholesky(z.T @ z)
    kept = order[:k]
    t = interpolation(z.T @ z, kept)
    torch.testing.assert_close(t[:, kept], torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-6)
    expected = np.linalg.lstsq(z[:, kept].numpy(), z.numpy(), rcond=None)[0]
    np.testing.assert_allclose(t.numpy(), expected, atol=1e-6)
    residual = float(((z - z[:, kept] @ t) ** 2).sum())
    assert residual == pytest.approx(float(errors[k]), rel=1e-5, abs=1e-8)


@given(st.integers(0, 10_000))
def test_order_does_not_depend_on_the_order_of_channels(seed: int) -> None:
    z = _data(seed)
    shuffled = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    order, _ = pivoted_cholesky(z.T @ z)
    again, _ = pivoted_cholesky(z[:, shuffled].T @ z[:, shuffled])
    assert shuffled[again].tolist() == order.tolist()


def test_dependent_and_dead_channels_are_lossless() -> None:
    z = _data(1, rank=4)
    z = torch.cat([z, z[:, :3] * 2, torch.zeros(60, 2, dtype=torch.float64)], 1)
    moment = z.T @ z
    order, errors = pivoted_cholesky(moment)
    assert sorted(order.tolist()) == list(range(14))
    assert float(errors[4]) < 1e-9 * float(errors[0])
    assert rank_for(errors, 1e-3) == 4
    for kept in (order[:4], order[:9]):
        t = interpolation(moment, kept)
        torch.testing.assert_close(z[:, kept] @ t, z, rtol=0, atol=1e-6)
    assert strong_rrqr(moment, 9).shape == (9,)
    none = torch.zeros(3, 3)
    assert pivoted_cholesky(none)[1].tolist() == [0.0] * 4
    assert interpolation(none, torch.tensor([0])).abs().max() == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_strong_rrqr_bounds_the_coefficients(seed: int) -> None:
    z = _data(seed, n=12)
    z[:, 5] = z[:, 0] + z[:, 1] - z[:, 2] + 1e-3 * z[:, 5]
    moment = z.T @ z
    for k in (3, 6):
        kept = strong_rrqr(moment, k, bound=1.1)
        t = interpolation(moment, kept)
        assert float(t.abs().max()) <= 1.1 + 1e-6
        best = float(torch.linalg.svdvals(z)[k:].square().sum())
        left = float(((z - z[:, kept] @ t) ** 2).sum())
        assert left <= (1 + 1.1**2 * k * (12 - k)) * best


def test_random_selectors_are_repeatable_and_near_the_bound() -> None:
    z = _data(3, n=12)
    moment = z.T @ z
    best = float(torch.linalg.svdvals(z)[5:].square().sum())
    lost = []
    for seed in range(40):
        kept = adaptive_random(moment, 5, torch.Generator().manual_seed(seed))
        assert len(set(kept.tolist())) == 5
        lost.append(float(((z - z[:, kept] @ interpolation(moment, kept)) ** 2).sum()))
    assert np.mean(lost) <= 6 * best * 1.2
    first = randomly_pivoted(moment, torch.Generator().manual_seed(0))
    second = randomly_pivoted(moment, torch.Generator().manual_seed(0))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    torch.testing.assert_close(curve_of(moment, first[0]), first[1])


def test_cross_moment_regresses_onto_another_network() -> None:
    original, seen = _data(5), _data(6)
    kept = torch.tensor([0, 3, 4])
    t = interpolation(seen.T @ seen, kept, cross=seen.T @ original)
    expected = np.linalg.lstsq(seen[:, kept].numpy(), original.numpy(), rcond=None)[0]
    np.testing.assert_allclose(t.numpy(), expected, atol=1e-8)
