"""The trade-off curve against networks built one by one."""

import numpy as np
import pytest
import torch
from tests.network.skip_net import SkipNet, images
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


def test_random_generators_are_left_alone() -> None:
    model, loader = SkipNet().eval(), DataLoader(torch.cat([images(16, seed) for seed in range(4)]), 16)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    rankwise.tradeoff(model, loader, "params", (0.8,), effort="fast")
    assert torch.equal(before, torch.get_rng_state())


def test_fractions_are_checked() -> None:
    with pytest.raises(RankwiseError, match="0, 1"):
        rankwise.tradeoff(SkipNet(), [images(2)], "macs", (1.5,))
