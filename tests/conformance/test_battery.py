"""Every method on every layer kind: the shared promises, checked against torch itself."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankwise.methods import Candidates, Method, get_method
from rankwise.network import Layer, find_layers
from rankwise.network.spec import describe, rebuild
from rankwise.network.surgery import replace_
from rankwise.statistics import LayerStatistics, collect
from tests.conformance.layer_cases import LAYER_CASES, LayerCase, build
from tests.conformance.method_cases import METHOD_CASES, MethodCase

Prepared = tuple[Method, nn.Module, list[torch.Tensor], Layer, LayerStatistics | None, Candidates]


@cache
def prepared(method_case: MethodCase, case: LayerCase) -> Prepared | str:
    """All that the checks share, or the reason why the method refuses the layer."""
    model, batches = build(case)
    method: Method = get_method(method_case.name, **method_case.config)
    (layer,) = find_layers(model, batches[0])
    assert layer.reason is None
    refusal = method.supports(layer)
    if refusal is not None:
        return refusal
    statistics = None
    if method.requires:
        reference = copy.deepcopy(model) if "target" in method.requires else None
        found = collect(model, [layer], batches, {layer.name: method.requires}, reference=reference)
        statistics = found[layer.name]
    return method, model, batches, layer, statistics, method.candidates(layer, statistics)


def ready(method_case: MethodCase, case: LayerCase) -> Prepared:
    found = prepared(method_case, case)
    if isinstance(found, str):
        assert found, "a refusal gives its reason"
        pytest.skip(f"refused: {found}")
    return found


def replaced(found: Prepared, index: int) -> nn.Module:
    method, model, _, layer, statistics, candidates = found
    result = copy.deepcopy(model)
    replace_(result, layer.name, method.build(layer, statistics, candidates.choice(index)))
    return result


def some(candidates: Candidates) -> list[int]:
    """A few options: first, middle, last."""
    return sorted({0, len(candidates) // 2, len(candidates) - 1})


both = pytest.mark.parametrize("method_case", METHOD_CASES, ids=str)
kinds = pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)


@both
@kinds
def test_exact_at_full_rank(method_case: MethodCase, case: LayerCase) -> None:
    found = ready(method_case, case)
    if not method_case.exact_at_full:
        pytest.skip("does not claim it")
    result = replaced(found, len(found[5]) - 1)
    fresh = torch.randn(case.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(result(fresh), found[1](fresh), rtol=1e-6, atol=1e-6)


@both
@kinds
def test_error_does_not_increase_with_rank(method_case: MethodCase, case: LayerCase) -> None:
    error = ready(method_case, case)[5].error
    assert np.isfinite(error).all() and (error >= -1e-12).all()
    if method_case.monotone:
        assert (np.diff(error) <= 1e-9 * max(1.0, error[0])).all()


@both
@kinds
def test_predicted_error_is_measured_error(method_case: MethodCase, case: LayerCase) -> None:
    found = ready(method_case, case)
    if not method_case.predicts:
        pytest.skip("claims no output error")
    _, model, batches, _, _, candidates = found
    for index in some(candidates):
        result = replaced(found, index)
        with torch.no_grad():
            squared = sum(float((result(b) - model(b)).square().sum()) for b in batches)
        measured = squared / sum(len(b) for b in batches)
        assert candidates.error[index] == pytest.approx(measured, rel=1e-6, abs=1e-8 * candidates.scale)


@both
@kinds
def test_predicted_cost_is_measured_cost(method_case: MethodCase, case: LayerCase) -> None:
    found = ready(method_case, case)
    candidates = found[5]
    for index in some(candidates):
        result = replaced(found, index)
        assert sum(p.numel() for p in result.parameters()) == candidates.params[index]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            result(found[2][0])
        assert counter.get_total_flops() == 2 * case.shape[0] * candidates.macs[index]


@both
@kinds
def test_gradients_flow(method_case: MethodCase, case: LayerCase) -> None:
    found = ready(method_case, case)
    result = replaced(found, len(found[5]) // 2)
    result(found[2][0]).square().sum().backward()
    for name, parameter in result.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@both
@kinds
def test_the_original_is_left_alone(method_case: MethodCase, case: LayerCase) -> None:
    found = ready(method_case, case)
    fresh, _ = build(case)
    for (name, now), before in zip(found[1].state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(now, before), name


@both
@kinds
def test_state_dict_and_description_round_trip(method_case: MethodCase, case: LayerCase) -> None:
    found = ready(method_case, case)
    result = replaced(found, len(found[5]) // 2)
    again = nn.Sequential(rebuild(describe(result[0]), dtype=torch.float64))
    again.load_state_dict(result.state_dict())
    with torch.no_grad():
        assert torch.equal(again(found[2][0]), result(found[2][0]))


@both
@pytest.mark.parametrize(
    "case", [c for c in LAYER_CASES if c.name in ("linear", "conv2d", "conv1d")], ids=lambda c: c.name
)
def test_torch_export_round_trip(method_case: MethodCase, case: LayerCase) -> None:
    found = ready(method_case, case)
    result = replaced(found, len(found[5]) // 2)
    inputs = found[2][0]
    program = torch.export.export(result, (inputs,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(inputs), result(inputs))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "case", [c for c in LAYER_CASES if c.name in ("linear", "conv2d")], ids=lambda c: c.name
)
def test_other_precisions(method_case: MethodCase, case: LayerCase, dtype: torch.dtype) -> None:
    found = ready(method_case, case)
    method: Any = found[0]
    model, batches = build(case, dtype)
    (layer,) = find_layers(model, batches[0])
    statistics = None
    if method.requires:
        reference = copy.deepcopy(model) if "target" in method.requires else None
        statistics = collect(model, [layer], batches, {layer.name: method.requires}, reference=reference)[
            layer.name
        ]
    candidates = method.candidates(layer, statistics)
    replace_(model, layer.name, method.build(layer, statistics, candidates.choice(len(candidates) // 2)))
    with torch.no_grad():
        output = model(batches[0])
    assert output.dtype == dtype and torch.isfinite(output).all()
    assert {p.dtype for p in model.parameters()} == {dtype}
