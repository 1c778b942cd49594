"""Measured sensitivities, against brute force by numpy."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.network.skip_net import SkipNet, images

from rankwise.allocation.measured import scaled_to
from rankwise.auto.sensitivity import Probe, corrected, grid, measured, rivals, some_examples
from rankwise.methods import Candidates, get_method
from rankwise.network import Cost, find_layers
from rankwise.network.surgery import replace_
from rankwise.progress import silent


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


DENSE = Cost(params=100, macs=100)


def test_methods_that_are_far_behind_at_every_cost_are_no_rivals() -> None:
    good = candidates([64.0, 32.0, 16.0, 8.0], [20, 40, 60, 80])
    near, far = (candidates(error, [20, 40, 60, 80]) for error in ([640.0, 64.0, 160.0, 80.0], [640.0] * 4))
    assert rivals(DENSE, [good, near]) == [True, True]
    assert rivals(DENSE, [good, far, near]) == [True, False, True]
    assert rivals(DENSE, [far]) == [True]


def test_candidates_alone_at_their_cost_or_dearer_than_the_layer_make_no_rival() -> None:
    good = candidates([32.0, 16.0, 8.0], [40, 60, 80])
    other = candidates([64.0, 320.0, 160.0, 80.0, 0.0], [20, 40, 60, 80, 100])
    assert rivals(DENSE, [good, other]) == [True, False]
    assert rivals(DENSE, [candidates([1.0], [50]), candidates([9.0], [10])]) == [True, True]


def test_of_methods_far_behind_one_candidate_is_measured() -> None:
    torch.manual_seed(0)
    model = SkipNet().eval()
    batches = [images(6, 0)]
    layer = next(x for x in find_layers(model, batches[0]) if x.geometry.kernel_elements == 9)
    svd, spatial = get_method("svd"), get_method("spatial_svd")
    offers = [(svd, svd.candidates(layer, None)), (spatial, spatial.candidates(layer, None))]
    behind = replace(offers[1][1], error=1e3 * (1 + offers[1][1].error))
    for second, count in ((offers[1][1], 6), (behind, 4)):
        probe = Probe(copy.deepcopy(model), batches)
        known = measured(probe, [(layer, [offers[0], (spatial, second)])], {}, 3, silent)
        assert probe.measured == count
        assert [method.name for method, _ in known[0][1]] == ["svd", "spatial_svd"]


def test_examples_are_taken_batch_by_batch() -> None:
    taken = some_examples(([torch.zeros(4, 1)] * 5), 6)
    assert len(taken) == 2
