import numpy as np
import pytest
import torch
from torch import nn

from rankwise.methods import get_method
from rankwise.network.layer import Layer
from rankwise.network.spec import describe, rebuild
from tests.methods.by_hand import layer_of, measured_cost, measured_error, statistics_of


def linear(inputs: int, outputs: int, bias: bool = True) -> tuple[Layer, torch.Tensor]:
    module = nn.Linear(inputs, outputs, bias=bias).double()
    x = torch.randn(50, inputs, dtype=torch.float64) @ torch.randn(inputs, inputs, dtype=torch.float64) + 1
    return layer_of(module, x), x


@pytest.mark.parametrize("sweeps", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (12, 4), (4, 12), (7, 5), (5, 7), (9, 2)])
def test_error_and_cost_are_as_predicted(shape: tuple[int, int], sweeps: int) -> None:
    layer, x = linear(*shape, bias=sweeps == 1)
    statistics, method = statistics_of(layer, x), get_method("diagonal", sweeps=sweeps)
    candidates = method.candidates(layer, statistics)
    for index in {*range(0, len(candidates), 3), len(candidates) - 1}:
        built = method.build(layer, statistics, candidates.choice(index))
        assert measured_cost(built, x) == (candidates.params[index], candidates.macs[index])
        measured = measured_error(layer, built, x)
        assert measured == pytest.approx(candidates.error[index], rel=1e-6, abs=1e-9 * candidates.scale)
        np.testing.assert_allclose(built(x).detach().mean(0), layer.module(x).detach().mean(0), atol=1e-8)
        again = rebuild(describe(built), dtype=torch.float64)
        again.load_state_dict(built.state_dict())
        assert torch.equal(again(x), built(x))
    for blocks in set(candidates.choices["blocks"]):
        error = candidates.error[candidates.choices["blocks"] == blocks]
        assert (np.diff(error) <= 1e-9 * candidates.scale).all()
    last = candidates.choice(len(candidates) - 1)
    assert last == {"blocks": min(shape), "low_rank": min(shape)}
    built = method.build(layer, statistics, last)
    unseen = 10 * torch.randn(5, shape[0], dtype=torch.float64)
    torch.testing.assert_close(built(unseen), layer.module(unseen))


@pytest.mark.parametrize("shape", [(8, 8), (12, 4), (4, 12), (7, 5), (5, 7)])
def test_a_diagonal_has_as_many_weights_as_its_longer_side(shape: tuple[int, int]) -> None:
    layer, x = linear(*shape)
    choice = {"blocks": min(shape), "low_rank": 0}
    built = get_method("diagonal").build(layer, statistics_of(layer, x), choice)
    assert measured_cost(built, x) == (max(shape) + shape[1], max(shape))
    effective = torch.func.jacrev(built)(x[:1]).reshape(shape[1], shape[0])
    assert (effective != 0).sum() == max(shape)


def test_no_diagonal_is_better() -> None:
    layer, x = linear(5, 5)
    built = get_method("diagonal").build(layer, statistics_of(layer, x), {"blocks": 5, "low_rank": 0})
    u, y = x.numpy(), layer.module(x).detach().numpy()
    best = 0.0
    for j in range(5):
        design = np.stack([u[:, j], np.ones(len(u))], axis=1)
        best += np.linalg.lstsq(design, y[:, j], rcond=None)[1].item() / len(u)
    assert measured_error(layer, built, x) == pytest.approx(best)


def test_more_sweeps_do_not_hurt() -> None:
    layer, x = linear(16, 12)
    statistics = statistics_of(layer, x)
    once, often = (get_method("diagonal", sweeps=n).candidates(layer, statistics) for n in (1, 6))
    closed = {tuple(once.choice(i).values()): once.error[i] for i in range(len(once))}
    before = np.array([closed[tuple(often.choice(i).values())] for i in range(len(often))])
    assert (often.error <= before + 1e-9).all() and often.error.sum() < 0.99 * before.sum()


def test_a_diagonal_plus_low_rank_layer_is_found_again() -> None:
    layer, x = linear(10, 10)
    with torch.no_grad():
        factors = torch.randn(10, 2, dtype=torch.float64), torch.randn(2, 10, dtype=torch.float64)
        layer.module.weight.copy_(torch.diag(torch.arange(1.0, 11.0)) + factors[0] @ factors[1])
    candidates = get_method("diagonal", sweeps=120).candidates(layer, statistics_of(layer, x))
    here = (candidates.choices["blocks"] == 10) & (candidates.choices["low_rank"] == 2)
    assert candidates.error[here].item() < 1e-2 * candidates.scale


def test_other_layers_are_refused_with_the_reason() -> None:
    method = get_method("diagonal")
    refused = [
        (nn.Conv2d(4, 4, 1), torch.zeros(1, 4, 3, 3), "grouped"),
        (nn.Linear(4, 4), torch.zeros(2, 3, 4), r"(3, 4)"),
        (nn.Linear(4, 1), torch.zeros(2, 4), "single"),
    ]
    for module, x, reason in refused:
        assert reason in method.supports(layer_of(module, x))
    with pytest.raises(ValueError, match="sweeps=0"):
        get_method("diagonal", sweeps=0)
