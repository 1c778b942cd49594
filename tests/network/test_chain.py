"""Chains as matrices: against what the modules compute on patches."""

import copy

import pytest
import torch
from torch import nn

from rankwise.network.chain import balance_, linear_map, two_factor_rank
from rankwise.network.layer import geometry_of
from rankwise.statistics.patches import patches

LAYERS = {
    "conv": (
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Sequential(nn.Conv2d(6, 4, (3, 1), stride=(2, 1), padding=(1, 0), bias=False),
                      nn.Conv2d(4, 8, (1, 3), stride=(1, 2), padding=(0, 1))),
    ),
    "cp": (
        nn.Conv2d(6, 8, 3, padding=2, dilation=2),
        nn.Sequential(nn.Conv2d(6, 5, 1, bias=False),
                      nn.Conv2d(5, 5, 3, padding=2, dilation=2, groups=5, bias=False), nn.Conv2d(5, 8, 1)),
    ),
    "grouped": (
        nn.Conv2d(6, 8, 3, padding=1, groups=2),
        nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False), nn.Conv2d(4, 8, 1, groups=2)),
    ),
    "linear": (nn.Linear(7, 5), nn.Sequential(nn.Linear(7, 3, bias=False), nn.Linear(3, 5))),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_the_matrix_times_a_patch_is_the_chain(name: str) -> None:
    torch.manual_seed(0)
    layer, chain = copy.deepcopy(LAYERS[name])
    chain = chain.double()
    geometry = geometry_of(layer)
    assert geometry is not None
    x = torch.randn(2, 7 if geometry.kind == "linear" else 6, *(9, 8)[: geometry.ndim], dtype=torch.float64)
    found = linear_map(chain, geometry)
    assert found is not None
    compose, weights = found
    matrix = compose(weights)
    assert matrix.shape == (geometry.groups, geometry.rows, geometry.columns)
    rows = torch.einsum("npgd,god->npgo", patches(geometry, x), matrix).flatten(2)
    bias = chain[-1].bias
    expected = chain(x)
    rows = rows.squeeze(1) if geometry.kind == "linear" else rows.mT.unflatten(2, expected.shape[2:])
    assert torch.allclose(rows + bias.view(1, -1, *(1,) * geometry.ndim), expected, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_balancing_changes_norms_and_no_output(name: str) -> None:
    torch.manual_seed(0)
    _, chain = copy.deepcopy(LAYERS[name])
    chain = chain.double()
    with torch.no_grad():
        chain[0].weight[0] *= 1e4
        chain[-1].weight *= 1e-3
    x = torch.randn(2, 7, dtype=torch.float64) if name == "linear" else torch.randn(2, 6, 9, 8).double()
    before = chain(x)
    balance_(chain)
    assert torch.allclose(chain(x), before, rtol=1e-9)
    if len(chain) == 2:
        first = chain[0].weight.flatten(1).norm(dim=1)
        second = chain[1].weight
        if name == "grouped":
            into = second.reshape(2, 4, 2).norm(dim=1).flatten()
        else:
            into = second.movedim(1, 0).flatten(1).norm(dim=1)
        assert torch.allclose(first, into, rtol=1e-6)


def test_two_factors_are_told_from_other_chains() -> None:
    ranks = {name: two_factor_rank(chain, geometry_of(layer)) for name, (layer, chain) in LAYERS.items()}  # type: ignore[arg-type]
    assert ranks == {"conv": None, "cp": None, "grouped": 2, "linear": 3}


def test_other_chains_are_no_matrix() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    geometry = geometry_of(layer)
    assert geometry is not None
    assert linear_map(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)), geometry) is None
    assert linear_map(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, (3, 1))), geometry) is None
    assert linear_map(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), geometry) is None
