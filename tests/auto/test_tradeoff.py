"""The trade-off curve against networks built one by one."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.network.skip_net import SkipNet, images
from torch import nn
from torch.utils.data import DataLoader

import rankwise
from rankwise.errors import RankwiseError


def test_the_curve_has_exact_costs_and_rises_as_less_is_kept() -> None:
    torch.manual_seed(0)
    model = SkipNet().eval()
    data = [images(16, seed) for seed in range(5)]
    points = rankwise.tradeoff(model, data, "params", (0.8, 0.6, 0.4, 0.001), effort="fast")
    assert [p.asked for p in points] == [0.8, 0.6, 0.4]  # 0.001 cannot be reached
    for point in points:
        assert point.asked - 0.1 < point.params_fraction <= point.asked
        assert 0 < point.macs_fraction < 1
        assert point.to_json()["kl"] == point.kl > 0
    predicted = [p.predicted for p in points]
    assert predicted == sorted(predicted)
    assert points[-1].kl > points[0].kl
    assert np.isfinite([p.kl for p in points]).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fractions": (1.5,)}, r"1\.5 was given; allowed are numbers in \(0, 1\]"),
        ({"fractions": ("0.5",)}, r"'0\.5' was given; allowed are numbers"),
        ({"measure": "foo"}, "measure 'foo'.*Allowed: macs, params"),
        ({"measure": "latency"}, "measure 'latency'.*Allowed: macs, params"),
        ({"effort": rankwise.Automatic("fast")}, r"effort \"Automatic.*Allowed: fast, normal, thorough"),
        ({"calibration": None, "example": images(2)}, "needs calibration batches"),
        ({"calibration": None}, "Neither calibration|needs calibration"),
        ({"model": "resnet"}, "type str was given; allowed is an nn.Module"),
        ({"model": SkipNet().to("meta")}, "on the meta device"),
        ({"model": nn.BatchNorm2d(3)}, "6 parameters and 0 MACs; allowed"),
        ({"model": nn.Flatten()}, "0 parameters and 0 MACs; allowed"),
    ],
)
def test_what_is_given_is_checked(wrong: dict[str, Any], said: str) -> None:
    given = {"model": SkipNet(), "calibration": [images(2)], "fractions": (0.5,), "effort": "fast"} | wrong
    with pytest.raises(RankwiseError, match=said):
        rankwise.tradeoff(**given)


def test_random_generators_are_left_alone() -> None:
    model, loader = SkipNet().eval(), DataLoader(torch.cat([images(16, seed) for seed in range(4)]), 16)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    rankwise.tradeoff(model, loader, "params", (0.8,), effort="fast")
    assert torch.equal(before, torch.get_rng_state())
