import pytest
import torch
from torch import nn

from rankwise.network.state import duplicate, preserved, unfused


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.register_buffer("step", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.step = self.step + 1
        return torch.dropout(self.norm(self.layer(x)), 0.5, self.training)


@pytest.mark.parametrize("fail", [False, True])
def test_everything_a_pass_changes_comes_back(fail: bool) -> None:
    model = Net().train()
    model.norm.eval()
    model.layer.bias.requires_grad_(False)
    model.layer.weight.grad = torch.ones(3, 3)
    step, state = model.step, torch.random.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        with preserved(model) as inside:
            assert inside is model and model.layer.weight.grad is None
            model.train()
            model.layer.bias.requires_grad_(True)
            model(torch.randn(4, 3)).sum().backward()
            assert model.step == 1 and model.layer.weight.grad is not None
            if fail:
                raise KeyError("inside")
    except KeyError:
        assert fail
    assert model.training and not model.norm.training
    assert model.step is step and model.step == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.layer.bias.requires_grad and model.layer.bias.grad is None
    assert torch.equal(model.layer.weight.grad, torch.ones(3, 3))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_skeletons_and_nan_buffers() -> None:
    with torch.device("meta"):
        skeleton = Net()
    with preserved(skeleton):
        skeleton.eval()
    assert skeleton.training
    model = Net()
    model.norm.running_mean.fill_(torch.nan)
    with preserved(model):
        model.norm.running_mean.zero_()
    assert model.norm.running_mean.isnan().all()


@pytest.mark.parametrize("enabled", [True, False])
def test_fused_kernels_are_off_inside_only(enabled: bool) -> None:
    layer, x = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval(), torch.randn(2, 3, 8)
    calls: list[int] = []
    plain = layer.linear1.forward

    def counted(y: torch.Tensor) -> torch.Tensor:  # not a hook: hooks switch the fused kernel off
        calls.append(1)
        return plain(y)

    layer.linear1.forward = counted  # type: ignore[method-assign]
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        with torch.no_grad(), pytest.raises(KeyError), unfused():
            layer(x)
            raise KeyError
        assert torch.backends.mha.get_fastpath_enabled() is enabled
        assert len(calls) == 1
        with torch.no_grad():
            layer(x)
        assert len(calls) == (1 if enabled else 2)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_weight_that_was_computed_with_a_gradient_is_copied() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    inputs = torch.randn(4, 3)
    expected = model(inputs)
    assert model[0].weight.grad_fn is not None
    copied = duplicate(model)
    assert torch.equal(copied(inputs), expected)
    held, copies = list(model.parameters()), list(copied.parameters())
    assert not {id(p) for p in held} & {id(p) for p in copies}
    assert model[0].weight.grad_fn is not None


def test_activations_in_lists_and_dicts_are_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model.maps = {"last": [model(torch.randn(4, 3))]}  # type: ignore[assignment]
    model.maps["all"] = [model.maps]  # type: ignore[index] # holds itself
    copied = duplicate(model)
    assert torch.equal(copied.maps["last"][0], model.maps["last"][0])  # type: ignore[index]
    assert model.maps["last"][0].grad_fn is not None  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_scripts_are_restored_and_copied() -> None:
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(3).train()))
    model[0].bias.requires_grad_(False)
    with preserved(model):
        model(torch.randn(4, 3))
    assert model[0].num_batches_tracked == 0
    weight, bias = duplicate(model).parameters()
    assert weight.is_leaf and weight.requires_grad and not bias.requires_grad


def test_buffers_made_in_a_pass_are_removed() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.mask = torch.ones(x.shape[1])
            self.register_buffer("new", torch.zeros(1), persistent=False)
            return x * self.mask + self.new

    model = Growing()
    for _ in range(2):
        with preserved(model):
            model(torch.randn(2, 3))
            assert len(dict(model.named_buffers())) == 2
        assert dict(model.named_buffers()) == {} and model.mask is None and not hasattr(model, "new")
        assert model._non_persistent_buffers_set == set()
