import numpy as np
import pytest
import torch
from torch import nn

from rankwise.methods import get_method
from rankwise.network import find_layers
from rankwise.statistics import LayerStatistics, collect
from tests.methods.by_hand import CASES, case, layer_of, measured_cost, rows_of


def statistics_of(layer, x: torch.Tensor, curvature: torch.Tensor) -> LayerStatistics:
    y = torch.from_numpy(rows_of(layer, layer.module(x).detach()))
    return LayerStatistics(
        len(x), y.shape[1], output_sum=y.sum(1), output_square=y.mT @ y, curvature_sum=len(x) * curvature
    )


def random_curvature(layer) -> torch.Tensor:
    geometry = layer.geometry
    root = torch.randn(geometry.groups, geometry.rows, geometry.rows, dtype=torch.float64)
    return root + root.mT


@pytest.mark.parametrize("name", CASES)
def test_error_is_the_summed_loss_of_the_directions_left_out(name: str) -> None:
    layer, x = case(name)
    curvature = random_curvature(layer)
    statistics = statistics_of(layer, x, curvature)
    method = get_method("hessian")
    candidates = method.candidates(layer, statistics)
    assert candidates.unit == "loss"
    assert (np.diff(candidates.error) <= 1e-12).all()
    full = min(layer.geometry.rows, layer.geometry.columns)
    values = np.sort(np.linalg.eigvalsh(curvature.numpy()))[:, ::-1].clip(0)
    for rank in range(1, full):
        assert candidates.error[rank - 1] == pytest.approx(values[:, rank:].sum())
    for index in range(len(candidates)):
        built = method.build(layer, statistics, candidates.choice(index))
        assert measured_cost(built, x) == (candidates.params[index], candidates.macs[index])
        mean = rows_of(layer, layer.module(x).detach()).mean(1)
        np.testing.assert_allclose(rows_of(layer, built(x).detach()).mean(1), mean, atol=1e-8)
    torch.testing.assert_close(built(10 * x), layer.module(10 * x))


def test_negative_eigenvalues_go_first_unless_the_absolute_order_is_asked_for() -> None:
    layer, x = case("linear")
    diagonal = torch.diag(torch.tensor([1.0, -5.0, 2.0, 0.0, 3.0, -0.1], dtype=torch.float64))
    statistics = statistics_of(layer, x, diagonal[None])
    built = get_method("hessian").build(layer, statistics, {"rank": 3})
    kept = (built(x) - layer.module(x)).abs().amax(0) < 1e-9
    assert kept.tolist() == [True, False, True, False, True, False]
    built = get_method("hessian", order="absolute").build(layer, statistics, {"rank": 3})
    kept = (built(x) - layer.module(x)).abs().amax(0) < 1e-9
    assert kept.tolist() == [False, True, True, False, True, False]


@pytest.mark.parametrize(
    "config", [{}, {"loss": "kl"}, {"estimate": "local"}, {"estimate": "sampled"}], ids=str
)
def test_a_direction_that_the_network_ignores_is_dropped_though_it_varies_most(config: dict) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 1.05, 1.0])))
        centred = torch.eye(5, 4) - 0.2  # columns that sum to 0, so that softmax sees each alike
        model[1].weight.copy_(torch.linalg.qr(centred)[0])
        model[1].weight[:, 2] = 0.0
        model[1].bias.zero_()
    drawn = torch.randn(800, 4)
    x = torch.linalg.qr(drawn - drawn.mean(0))[0] * 800**0.5  # covariance 1
    layer = find_layers(model, x)[0]
    method = get_method("hessian", rounds=4, **config)
    found = collect(model, [layer], [x[:400], x[400:]], {"0": method.requires}, curvature=method.curvature)
    built = method.build(layer, found["0"], {"rank": 3})
    plain = get_method("pca").build(layer, found["0"], {"rank": 3})
    ours, others = (m[1].weight.detach()[2].square().sum().item() for m in (built, plain))
    assert ours < 0.4 < 0.8 < others  # how much of the ignored direction is still there


def test_labelled_first_order_variants_run_as_experiments() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    batch = (torch.randn(60, 5), torch.arange(60) % 3)
    layer = find_layers(model, batch)[0]
    for order in ("signed", "absolute"):
        method = get_method("hessian", estimate="gradient", order=order)
        found = collect(model, [layer], [batch], {"0": method.requires}, curvature=method.curvature)["0"]
        candidates = method.candidates(layer, found)
        assert (candidates.error >= 0).all() and (np.diff(candidates.error) <= 0).all()
        assert torch.isfinite(method.build(layer, found, {"rank": 2})(batch[0])).all()


def test_configuration_is_json_and_wrong_options_are_refused() -> None:
    def my_loss(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return (new - old).abs().sum(1)

    assert get_method("hessian", estimate="local", loss=my_loss).config()["loss"].endswith("my_loss")
    assert get_method("hessian").config()["loss"] == "mse"
    with pytest.raises(ValueError, match="a function was given"):
        get_method("hessian", loss=my_loss)
    for wrong in ({"estimate": "x"}, {"loss": "x"}, {"order": "x"}, {"rounds": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            get_method("hessian", **wrong)
    assert "thin" in (get_method("hessian").supports(layer_of(nn.Linear(1, 3), torch.zeros(2, 1))) or "")
