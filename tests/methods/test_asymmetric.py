import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from rankwise.methods import get_method
from tests.methods.by_hand import (
    CASES,
    case,
    layer_of,
    measured_cost,
    measured_error,
    patches_of,
    rows_of,
    statistics_of,
)

VARIANTS = [{}, {"ridge": 0.0}, {"regressor": "response"}, {"metric": "gradient"}]


def drifted(name: str, examples: int = 40):
    """A layer, the input it gets in the compressed network, and the output it had in the original."""
    layer, x = case(name, examples)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return layer, 0.8 * x + 0.5 * noise + 0.3, layer.module(x).detach()


@pytest.mark.parametrize("config", VARIANTS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_in_the_original_network_it_is_exact_at_full_rank(name: str, config: dict) -> None:
    layer, x = case(name)
    y = layer.module(x).detach()
    statistics = statistics_of(layer, x, gradient=torch.randn(y.shape, dtype=torch.float64))
    method = get_method("asymmetric", **config)
    candidates = method.candidates(layer, statistics)
    assert (np.diff(candidates.error) <= 1e-9 * candidates.scale).all()
    for index in range(len(candidates)):
        built = method.build(layer, statistics, candidates.choice(index))
        assert measured_cost(built, x) == (candidates.params[index], candidates.macs[index])
        if candidates.unit == "output":
            measured = measured_error(layer, built, x)
            assert measured == pytest.approx(candidates.error[index], rel=1e-6, abs=1e-8 * candidates.scale)
    unseen = 10 * torch.randn(5, *x.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(built(unseen), layer.module(unseen), rtol=1e-6, atol=1e-6)


def test_without_ridge_the_original_network_gives_pca() -> None:
    layer, x = case("conv2d")
    statistics = statistics_of(layer, x)
    ours, pca = get_method("asymmetric", ridge=0.0), get_method("pca")
    np.testing.assert_allclose(
        ours.candidates(layer, statistics).error, pca.candidates(layer, statistics).error, atol=1e-8
    )
    first, second = (m.build(layer, statistics, {"rank": 3})(x) for m in (ours, pca))
    torch.testing.assert_close(first, second)


def reduced_rank_regression(u: np.ndarray, t: np.ndarray, rank: int) -> np.ndarray:
    """Fitted values by numpy: least squares with an intercept, then the SVD of what it fits."""
    u, deviations = u - u.mean(0), t - t.mean(0)
    fitted = u @ np.linalg.lstsq(u, deviations, rcond=None)[0]
    right = np.linalg.svd(fitted, full_matrices=False)[2][:rank]
    return t.mean(0) + fitted @ right.T @ right


@pytest.mark.parametrize("name", ["conv2d", "conv2d_grouped", "transposed", "linear"])
def test_build_is_reduced_rank_regression(name: str) -> None:
    layer, x, target = drifted(name)
    built = get_method("asymmetric", ridge=0.0).build(layer, statistics_of(layer, x, target), {"rank": 2})
    rows = zip(patches_of(layer, x), rows_of(layer, target), rows_of(layer, built(x).detach()), strict=True)
    for u, t, got in rows:
        np.testing.assert_allclose(got, reduced_rank_regression(u, t, 2), atol=1e-7)


def test_no_map_of_that_rank_is_better_with_ridge_and_metric() -> None:
    layer, x, target = drifted("linear", examples=25)
    mix = torch.randn(6, 6, dtype=torch.float64)
    gradient = torch.randn(25, 6, dtype=torch.float64) @ mix
    statistics = statistics_of(layer, x, target, gradient)
    built = get_method("asymmetric", ridge=0.2, metric="gradient", damping=0.1).build(
        layer, statistics, {"rank": 2}
    )
    u, t, weight = x.numpy(), target.numpy(), layer.matrix()[0].numpy()
    metric = gradient.numpy().T @ gradient.numpy() / len(u)
    metric += 0.1 * np.trace(metric) / 6 * np.eye(6)
    hold = 0.2 * np.trace(np.cov(u.T, bias=True)) / 9

    def error(flat: np.ndarray) -> float:
        whole = flat[:12].reshape(6, 2) @ flat[12:30].reshape(2, 9)
        d, away = t - (u @ whole.T + flat[30:]), whole - weight
        return float(np.einsum("ni,ij,nj->", d, metric, d) / len(u) + hold * np.trace(metric @ away @ away.T))

    parts = (built[1].weight, built[0].weight, built[1].bias)
    own = np.concatenate([part.detach().numpy().ravel() for part in parts])
    starts = np.random.default_rng(0).normal(size=(6, 36))
    best = min(scipy.optimize.minimize(error, s, method="BFGS").fun for s in [own, *starts])
    assert error(own) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("regressor", ["patch", "response"])
def test_it_makes_up_for_drift_and_keeps_the_original_mean(regressor: str) -> None:
    layer, x, target = drifted("conv2d")
    statistics = statistics_of(layer, x, target)
    built = get_method("asymmetric", regressor=regressor).build(layer, statistics, {"rank": 4})
    blind = get_method("pca").build(layer, statistics_of(layer, x), {"rank": 4})
    ours, others = (measured_error(layer, b, x, target) for b in (built, blind))
    assert ours < 0.9 * others
    np.testing.assert_allclose(built(x).detach().mean((0, 2, 3)), target.mean((0, 2, 3)), atol=1e-8)


def test_fewer_rows_than_inputs_keep_the_original_weights_elsewhere() -> None:
    layer, x, target = drifted("linear", examples=3)
    built = get_method("asymmetric", ridge=0.0).build(layer, statistics_of(layer, x, target), {"rank": 6})
    torch.testing.assert_close(built(x), target)
    away = torch.linalg.svd(x - x.mean(0))[2][3:]  # never seen
    moved = built(x + 5 * away[0]) - built(x)
    torch.testing.assert_close(moved, (5 * away[0] @ layer.module.weight.T).expand_as(moved))


def test_refuses_what_cannot_gain_and_wrong_options() -> None:
    layer = layer_of(nn.Conv1d(4, 4, 3, groups=4), torch.zeros(1, 4, 5))
    assert "depthwise" in (get_method("asymmetric").supports(layer) or "")
    for wrong in ({"regressor": "x"}, {"metric": "x"}, {"ridge": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            get_method("asymmetric", **wrong)
