import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from rankwise.methods import get_method
from tests.methods.by_hand import CASES, case, layer_of, measured_cost, rows_of, statistics_of


def gradients(layer, x: torch.Tensor, rank: int | None = None) -> torch.Tensor:
    """Output gradients with strongly unequal directions."""
    generator = torch.Generator().manual_seed(9)
    axis = -1 if layer.geometry.kind == "linear" else 1
    shape = layer.module(x).movedim(axis, -1).shape
    source = torch.randn(*shape[:-1], rank or shape[-1], generator=generator, dtype=torch.float64)
    mix = torch.randn(source.shape[-1], shape[-1], generator=generator, dtype=torch.float64)
    return (source @ (mix * torch.logspace(0, -2, shape[-1], dtype=torch.float64))).movedim(-1, axis)


def loss_change(layer, built: nn.Module, x: torch.Tensor, gradient: torch.Tensor, damping: float) -> float:
    """1/2 sum over positions of d^T (G + damping mean(diag G) I) d per example, by numpy."""
    total = 0.0
    difference = rows_of(layer, (built(x) - layer.module(x)).detach())
    for d, g in zip(difference, rows_of(layer, gradient), strict=True):
        metric = g.T @ g / len(g)
        metric += damping * np.trace(metric) / len(metric) * np.eye(len(metric))
        total += 0.5 * np.einsum("ni,ij,nj->", d, metric, d) / len(x)
    return total


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_error_and_cost_are_as_predicted_at_every_rank(name: str, centred: bool) -> None:
    layer, x = case(name)
    gradient = gradients(layer, x)
    statistics = statistics_of(layer, x, gradient=gradient)
    method = get_method("kfac", centred=centred)
    candidates = method.candidates(layer, statistics)
    assert candidates.unit == "loss"
    assert (np.diff(candidates.error) <= 1e-9 * candidates.scale).all()
    for index in range(len(candidates)):
        built = method.build(layer, statistics, candidates.choice(index))
        assert measured_cost(built, x) == (candidates.params[index], candidates.macs[index])
        measured = loss_change(layer, built, x, gradient, method.damping)
        assert measured == pytest.approx(candidates.error[index], rel=1e-6, abs=1e-9 * candidates.scale)
    unseen = 10 * torch.randn(5, *x.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(built(unseen), layer.module(unseen))


def test_no_affine_map_of_that_rank_is_better() -> None:
    layer, x = case("linear", examples=30)
    gradient = gradients(layer, x)
    statistics = statistics_of(layer, x, gradient=gradient)
    method = get_method("kfac", damping=0.0)
    built = method.build(layer, statistics, {"rank": 2})
    ours = loss_change(layer, built, x, gradient, 0.0)
    y, u = layer.module(x).detach().numpy(), x.numpy()
    metric = gradient.numpy().T @ gradient.numpy() / len(x)

    def error(flat: np.ndarray) -> float:
        left, right, offset = flat[:12].reshape(6, 2), flat[12:30].reshape(2, 9), flat[30:]
        d = y - (u @ right.T @ left.T + offset)
        return float(0.5 * np.einsum("ni,ij,nj->", d, metric, d) / len(u))

    encoder, decoder = built[0].weight.detach(), built[1].weight.detach()
    own = np.concatenate([decoder.flatten(), encoder.flatten(), built[1].bias.detach()])
    assert error(own) == pytest.approx(ours)
    starts = np.random.default_rng(0).normal(size=(6, 36))
    best = min(scipy.optimize.minimize(error, s, method="BFGS").fun for s in [own, *starts])
    assert ours == pytest.approx(best, rel=1e-4)


def test_a_direction_without_gradient_is_dropped_first() -> None:
    layer, x = case("conv2d")
    gradient = gradients(layer, x, rank=2)
    statistics = statistics_of(layer, x, gradient=gradient)
    built = get_method("kfac", damping=1e-6).build(layer, statistics, {"rank": 2})
    plain = get_method("pca").build(layer, statistics, {"rank": 2})
    change = loss_change(layer, built, x, gradient, 0.0)
    assert change < 1e-6 * loss_change(layer, plain, x, gradient, 0.0)
    largest = max(p.abs().max().item() for p in built[1].parameters())
    assert built[1].weight.detach().flatten(1).norm(dim=0).allclose(torch.ones(2, dtype=torch.float64))
    assert np.isfinite(largest)


def test_gradients_that_vanish_are_normal() -> None:
    layer, x = case("conv2d_grouped")
    statistics = statistics_of(layer, x, gradient=torch.zeros_like(layer.module(x)).detach())
    candidates = get_method("kfac").candidates(layer, statistics)
    assert candidates.error.max() < 1e-20
    built = get_method("kfac").build(layer, statistics, candidates.choice(len(candidates) - 1))
    torch.testing.assert_close(built(x), layer.module(x))


def test_refuses_what_cannot_gain_and_wrong_options() -> None:
    layer = layer_of(nn.Linear(1, 5), torch.zeros(2, 1))
    assert "thin" in (get_method("kfac").supports(layer) or "")
    with pytest.raises(ValueError, match="labels='mine'"):
        get_method("kfac", labels="mine")
    with pytest.raises(ValueError, match="damping=-1"):
        get_method("kfac", damping=-1)
