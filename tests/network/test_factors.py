import numpy as np
import pytest
import torch
from tests.conformance.layer_cases import LAYER_CASES, LayerCase, build
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankwise.network.factors import Factor, build_chain, chain_cost
from rankwise.network.find import find_layers
from rankwise.network.layer import Layer


def made(layer: Layer, factors: list[Factor]) -> nn.Sequential:
    weights = []
    for factor in factors:
        carried = [layer.geometry.kernel_size[axis] for axis in factor.axes]
        weights.append(torch.randn(factor.outputs, factor.inputs // factor.groups, *carried).double())
    biases = [torch.randn(f.outputs).double() if f.bias else None for f in factors]
    return build_chain(layer, factors, weights, biases)


def plans(layer: Layer) -> list[list[Factor]]:
    """The layer itself, a spatial layer before and after a pointwise one, and one factor per axis."""
    g, n = layer.geometry, layer.geometry.groups
    every = tuple(range(g.ndim))
    mid = 2 * n
    return [
        [Factor(g.in_channels, g.out_channels, every, n, True)],
        [Factor(g.in_channels, mid, every, n), Factor(mid, g.out_channels, (), n, True)],
        [Factor(g.in_channels, mid, (), n), Factor(mid, g.out_channels, every, n)],
        [
            Factor(g.in_channels, mid, (), n),
            *[Factor(mid, mid, (axis,), n) for axis in reversed(every)],
            Factor(mid, g.out_channels, (), n, True),
        ],
    ]


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_cost_is_what_torch_counts(case: LayerCase) -> None:
    model, batches = build(case)
    (layer,) = find_layers(model, batches[0])
    state = torch.random.get_rng_state()
    for factors in plans(layer):
        chain = made(layer, factors)
        torch.random.set_rng_state(state)
        params, macs = chain_cost(layer, factors)
        assert params.tolist() == [sum(p.numel() for p in chain.parameters())]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = chain(batches[0])
        assert macs[0] * 2 * case.shape[0] == counter.get_total_flops()
        assert output.shape == model(batches[0]).shape and output.dtype == torch.float64


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_the_layer_as_its_own_chain(case: LayerCase) -> None:
    model, batches = build(case)
    (layer,) = find_layers(model, batches[0])
    g = layer.geometry
    every = tuple(range(g.ndim))
    factor = Factor(g.in_channels, g.out_channels, every, g.groups, layer.bias() is not None)
    assert chain_cost(layer, [factor])[1].tolist() == [layer.cost.macs]
    chain = build_chain(layer, [factor], [layer.kernel()], [layer.bias()])
    torch.testing.assert_close(chain(batches[0]), model(batches[0]), rtol=1e-11, atol=1e-11)
    assert not chain.training and all(p.requires_grad for p in chain.parameters())


def test_ranks_broadcast() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)).train(), torch.randn(2, 3, 9, 9)
    (layer,) = find_layers(model, x)
    ranks = np.arange(1, 6)
    params, macs = chain_cost(layer, [Factor(3, ranks, (0, 1)), Factor(ranks, 8, (), bias=True)])
    assert params.tolist() == [27 * r + 8 * r + 8 for r in ranks]
    assert macs.tolist() == [(27 * r + 8 * r) * 16 for r in ranks]


def test_a_frozen_layer_in_training_mode_and_the_generator() -> None:
    module = nn.Linear(4, 3).half().requires_grad_(False)
    model = nn.Sequential(module).train()
    (layer,) = find_layers(model, torch.randn(2, 4).half())
    state = torch.random.get_rng_state()
    chain = build_chain(layer, [Factor(4, 3)], [layer.kernel()], [None])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert chain.training and not chain[0].weight.requires_grad and chain[0].weight.dtype == torch.float16
