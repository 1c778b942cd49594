import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from rankwise.errors import PlanError
from rankwise.network.batchnorm import fold_batchnorm_, following_batchnorm, following_scales


def trained(module: nn.Module) -> nn.Module:
    """``module`` in float64 whose BatchNorms have statistics and weights away from 0 and 1."""
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            if part.running_mean is not None and part.running_var is not None:
                part.running_mean.normal_()
                part.running_var.uniform_(0.3, 2)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return module.double().eval()


KINDS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("linear", lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), (4, 5)),
    ("conv1d", lambda: nn.Sequential(nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)), (2, 4, 7)),
    ("conv2d-groups", lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    ("conv3d", lambda: nn.Sequential(nn.Conv3d(2, 6, 2), nn.BatchNorm3d(6, affine=False)), (2, 2, 3, 4, 3)),
    (
        "transpose-groups",
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)),
        (2, 4, 3, 3),
    ),
]


@pytest.mark.parametrize(("make", "shape"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_folding_changes_no_output(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, x = trained(make()), torch.randn(shape).double()
    expected = model(x)
    pairs = following_batchnorm(model, x)
    assert json.loads(json.dumps(pairs)) == {"0": "1"}
    scale = following_scales(model, x)["0"]
    batchnorm = model[1]
    gain = batchnorm.weight if batchnorm.affine else torch.ones(6)
    by_hand = gain.double() / (batchnorm.running_var + batchnorm.eps) ** 0.5
    torch.testing.assert_close(scale, by_hand.detach(), rtol=1e-12, atol=0)
    fold_batchnorm_(model, pairs)
    assert type(model[1]) is nn.Identity
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-12)


def test_hugging_face_conv1d() -> None:
    from transformers.pytorch_utils import Conv1D

    model, x = trained(nn.Sequential(Conv1D(6, 5), nn.BatchNorm1d(6))), torch.randn(3, 5).double()
    expected = model(x)
    fold_batchnorm_(model, following_batchnorm(model, x))
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-12)


class Net(nn.Module):
    """A convolution and a BatchNorm put together in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.bn, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), how
        self.identity = nn.Identity()

    def forward(self, x: torch.Tensor) -> object:
        y = self.conv(x)
        if self.how == "through identity":
            return self.bn(self.identity(y))
        if self.how == "shape read":
            return self.bn(y).reshape(y.shape[0], -1)
        if self.how == "residual":
            return self.bn(y) + y
        if self.how == "relu between":
            return self.bn(functional.relu(y))
        if self.how == "in place":
            return self.bn(y.mul_(2))
        if self.how == "returned":
            return {"raw": [y], "out": self.bn(y)}
        if self.how == "layer twice":
            return self.bn(self.conv(y))
        return self.bn(self.bn(y))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("through identity", {"conv": "bn"}),
        ("shape read", {"conv": "bn"}),
        ("residual", {}),
        ("relu between", {}),
        ("in place", {}),
        ("returned", {}),
        ("layer twice", {}),
        ("norm twice", {}),
    ],
)
def test_only_a_sole_reader_is_paired(how: str, expected: dict[str, str]) -> None:
    model = Net(how).train()
    x = torch.randn(2, 3, 4, 4)
    before = copy.deepcopy(model.state_dict())
    assert following_batchnorm(model, x) == expected
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(5)),  # tokens: the norm is over positions
        nn.Sequential(nn.Conv1d(5, 5, 1), nn.BatchNorm1d(5, track_running_stats=False)),
        nn.Sequential(nn.Conv1d(5, 5, 1), nn.GroupNorm(1, 5)),
    ],
)
def test_what_cannot_be_folded_is_left_out(model: nn.Module) -> None:
    assert following_batchnorm(model, torch.randn(2, 5, 3)) == {}


def test_folding_half_precision_and_on_a_skeleton() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 5, 5).double()
    expected = model(x)
    half = copy.deepcopy(model).bfloat16()
    fold_batchnorm_(half, {"0": "1"})
    assert half[0].bias.dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).double(), expected, rtol=0.05, atol=0.05)
    fold_batchnorm_(model, {"0": "1"})
    with torch.device("meta"):
        skeleton = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    fold_batchnorm_(skeleton, {"0": "1"})
    assert {k: v.shape for k, v in skeleton.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"0": "1", "nothing": "1"}, "no module 'nothing'"),
        ({"0": "2"}, "'2' is a ReLU"),
        ({"0": "3"}, "'3' of 5 channels does not fit '0'"),
        ({"2": "1"}, "does not fit '2', a ReLU"),
    ],
)
def test_pairs_that_do_not_fit_change_nothing(pairs: dict[str, str], message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(5))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PlanError, match=message):
        fold_batchnorm_(model, pairs)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
