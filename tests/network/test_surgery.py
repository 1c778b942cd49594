import copy

import pytest
import torch
from torch import nn

from rankwise.errors import PlanError
from rankwise.network.find import find_layers
from rankwise.network.surgery import get_module, replace_


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sequence = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.list = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.dict = nn.ModuleDict({"a": nn.Linear(3, 3)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.sequence(x)
        for layer in self.list:
            x = layer(x)
        return self.dict["a"](x)


@pytest.mark.parametrize("name", ["sequence.0", "list.0", "list.1", "dict.a"])
def test_replaces_inside_containers(name: str) -> None:
    model, x = Containers(), torch.randn(2, 3)
    old = get_module(model, name)
    expected = model(x)
    names = [n for n, _ in model.named_children()]
    replace_(model, name, nn.Sequential(old, nn.Identity()))
    assert get_module(model, f"{name}.0") is old
    assert [n for n, _ in model.named_children()] == names
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_a_shared_module_is_replaced_in_all_its_places() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    (layer,) = find_layers(model, torch.randn(2, 3))
    assert layer.name == "0" and layer.calls == 2 and layer.reason is None
    new = nn.Linear(3, 3)
    replace_(model, "2.0", new)
    assert model[0] is new and model[2][0] is new


@pytest.mark.parametrize("name", ["", "nothing", "list.7", "sequence.0.weight"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(PlanError):
        replace_(Containers(), name, nn.Identity())


def stack(**options: object) -> nn.TransformerEncoder:
    block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(block, 2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("linear", ["linear1", "linear2"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_feed_forward_layer_of_a_transformer_is_replaced(index: int, linear: str, masked: bool) -> None:
    model, x = stack().eval(), torch.randn(3, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]]) if masked else None
    keep = torch.ones(3, 5, dtype=torch.bool) if mask is None else ~mask
    with torch.inference_mode():
        expected = model(x, src_key_padding_mask=mask)
        name = f"layers.{index}.{linear}"
        replace_(model, name, nn.Sequential(get_module(model, name), nn.Identity()))
        result = model(x, src_key_padding_mask=mask)
    torch.testing.assert_close(result[keep], expected[keep], rtol=1e-4, atol=1e-5)


def test_a_bare_encoder_layer_and_the_untouched_twin() -> None:
    layer, x = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval(), torch.randn(2, 5, 8)
    twin = copy.deepcopy(layer)
    replace_(layer, "linear1", nn.Sequential(layer.linear1))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), twin(x), rtol=1e-4, atol=1e-5)
    assert layer.activation_relu_or_gelu == 0 and twin.activation_relu_or_gelu == 1


def test_gelu_keeps_its_activation() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu").eval()
    x = torch.randn(2, 5, 8)
    with torch.inference_mode():
        expected = layer(x)
        replace_(layer, "linear2", nn.Sequential(layer.linear2))
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_replacing_a_norm_switches_the_fast_path_off_too() -> None:
    model, x = stack(enable_nested_tensor=False).eval(), torch.randn(2, 5, 8)
    replace_(model, "layers.0.norm1", nn.Sequential(model.layers[0].norm1))
    with torch.inference_mode():
        assert torch.isfinite(model(x)).all()
