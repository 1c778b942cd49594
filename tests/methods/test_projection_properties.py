"""Random shapes, groups, ranks and amounts of data: what every projection method promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rankwise.methods import get_method
from tests.methods.by_hand import layer_of, measured_cost, measured_error, statistics_of

METHODS = [
    ("pca", {}),
    ("pca", {"side": "input"}),
    ("whitened", {}),
    ("kfac", {}),
    ("asymmetric", {}),
    ("asymmetric", {"metric": "gradient", "ridge": 0.0}),
]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 5)) for _ in range(2))
    kernel = draw(st.sampled_from([(1, 1), (3, 1), (2, 3)]))
    kind = draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]))
    options = {"stride": draw(st.integers(1, 2)), "groups": groups, "bias": draw(st.booleans())}
    module = kind(inputs, outputs, kernel, **options).double()
    examples = draw(st.sampled_from([1, 3, 20]))  # fewer rows than inputs are normal
    return module, torch.randn(examples, inputs, 3, 4, dtype=torch.float64) + 1


@pytest.mark.parametrize("name,config", METHODS, ids=str)
@settings(max_examples=12)
@given(drawn=convolutions(), data=st.data())
def test_promises_hold(
    name: str, config: dict, drawn: tuple[nn.Module, torch.Tensor], data: st.DataObject
) -> None:
    module, x = drawn
    layer, method = layer_of(module, x), get_method(name, **config)
    if method.supports(layer) is not None:
        return
    gradient = torch.randn(module(x).shape, dtype=torch.float64)
    statistics = statistics_of(layer, x, gradient=gradient)
    candidates = method.candidates(layer, statistics)
    assert (np.diff(candidates.error) <= 1e-9 * (candidates.scale + 1e-9)).all()
    rank = data.draw(st.integers(1, len(candidates)))
    built = method.build(layer, statistics, candidates.choice(rank - 1))
    assert measured_cost(built, x) == (candidates.params[rank - 1], candidates.macs[rank - 1])
    if candidates.unit == "output":
        measured = measured_error(layer, built, x)
        assert measured == pytest.approx(candidates.error[rank - 1], rel=1e-6, abs=1e-8)
    full = method.build(layer, statistics, candidates.choice(len(candidates) - 1))
    unseen = torch.randn(2, *x.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(full(unseen), module(unseen), rtol=1e-6, atol=1e-6)
