from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.methods import get_method
from rankwise.network import find_layers
from rankwise.network.rectifier import following_rectifier
from tests.methods.by_hand import CASES, case, measured_cost, statistics_of


def rectified(name: str):
    """A layer with a ReLU behind a BatchNorm, some of whose scales are negative and one of which is 0."""
    layer, x = case(name, examples=30)
    channels = layer.geometry.out_channels
    scale = torch.linspace(-0.5, 1.5, channels, dtype=torch.float64)
    scale[-2] = 0.0
    shift = torch.linspace(1.0, -1.0, channels, dtype=torch.float64)
    return replace(layer, rectifier=(scale, shift)), x


def behind(layer, y: torch.Tensor) -> torch.Tensor:
    axis = -1 if layer.geometry.kind == "linear" else 1
    scale, shift = layer.rectifier
    return (y.movedim(axis, -1) * scale + shift).clamp_min(0)


def error(layer, built: nn.Module, x: torch.Tensor) -> float:
    wanted, got = behind(layer, layer.module(x)), behind(layer, built(x))
    return float((wanted - got).square().sum().detach() / len(x))


@pytest.mark.parametrize("name", CASES)
def test_error_behind_the_relu_is_within_the_bound_and_below_that_of_pca(name: str) -> None:
    layer, x = rectified(name)
    statistics, method = statistics_of(layer, x), get_method("relu_aware", iterations=10)
    candidates = method.candidates(layer, statistics)
    assert (np.diff(candidates.error) <= 1e-9 * candidates.scale).all()
    better = []
    for index in range(len(candidates)):
        built = method.build(layer, statistics, candidates.choice(index))
        assert measured_cost(built, x) == (candidates.params[index], candidates.macs[index])
        found = error(layer, built, x)
        assert found <= candidates.error[index] + 1e-8 * candidates.scale
        plain = get_method("pca").build(layer, statistics, candidates.choice(index))
        better.append(found < error(layer, plain, x))
    assert np.mean(better[:-1]) > 0.6
    unseen = 10 * torch.randn(5, *x.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(built(unseen), layer.module(unseen))  # the last one has full rank


def test_a_relu_is_found_directly_and_through_batchnorm_only() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.direct, self.normed = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
            self.added, self.twice, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.direct(x))
            x = self.relu(self.norm(self.normed(x)))
            x = torch.relu(self.added(x) + x)
            y = self.twice(x)
            return torch.relu(self.head((nn.functional.relu(y) + y).mean((2, 3)))) + 1

    net = Net()
    with torch.no_grad():
        net.norm.running_mean.uniform_(-1, 1)
        net.norm.weight.uniform_(-1, 1)
    x = torch.randn(2, 3, 6, 6)
    found = following_rectifier(net, x)
    assert set(found) == {"direct", "normed", "head"}
    scale, shift = found["normed"]
    y = torch.randn(1, 4, 1, 1)
    wanted = net.norm.eval()(y)[0, :, 0, 0]
    torch.testing.assert_close((scale * y[0, :, 0, 0].double() + shift).float(), wanted)
    assert torch.equal(found["direct"][0], torch.ones(4).double()) and not found["direct"][1].any()
    assert all(not module._forward_hooks for module in net.modules())
    reasons = {layer.name: get_method("relu_aware").supports(layer) for layer in find_layers(net, x)}
    assert all("ReLU" in reason for reason in reasons.values())  # nobody looked for the ReLU


def test_wrong_options_are_refused() -> None:
    for wrong in ({"penalties": ()}, {"penalties": (-1.0,)}, {"iterations": -1}, {"ridge": -0.1}):
        with pytest.raises(ValueError, match="penalties="):
            get_method("relu_aware", **wrong)
    assert get_method("relu_aware", penalties=[0.5]) == get_method("relu_aware", penalties=(0.5,))
