"""svd and spatial_svd: rank rules, foldings and metrics against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.methods import get_method
from rankwise.network import Layer
from tests.methods.by_hand import case, layer_of, measured_error, statistics_of
from tests.methods.test_foldings import kernel_of


def conv(seed: int = 0, bias: bool = True) -> tuple[Layer, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Conv2d(6, 8, 3, padding=1, bias=bias).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(4, 6, 5, 5, generator=generator, dtype=torch.float64)
    return layer_of(module, x), x


def unfolded(kernel: np.ndarray, name: str) -> np.ndarray:
    """The matrix of a two-dimensional kernel in the folding ``name``, after the table in ALDS."""
    f, _, h, w = kernel.shape
    order = {"channel": (0, 1, 2, 3), "axis0": (0, 3, 1, 2), "axis1": (0, 2, 1, 3), "pointwise": (0, 2, 3, 1)}
    rows = {"channel": f, "axis0": f * w, "axis1": f * h, "pointwise": f * h * w}
    return kernel.transpose(order[name]).reshape(rows[name], -1)


@pytest.mark.parametrize("name", ["channel", "axis0", "axis1", "pointwise"])
def test_errors_are_the_singular_values_cut_off(name: str) -> None:
    layer, _ = conv()
    method = get_method("svd", folding=name)
    table = method.candidates(layer, None)
    values = np.linalg.svd(unfolded(layer.kernel().numpy(), name), compute_uv=False)
    tails = np.array([(values[r:] ** 2).sum() for r in table.choices["rank"]])
    np.testing.assert_allclose(table.error, tails, atol=1e-9)
    assert table.scale == pytest.approx((values**2).sum()) and table.unit == "weight"
    for index in (0, len(table) // 2):
        kernel = kernel_of(method.build(layer, None, table.choice(index)), 1)
        assert ((kernel - layer.kernel().numpy()) ** 2).sum() == pytest.approx(table.error[index])


def test_spatial_svd_offers_both_orders_and_nothing_else() -> None:
    layer, _ = conv()
    table = get_method("spatial_svd").candidates(layer, None)
    assert set(table.choices["folding"]) == {"axis0", "axis1"}
    assert (table.params <= layer.cost.params).any()
    refusal = get_method("spatial_svd").supports(layer_of(nn.Conv2d(8, 8, 1), torch.zeros(1, 8, 3, 3)))
    assert refusal is not None and "none of them" in refusal


def test_a_separable_depthwise_kernel_is_found() -> None:
    module = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False).double()
    column, row = torch.randn(4, 1, 5, 1).double(), torch.randn(4, 1, 1, 5).double()
    with torch.no_grad():
        module.weight.copy_(column * row)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    layer = layer_of(module, x)
    method = get_method("spatial_svd", error=1e-6)
    table = method.candidates(layer, None)
    assert list(table.choices["rank"]) == [1] and table.params[0] == 4 * 10
    torch.testing.assert_close(method.build(layer, None, table.choice(0))(x), module(x), rtol=1e-9, atol=1e-9)
    assert "depthwise" in (get_method("svd").supports(layer) or "")


def test_rank_by_energy_by_error_and_by_ratio() -> None:
    layer, _ = conv(bias=False)
    values = np.linalg.svd(unfolded(layer.kernel().numpy(), "channel"), compute_uv=False)
    share = np.cumsum(values**2) / (values**2).sum()

    def rank(**rule: float) -> int:
        return int(get_method("svd", **rule).candidates(layer, None).choices["rank"].item())

    assert rank(energy=0.5) == int(np.argmax(share >= 0.5)) + 1
    assert rank(error=0.7) == int(np.argmax(np.sqrt(1 - share) <= 0.7)) + 1
    assert rank(ratio=0.5) == int(0.5 * layer.cost.params // (6 * 9 + 8))
    assert len(get_method("svd", energy=1.0).candidates(layer, None)) == 0  # would not be smaller
    best = get_method("svd", ratio=0.5, folding="all").candidates(layer, None)
    by_hand = {}
    for name in ("channel", "axis0", "axis1", "pointwise"):
        matrix = unfolded(layer.kernel().numpy(), name)
        kept = int(0.5 * layer.cost.params // sum(matrix.shape))
        by_hand[name] = (np.linalg.svd(matrix, compute_uv=False)[kept:] ** 2).sum()
    assert best.choices["folding"].item() == min(by_hand, key=by_hand.__getitem__)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"energy": 0.5, "ratio": 0.5}, "one of energy, error, ratio"),
        ({"ratio": 1.5}, "from 0 to 1"),
        ({"metric": "output"}, "identity, input, two_sided"),
        ({"folding": "rows"}, "spatial, all"),
    ],
)
def test_wrong_options_say_what_is_allowed(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        get_method("svd", **options)


def test_batchnorm_scales_rows_and_is_undone() -> None:
    from dataclasses import replace

    plain, x = conv(bias=False)
    scale = torch.linspace(0.0, 2.0, 8)
    layer = replace(plain, output_scale=-scale)
    method = get_method("svd", batchnorm=True)
    table = method.candidates(layer, None)
    weighed = unfolded(layer.kernel().numpy(), "channel") * np.maximum(scale.double().numpy(), 2e-6)[:, None]
    values = np.linalg.svd(weighed, compute_uv=False)
    np.testing.assert_allclose(table.error[:3], [(values[r:] ** 2).sum() for r in (1, 2, 3)], rtol=1e-6)
    full = method.build(layer, None, table.choice(len(table) - 1))
    torch.testing.assert_close(full(x), layer.module(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d", "conv2d_grouped", "transposed"])
def test_input_metric_in_the_channel_folding_is_whitened(name: str) -> None:
    layer, x = case(name)
    statistics = statistics_of(layer, x)
    ours, theirs = get_method("svd", metric="input"), get_method("whitened")
    assert ours.requires == theirs.requires == {"output"}
    table, wanted = ours.candidates(layer, statistics), theirs.candidates(layer, statistics)
    np.testing.assert_allclose(table.error, wanted.error, rtol=1e-9, atol=1e-9 * wanted.scale)
    built = ours.build(layer, statistics, table.choice(1))
    assert measured_error(layer, built, x) == pytest.approx(table.error[1], rel=1e-8)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv2d_dilated", "conv2d_grouped", "transposed"])
def test_data_beat_weights_in_every_folding_and_the_fitted_decoder_is_the_best(name: str) -> None:
    layer, x = case(name)
    statistics = statistics_of(layer, x)
    for folding in ("axis0", "pointwise"):
        plain, data = get_method("svd", folding=folding), get_method("svd", folding=folding, metric="input")
        table = data.candidates(layer, statistics)
        for index in range(0, len(table), 3):
            built = data.build(layer, statistics, table.choice(index))
            error = measured_error(layer, built, x)
            assert error == pytest.approx(table.error[index], rel=1e-6, abs=1e-7 * table.scale)
            assert error <= measured_error(layer, plain.build(layer, None, table.choice(index)), x) + 1e-7
            with torch.no_grad():  # any other decoder is worse
                built[1].weight.add_(1e-3 * torch.randn_like(built[1].weight))
            assert measured_error(layer, built, x) >= error - 1e-9


def test_two_sided_metric_is_the_best_of_many_tries() -> None:
    from scipy.optimize import minimize

    layer, x = case("linear")
    generator = torch.Generator().manual_seed(3)
    gradient = torch.randn(40, 6, generator=generator, dtype=torch.float64) * torch.arange(1.0, 7.0)
    statistics = statistics_of(layer, x, gradient=gradient)
    table = get_method("svd", metric="two_sided").candidates(layer, statistics)
    weight, rows, g = layer.matrix()[0].numpy(), x.numpy(), gradient.numpy()
    metric = g.T @ g / len(g)
    metric = metric + np.trace(metric) / 6 * np.eye(6)

    def loss(parameters: np.ndarray) -> float:
        left, right = parameters[:6].reshape(6, 1), parameters[6:].reshape(1, 9)
        rest = rows @ (weight - left @ right).T
        return float(0.5 * np.einsum("ni,ij,nj->", rest, metric, rest) / len(rows))

    tries = [minimize(loss, np.random.default_rng(s).normal(size=15), method="BFGS").fun for s in range(5)]
    assert table.unit == "loss"
    assert table.error[0] == pytest.approx(min(tries), rel=1e-5)
