import pytest
import torch
from tests.conformance.layer_cases import LAYER_CASES, LayerCase, build
from torch import nn
from torch.nn import functional

from rankwise.errors import CalibrationError
from rankwise.network.layer import Geometry, Layer, geometry_of


def layer_of(module: nn.Module) -> Layer:
    geometry = geometry_of(module)
    assert geometry is not None
    return Layer("some.layer", module, geometry)


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_the_kernel_in_the_layout_of_a_convolution_computes_the_layer(case: LayerCase) -> None:
    model, batches = build(case)
    layer, x = layer_of(model[0]), batches[0]
    kernel, bias, g = layer.kernel(), layer.bias(), layer.geometry
    assert kernel.dtype == torch.float64
    assert kernel.shape == (g.out_channels, g.in_channels // g.groups, *g.kernel_size)
    assert layer.matrix().shape == (g.groups, g.rows, g.columns)
    with torch.no_grad():
        expected = model(x)
    if g.kind == "linear":
        result = functional.linear(x, kernel, bias)
    elif g.kind == "conv_transpose":
        parts = kernel.chunk(g.groups)
        transposed = torch.cat([part.transpose(0, 1) for part in parts])  # (in, out / G, *k)
        function = getattr(functional, f"conv_transpose{g.ndim}d")
        result = function(x, transposed, bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation)
    else:
        pairs = [n for pair in zip(reversed(g.pads()), reversed(g.pads_after()), strict=True) for n in pair]
        wide = functional.pad(x, pairs, "constant" if g.padding_mode == "zeros" else g.padding_mode)
        function = getattr(functional, f"conv{g.ndim}d")
        result = function(wide, kernel, bias, g.stride, 0, g.dilation, g.groups)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("module", "pointwise", "depthwise"),
    [
        (nn.Linear(4, 4), True, False),
        (nn.Conv2d(4, 4, 1, stride=2), True, False),
        (nn.Conv2d(4, 4, 1, padding=1), False, False),
        (nn.Conv2d(4, 4, 1, padding="same"), True, False),
        (nn.Conv2d(4, 4, (1, 3)), False, False),
        (nn.Conv2d(4, 8, 3, groups=4), False, True),
        (nn.Conv2d(4, 4, 3, groups=2), False, False),
        (nn.Conv1d(1, 4, 3), False, False),
    ],
)
def test_kinds(module: nn.Module, pointwise: bool, depthwise: bool) -> None:
    geometry = geometry_of(module)
    assert geometry is not None
    assert (geometry.pointwise, geometry.depthwise) == (pointwise, depthwise)


def test_other_modules_have_no_geometry() -> None:
    assert all(geometry_of(m) is None for m in (nn.ReLU(), nn.Embedding(3, 3), nn.Bilinear(2, 2, 2)))
    assert geometry_of(nn.Linear(3, 5)) == Geometry("linear", 3, 5)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_broken_weights_name_the_layer(value: float) -> None:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.bias[0] = value
    layer = layer_of(module)
    assert torch.isfinite(layer.matrix()).all()
    with pytest.raises(CalibrationError, match=r"bias of layer 'some\.layer' holds NaN or infinite"):
        layer.bias()
    with torch.no_grad():
        module.weight[0, 0] = value
    with pytest.raises(CalibrationError, match=r"weight of layer 'some\.layer' holds NaN or infinite"):
        layer.matrix()


def test_counts_over_several_calls() -> None:
    geometry = geometry_of(nn.Conv2d(2, 3, 3))
    assert geometry is not None
    layer = Layer("a", nn.Conv2d(2, 3, 3), geometry, ((2, 5, 6), (2, 4, 4)), ((3, 3, 4), (3, 2, 2)))
    assert (layer.calls, layer.positions) == (2, 16)
    assert layer.spatial_inputs == ((5, 6), (4, 4))
    assert layer_of(nn.Conv2d(2, 3, 3, bias=False)).bias() is None
