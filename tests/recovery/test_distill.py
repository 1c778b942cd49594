"""Distillation: never worse than the start, any output and any batches, nothing else touched."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.recovery.digits import batches
from torch import nn

from rankwise.data import InMemory, Split
from rankwise.errors import CalibrationError
from rankwise.network.state import duplicate
from rankwise.recovery import get_recovery
from rankwise.recovery.distill import Distilled, affordable, distill_
from rankwise.recovery.imitation import common_blocks, output_loss, relative_error

QUICK: dict[str, Any] = {"steps": 40, "trial": 6, "every": 10, "rates": (1e-3, 1e-2), "seconds": None}


def pair(outputs: int = 5) -> tuple[nn.Module, nn.Module]:
    """An original, and a copy with a damaged layer."""
    torch.manual_seed(0)
    original = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8 * 36, outputs),
    )  # fmt: skip
    with torch.no_grad():
        original(3 * torch.randn(64, 2, 6, 6) + 1)
    model = copy.deepcopy(original.eval())
    with torch.no_grad():
        model[0].weight.add_(0.3 * torch.randn_like(model[0].weight))
    return original, model


def images(count: int = 40, size: int = 10) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, 2, 6, 6, generator=generator).split(size))


def kl(original: nn.Module, model: nn.Module, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        p, q = (torch.softmax(net(inputs).double(), 1) for net in (original, model))
    return float((p * (p / q).log()).sum(1).mean())


def test_the_held_out_divergence_falls_and_is_what_numpy_says() -> None:
    original, model = pair()
    data = images()
    before = kl(original, model, data[-1])
    buffers = [b.clone() for b in model.buffers()]
    weights = copy.deepcopy(original.state_dict())
    random = torch.get_rng_state()
    done = distill_(model, original, data, **QUICK)
    assert done.before == pytest.approx(before, rel=1e-4)
    assert done.after == pytest.approx(kl(original, model, data[-1]), rel=1e-4)
    assert done.after < 0.5 * done.before and done.rate in done.tried
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(torch.equal(value, weights[name]) for name, value in original.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.requires_grad and p.grad is None for n in (model, original) for p in n.parameters())


def test_the_same_again_bit_for_bit() -> None:
    results = []
    for _ in range(2):
        original, model = pair()
        distill_(model, original, images(), **QUICK)
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("rates", [(1e4,), (1e30,)])
def test_rates_that_destroy_leave_the_start(rates: tuple[float, ...]) -> None:
    original, model = pair()
    start = copy.deepcopy(model.state_dict())
    done = distill_(model, original, images(), **{**QUICK, "rates": rates})
    assert done.after == done.before
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_an_exact_copy_stays_as_it_is() -> None:
    original, _ = pair()
    model = duplicate(original)
    done = distill_(model, original, images(), **QUICK)
    assert (done.before, done.after, done.steps) == (0.0, 0.0, 0)


def test_held_out_examples_are_never_trained_on() -> None:
    original, model = pair()
    data = images()
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            seen.append(args[0])

    hook = model.register_forward_pre_hook(note)
    distill_(model, original, data, **QUICK)
    hook.remove()
    assert len(seen) == 40 + 2 * 6 and not any(torch.equal(batch, data[-1]) for batch in seen)


def test_batches_of_a_data_set_are_divided_by_example() -> None:
    train, _ = batches(size=16, train=50)
    rest, held = train.divide(0.2)
    assert sum(len(x) for x, _ in rest) == 40 and [len(x) for x, _ in held] == [10]
    assert torch.equal(next(iter(held))[0], train.split.transform(train.split.fetch(torch.arange(40, 50))))
    assert torch.equal(next(iter(held))[0], next(iter(held))[0])


class Shuffling:
    """Gives its batches in another order each time."""

    def __init__(self, data: list[torch.Tensor]) -> None:
        self.data, self.passes = data, 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter(self.data[self.passes % len(self.data) :] + self.data[: self.passes % len(self.data)])


@pytest.mark.parametrize("make", [lambda d: iter(d), Shuffling, lambda d: d[:1], lambda d: [d[0][:1]]])
def test_other_sources_of_batches(make: Callable[[list[torch.Tensor]], Any]) -> None:
    original, model = pair()
    done = distill_(model, original, make(images()), **QUICK)
    assert done.after < done.before


class Named(nn.Module):
    """Takes keyword arguments and returns a dict, as Hugging Face models do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, Any]:
        return {"kind": "answer", "logits": self.net(pixels)}


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_batches_and_outputs_of_other_forms(form: str) -> None:
    original, model = (Named(net) for net in pair())
    data: list[Any] = [
        {"pixels": x, "labels": torch.zeros(len(x))} if form == "dict" else (x, torch.zeros(len(x)))
        for x in images()
    ]
    done = distill_(model, original, data, **QUICK)
    assert done.criterion == "kl" and done.after < done.before


class Scaled(nn.Module):
    """Takes an argument that is no example's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.net(pixels) * scale.prod()


@pytest.mark.parametrize("scale", [torch.tensor(2.0), torch.tensor([2.0, 0.5, 1.0])])
def test_of_a_single_batch_only_examples_are_divided(scale: torch.Tensor) -> None:
    original, model = (Scaled(net) for net in pair())
    done = distill_(model, original, [(images()[0], scale)], **QUICK)
    assert done.after < done.before


def test_batches_made_in_inference_mode_are_trained_on() -> None:
    with torch.inference_mode():
        data = [x.clone() for x in images()]
    original, model = pair()
    assert distill_(model, original, data, **QUICK).after == distill_(*pair()[::-1], images(), **QUICK).after


def test_a_network_with_one_number_for_all_examples_is_matched() -> None:
    original, model = (nn.Sequential(net, Mean()) for net in pair())
    done = distill_(model, original, images(), **QUICK)
    assert done.criterion == "mse" and done.after < done.before


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().mean()


def test_a_regressor_is_matched_in_its_values() -> None:
    original, model = pair(outputs=1)
    done = distill_(model, original, images(), **QUICK)
    assert done.criterion == "mse" and done.after < 0.5 * done.before
    assert distill_(*pair()[::-1], images(), criterion="mse", **QUICK).criterion == "mse"


def test_losses_against_formulas() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 7, 4, generator=generator).double()
    p, q = torch.softmax(a / 3, 1), torch.softmax(b / 3, 1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert float(output_loss(a, b, "kl", 3.0)) == pytest.approx(float(expected), rel=1e-5)
    spread = ((a - a.mean(0)) ** 2).mean()
    assert float(relative_error(a, b)) == pytest.approx(float(((a - b) ** 2).mean() / spread), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 1), ()])
def test_the_error_of_a_single_example_is_relative_to_its_size(shape: tuple[int, ...]) -> None:
    a = torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.5
    assert float(relative_error(a, 1.1 * a)) == pytest.approx(0.01, rel=1e-4)


def test_blocks_are_what_both_networks_have_in_one_shape() -> None:
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18().eval()
    other = duplicate(net)
    other.layer2[0].conv1 = nn.Sequential(nn.Conv2d(64, 8, 1), nn.Conv2d(8, 128, 3, 2, 1))
    names = common_blocks(other, net, torch.zeros(2, 3, 64, 64))
    assert {"layer1.0", "layer4.1"} <= set(names) and len(names) <= 12
    flat, damaged = pair()
    assert common_blocks(damaged, flat, images()[0]) == ["0", "1"]
    damaged[0] = nn.Conv2d(2, 6, 3, padding=1)
    damaged[1], damaged[5] = nn.BatchNorm2d(6), nn.Linear(6 * 36, 5)
    assert common_blocks(damaged.eval(), flat, images()[0]) == []


def test_a_time_limit_cuts_the_steps() -> None:
    original, model = pair()
    done = distill_(model, original, images(), **{**QUICK, "steps": 10**6, "seconds": 0.0})
    assert isinstance(done, Distilled) and done.steps <= 1


def test_a_slow_first_step_does_not_count() -> None:
    assert affordable(30.0, [20.0, 1.0, 1.0, 1.0], 0.5) == 20
    assert affordable(-3.0, [1.0], 0.5) == 1


def test_bad_input() -> None:
    original, model = pair()
    with pytest.raises(CalibrationError, match="no batch"):
        distill_(model, original, [])
    with pytest.raises(CalibrationError, match=r"\(8, 3\), the original's \(8, 5\)"):
        distill_(pair(outputs=3)[1], original, images(16, 8))
    with torch.no_grad():
        model[5].bias.fill_(float("nan"))
    with pytest.raises(CalibrationError, match="NaN"):
        distill_(model, original, images())


def test_by_name() -> None:
    original, model = pair()
    split = Split.of("train", InMemory(torch.cat(images())), None, lambda x: x)
    before = kl(original, model, torch.cat(images()))
    get_recovery("distill")(model, original, split.batches(8), ["0"])
    assert kl(original, model, torch.cat(images())) < before
