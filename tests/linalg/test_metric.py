import numpy as np
import pytest
import scipy.optimize
import torch

from rankwise.linalg.metric import anchored_regression, damped, metric_axes


def spd(n: int, seed: int, rank: int | None = None) -> torch.Tensor:
    root = torch.randn(n, rank or n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT


def test_metric_axes_reach_what_a_brute_force_search_reaches() -> None:
    moment, metric = spd(4, 0).numpy(), spd(4, 1).numpy()

    def error(flat: np.ndarray) -> float:
        left, right = flat[:8].reshape(4, 2), flat[8:].reshape(2, 4)
        difference = np.eye(4) - left @ right
        return float(np.trace(metric @ difference @ moment @ difference.T))

    starts = np.random.default_rng(0).normal(size=(12, 16))
    best = min(scipy.optimize.minimize(error, start, tol=1e-12).fun for start in starts)
    values, decoder, encoder = metric_axes(torch.from_numpy(moment), torch.from_numpy(metric))
    ours = error(np.concatenate([decoder[:, :2].flatten(), encoder[:2].flatten()]))
    assert ours == pytest.approx(values[2:].sum().item(), rel=1e-8)
    assert ours == pytest.approx(best, rel=1e-5)
    torch.testing.assert_close(decoder @ encoder, torch.eye(4, dtype=torch.float64))


def test_without_a_metric_the_axes_are_orthonormal_eigenvectors() -> None:
    moment = spd(5, 2, rank=3)
    values, decoder, encoder = metric_axes(moment)
    torch.testing.assert_close(decoder.mT, encoder)
    torch.testing.assert_close(decoder * values @ encoder, moment)


def test_damping_is_relative_and_an_empty_metric_stays_usable() -> None:
    metric = spd(3, 3)
    added = damped(metric, 0.1) - metric
    torch.testing.assert_close(added, 0.1 * metric.trace() / 3 * torch.eye(3, dtype=torch.float64))
    values, decoder, encoder = metric_axes(spd(3, 4), damped(torch.zeros(3, 3), 0.1))
    assert values.max() < 1e-25
    torch.testing.assert_close(decoder @ encoder, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_regression_is_least_squares_on_rows_stacked_with_the_anchor(ridge: float) -> None:
    draw = np.random.default_rng(5)
    u, t, anchor = draw.normal(size=(50, 4)), draw.normal(size=(50, 3)), draw.normal(size=(3, 4))
    moment, cross = u.T @ u / 50, t.T @ u / 50
    root = np.sqrt(ridge * np.trace(moment) / 4)
    rows = np.vstack([u / np.sqrt(50), root * np.eye(4)])
    wanted = np.linalg.lstsq(rows, np.vstack([t / np.sqrt(50), root * anchor.T]), rcond=None)[0].T
    got = anchored_regression(*map(torch.from_numpy, (anchor, moment, cross)), ridge)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_regression_keeps_the_anchor_where_no_data_are(ridge: float) -> None:
    anchor = torch.randn(2, 3, 5, dtype=torch.float64)
    moment = torch.stack([spd(5, 6, rank=2), torch.zeros(5, 5, dtype=torch.float64)])
    same = anchored_regression(anchor, moment, anchor @ moment, ridge)
    torch.testing.assert_close(same, anchor)
    other = anchored_regression(anchor, moment, 2 * anchor @ moment, 0.0)
    unseen = torch.linalg.eigh(moment[0])[1][:, :3]
    torch.testing.assert_close(other[0] @ unseen, anchor[0] @ unseen)
    torch.testing.assert_close(other[1], anchor[1])
