"""Every registered method on every network: the budget is met, or the reason why it cannot be is given."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from rankwise import Budget, Compression, compression
from rankwise.allocation import get_allocator
from rankwise.errors import BudgetError
from rankwise.factorise import Factorisation, Survey
from rankwise.methods import Method, get_method, methods
from rankwise.models import load_model
from rankwise.network import Cost, find_layers, model_cost
from rankwise.statistics import LayerStatistics, collect


@dataclass(frozen=True, eq=False)
class Network:
    """A network with the shape of a calibration batch; ``exclude`` names layers too large for a test.

    On those that are not ``large`` every method runs, on the others every factorisation; channel
    selections meet many architectures in tests of their own.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    budgets: tuple[str, ...] = ("macs=0.6",)
    exclude: tuple[str, ...] = ()
    large: bool = True


def _torchvision(name: str) -> nn.Module:
    return pytest.importorskip("torchvision.models").get_model(name, weights=None, num_classes=10)


def _vgg16() -> nn.Module:
    """torchvision's VGG-16 with all its convolutions and a single linear layer behind them."""
    vgg = pytest.importorskip("torchvision.models.vgg")
    model = vgg.VGG(vgg.make_layers(vgg.cfgs["D"]), num_classes=10, init_weights=False)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
    return model


NETWORKS: dict[str, Network] = {
    "digits_cnn": Network(
        lambda: load_model("digits_cnn").module,
        (16, 1, 8, 8),
        ("macs=0.6", "params=0.5,macs=0.8"),
        large=False,
    ),
    "cifar10_resnet20": Network(
        lambda: load_model("cifar10_resnet20").module, (4, 3, 32, 32), ("macs=0.6", "params=0.6"), large=False
    ),
    "resnet18": Network(lambda: _torchvision("resnet18"), (4, 3, 32, 32), exclude=("layer3.*", "layer4.*")),
    "vgg16": Network(_vgg16, (4, 3, 32, 32), exclude=("features.19", "features.2?")),
    "mobilenet_v2": Network(
        lambda: _torchvision("mobilenet_v2"), (4, 3, 64, 64), exclude=("features.1[4-8].*",)
    ),
}

CHEAP: dict[str, dict[str, Any]] = {
    "cp": {"effort": 0.2, "polish": 0},
    "alds": {"folding": "channel", "metric": "identity"},
}
"""Options that save time on large networks; everything else is as by default."""

SMALLER = {("cp", "vgg16"): (("features.1?", "features.2?"), "macs=0.75")}
"""Where even that takes too long: further layers left out, and a budget that the others can reach."""

IMPOSSIBLE: dict[tuple[str, str], str] = {
    **{("diagonal", name): "not fully connected" for name in NETWORKS},
    ("cp", "mobilenet_v2"): "one element",
    ("tucker2", "mobilenet_v2"): "one element",
    ("spatial_svd", "mobilenet_v2"): "",
    ("relu_aware", "resnet18"): "ReLU",
    ("relu_aware", "mobilenet_v2"): "ReLU",
}
"""What cannot reach the first budget of a network, and a part of the reason that its layers are given."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A network ready for compression, with what all methods ask for about it."""

    model: nn.Module
    batch: torch.Tensor
    cost: Cost
    statistics: Mapping[str, LayerStatistics]


@cache
def scene(name: str) -> Scene:
    network = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network.make().eval()
        batch = torch.randn(network.shape)
    layers = find_layers(model, batch, exclude=list(network.exclude) or None)
    layers = [layer for layer in layers if layer.reason is None]
    asked = frozenset().union(*(m().requires for m in methods().values() if issubclass(m, Method)))
    needs = {layer.name: asked - {"target"} for layer in layers}
    return Scene(model, batch, model_cost(model, batch), collect(model, layers, [batch], needs))


@cache
def survey(method: str, network: str) -> tuple[Factorisation, Survey]:
    found = scene(network)
    options = CHEAP.get(method, {}) if NETWORKS[network].large or method == "cp" else {}
    exclude = NETWORKS[network].exclude + SMALLER.get((method, network), ((), ""))[0]
    stage = Factorisation(
        methods=[get_method(method, **options)],
        allocator=get_allocator("uniform"),
        limits={},
        exclude=list(exclude) or None,
    )
    return stage, stage.survey(found.model, found.batch, [found.batch], found.statistics)


def compressed(method: str, network: str, budget: Budget) -> tuple[nn.Module, list[Any]]:
    """The smaller network and the edits of its plan."""
    found = scene(network)
    if not issubclass(methods()[method], Method):
        done: Compression = compression(
            found.model, [found.batch], budget, method=method, allocator="uniform"
        )
        return done.model, list(done.plan.edits)
    stage, surveyed = survey(method, network)
    stage = copy.copy(stage)
    stage.limits = budget.limits(found.cost)
    work = copy.deepcopy(found.model)
    return work, stage.apply_(work, found.model, [found.batch], found.cost, surveyed)


def check(method: str, network: str, budget: Budget) -> None:
    """The result runs, is within the budget and close to it, and says why a layer was left alone."""
    found = scene(network)
    before = {name: value.clone() for name, value in found.model.state_dict().items()}
    work, edits = compressed(method, network, budget)
    after = model_cost(work, found.batch)
    kept = {m: getattr(after, m) / getattr(found.cost, m) for m in budget.as_dict()}
    assert all(kept[m] <= limit for m, limit in budget.as_dict().items())
    assert any(kept[m] >= limit - 0.02 for m, limit in budget.as_dict().items())
    with torch.no_grad():
        assert torch.isfinite(work(found.batch)).all()
    assert all(edit.reason for edit in edits if edit.op == "keep")
    assert any(edit.op != "keep" for edit in edits)
    assert not any(type(module).__module__.startswith("rankwise.m") for module in _new(work, found.model))
    assert all(torch.equal(value, before[name]) for name, value in found.model.state_dict().items())


def _new(work: nn.Module, model: nn.Module) -> list[nn.Module]:
    """The modules that compression put in."""
    old = dict(model.named_modules())
    return [module for name, module in work.named_modules() if type(module) is not type(old.get(name))]


CASES = [
    pytest.param(method, network, budget, id=f"{method}-{network}-{budget}")
    for method in methods()
    for network in NETWORKS
    for budget in (
        [SMALLER[method, network][1]] if (method, network) in SMALLER else NETWORKS[network].budgets
    )
    if not NETWORKS[network].large or issubclass(methods()[method], Method)
]


@pytest.mark.parametrize(("method", "network", "budget"), CASES)
def test_the_budget_is_met_or_the_reason_is_given(method: str, network: str, budget: str) -> None:
    if (method, network) not in IMPOSSIBLE:
        check(method, network, Budget.parse(budget))
        return
    with pytest.raises(BudgetError, match=r"smallest reachable is .* lie outside the layers") as caught:
        compressed(method, network, Budget.parse(budget))
    assert method in str(caught.value)
    _, edits = compressed(method, network, Budget(macs=1.0))
    reasons = [edit.reason for edit in edits if edit.op == "keep"]
    assert all(reasons) and any(IMPOSSIBLE[method, network] in reason for reason in reasons)


def test_real_weights_too(data_dir: Any) -> None:
    loaded = load_model("cifar10_resnet20", data_dir / "weights" / "cifar10_resnet20.pt")
    batch = torch.randn(8, 3, 32, 32)
    done = compression(loaded.module, [batch], Budget(macs=0.6), method="whitened")
    assert done.final.macs <= 0.6 * done.original.macs
