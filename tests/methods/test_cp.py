from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.linalg.cp_correction import sensitivity
from rankwise.methods import get_method
from rankwise.methods.cp import bytes_of, cp_factors, kernel_axes, rank_grid
from rankwise.methods.recall import Recall, digest
from rankwise.network.layer import geometry_of
from tests.methods.by_hand import case, layer_of, measured_cost, patches_of, rows_of, statistics_of
from tests.methods.test_kfac import gradients, loss_change

KINDS = ["conv1d", "conv2d", "conv2d_dilated", "conv2d_grouped", "conv3d", "transposed"]


def kernel_of(chain: nn.Sequential, factors: int) -> torch.Tensor:
    """(out, in / groups, *kernel) of an ungrouped chain, multiplied out by numpy."""
    weights = [module.weight.detach().numpy() for module in chain]
    first, last = weights[0][:, :, 0, 0], weights[-1][:, :, 0, 0]
    if factors == 3:
        return torch.from_numpy(np.einsum("tr,rs,rhw->tshw", last, first, weights[1][:, 0]))
    rows, columns = weights[1][:, 0, :, 0], weights[2][:, 0, 0, :]
    return torch.from_numpy(np.einsum("tr,rs,rh,rw->tshw", last, first, rows, columns))


@pytest.mark.parametrize("factors", [3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (0, 2)},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_the_chain_is_the_convolution_with_the_assembled_kernel(options: dict, factors: int) -> None:
    module, x = nn.Conv2d(4, 6, 3, **options).double(), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    layer = layer_of(module, x)
    chain = get_method("cp", factors=factors).build(layer, None, {"rank": 5, "factors": factors})
    assert len(chain) == factors
    dense = nn.Conv2d(4, 6, 3, **options).double()
    dense.weight.data.copy_(kernel_of(chain, factors))
    dense.bias.data.copy_(module.bias.data)
    torch.testing.assert_close(chain(x), dense(x))


@pytest.mark.parametrize("metric", ["identity", "input", "two_sided"])
@pytest.mark.parametrize("name", KINDS)
def test_error_and_cost_are_as_predicted(name: str, metric: str) -> None:
    layer, x = case(name)
    gradient = gradients(layer, x)
    statistics = statistics_of(layer, x, gradient=gradient)
    method = get_method("cp", metric=metric, polish=0, factors=0, effort=0.01, degenerate=True)
    candidates = method.candidates(layer, statistics)
    for index in {0, len(candidates) // 2, len(candidates) - 1}:
        built = method.build(layer, statistics, candidates.choice(index))
        assert measured_cost(built, x) == (candidates.params[index], candidates.macs[index])
        expected = pytest.approx(candidates.error[index], rel=1e-5, abs=1e-9 * candidates.scale)
        if metric == "input":
            assert float((built(x) - layer.module(x)).detach().square().sum()) / len(x) == expected
        elif metric == "two_sided":
            assert loss_change(layer, built, x, gradient, 1.0) == expected


def test_ranks_between_the_fitted_ones_have_interpolated_errors_and_are_built() -> None:
    layer, x = case("conv2d_dilated")
    statistics = statistics_of(layer, x)
    method = get_method("cp", metric="input", points=3, polish=0, interpolated=True)
    found = method.candidates(layer, statistics)
    assert found.fitted is not None

    def error_of(built: nn.Module) -> float:
        return float((built(x) - layer.module(x)).detach().square().sum()) / len(x)

    for index in map(int, np.flatnonzero(found.fitted)):
        built = method.build(layer, statistics, found.choice(index))
        assert error_of(built) == pytest.approx(found.error[index], rel=1e-4, abs=1e-9 * found.scale)
    index = int(np.flatnonzero(~found.fitted)[0])
    low, high = index - 1, next(i for i in range(index, len(found)) if found.fitted[i])
    ranks, logs = found.choices["rank"], np.log(found.error)
    share = (ranks[index] - ranks[low]) / (ranks[high] - ranks[low])
    assert logs[index] == pytest.approx(logs[low] + share * (logs[high] - logs[low]))
    built = method.build(layer, statistics, found.choice(index))
    assert measured_cost(built, x) == (found.params[index], found.macs[index])
    assert found.error[high] * 0.9 < error_of(built) < found.error[low] * 1.1


@pytest.mark.parametrize("width", [16, 32, 48])
def test_every_fitted_rank_is_among_the_interpolated_ones(width: int) -> None:
    layer = layer_of(nn.Conv2d(width, width, 3), torch.randn(1, width, 4, 4))
    method = get_method("cp", points=5, effort=0.001, polish=0, degenerate=True, interpolated=True)
    found = method.candidates(layer, None)
    assert found.fitted is not None
    coarse = rank_grid(layer, 3, 5)
    small = sorted({max(1, coarse[0] // 4), max(1, coarse[0] // 2)} - {*coarse})
    assert small, "a layer that hardly matters can have fewer than the coarse grid's smallest"
    assert list(found.choices["rank"][found.fitted]) == [*small, *coarse]
    assert found.choices["rank"].min() == small[0]
    assert len(found) > 40


def test_polishing_only_lowers_the_predicted_error() -> None:
    layer, x = case("conv2d_dilated")
    statistics = statistics_of(layer, x)
    method = get_method("cp", metric="input", effort=0.01)
    candidates = method.candidates(layer, statistics)
    middle = len(candidates) // 2
    built = method.build(layer, statistics, candidates.choice(middle))
    measured = float((built(x) - layer.module(x)).detach().square().sum()) / len(x)
    assert measured <= candidates.error[middle] * (1 + 1e-9)


def test_data_aware_beats_plain_on_the_output_and_keeps_its_mean() -> None:
    layer, x = case("conv2d_dilated")
    statistics = statistics_of(layer, x)
    outputs = layer.module(x).detach()
    errors = {}
    for metric in ("identity", "input"):
        built = get_method("cp", metric=metric).build(layer, statistics, {"rank": 4, "factors": 3})
        errors[metric] = float((built(x) - outputs).detach().square().sum())
    assert errors["input"] < 0.8 * errors["identity"]
    shift = rows_of(layer, built(x).detach() - outputs).mean(1)
    assert np.abs(shift).max() < 1e-10


def test_uncentred_metric_is_the_plain_output_error() -> None:
    layer, x = case("conv2d")
    statistics = statistics_of(layer, x)
    method = get_method("cp", metric="input", centred=False, polish=0, effort=0.01)
    candidates = method.candidates(layer, statistics)
    built = method.build(layer, statistics, candidates.choice(3))
    assert all(module.bias is None for module in built)
    difference = rows_of(layer, built(x).detach() - layer.module(x).detach())
    assert candidates.error[3] == pytest.approx(np.square(difference).sum() / len(x), rel=1e-5)
    total = layer.matrix().numpy() @ patches_of(layer, x).swapaxes(1, 2)
    assert candidates.scale == pytest.approx(np.square(total).sum() / len(x))


def test_what_is_remembered_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = case("conv2d")
    method = get_method("cp", metric="input")
    statistics = statistics_of(layer, x)
    choice = method.candidates(layer, statistics).choice(4)
    remembered = method.build(layer, statistics, choice)
    monkeypatch.setattr(import_module("rankwise.methods.cp"), "_recalled", Recall(1))
    afresh = method.build(layer, statistics, choice)
    for a, b in zip(remembered.parameters(), afresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_recall_forgets_the_oldest_and_tells_contents_apart() -> None:
    calls: list[int] = []
    recall: Recall[int] = Recall(2)
    for value in (1, 2, 1, 3, 1, 2):
        assert recall((torch.tensor([value]),), lambda value=value: calls.append(value) or value) == value
    assert calls == [1, 2, 3, 2]
    assert digest([torch.zeros(2)]) != digest([torch.zeros(2, 1)])
    assert digest([1.0, None]) != digest([1, None])


def test_recall_holds_no_more_bytes_than_it_may() -> None:
    calls: list[int] = []
    recall: Recall[str] = Recall(9, 10, len)
    for size in (4, 6, 4, 3, 4, 6, 12, 4, 12):
        assert recall((size,), lambda size=size: calls.append(size) or size * "x") == size * "x"
    assert calls == [4, 6, 3, 6, 12, 4, 12]
    layer = layer_of(nn.Conv2d(5, 6, 3), torch.zeros(1, 5, 4, 4))
    method = get_method("cp", effort=0.01)
    (problem,) = method._problems(layer, None, 3)
    assert bytes_of(method._curve(problem, [2, 3])) == 8 * (2 + 3) * (5 + 6 + 9)


def test_what_was_built_before_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rank is the only one of its curve either way, the curve's work differs."""
    layer = layer_of(nn.Conv2d(24, 24, 3, padding=1), torch.zeros(1, 24, 4, 4))
    plain = get_method("cp", points=5, polish=1, effort=0.02)
    other = get_method("cp", points=5, polish=1, effort=0.02, interpolated=True)
    choice = {"rank": 11, "factors": 3}
    built = []
    for first in (plain, other):
        monkeypatch.setattr(import_module("rankwise.methods.cp"), "_recalled", Recall(9, 2**20, bytes_of))
        first.build(layer, None, choice)
        built.append(other.build(layer, None, choice))
    for a, b in zip(*(module.parameters() for module in built), strict=True):
        assert torch.equal(a, b)


def test_axes_without_a_kernel_go_with_one_that_has() -> None:
    flat = geometry_of(nn.Conv3d(2, 4, (1, 3, 3), stride=(2, 1, 1)))
    assert flat is not None
    assert kernel_axes(flat, 4) == [(0, 1), (2,)]
    assert kernel_axes(flat, 3) == [(0, 1, 2)]
    line = geometry_of(nn.Conv2d(2, 4, (1, 3)))
    assert line is not None
    assert kernel_axes(line, 4) == [(0, 1)]
    assert len(cp_factors(flat, 3, 4, False)) == 4


def test_ranks_suit_common_multiples() -> None:
    layer = layer_of(nn.Conv2d(64, 64, 3, padding=1), torch.zeros(1, 64, 4, 4))
    ranks = rank_grid(layer, 3)
    assert sum(rank % 8 == 0 for rank in ranks) >= len(ranks) - 1
    assert ranks == sorted(set(ranks))
    assert ranks[-1] * (64 + 64 + 9) < layer.weight.numel() <= (ranks[-1] + 1) * (64 + 64 + 9)


def test_refusals_say_why() -> None:
    method = get_method("cp")
    pointwise = layer_of(nn.Conv2d(8, 8, 1), torch.zeros(1, 8, 4, 4))
    depthwise = layer_of(nn.Conv2d(8, 8, 3, groups=8), torch.zeros(1, 8, 4, 4))
    assert "SVD" in method.supports(pointwise)
    assert "depthwise" in method.supports(depthwise)
    with pytest.raises(ValueError, match="allowed are 3, 4 and 0"):
        get_method("cp", factors=5)
    with pytest.raises(ValueError, match="metric"):
        get_method("cp", metric="output")


def test_correction_spends_what_polishing_won_on_sensitivity() -> None:
    layer, _ = case("conv2d_dilated")
    choice = {"rank": 4, "factors": 3}
    chains = {on: get_method("cp", corrected=on).build(layer, None, choice) for on in (False, True)}
    curve = get_method("cp", polish=0).build(layer, None, choice)
    kernel = layer.kernel()

    def error(chain: nn.Sequential) -> float:
        return float((kernel - kernel_of(chain, 3)).square().sum())

    assert error(chains[False]) <= error(chains[True]) <= error(curve) * (1 + 1e-6)
    factors = {on: [m.weight.detach().flatten(1) for m in chain] for on, chain in chains.items()}
    oriented = {on: [a, b.T, c.T] for on, (b, c, a) in factors.items()}
    oriented = {on: [m if m.shape[1] == 4 else m.T for m in ms] for on, ms in oriented.items()}
    assert sensitivity(oriented[True]) <= sensitivity(oriented[False])
    with pytest.raises(ValueError, match="metric='identity' after polishing"):
        get_method("cp", corrected=True, metric="input")
