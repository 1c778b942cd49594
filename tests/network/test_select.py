"""Narrowing single modules, and what is refused."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.errors import PlanError
from rankwise.network.channels import find_groups
from rankwise.network.select import (
    Fold,
    Selection,
    apply_selection_,
    narrow_,
    select_,
    selection_from_json,
)


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def test_a_fold_replaces_the_slice() -> None:
    net, x = _net(), torch.randn(3, 4)
    groups = find_groups(net, x)
    weight, bias = torch.randn(5, 2), torch.randn(5)
    hidden = torch.relu(net[0](x))[:, [1, 4]]
    select_(net, groups, {"0": [1, 4], "2": [0, 1, 2, 3]}, {"2": Fold(weight, bias)})
    torch.testing.assert_close(net[2](hidden), hidden @ weight[:4].T + bias[:4])
    assert (net[2].in_features, net[2].out_features, net[4].in_features) == (2, 4, 4)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"9": [0]}, "no channel group"),
        ({"4": [0]}, "model output"),
        ({"0": []}, "1 to 6"),
        ({"0": [6]}, "0 ... 5"),
    ],
)
def test_refusals_name_what_is_allowed(kept: dict[str, list[int]], words: str) -> None:
    net = _net()
    with pytest.raises(PlanError, match=words):
        select_(net, find_groups(net, torch.randn(1, 4)), kept)
    assert net[0].weight.shape == (6, 4)


def test_a_selection_that_does_not_fit_is_a_plan_error() -> None:
    for selection in (Selection({"7": {"in": [0]}}), Selection({"0": {"out": [99]}})):
        with pytest.raises(PlanError, match="does not fit"):
            apply_selection_(_net(), selection)
    below = {"modules": {"0": {"in": [[-1, 2]]}}, "parameters": {}}
    odd = ({}, below, {"modules": {"0": {"in": [3]}}, "parameters": {}}, {"modules": [], "parameters": {}})
    for data in odd:
        with pytest.raises(PlanError, match="cannot be read"):
            selection_from_json(data)


def test_json_is_short_and_exact() -> None:
    selection = Selection({"a": {"out": [0, 1, 2, 5], "in": [3]}}, {"gamma": {1: [0, 2]}})
    data = selection.to_json()
    assert data["modules"]["a"]["out"] == [[0, 3], [5, 6]]
    assert selection_from_json(data) == selection


def test_kinds_of_modules() -> None:
    conv1d = Conv1D(3, 4)  # 4 in, 3 out
    weight = conv1d.weight.clone()
    narrow_(conv1d, [0, 2], [1])
    assert torch.equal(conv1d.weight, weight[[0, 2]][:, [1]]) and (conv1d.nf, conv1d.nx) == (1, 2)
    norm = nn.GroupNorm(3, 6)
    narrow_(norm, [2, 3])
    assert (norm.num_groups, norm.num_channels, norm.weight.shape) == (1, 2, (2,))
    with pytest.raises(PlanError, match="whole groups of 2"):
        narrow_(nn.Conv2d(4, 4, 1, groups=2), [0])
    with pytest.raises(PlanError, match="LayerNorm"):
        narrow_(nn.LayerNorm(3), [0])
    frozen = nn.Linear(3, 3).requires_grad_(False)
    narrow_(frozen, [0], [0])
    assert not frozen.weight.requires_grad
