"""Measured sensitivities, against brute force by numpy."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.network.skip_net import SkipNet, images

from rankwise.allocation.measured import scaled_to
from rankwise.auto.sensitivity import Probe, corrected, grid, some_examples
from rankwise.methods import Candidates, get_method
from rankwise.network import find_layers
from rankwise.network.surgery import replace_


def candidates(error: list[float], params: list[int] | None = None) -> Candidates:
    count = len(error)
    costs = np.array(params or [10 * (i + 1) for i in range(count)])
    return Candidates(costs, costs, np.array(error), {"rank": np.arange(1, count + 1)}, "loss", max(error))


def test_a_measurement_is_the_divergence_of_the_network_with_one_layer_replaced() -> None:
    torch.manual_seed(0)
    model = SkipNet().eval()
    batches = [images(6, seed) for seed in range(2)]
    probe = Probe(copy.deepcopy(model), batches)
    svd = get_method("svd")
    for layer in find_layers(model, batches[0]):
        if svd.supports(layer) is not None:
            continue
        built = svd.build(layer, None, svd.candidates(layer, None).choice(0))
        found = probe.divergence(layer.name, built)
        other = copy.deepcopy(model)
        replace_(other, layer.name, built)
        with torch.no_grad():
            p, q = (torch.cat([m(b) for b in batches]).double().softmax(1).numpy() for m in (model, other))
        assert np.isclose(found, (p * np.log(p / q)).sum(1).mean(), rtol=1e-4, atol=1e-9)
    assert all(type(m) is type(n) for m, n in zip(probe.model.modules(), model.modules(), strict=True))


def test_another_network_is_measured_as_a_whole() -> None:
    torch.manual_seed(0)
    model, other = SkipNet().eval(), SkipNet()
    batches = [images(6, seed) for seed in range(2)]
    found = Probe(model, batches).of(other)
    assert other.training
    other.eval()
    with torch.no_grad():
        p, q = (torch.cat([m(b) for b in batches]).double().softmax(1).numpy() for m in (model, other))
    assert np.isclose(found, (p * np.log(p / q)).sum(1).mean(), rtol=1e-4)


def test_large_outputs_are_kept_of_the_first_batches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [images(6, seed) for seed in range(3)]
    monkeypatch.setattr("rankwise.auto.sensitivity._LARGEST", SkipNet().eval()(batches[0]).nbytes)
    assert len(Probe(SkipNet().eval(), batches).expected) == 2


def test_what_is_not_finite_counts_as_hopeless() -> None:
    predicted = np.array([2.0, 1.0, 0.0])
    assert np.allclose(scaled_to(predicted, {0: float("inf"), 1: 0.5}), [1e6, 0.5, 0.0])
    assert np.allclose(scaled_to(predicted, {1: float("nan")}), [2e6, 1e6, 0.0])


def test_predictions_are_scaled_by_what_was_measured_between_the_measured_points() -> None:
    found = corrected(candidates([100.0, 10.0, 1.0, 0.0]), {0: 1.0, 2: 0.1})
    # factors 1/100 and 1/10; half-way on the log scale their geometric mean
    assert np.allclose(found.error, [1.0, 10 * np.sqrt(1e-2 * 1e-1), 0.1, 0.0])
    assert found.unit == "loss"


def test_the_grid_spans_the_errors_of_undominated_candidates() -> None:
    error = [64.0, 80.0, 16.0, 8.0, 4.0, 9.0, 1.0]
    assert grid(candidates(error), 3) == [0, 3, 6]
    assert grid(candidates(error), 50) == [0, 2, 3, 4, 6]


def test_interpolated_candidates_are_not_measured() -> None:
    known = replace(candidates([64.0, 32.0, 16.0, 8.0]), fitted=np.array([True, False, False, True]))
    assert grid(known, 3) == [0, 3]


def test_examples_are_taken_batch_by_batch() -> None:
    taken = some_examples(([torch.zeros(4, 1)] * 5), 6)
    assert len(taken) == 2
