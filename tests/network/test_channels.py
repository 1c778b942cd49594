"""Channel groups against brute force: a channel planted to be zero can be removed without a trace."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from tests.network.channel_nets import Fixed, Grouped, OptionAResNet, Scaled, Shuffle, SmallVGG, UNet
from torch import Tensor, nn

from rankwise.network.channel_group import ChannelGroup, Port
from rankwise.network.channels import find_groups
from rankwise.network.select import apply_selection_, one_by_one, select_, selection_from_json

vision = torchvision.models


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


def net1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(42, 3)
    )


CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], int]] = [
    # name, network, input shape, groups that can be narrowed
    ("option A", OptionAResNet, (2, 3, 16, 16), 7),
    ("unet", UNet, (2, 3, 8, 8), 4),
    ("small vgg", SmallVGG, (2, 3, 16, 16), 4),
    ("shuffle", Shuffle, (2, 3, 6, 6), 1),
    ("scaled 3d", Scaled, (2, 2, 4, 4, 4), 2),
    ("grouped", Grouped, (2, 3, 9, 9), 2),
    ("mlp", mlp, (2, 6), 2),
    ("conv1d", net1d, (2, 2, 16), 1),
    ("resnet18", lambda: vision.resnet18(num_classes=10), (1, 3, 64, 64), 12),
    ("densenet121", lambda: vision.densenet121(num_classes=10), (1, 3, 32, 32), 120),
    ("mobilenet_v2", lambda: vision.mobilenet_v2(num_classes=10), (1, 3, 64, 64), 25),
    ("mobilenet_v3_small", lambda: vision.mobilenet_v3_small(num_classes=10), (1, 3, 64, 64), 27),
    ("efficientnet_b0", lambda: vision.efficientnet_b0(num_classes=10), (1, 3, 64, 64), 40),
    ("squeezenet1_1", lambda: vision.squeezenet1_1(num_classes=10), (1, 3, 64, 64), 25),
    ("shufflenet_v2_x0_5", lambda: vision.shufflenet_v2_x0_5(num_classes=10), (1, 3, 64, 64), 20),
    (
        "googlenet",
        lambda: vision.googlenet(num_classes=10, aux_logits=False, init_weights=False),
        (1, 3, 64, 64),
        57,
    ),
    ("convnext_tiny", lambda: vision.convnext_tiny(num_classes=10), (1, 3, 64, 64), 18),
    ("regnet_y_400mf", lambda: vision.regnet_y_400mf(num_classes=10), (1, 3, 64, 64), 37),
]


def _lively(model: nn.Module) -> nn.Module:
    """Random affine parameters and running statistics, so that a wrong index shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.InstanceNorm2d)):
            for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                tensor = getattr(module, name, None)
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model.eval()


def _silence(model: nn.Module, port: Port, indices: list[int]) -> None:
    """Make the channels ``indices`` of a producer or passenger zero for every input."""
    if port.role == "parameter":
        tensor = (
            model.get_parameter(port.name)
            if port.name in dict(model.named_parameters())
            else model.get_buffer(port.name)
        )
        tensor.data.index_fill_(port.dim, torch.tensor(indices), 0.0)
        return
    module = model.get_submodule(port.name)
    for name in ("weight", "bias"):
        tensor = getattr(module, name, None)
        if tensor is None or isinstance(module, nn.PReLU):
            continue
        rows = indices
        if (
            isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
            and module.groups > 1
            and (name == "bias" or isinstance(module, nn.Conv2d))
        ):
            per_in, per_out = module.in_channels // module.groups, module.out_channels // module.groups
            rows = [g * per_out + o for g in sorted({i // per_in for i in indices}) for o in range(per_out)]
        dim = 1 if name == "weight" and isinstance(module, nn.ConvTranspose2d) and module.groups == 1 else 0
        tensor.data.index_fill_(dim, torch.tensor(rows), 0.0)


def _plant(model: nn.Module, group: ChannelGroup, units: list[int]) -> None:
    for port in group.producers + group.passengers:
        indices = [i for u in units for i in port.units[u]]
        if indices:
            _silence(model, port, indices)


@pytest.mark.parametrize(("name", "build", "shape", "free"), CASES, ids=[c[0] for c in CASES])
def test_removing_planted_zero_channels_changes_nothing(
    name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], free: int
) -> None:
    model, x = _lively(build()), torch.randn(shape)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    groups = find_groups(model, x)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    open_groups = [g for g in groups if g.reason is None]
    assert len(open_groups) == free, [(g.name, g.reason) for g in groups if g.reason]

    generator = torch.Generator().manual_seed(0)
    kept, gone = {}, {}
    for group in open_groups:
        order = torch.randperm(group.size, generator=generator).tolist()
        gone[group.name] = order[: max(1, group.size // 3)]
        kept[group.name] = sorted(order[max(1, group.size // 3) :])
        _plant(model, group, gone[group.name])
    with torch.no_grad():
        expected: Tensor = model(x)
        small = copy.deepcopy(model)
        selection = select_(small, groups, kept)
        got: Tensor = small(x)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))

    stepwise = copy.deepcopy(model)
    for step in one_by_one(groups, kept).values():
        apply_selection_(stepwise, step)
    assert all(torch.equal(a, b) for a, b in zip(stepwise.parameters(), small.parameters(), strict=True))
    skeleton = copy.deepcopy(model).to("meta")
    apply_selection_(skeleton, selection_from_json(selection.to_json()))
    assert {n: t.shape for n, t in skeleton.state_dict().items()} == {
        n: t.shape for n, t in small.state_dict().items()
    }


def test_reasons_of_what_cannot_be_removed() -> None:
    groups = {g.name: g for g in find_groups(Fixed(), torch.randn(2, 3, 8, 8))}
    expected = {
        "conv": "fixes a size",
        "sliced": "addressed by their place",
        "query": "aten.mm",
        "normed": "LayerNorm",
        "head": "model output",
    }
    for name, words in expected.items():
        assert words in (groups[name].reason or ""), (name, groups[name].reason)
    assert {n for n, g in groups.items() if g.reason is None} == {"hard", "free"}
    assert not {"tied", "twin", "wrapped"} & set(groups)


def test_option_a_index_maps() -> None:
    groups = find_groups(OptionAResNet(), torch.randn(1, 3, 16, 16))
    trunk = groups[0]
    assert (trunk.size, len(trunk.producers), trunk.fixed) == (16, 7, 0)
    by_name = {port.name: port for port in trunk.producers}
    assert by_name["blocks.2.conv2"].units == tuple((c + 8,) for c in range(16))
    assert by_name["blocks.4.conv2"].units == tuple((c + 24,) for c in range(16))
    assert next(p for p in trunk.consumers if p.name == "linear").units[0] == (24,)


def test_flatten_gives_several_inputs_per_channel() -> None:
    groups = find_groups(SmallVGG(), torch.randn(1, 3, 16, 16))
    port = next(p for p in groups[2].consumers if p.name == "classifier.1")
    assert port.units[3] == (12, 13, 14, 15)


def test_a_layer_called_twice_couples_its_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.b(self.a(x))))))

    groups = find_groups(Twice(), torch.randn(2, 3))
    assert [p.name for p in groups[0].producers] == ["a", "b"]
    assert {p.name for p in groups[0].consumers} == {"b", "c"}
    assert groups[0].size == 4
