import numpy as np
import pytest
import torch
from torch import nn

from rankwise.linalg.evbmf import evbmf_rank
from rankwise.methods import get_method
from rankwise.methods.tucker2 import side_ranks
from tests.methods.by_hand import case, layer_of, measured_cost, statistics_of
from tests.methods.test_kfac import gradients, loss_change

KINDS = ["conv1d", "conv2d", "conv2d_dilated", "conv2d_grouped", "conv3d", "transposed"]


@pytest.mark.parametrize("pair", [(3, 2), (0, 2), (3, 0)])
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (0, 2), "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
def test_the_chain_is_the_convolution_with_the_assembled_kernel(options: dict, pair: tuple[int, int]) -> None:
    module, x = nn.Conv2d(4, 6, 3, **options).double(), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    layer = layer_of(module, x)
    chain = get_method("tucker2").build(layer, None, {"rank_out": pair[0], "rank_in": pair[1]})
    assert len(chain) == 1 + (pair[0] > 0) + (pair[1] > 0)
    weights = [m.weight.detach().numpy() for m in chain]
    right = weights.pop(0)[:, :, 0, 0] if pair[1] else np.eye(4)
    left = weights.pop(-1)[:, :, 0, 0] if pair[0] else np.eye(6)
    dense = nn.Conv2d(4, 6, 3, **options).double()
    dense.weight.data.copy_(torch.from_numpy(np.einsum("ti,ijhw,js->tshw", left, weights[0], right)))
    if module.bias is not None:
        dense.bias.data.copy_(module.bias.data)
    torch.testing.assert_close(chain(x), dense(x))


@pytest.mark.parametrize("metric", ["identity", "input", "two_sided"])
@pytest.mark.parametrize("name", KINDS)
def test_error_and_cost_are_as_predicted(name: str, metric: str) -> None:
    layer, x = case(name)
    gradient = gradients(layer, x)
    statistics = statistics_of(layer, x, gradient=gradient)
    method = get_method("tucker2", metric=metric)
    candidates = method.candidates(layer, statistics)
    assert candidates.choice(len(candidates) - 1) == {"rank_out": 0, "rank_in": 0}
    assert candidates.error[-1] == pytest.approx(0, abs=1e-9 * candidates.scale)
    for index in {0, len(candidates) // 2, len(candidates) - 1}:
        built = method.build(layer, statistics, candidates.choice(index))
        assert measured_cost(built, x) == (candidates.params[index], candidates.macs[index])
        expected = pytest.approx(candidates.error[index], rel=1e-5, abs=1e-9 * candidates.scale)
        if metric == "input":
            assert float((built(x) - layer.module(x)).detach().square().sum()) / len(x) == expected
        elif metric == "two_sided":
            assert loss_change(layer, built, x, gradient, 1.0) == expected


def low_rank_layer(noise: float = 0.02) -> nn.Conv2d:
    """A 12 -> 16 convolution of Tucker ranks 5 (out) and 3 (in) plus noise."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    module = nn.Conv2d(12, 16, 3, padding=1).double()
    kernel = torch.einsum("ti,ijhw,sj->tshw", randn(16, 5), randn(5, 3, 3, 3), randn(12, 3))
    module.weight.data.copy_(1e-3 * (kernel + noise * kernel.std() * randn(16, 12, 3, 3)))
    return module


def test_rules_find_the_ranks() -> None:
    layer = layer_of(low_rank_layer(), torch.zeros(1, 12, 5, 5, dtype=torch.float64))
    expected = {"rank_out": 5, "rank_in": 3}
    for options in ({"evbmf": 1.0}, {"energy": 0.99}):
        candidates = get_method("tucker2", **options).candidates(layer, None)
        assert len(candidates) == 1
        assert candidates.choice(0) == expected
        assert candidates.error[0] < 0.01 * candidates.scale
    half = get_method("tucker2", fraction=0.5).candidates(layer, None)
    assert half.choice(0) == {"rank_out": 8, "rank_in": 6}
    weak = get_method("tucker2", evbmf=0.5).candidates(layer, None).choice(0)
    assert weak["rank_out"] == round(16 - 0.5 * (16 - evbmf_rank(layer.kernel().flatten(1))))


def test_evbmf_leaves_noise_whole() -> None:
    module = nn.Conv2d(12, 16, 3).double()
    module.weight.data.copy_(torch.randn(16, 12, 3, 3, generator=torch.Generator().manual_seed(1)))
    layer = layer_of(module, torch.zeros(1, 12, 5, 5, dtype=torch.float64))
    candidates = get_method("tucker2", evbmf=1.0).candidates(layer, None)
    assert candidates.choice(0) == {"rank_out": 0, "rank_in": 0}
    assert candidates.params[0] == layer.cost.params


def test_data_aware_beats_plain_on_the_output() -> None:
    layer, x = case("conv2d_dilated")
    statistics = statistics_of(layer, x)
    errors = {}
    for metric in ("identity", "input"):
        built = get_method("tucker2", metric=metric).build(layer, statistics, {"rank_out": 3, "rank_in": 1})
        errors[metric] = float((built(x) - layer.module(x)).detach().square().sum())
    assert errors["input"] < 0.9 * errors["identity"]


@pytest.mark.parametrize("size", [1, 2, 3, 16, 64, 100])
def test_side_ranks_end_with_the_whole_side(size: int) -> None:
    ranks = side_ranks(size)
    assert ranks[-1] == 0
    assert ranks[:-1] == sorted(set(ranks[:-1]))
    assert all(1 <= rank < size for rank in ranks[:-1])
    assert size < 72 or all(rank % 8 == 0 for rank in ranks)


def test_refusals_say_why() -> None:
    method = get_method("tucker2")
    assert "SVD" in method.supports(layer_of(nn.Conv2d(8, 8, 1), torch.zeros(1, 8, 4, 4)))
    assert "depthwise" in method.supports(layer_of(nn.Conv2d(8, 8, 3, groups=8), torch.zeros(1, 8, 4, 4)))
    with pytest.raises(ValueError, match="one of evbmf, energy, fraction"):
        get_method("tucker2", energy=0.9, fraction=0.5)
