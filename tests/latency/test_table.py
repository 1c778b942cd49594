import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.latency import (
    LayerTimes,
    Offer,
    Store,
    Target,
    WidthTimes,
    layer_probes,
    option_times,
    shape_of,
)
from rankwise.methods import Candidates, Method, get_method
from rankwise.network import Layer, find_layers
from rankwise.network.channels import find_groups
from rankwise.network.spec import describe
from tests.latency.fake import OVERHEAD, PER_MAC, FakeTimer


@pytest.fixture
def times(tmp_path: Path) -> LayerTimes:
    return LayerTimes(Target(batch_size=2), FakeTimer(), Store({"test": 1}, tmp_path))


def _net() -> tuple[nn.Module, torch.Tensor]:
    net = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2),
        nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 16, 1), nn.Flatten(),
        nn.Linear(16 * 25, 10),
    )  # fmt: skip
    return net.eval(), torch.randn(2, 3, 16, 16)


def test_a_layer_is_timed_once_and_remembered(times: LayerTimes) -> None:
    net, example = _net()
    probes = [probe for layer in find_layers(net, example) for probe in layer_probes(layer)]
    assert times.measure(probes) == len(probes) == 5
    assert times.measure(probes) == 0
    conv = next(layer for layer in find_layers(net, example) if layer.name == "3")
    assert math.isclose(times.seconds(layer_probes(conv)), OVERHEAD + PER_MAC * conv.cost.macs)


@pytest.mark.parametrize("name", ["svd", "spatial_svd", "cp", "tucker2"])
def test_shapes_without_weights_are_those_that_are_built(name: str) -> None:
    net, example = _net()
    layer = next(layer for layer in find_layers(net, example) if layer.name == "3")
    method = get_method(name)
    candidates = method.candidates(layer, None)
    for index in np.unique(np.linspace(0, len(candidates) - 1, 4).astype(int)):
        choice = candidates.choice(int(index))
        built = describe(method.build(layer, None, choice))
        assert describe(shape_of(method, layer, choice)) == built


def _svd_options() -> tuple[Layer, Candidates, list[tuple[Method, Candidates, int]]]:
    """The second convolution, what SVD offers for it, and where each option comes from."""
    net, example = _net()
    layer = next(layer for layer in find_layers(net, example) if layer.name == "3")
    method = get_method("svd")
    candidates = method.candidates(layer, None)
    return layer, candidates, [(method, candidates, index) for index in range(len(candidates))]


def test_options_between_those_that_are_timed_lie_on_straight_lines(times: LayerTimes) -> None:
    layer, candidates, origin = _svd_options()
    (column,) = option_times([Offer(layer, origin, np.ones(len(origin) + 1, bool))], times)
    expected = 2 * OVERHEAD + PER_MAC * candidates.macs
    assert np.allclose(column[1:], expected)
    assert math.isclose(column[0], OVERHEAD + PER_MAC * layer.cost.macs)
    assert times._timer.jobs <= 8  # type: ignore[attr-defined]


def test_only_options_that_may_be_chosen_are_timed(times: LayerTimes) -> None:
    layer, candidates, origin = _svd_options()
    usable = np.array([True, *(candidates.choices["rank"] % 16 == 0)])
    option_times([Offer(layer, origin, usable)], times)
    assert times._timer.jobs == 1 + int(usable[1:].sum())  # type: ignore[attr-defined]


def test_narrower_layers_take_what_their_shapes_take(times: LayerTimes) -> None:
    net, example = _net()
    layers = find_layers(net, example)
    groups = [group for group in find_groups(net, example) if group.reason is None]
    dense = {layer.name: OVERHEAD + PER_MAC * layer.cost.macs for layer in layers}
    whole = sum(dense.values()) + 1e-3
    found = WidthTimes(layers, groups, whole, times)
    full = sum(found.seconds(x.name, x.geometry.in_channels, x.geometry.out_channels) for x in layers)
    assert math.isclose(full, whole)
    outputs = {layer.name: math.prod(layer.output_shapes[0]) for layer in layers}
    half = found.seconds("0", 3, 12)
    rest = 1e-3 * outputs["0"] / sum(outputs.values())
    expected = OVERHEAD + PER_MAC * layers[0].cost.macs / 2 + rest / 2
    assert math.isclose(half, expected, rel_tol=1e-6)
    depthwise = [found.seconds("5", width, 32) for width in (8, 16, 32)]
    assert depthwise == sorted(depthwise)
    assert depthwise[0] < depthwise[2]
    assert found.seconds("1", 24, 24) == 0.0


def test_layers_that_take_longer_alone_are_scaled_to_the_network(times: LayerTimes) -> None:
    net, example = _net()
    layers = find_layers(net, example)
    found = WidthTimes(layers, find_groups(net, example), 1e-6, times)
    full = sum(found.seconds(x.name, x.geometry.in_channels, x.geometry.out_channels) for x in layers)
    assert math.isclose(full, 1e-6)
