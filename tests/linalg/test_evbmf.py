import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.linalg.evbmf import evbmf, evbmf_rank, evbmf_spectrum


def decaying(rows: int, columns: int, power: float, seed: int = 0) -> torch.Tensor:
    """A matrix at unit RMS whose singular values fall as i ** -power."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64, generator=generator))
    matrix = u @ torch.diag(torch.arange(1, rows + 1, dtype=torch.float64) ** -power) @ v.T
    return matrix / matrix.square().mean().sqrt()


def oracle_rank(matrix: np.ndarray) -> int:
    """The paper's objective, term by term, on a dense grid of noise variances at unit RMS."""
    rows, columns = matrix.shape
    s2 = np.linalg.svd(matrix, compute_uv=False) ** 2
    alpha = rows / columns
    tau_bar = 2.5129 * np.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)
    most = int(min(np.ceil(rows / (1 + alpha)) - 1, rows))
    low = max(s2[most] / (columns * x_bar), np.mean(s2[most:]) / columns)
    best, best_variance = np.inf, 0.0
    for variance in np.linspace(low, s2.sum() / (rows * columns), 20001):
        total = 0.0
        x = s2 / (columns * variance)
        noise, signal = x[x <= x_bar], x[x > x_bar]
        tau = 0.5 * (signal - (1 + alpha) + np.sqrt((signal - (1 + alpha)) ** 2 - 4 * alpha))
        total += np.sum(noise - np.log(noise))
        total += np.sum(signal - tau + np.log((tau + 1) / signal) + alpha * np.log(tau / alpha + 1))
        if total < best:
            best, best_variance = total, variance
    return int((s2 > columns * best_variance * x_bar).sum())


@pytest.mark.parametrize("shape", [(16, 144), (30, 40), (24, 24)])
@pytest.mark.parametrize("power", [0.3, 1.0, 1.5])
def test_rank_is_that_of_the_objective_on_a_dense_grid(shape: tuple[int, int], power: float) -> None:
    matrix = decaying(*shape, power)
    assert evbmf(matrix).rank == oracle_rank(matrix.numpy())


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 100), st.floats(-4, 4), st.floats(0, 1.5))
def test_scale_and_transposition_do_not_matter(
    rows: int, columns: int, seed: int, exponent: float, power: float
) -> None:
    matrix = decaying(min(rows, columns), max(rows, columns), power, seed)
    fit, scale = evbmf(matrix), 10.0**exponent
    assert evbmf(matrix * scale).rank == fit.rank
    assert evbmf(matrix.T).rank == fit.rank
    assert evbmf(matrix * scale).noise_variance == pytest.approx(fit.noise_variance * scale**2, rel=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3])
def test_known_rank_is_found(noise: float) -> None:
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(40, 7, dtype=torch.float64, generator=generator)
    right = torch.randn(7, 120, dtype=torch.float64, generator=generator)
    disturbance = torch.randn(40, 120, dtype=torch.float64, generator=generator)
    fit = evbmf(left @ right + noise * disturbance)
    assert fit.rank == 7
    assert fit.noise_variance == pytest.approx(noise**2, rel=0.1, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 5), (3, 50), (40, 90)])
def test_noise_and_zero_have_rank_zero(shape: tuple[int, int]) -> None:
    noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert evbmf(noise).rank == 0
    assert evbmf(torch.zeros(shape)).rank == 0


def test_weakening_moves_towards_full_rank() -> None:
    matrix = decaying(16, 144, 1.0)
    found = evbmf(matrix).rank
    ranks = [evbmf_rank(matrix, weakening=w) for w in (1.0, 0.7, 0.4, 0.0)]
    assert ranks[0] == found
    assert ranks[-1] == 16
    assert ranks == sorted(ranks)
    assert ranks[1] == round(16 - 0.7 * (16 - found))
    assert evbmf_rank(torch.zeros(16, 20), minimum=4) == 4


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="needs a matrix"):
        evbmf(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="needs all 3"):
        evbmf_spectrum(np.ones(2), (3, 4))
    with pytest.raises(ValueError, match="finite"):
        evbmf_spectrum(np.array([1.0, np.nan, 0.0]), (3, 4))
    with pytest.raises(ValueError, match="allowed: 0"):
        evbmf_rank(torch.ones(3, 4), weakening=2)
