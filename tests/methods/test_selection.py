"""Folding: the consumer of the kept channels is the consumer of their prediction of all channels."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.budget import Budget
from rankwise.compress import compress
from rankwise.methods import get_method
from rankwise.methods.selection.folding import fold, has_exact_intercept, refitted, regressed
from rankwise.network import find_layers
from rankwise.network.select import narrow_
from rankwise.statistics.channels import ChannelMoments, Intake, collect_channels

CONSUMERS: list[tuple[Any, tuple[int, ...], int, int]] = [
    # module, input shape, dimension of the channels, slots
    (lambda: nn.Linear(6, 4), (5, 6), 1, 1),
    (lambda: nn.Linear(6, 4, bias=False), (5, 3, 6), 2, 1),
    (lambda: nn.Linear(24, 4), (5, 24), 1, 4),
    (lambda: Conv1D(4, 6), (5, 6), 1, 1),
    (lambda: nn.Conv1d(6, 4, 3, padding=1), (5, 6, 8), 1, 1),
    (lambda: nn.Conv2d(6, 4, (3, 1), stride=2, padding=(1, 0), dilation=(2, 1)), (5, 6, 8, 7), 1, 1),
    (lambda: nn.Conv3d(6, 4, 2), (2, 6, 4, 4, 4), 1, 1),
    (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1), (5, 6, 4, 4), 1, 1),
]


def _mixed(x: torch.Tensor, table: torch.Tensor, dim: int, slots: int) -> torch.Tensor:
    """``table.T`` applied to the channels of ``x``."""
    x = x.movedim(dim, -1)
    x = x.unflatten(-1, (-1, slots)).transpose(-1, -2) @ table.to(x.dtype)
    return x.transpose(-1, -2).flatten(-2).movedim(-1, dim)


@pytest.mark.parametrize(("build", "shape", "dim", "slots"), CONSUMERS)
@given(st.integers(0, 10_000), st.sets(st.integers(0, 5), min_size=1))
@settings(max_examples=10)
def test_folded_net_is_the_net_on_the_prediction(
    build: Any, shape: tuple[int, ...], dim: int, slots: int, seed: int, chosen: set[int]
) -> None:
    torch.manual_seed(seed)
    module, x = build().double(), torch.randn(shape).double()
    (layer,) = find_layers(nn.Sequential(module), x)
    kept, table = sorted(chosen), torch.randn(len(chosen), 6).double()
    inputs = [c * slots + s for c in kept for s in range(slots)]
    seen = x.index_select(dim, torch.tensor(inputs))
    expected = module(_mixed(seen, table, dim, slots))
    new = fold(Intake(layer, slots), table)
    narrow_(module, inputs, fold=new)
    torch.testing.assert_close(module(seen), expected)


@pytest.mark.parametrize("intercept", [False, True])
def test_refit_is_least_squares(intercept: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(6, 4).double()
    z = torch.randn(50, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double() + 1
    (layer,) = find_layers(nn.Sequential(module), z)
    moments = ChannelMoments()
    moments.add(z)
    new = refitted(Intake(layer), moments, [1, 3, 4], 0.0, intercept)
    seen = z[:, [1, 3, 4]]
    rows = torch.cat([seen, torch.ones(50, 1).double()], 1) if intercept else seen
    target = module(z).detach() - (0 if intercept else module.bias.detach())
    best = rows @ torch.linalg.lstsq(rows, target).solution
    got = seen @ new.weight.mT + (new.bias if new.bias is not None else 0)
    torch.testing.assert_close(got, best)


@pytest.mark.parametrize(("build", "shape", "dim", "slots"), CONSUMERS)
def test_regression_on_patches_finds_the_original_weights(
    build: Any, shape: tuple[int, ...], dim: int, slots: int
) -> None:
    original, x = build().double(), torch.randn((40, *shape[1:])).double()
    other = build().double()
    (layer,) = find_layers(nn.Sequential(original), x)
    intake = {"0": Intake(layer)}
    net, reference = nn.Sequential(other), nn.Sequential(original)
    found = collect_channels(net, intake, [x], reference=reference, by_patch=True)["0"]
    new = regressed(Intake(layer), found, 0.0, True)
    narrow_(other, fold=new)
    torch.testing.assert_close(other(x), original(x))


@given(st.integers(0, 10_000), st.permutations(range(6)))
@settings(max_examples=15)
def test_the_same_network_comes_out_whatever_the_order_of_its_channels(seed: int, order: list[int]) -> None:
    """Permuting the channels of a group, in producer and consumer, permutes what stays and no output."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3)).double().eval()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.copy_(net[0].weight[order])
        other[0].bias.copy_(net[0].bias[order])
        other[2].weight.copy_(net[2].weight[:, order])
    data = [torch.randn(8, 2, 8, 8).double()]
    for selector in ("output", "cholesky", "rrqr", "norm"):
        method = get_method("interpolative", selector=selector)
        small, again = (compress(n, data, Budget(macs=0.7), method=method) for n in (net, other))
        torch.testing.assert_close(again(data[0]), small(data[0]), rtol=1e-6, atol=1e-9)


def test_where_an_intercept_is_exact() -> None:
    cases = [
        (nn.Conv2d(3, 4, 3), True),
        (nn.Conv2d(3, 4, 3, padding=1), False),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), True),
        (nn.Conv2d(3, 4, 3, bias=False), False),
        (nn.ConvTranspose2d(3, 4, 3), False),
    ]
    for module, exact in cases:
        (layer,) = find_layers(nn.Sequential(module), torch.randn(1, 3, 6, 6))
        assert has_exact_intercept(Intake(layer)) is exact, module
