"""Predicted costs of narrower networks against what they cost when built."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from tests.network.channel_nets import Grouped, OptionAResNet, Scaled, Shuffle, SmallVGG, UNet
from torch import nn

from rankwise.network import find_layers, model_cost
from rankwise.network.channels import find_groups
from rankwise.network.select import select_
from rankwise.network.widths import WidthCost

CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (OptionAResNet, (1, 3, 16, 16)),
    (UNet, (1, 3, 8, 8)),
    (SmallVGG, (1, 3, 16, 16)),
    (Shuffle, (1, 3, 6, 6)),
    (Scaled, (1, 2, 4, 4, 4)),
    (Grouped, (1, 3, 9, 9)),
    (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), (1, 3, 32, 32)),
    (lambda: torchvision.models.regnet_y_400mf(num_classes=5), (1, 3, 32, 32)),
    (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5), (1, 3, 32, 32)),
]


@pytest.mark.parametrize(("build", "shape"), CASES)
def test_predicted_cost_is_the_built_cost(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, x = build().eval(), torch.randn(shape)
    groups = find_groups(model, x)
    whole = model_cost(model, x)
    widths = WidthCost(model, find_layers(model, x), groups, whole)
    assert widths.cost({}) == whole
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for group in groups:
        if group.reason is None:
            count = int(torch.randint(1, group.size + 1, (1,), generator=generator))
            kept[group.name] = torch.randperm(group.size, generator=generator)[:count].tolist()
    small = copy.deepcopy(model)
    select_(small, groups, kept)
    assert widths.cost(kept) == model_cost(small, x)
