"""Factors multiplied out: the same function in the original's shape."""

import pytest
import torch
from torch import nn

import rankwise
from rankwise.network.recompose import recompose


def net(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=bias), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, groups=2), nn.Flatten(), nn.Linear(16 * 36, 7),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["svd", "whitened", "tucker2", "cp"])
def test_the_same_function_in_the_shape_of_the_original(method: str, bias: bool) -> None:
    original = net(bias)
    x = torch.randn(8, 3, 16, 16)
    small = rankwise.compress(original, [x], rankwise.Budget(params=0.85), method=method)
    dense = recompose(small, original)
    assert dense is not None
    assert [p.shape for p in dense.parameters()] == [p.shape for p in original.parameters()]
    with torch.no_grad():
        torch.testing.assert_close(dense.eval()(x), small.eval()(x), rtol=1e-4, atol=1e-5)


def test_factors_of_narrowed_layers_have_no_such_form() -> None:
    original = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 12))
    narrow = rankwise.compress(original, [torch.randn(9, 8)], rankwise.Budget(macs=0.7), method="l2")
    for budget in (0.3, 0.5):
        small = rankwise.compress(
            narrow, None, rankwise.Budget(macs=budget), method="svd", example=torch.randn(1, 8)
        )
        assert recompose(small, original) is None


def test_narrowed_networks_have_no_such_form() -> None:
    original = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3))
    small = rankwise.compress(original, [torch.randn(9, 4)], rankwise.Budget(macs=0.5), method="l2")
    assert recompose(small, original) is None
