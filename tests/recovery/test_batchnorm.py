import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankwise.data import load_data
from rankwise.errors import CalibrationError
from rankwise.evaluation import evaluate, record_decisions
from rankwise.models import load_model
from rankwise.recovery import recalibrate_batchnorm_


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> nn.Sequential:
    """Two convolutions with BatchNorm whose running statistics are far from those of normal inputs."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 5, 3),
            bn1=nn.BatchNorm2d(5),
            relu=nn.ReLU(),
            conv2=nn.Conv2d(5, 4, 3, bias=False),
            bn2=nn.BatchNorm2d(4, momentum=0.3, eps=1e-3),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(4, 3),
        )
    )
    for norm in (model.bn1, model.bn2):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 3.0)
    return model.eval()


def images(n: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=generator(seed))


def changed(model: nn.Sequential, seed: int = 5) -> nn.Sequential:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for conv in (other.conv1, other.conv2):
            conv.weight.add_(0.3 * torch.randn(conv.weight.shape, generator=generator(seed)))
    return other


def inputs_of(model: nn.Sequential, name: str, x: torch.Tensor) -> np.ndarray:
    index = [n for n, _ in model.named_children()].index(name)
    with torch.no_grad():
        return model[:index](x).double().numpy()


def test_one_batch_gives_what_training_mode_with_momentum_one_gives() -> None:
    model, oracle = network(), network().train()
    for norm in (oracle.bn1, oracle.bn2):
        norm.momentum = 1.0
    with torch.no_grad():
        oracle(images())
    assert recalibrate_batchnorm_(model, [images()]) == ["bn1", "bn2"]
    for name in ("bn1", "bn2"):
        ours, theirs = model.get_submodule(name), oracle.get_submodule(name)
        assert torch.allclose(ours.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
        assert torch.allclose(ours.running_var, theirs.running_var, rtol=1e-5, atol=1e-6)


def test_first_layer_statistics_are_exact_over_uneven_batches() -> None:
    model, x = network(), images()
    values = inputs_of(model, "bn1", x)
    recalibrate_batchnorm_(model, [x[:3], x[3:20], x[20:]])
    assert np.allclose(model.bn1.running_mean.numpy(), values.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(model.bn1.running_var.numpy(), values.var((0, 2, 3), ddof=1), rtol=1e-5)


@given(seed=st.integers(0, 100))
def test_with_the_original_an_unchanged_model_stays_as_it_is(seed: int) -> None:
    original = network(seed)
    model = copy.deepcopy(original)
    recalibrate_batchnorm_(model, images(seed=seed).split(7), original=original)
    for name, tensor in original.state_dict().items():
        assert torch.allclose(tensor, model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_with_the_original_outputs_get_its_channel_moments() -> None:
    original, x = network(), images()
    model = changed(original)
    recalibrate_batchnorm_(model, [x], original=original)
    for after in ("relu", "pool"):  # what bn1 and bn2 give
        ours, theirs = inputs_of(model, after, x), inputs_of(original, after, x)
        assert np.allclose(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), atol=1e-4)
        assert np.allclose(ours.std((0, 2, 3)), theirs.std((0, 2, 3)), rtol=1e-3)


def test_selected_channels_are_matched_to_the_original() -> None:
    original, x = network(), images()
    kept = torch.tensor([0, 2, 3])
    model = copy.deepcopy(original)
    with torch.no_grad():
        model.conv1 = nn.Conv2d(3, 3, 3)
        model.conv1.weight.copy_(original.conv1.weight[kept] * 1.5)
        model.conv1.bias.copy_(original.conv1.bias[kept])
        model.bn1 = nn.BatchNorm2d(3).eval()
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(model.bn1, name).copy_(getattr(original.bn1, name)[kept])
        model.conv2 = nn.Conv2d(3, 4, 3, bias=False)
        model.conv2.weight.copy_(original.conv2.weight[:, kept])
    recalibrate_batchnorm_(model, [x], original=original)
    ours, theirs = inputs_of(model, "relu", x), inputs_of(original, "relu", x)[:, kept]
    assert np.allclose(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), atol=1e-4)
    assert np.allclose(ours.std((0, 2, 3)), theirs.std((0, 2, 3)), rtol=1e-3)


def test_a_layer_without_a_counterpart_gets_plain_statistics() -> None:
    model, x = network(), images()
    original = nn.Sequential(OrderedDict(conv1=model.conv1))
    values = inputs_of(model, "bn1", x)
    recalibrate_batchnorm_(model, [x], original=original)
    assert np.allclose(model.bn1.running_mean.numpy(), values.mean((0, 2, 3)), atol=1e-6)


def test_flags_counts_and_the_original_are_left_alone() -> None:
    model, original = changed(network()).train(), network()
    model.fc.eval()
    before = copy.deepcopy(original.state_dict())
    rng = torch.get_rng_state()
    recalibrate_batchnorm_(model, [images()], original=original)
    assert model.training
    assert not model.fc.training
    assert (model.bn2.momentum, int(model.bn2.num_batches_tracked)) == (0.3, 0)
    assert not original.training
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(len(m._forward_pre_hooks) for m in (*model.modules(), *original.modules()))


def test_layers_that_do_not_run_or_keep_no_statistics_stay() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
            self.free = nn.BatchNorm1d(4, track_running_stats=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.free(self.used(x))

    model = Partly()
    x = 3 + torch.randn(50, 4, generator=generator())
    assert recalibrate_batchnorm_(model, [x]) == ["used"]
    assert torch.allclose(model.used.running_mean, x.mean(0), atol=1e-5)
    assert torch.equal(model.unused.running_mean, torch.zeros(4))
    assert model.free.running_mean is None


def test_a_layer_called_twice_gets_the_moments_of_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.norm(y)

    model = Twice()
    x, y = torch.randn(10, 2, generator=generator(0)), 5 + torch.randn(10, 2, generator=generator(1))
    recalibrate_batchnorm_(model, [(x, y)])
    assert torch.allclose(model.norm.running_mean, torch.cat([x, y]).mean(0), atol=1e-5)
    assert torch.allclose(model.norm.running_var, torch.cat([x, y]).var(0), atol=1e-4)


@pytest.mark.parametrize("anchored", [False, True])
def test_dead_channels_stay_finite(anchored: bool) -> None:
    original = network()
    model = copy.deepcopy(original)
    with torch.no_grad():
        model.conv1.weight[0].zero_()
        original.conv1.weight[1].zero_()
    recalibrate_batchnorm_(model, [images()], original=original if anchored else None)
    with torch.no_grad():
        assert torch.isfinite(model(images())).all()
    assert float(model.bn1.running_var.min()) >= 0


def broken(model: nn.Sequential) -> list[torch.Tensor]:
    bad = images()
    bad[3, 0, 0, 0] = float("nan")
    return [images(), bad]


@pytest.mark.parametrize(("batches", "message"), [(lambda _: [], "no batches"), (broken, "layer 'bn1'")])
def test_failures_leave_the_model_as_it_was(
    batches: Callable[[nn.Sequential], list[torch.Tensor]], message: str
) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CalibrationError, match=message):
        recalibrate_batchnorm_(model, batches(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(len(m._forward_pre_hooks) for m in model.modules())


def test_a_model_without_batchnorm_is_left_alone() -> None:
    assert recalibrate_batchnorm_(nn.Linear(2, 2), [torch.ones(1, 2)]) == []


def test_a_real_network_trained_on_crops_keeps_its_accuracy_when_anchored(data_dir: Path) -> None:
    loaded = load_model("cifar10_resnet20", data_dir / "weights" / "cifar10_resnet20.pt")
    data = load_data("cifar10", transform=loaded.preprocessing, root=data_dir)
    test, calibration = data.testing().take(500).batches(250), data.calibration(128).batches(128)
    decisions = record_decisions(loaded.module, test)
    plain, anchored = copy.deepcopy(loaded.module), copy.deepcopy(loaded.module)
    recalibrate_batchnorm_(plain, calibration)
    recalibrate_batchnorm_(anchored, calibration, original=loaded.module)
    assert evaluate(anchored, test, decisions).agreement >= 0.999
    assert evaluate(plain, test, decisions).agreement < 0.95
