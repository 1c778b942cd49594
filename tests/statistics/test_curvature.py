import numpy as np
import pytest
import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network import find_layers
from rankwise.statistics import collect
from rankwise.statistics.curvature import Curvature, _local, _Probe, squared_error, symmetric_kl

NEEDS = frozenset({"output", "curvature"})


def curvature_of(model: nn.Module, name: str, batches, options: Curvature | None = None) -> torch.Tensor:
    layers = [layer for layer in find_layers(model, batches[0]) if layer.name == name]
    return collect(model, layers, batches, {name: NEEDS}, curvature=options)[name].curvature


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 2)).double()


@pytest.mark.parametrize("loss", ["mse", "kl"])
@pytest.mark.parametrize("shared", [False, True])
def test_averaging_over_all_directions_agrees_with_many_of_them(loss: str, shared: bool) -> None:
    """Three positions, or one layer called for each of them, so that cross terms count."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if shared:
                return self.head(sum(torch.tanh(self.layer(x[:, i])) for i in range(3)))
            return self.head(torch.tanh(self.layer(x)).sum(1))

    model, x = Net().double(), torch.randn(60, 3, 3, dtype=torch.float64)
    local = curvature_of(model, "layer", [x], Curvature("local", loss, rounds=500))[0]
    averaged = curvature_of(model, "layer", [x], Curvature("averaged", loss, rounds=400))[0]
    assert (averaged - local).norm() < 0.06 * local.norm()


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_products_are_those_of_autograds_exact_hessian(loss: str) -> None:
    model, x = small_net(), torch.randn(6, 3, dtype=torch.float64)
    layers = [layer for layer in find_layers(model, x) if layer.name in ("0", "2")]
    means = {layer.name: torch.randn(1, layer.geometry.rows, dtype=torch.float64) for layer in layers}
    probes = {layer.name: _Probe(layer, means[layer.name]) for layer in layers}
    _local(model, x, probes, Curvature(loss=loss), torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    for layer in layers:
        p = _Probe(layer, means[layer.name]).directions(6, generator)[:, 0]
        at = int(layer.name) + 1
        wanted = torch.zeros(layer.geometry.rows, layer.geometry.rows, dtype=torch.float64)
        for example, direction in zip(x, p, strict=True):
            y = model[:at](example).detach()
            old = model[at:](y).detach()

            def changed(z: torch.Tensor, y=y, old=old, at=at, direction=direction, name=layer.name):
                new = model[at:](y - direction * (z @ (y - means[name][0])))
                return {"mse": squared_error, "kl": symmetric_kl}[loss](old[None], new[None]).sum()

            exact = torch.autograd.functional.hessian(changed, torch.zeros_like(y))
            wanted += torch.outer(direction, exact @ direction)
        torch.testing.assert_close(probes[layer.name].cross[0], wanted)


def expected(metric: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(tr(G) C + G C + C G) / (2 (D + 2)): half the mean symmetric fit at one position."""
    both = np.trace(metric) * covariance + metric @ covariance + covariance @ metric
    return both / (2 * (len(metric) + 2))


@pytest.mark.parametrize("estimate,tolerance", [("local", 0.05), ("averaged", 0.02)])
def test_estimates_have_the_expected_value(estimate: str, tolerance: float) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    x = torch.randn(2000, 5, dtype=torch.float64) @ torch.diag(torch.tensor([2.0, 1, 1, 0.5, 0.2]).double())
    found = curvature_of(model, "0", [x[:1000], x[1000:]], Curvature(estimate, rounds=6))[0].numpy()
    second = model[1].weight.detach().numpy()
    wanted = expected(2 / 3 * second.T @ second, np.cov(model[0](x).detach().numpy().T, bias=True))
    assert np.linalg.norm(found - wanted) < tolerance * np.linalg.norm(wanted)


@pytest.mark.parametrize("estimate", ["local", "averaged"])
def test_groups_give_their_own_blocks_without_bias(estimate: str) -> None:
    model = nn.Sequential(nn.Conv1d(6, 6, 1, groups=2), nn.Flatten(), nn.Linear(6, 4)).double()
    x = torch.randn(3000, 6, 1, dtype=torch.float64)
    found = curvature_of(model, "0", [x], Curvature(estimate, rounds=10)).numpy()
    metric = 2 / 4 * (model[2].weight.T @ model[2].weight).detach().numpy()
    covariance = np.cov(model[0](x).detach()[:, :, 0].numpy().T, bias=True)
    for group, rows in enumerate((slice(0, 3), slice(3, 6))):
        wanted = expected(metric[rows, rows], covariance[rows, rows])
        assert np.linalg.norm(found[group] - wanted) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.parametrize("estimate", ["local", "sampled"])
@pytest.mark.parametrize("shape", [(4,), (5, 4)])
def test_one_varying_direction_is_found_exactly(estimate: str, shape: tuple[int, ...]) -> None:
    """Outputs +a and -a, the same at every position, and a loss that sees the layer itself."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Identity()).double()
    nn.init.eye_(model[0].weight)
    a = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    x = torch.stack([a, -a] * 40)
    if len(shape) == 2:
        x = x[:, None].expand(-1, *shape).contiguous()
    found = curvature_of(model, "0", [x], Curvature(estimate=estimate, rounds=2))
    torch.testing.assert_close(found[0], torch.outer(a, a) / 4)


def test_gradient_estimate_is_the_first_order_change() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4)).double(), torch.randn(20, 3, dtype=torch.float64)
    labels = torch.arange(20) % 4
    found = curvature_of(model, "0", [(x, labels)], Curvature(estimate="gradient"))[0].numpy()
    y = model(x).detach()
    slope = (torch.softmax(y, 1) - nn.functional.one_hot(labels, 4)).numpy()
    moved = (y - y.mean(0)).numpy()
    p = np.random.default_rng(0).normal(size=4)
    first_order = np.mean([-(g @ p) * (p @ a) for a, g in zip(moved, slope, strict=True)])
    assert p @ found @ p == pytest.approx(first_order)


def test_convolutions_called_twice_and_functions_as_loss() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.relu_(self.conv(x))
            return self.head(self.conv(x).mean((2, 3)))

    model, x = Twice(), torch.randn(30, 3, 5, 5)

    def largest(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return (new - old).square().amax(1)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    for options in (Curvature(loss="kl"), Curvature("local", largest), Curvature("sampled", largest)):
        found = curvature_of(model, "conv", [x], options)
        assert found.shape == (1, 3, 3)
        assert torch.equal(found, curvature_of(model, "conv", [x], options))  # same seed, same bits
        assert torch.linalg.eigvalsh(found)[0, -1] > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.conv._forward_hooks and model.training


def test_wrong_options_and_spent_iterators_are_named() -> None:
    model, x = small_net(), torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(CalibrationError, match="second pass"):
        layers = find_layers(model, x)[:1]
        collect(model, layers, iter([x]), {"0": NEEDS})
    with pytest.raises(CalibrationError, match="loss='mae'"):
        curvature_of(model, "0", [x], Curvature(loss="mae"))
    with pytest.raises(CalibrationError, match="a function takes 'local'"):
        curvature_of(model, "0", [x], Curvature(loss=squared_error))
    with pytest.raises(CalibrationError, match="estimate='guess'"):
        curvature_of(model, "0", [x], Curvature(estimate="guess"))
    with pytest.raises(CalibrationError, match="targets"):
        curvature_of(model, "0", [x], Curvature(estimate="gradient"))
