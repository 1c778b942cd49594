import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.conformance.layer_cases import LAYER_CASES, LayerCase, build
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.find import find_layers
from rankwise.network.layer import Layer, geometry_of
from rankwise.statistics import patches


def check(module: nn.Module, x: torch.Tensor) -> None:
    """``matrix @ patch + bias`` is what the module itself puts out, position by position."""
    geometry = geometry_of(module)
    assert geometry is not None
    layer = Layer("layer", module, geometry)
    found = patches(layer, x)  # (N, P, G, d)
    assert found.shape[2:] == (geometry.groups, geometry.columns)
    rows = torch.einsum("god,npgd->npgo", layer.matrix(), found.double()).flatten(2)
    bias = layer.bias()
    rows = rows if bias is None else rows + bias
    with torch.no_grad():
        output = module(x).double()
    expected = output.flatten(0, -2)[:, None] if geometry.kind == "linear" else output.flatten(2).mT
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_matrix_times_patches_is_the_output(case: LayerCase) -> None:
    model, batches = build(case)
    check(model[0], batches[0])


MODES = st.sampled_from(["zeros", "reflect", "replicate", "circular"])


@given(
    ndim=st.integers(1, 3),
    data=st.data(),
    groups=st.sampled_from([1, 2]),
    padding=st.sampled_from(["same", "valid", "numbers"]),
    mode=MODES,
)
def test_any_convolution(ndim: int, data: st.DataObject, groups: int, padding: str, mode: str) -> None:
    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(ndim))

    kernel, dilation, size = per_axis(1, 3), per_axis(1, 2), per_axis(5, 7)
    stride = (1,) * ndim if padding == "same" else per_axis(1, 3)
    pads = per_axis(0, 2) if padding == "numbers" else padding
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]
    options = {
        "stride": stride,
        "padding": pads,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": mode,
    }
    check(kind(4, 6, kernel, **options).double(), torch.randn(2, 4, *size).double())


@given(ndim=st.integers(1, 3), data=st.data(), groups=st.sampled_from([1, 2]))
def test_any_transposed_convolution(ndim: int, data: st.DataObject, groups: int) -> None:
    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(ndim))

    kernel, dilation, size, stride = per_axis(1, 3), per_axis(1, 2), per_axis(3, 4), per_axis(1, 3)
    padding = per_axis(0, 3)
    extra = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    output = [
        (i - 1) * s - 2 * p + d * (k - 1) + e + 1
        for i, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
    ]
    assume(min(output) > 0)
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[ndim - 1]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    module = kind(4, 6, kernel, output_padding=extra, **options).double()
    check(module, torch.randn(2, 4, *size).double())


def test_rows_of_a_linear_layer() -> None:
    x = torch.randn(2, 3, 4)
    (layer,) = find_layers(nn.Linear(4, 5), x)
    assert torch.equal(patches(layer, x)[:, 0, 0], x.reshape(6, 4))


def test_an_example_without_batch_dimension() -> None:
    geometry = geometry_of(nn.Conv1d(2, 3, 3))
    assert geometry is not None
    x = torch.randn(2, 5)
    assert torch.equal(patches(geometry, x), patches(geometry, x[None]))
    with pytest.raises(CalibrationError, match=r"\(1, 2, 3, 4\)"):
        patches(geometry, torch.zeros(1, 2, 3, 4))
