"""Moments of what layers read, against the inputs themselves."""

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network import find_layers
from rankwise.statistics.channels import Intake, collect_channels


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    ).eval()


def _data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 2, 7, 7, generator=generator) for n in (3, 2)]


def test_moments_are_sums_over_positions_and_slots() -> None:
    net, data = _net(), _data()
    layers = {layer.name: layer for layer in find_layers(net, data[0])}
    other = _net()
    found = collect_channels(
        net, {"2": Intake(layers["2"]), "5": Intake(layers["5"], 4)}, data, reference=other
    )
    with torch.no_grad():
        hidden = torch.cat([net[:2](x) for x in data]).double().numpy()
        flat = torch.cat([net[:4](x) for x in data]).double().numpy()
        there = torch.cat([other[:2](x) for x in data]).double().numpy()
    rows = np.moveaxis(hidden, 1, -1).reshape(-1, 4)
    np.testing.assert_allclose(found["2"].moment, rows.T @ rows / len(rows), rtol=1e-6)
    np.testing.assert_allclose(found["2"].mean, rows.mean(0), rtol=1e-6)
    target = np.moveaxis(there, 1, -1).reshape(-1, 4)
    np.testing.assert_allclose(found["2"].cross, rows.T @ target, rtol=1e-5, atol=1e-6)
    slots = np.moveaxis(flat, 1, -1).reshape(-1, 3)
    np.testing.assert_allclose(found["5"].square, slots.T @ slots, rtol=1e-5, atol=1e-8)
    assert found["5"].rows == 5 * 4


def test_sensitivity_is_the_largest_share() -> None:
    net, data = _net(), _data()
    layer = {found.name: found for found in find_layers(net, data[0])}["5"]
    found = collect_channels(net, {"5": Intake(layer)}, data, sensitivity=True)["5"]
    with torch.no_grad():
        rows = torch.cat([net[:5](x) for x in data]).double().numpy()
    weight = net[5].weight.detach().double().numpy()
    best = np.zeros(12)
    for row in rows:
        for w in weight:
            for sign in (1, -1):
                part = np.clip(sign * w * row, 0, None)
                if part.sum() > 0:
                    best = np.maximum(best, part / part.sum())
    assert found.sensitivity is not None
    np.testing.assert_allclose(found.sensitivity, best, rtol=1e-6)


def test_the_model_is_left_alone_and_errors_have_names() -> None:
    net, data = _net().train(), _data()
    intake = {"2": Intake({layer.name: layer for layer in find_layers(net, data[0])}["2"])}
    collect_channels(net, intake, data)
    assert net.training and not net[2]._forward_pre_hooks
    with pytest.raises(CalibrationError, match="empty"):
        collect_channels(net, intake, [])
    with pytest.raises(CalibrationError, match=r"'2'.*batch 1"):
        collect_channels(net, intake, [data[0], data[1] / 0])
    assert not net[2]._forward_pre_hooks
