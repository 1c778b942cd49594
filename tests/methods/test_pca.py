import numpy as np
import pytest
import torch
from torch import nn

from rankwise.methods import get_method
from tests.methods.by_hand import CASES, case, layer_of, measured_cost, measured_error, rows_of, statistics_of

VARIANTS = [
    ("pca", {}),
    ("pca", {"centred": False}),
    ("pca", {"side": "input"}),
    ("pca", {"side": "input", "centred": False}),
    ("whitened", {}),
]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method,config", VARIANTS, ids=str)
def test_error_and_cost_are_as_predicted_at_every_rank(name: str, method: str, config: dict) -> None:
    layer, x = case(name)
    statistics = statistics_of(layer, x)
    candidates = get_method(method, **config).candidates(layer, statistics)
    assert (np.diff(candidates.error) <= 1e-9 * candidates.scale).all()
    for index in range(len(candidates)):
        built = get_method(method, **config).build(layer, statistics, candidates.choice(index))
        assert measured_cost(built, x) == (candidates.params[index], candidates.macs[index])
        measured = measured_error(layer, built, x)
        assert measured == pytest.approx(candidates.error[index], rel=1e-6, abs=1e-9 * candidates.scale)
    unseen = 10 * torch.randn(5, *x.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(built(unseen), layer.module(unseen))  # the last one has full rank


def test_output_side_is_numpys_pca() -> None:
    layer, x = case("conv2d")
    y = rows_of(layer, layer.module(x).detach())[0]
    deviations = y - y.mean(0)
    _, singular, right = np.linalg.svd(deviations, full_matrices=False)
    wanted = y.mean(0) + deviations @ right[:3].T @ right[:3]
    method, statistics = get_method("pca"), statistics_of(layer, x)
    got = rows_of(layer, method.build(layer, statistics, {"rank": 3})(x).detach())[0]
    np.testing.assert_allclose(got, wanted, atol=1e-8)
    error = (singular[3:] ** 2).sum() / len(x)
    assert method.candidates(layer, statistics).error[2] == pytest.approx(error)


def test_mean_of_every_channel_is_kept_exactly() -> None:
    for name in ("conv2d_grouped", "transposed", "linear"):
        layer, x = case(name)
        for side in ("output", "input"):
            built = get_method("pca", side=side).build(layer, statistics_of(layer, x), {"rank": 1})
            wanted = rows_of(layer, layer.module(x).detach()).mean(1)
            np.testing.assert_allclose(rows_of(layer, built(x).detach()).mean(1), wanted, atol=1e-8)


def test_few_examples_and_a_constant_output_are_normal() -> None:
    layer, x = case("conv2d", examples=1)
    for inputs in (x[:, :, :3, :3], torch.ones_like(x)):
        layer = layer_of(layer.module, inputs)
        statistics = statistics_of(layer, inputs)
        candidates = get_method("pca").candidates(layer, statistics)
        built = get_method("pca").build(layer, statistics, candidates.choice(0))
        assert torch.isfinite(built(inputs)).all()
        assert measured_error(layer, built, inputs) == pytest.approx(candidates.error[0], abs=1e-8)


def test_refuses_what_cannot_gain_and_wrong_sides() -> None:
    layer = layer_of(nn.Conv2d(4, 4, 3, groups=4), torch.zeros(1, 4, 5, 5))
    assert "depthwise" in (get_method("pca").supports(layer) or "")
    with pytest.raises(ValueError, match=r"side='left'.*'output' and 'input'"):
        get_method("pca", side="left")
