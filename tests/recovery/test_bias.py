import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.spec import parallel
from rankwise.recovery import correct_bias_


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(6, 4, 3, bias=False),
            bn2=nn.BatchNorm2d(4),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(4, 5, 2, bias=False),
            relu3=nn.ReLU(),
            flat=nn.Flatten(),
            fc=nn.Linear(45, 3),
        )
    )
    nn.init.uniform_(model.bn2.running_var, 0.5, 2.0)
    return model.eval()


def low_rank(conv: nn.Conv2d, rank: int) -> nn.Sequential:
    u, s, v = torch.linalg.svd(conv.weight.detach().flatten(1), full_matrices=False)
    first = nn.Conv2d(conv.in_channels, rank, conv.kernel_size, bias=False)
    second = nn.Conv2d(rank, conv.out_channels, 1, bias=conv.bias is not None)
    with torch.no_grad():
        first.weight.copy_(v[:rank].view_as(first.weight))
        second.weight.copy_((u * s)[:, :rank, None, None])
        if conv.bias is not None:
            second.bias.copy_(conv.bias)
    return nn.Sequential(first, second)


def compressed(original: nn.Sequential) -> nn.Sequential:
    model = copy.deepcopy(original)
    for name, rank in (("conv1", 3), ("conv2", 2), ("conv3", 2)):
        setattr(model, name, low_rank(model.get_submodule(name), rank))
    with torch.no_grad():
        model.fc.weight.add_(0.05 * torch.randn(model.fc.weight.shape, generator=generator(3)))
    return model


def images(n: int = 20, seed: int = 1) -> torch.Tensor:
    return 1 + torch.randn(n, 3, 8, 8, generator=generator(seed))


def mean_before(model: nn.Sequential, name: str, x: torch.Tensor) -> torch.Tensor:
    index = [n for n, _ in model.named_children()].index(name)
    with torch.no_grad():
        values = model[:index](x)
    return values.mean([d for d in range(values.ndim) if d != 1])


LAYERS = ["conv1", "conv2", "conv3", "fc"]


def test_means_are_the_originals_and_shifts_go_where_there_is_room() -> None:
    original, x = network(), images()
    model = compressed(original)
    wrong = mean_before(model, "relu1", x)
    assert correct_bias_(model, original, [x], LAYERS) == {
        "conv1": "bias",
        "conv2": "batchnorm",
        "conv3": "none",
        "fc": "bias",
    }
    assert not torch.allclose(wrong, mean_before(original, "relu1", x), atol=1e-3)
    for after in ("relu1", "relu2"):  # behind conv1, and behind conv2 and its BatchNorm
        assert torch.allclose(mean_before(model, after, x), mean_before(original, after, x), atol=1e-5)


def test_every_layer_is_measured_behind_corrected_ones() -> None:
    original, x = network(), images()
    model = compressed(original)
    correct_bias_(model, original, [x], ["conv1", "conv2"])
    by_hand = compressed(original)
    with torch.no_grad():
        by_hand.conv1[1].bias += mean_before(original, "relu1", x) - mean_before(by_hand, "relu1", x)
        by_hand.bn2.running_mean -= mean_before(original, "bn2", x) - mean_before(by_hand, "bn2", x)
    assert torch.allclose(model.conv1[1].bias, by_hand.conv1[1].bias, atol=1e-6)
    assert torch.allclose(model.bn2.running_mean, by_hand.bn2.running_mean, atol=1e-5)


def test_the_shift_is_that_of_all_batches_together() -> None:
    original, x = network(), images()
    model = compressed(original)
    correct_bias_(model, original, [x[:3], x[3:9], x[9:]], ["conv1"])
    assert torch.allclose(mean_before(model, "relu1", x), mean_before(original, "relu1", x), atol=1e-5)


def test_linear_layers_on_sequences_and_parallel_branches() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(6, 5))
    model = nn.Sequential(parallel(nn.Linear(6, 5, bias=False), nn.Linear(6, 5)))
    x = torch.randn(4, 7, 6, generator=generator())
    assert correct_bias_(model, original, [x], ["0"]) == {"0": "bias"}
    with torch.no_grad():
        assert torch.allclose(model(x).mean((0, 1)), original(x).mean((0, 1)), atol=1e-5)


def test_an_unchanged_model_stays_as_it_is() -> None:
    original = network()
    model = copy.deepcopy(original)
    correct_bias_(model, original, [images()], LAYERS)
    for name, tensor in original.state_dict().items():
        assert torch.allclose(tensor, model.state_dict()[name], atol=1e-6)


def test_layers_of_another_width_or_name_are_left_alone() -> None:
    original = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = model[0].bias.clone()
    places = correct_bias_(model, original, [torch.randn(9, 3, generator=generator())], ["0", "1", "absent"])
    assert places == {"0": "none", "1": "bias", "absent": "none"}
    assert torch.equal(model[0].bias, before)


def test_everything_else_is_left_alone() -> None:
    original, model = network(), compressed(network()).train()
    before = copy.deepcopy(original.state_dict())
    parameters = [p.clone() for p in model.conv1[0].parameters()]
    rng = torch.get_rng_state()
    correct_bias_(model, original, [images()], LAYERS)
    assert model.training
    assert not original.training
    assert int(model.bn2.num_batches_tracked) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(parameters, model.conv1[0].parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (model, original) for m in n.modules())


def test_failures_leave_the_model_as_it_was() -> None:
    original, model = network(), compressed(network())
    before = copy.deepcopy(model.state_dict())
    bad = images()
    bad[0, 0, 0, 0] = float("inf")
    for batches, message in (([], "no batches"), ([images(), bad], "'conv1'")):
        with pytest.raises(CalibrationError, match=message):
            correct_bias_(model, original, batches, LAYERS)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert not any(m._forward_hooks for n in (model, original) for m in n.modules())
