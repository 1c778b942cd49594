"""The stage that narrows channel groups, through the public verbs."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankwise.allocation import Iterative, get_allocator
from rankwise.budget import Budget
from rankwise.compress import compress
from rankwise.errors import BudgetError, CalibrationError, RankwiseError, UnknownNameError
from rankwise.iterate import Iteration
from rankwise.methods import get_method
from rankwise.narrow import Narrowing
from rankwise.network import find_layers, model_cost
from rankwise.network.channels import find_groups
from rankwise.plan import Plan, outputs_left, plan_of, reshape_
from rankwise.reapply import apply
from rankwise.scene import Scene
from tests.network.architectures import random_batches, settled
from tests.network.channel_nets import Grouped, OptionAResNet, Scaled, SmallVGG, UNet

SELECTIONS: list[tuple[str, dict[str, Any]]] = [
    ("interpolative", {}),
    ("interpolative", {"selector": "cholesky", "refit": "once", "intercept": False}),
    ("interpolative", {"selector": "rrqr"}),
    ("interpolative", {"selector": "random_cholesky"}),
    ("interpolative", {"selector": "adaptive_random"}),
    ("interpolative", {"selector": "norm"}),
    ("interpolative", {"selector": "random"}),
    ("l1", {}),
    ("l2", {"reconstruct": True}),
    ("bn_scale", {}),
    ("random", {}),
    ("thinet", {}),
    ("pfp", {}),
    ("pfp", {"randomized": True}),
    ("pfp", {"reconstruct": True}),
]

NETS: list[tuple[Any, tuple[int, ...]]] = [
    (OptionAResNet, (3, 16, 16)),
    (UNet, (3, 8, 8)),
    (Scaled, (2, 4, 4, 4)),
    (Grouped, (3, 9, 9)),
]


@pytest.mark.parametrize(("name", "config"), SELECTIONS)
def test_every_selection_meets_the_budget_and_is_repeatable(name: str, config: dict[str, Any]) -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    method = get_method(name, **config)
    small = compress(model, data, Budget(macs=0.6), method=method)
    whole, left = model_cost(model, data[0]), model_cost(small, data[0])
    assert 0.57 * whole.macs < left.macs <= 0.6 * whole.macs
    again = compress(model, data, Budget(macs=0.6), method=method)
    assert all(
        torch.equal(a, b)
        for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(("build", "shape"), NETS)
@pytest.mark.parametrize("allocator", ["uniform", "knapsack", "minimax", "iterative"])
def test_architectures_and_allocators(build: Any, shape: tuple[int, ...], allocator: str) -> None:
    model, data = settled(build, *shape), random_batches(*shape)
    before = copy.deepcopy(model.state_dict())
    small = compress(model, data, Budget(macs=0.7), method="interpolative", allocator=allocator)
    assert model_cost(small, data[0]).macs <= 0.7 * model_cost(model, data[0]).macs
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    exported = torch.export.export(small, (data[0],)).module()
    torch.testing.assert_close(exported(data[0]), small(data[0]))
    plan = Plan.from_json(plan_of(small).to_json())
    skeleton = copy.deepcopy(model)
    reshape_(skeleton, plan)
    skeleton.load_state_dict(small.state_dict())
    torch.testing.assert_close(skeleton(data[0]), small(data[0]))
    named = {group.name for group in find_groups(model, data[0])}
    assert {edit.target for edit in plan.edits} == named
    assert all(edit.reason for edit in plan.edits if edit.op == "keep")


NAMES = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
)


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_networks(name: str) -> None:
    model, x = getattr(torchvision.models, name)(num_classes=5).eval(), torch.randn(1, 3, 64, 64)
    small = compress(model, None, Budget(macs=0.7), method="l2", allocator="uniform", example=x)
    whole, left = model_cost(model, x), model_cost(small, x)
    assert 0.69 * whole.macs < left.macs <= 0.7 * whole.macs
    skeleton = copy.deepcopy(model).to("meta")
    reshape_(skeleton, plan_of(small))
    assert {n: t.shape for n, t in skeleton.state_dict().items()} == {
        n: t.shape for n, t in small.state_dict().items()
    }


def test_a_full_budget_changes_nothing() -> None:
    model, data = settled(UNet, 3, 8, 8), random_batches(3, 8, 8)
    same = compress(model, data, Budget(macs=1.0), method="interpolative")
    torch.testing.assert_close(same(data[0]), model(data[0]))
    assert not plan_of(same).changes()


@pytest.mark.parametrize("refit", ["once", "anchored", "patches"])
def test_duplicate_and_dependent_channels_go_without_loss(refit: str) -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    conv, norm = model.features[4], model.features[5]
    for source, target in ((0, 6), (1, 7), (2, 8)):  # duplicates up to a positive factor, after the ReLU too
        conv.weight.data[target] = conv.weight.data[source]
        conv.bias.data[target] = conv.bias.data[source]
        norm.weight.data[target] = 2 * norm.weight.data[source]
        norm.bias.data[target] = 2 * norm.bias.data[source]
        norm.running_mean[target], norm.running_var[target] = (
            norm.running_mean[source],
            norm.running_var[source],
        )
    method = get_method("interpolative", eps=1e-5, ridge=0.0, refit=refit)
    small = compress(model, data, Budget(macs=1.0), method=method, include="features.4")
    assert small.features[4].out_channels == 9
    torch.testing.assert_close(small(data[1]), model(data[1]), rtol=1e-4, atol=1e-4)


def test_reconstruction_helps_and_anchoring_helps_more() -> None:
    model, data = settled(OptionAResNet, 3, 16, 16), random_batches(3, 16, 16, count=6)
    loss = {}
    for key in ("sliced", "once", "anchored", "patches"):
        config = {"reconstruct": False} if key == "sliced" else {"refit": key}
        method = get_method("interpolative", **config)
        small = compress(model, data, Budget(macs=0.6), method=method, allocator="uniform")
        with torch.no_grad():
            loss[key] = float(sum(((small(x) - model(x)) ** 2).sum() for x in data))
    assert loss["patches"] < loss["anchored"] < loss["once"] < loss["sliced"]


def test_a_plan_is_applied_again() -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    small = compress(model, data, Budget(macs=0.6), method="interpolative")
    again = apply(plan_of(small), model, data)
    torch.testing.assert_close(again(data[0]), small(data[0]), rtol=1e-4, atol=1e-5)


def test_a_second_method_compresses_what_the_first_left() -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    first = compress(model, data, Budget(macs=0.7), method="interpolative")
    second = compress(first, data, Budget(macs=0.7), method="pca")
    assert model_cost(second, data[0]).macs <= 0.49 * model_cost(model, data[0]).macs
    assert {edit.op for edit in plan_of(second).changes()} == {"select", "replace"}
    skeleton = copy.deepcopy(model)
    reshape_(skeleton, plan_of(second))
    skeleton.load_state_dict(second.state_dict())
    torch.testing.assert_close(skeleton(data[0]), second(data[0]))


def test_published_iteration() -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    method = get_method("interpolative", selector="cholesky", refit="once", ridge=0.0, intercept=False)
    rule = get_allocator("iterative", published=True, step=0.8)
    small = compress(model, data, Budget(macs=0.6), method=method, allocator=rule)
    assert model_cost(small, data[0]).macs <= 0.6 * model_cost(model, data[0]).macs


def test_iteration_measures_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    cost = model_cost(model, data[0])
    consumers = ["features.4", "features.8", "classifier.1", "classifier.4"]  # of the groups, in order
    asked: list[set[str]] = []
    measure = Scene.measure

    def counted(scene: Scene, batches: Any, names: Any = None) -> None:
        asked.append(set(names))
        measure(scene, batches, names)

    monkeypatch.setattr(Scene, "measure", counted)
    scene = Scene.of(copy.deepcopy(model), data[0], get_method("interpolative"), cost)
    iteration = Iteration(Iterative(step=0.8, several=1), {"macs": int(0.6 * cost.macs)}, {})
    with FlopCounterMode(display=False) as counter:
        kept, errors = iteration.run_(scene, data)
    assert asked[0] == set(consumers)
    assert all(names == set(consumers[-len(names) :]) for names in asked)  # those behind the cut
    assert min(map(len, asked)) < len(consumers)
    assert scene.collected == sum(map(len, asked)) < iteration.steps * len(consumers)
    assert all(errors[name][0] >= 0 for name in kept)
    widths = [len(kept[name]) for name in ("features.0", "features.4", "features.8")]
    assert widths == [scene.model.features[i].out_channels for i in (0, 4, 8)]
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert convolutions < 2 * 48 * cost.macs * iteration.steps / 2


def test_what_is_left_is_known_without_tracing_again() -> None:
    for build, shape in NETS:
        model, x = settled(build, *shape), random_batches(*shape)[0]
        scene = Scene.of(model, x, get_method("l2"), model_cost(model, x))
        generator = torch.Generator().manual_seed(0)
        kept = {
            g.name: torch.randperm(g.size, generator=generator)[: max(2, g.size // 2)].tolist()
            for g in scene.free
        }
        kept.pop(next(iter(kept)), None)
        views = {g.name: scene.view(g) for g in scene.free}
        left, _ = scene.narrowed_({name: sorted(units) for name, units in kept.items()}, views)
        assert left.groups == find_groups(model, x)
        assert left.cost == model_cost(model, x)
        for layer in find_layers(model, x):
            known = left.layers[layer.name]
            assert (known.geometry, known.cost) == (layer.geometry, layer.cost)
            assert (known.input_shapes, known.output_shapes) == (layer.input_shapes, layer.output_shapes)


class _Counted:
    """Batches that count how often they are read."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes += 1
        return iter(self.batches)


@pytest.mark.parametrize("allocator", ["knapsack", "iterative"])
def test_memory_of_the_sums_is_limited_by_more_passes(allocator: str) -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    method = get_method("interpolative", refit="once")
    free, limited = _Counted(data), _Counted(data)
    settings: dict[str, Any] = {"method": method, "allocator": allocator, "example": data[0]}
    expected = compress(model, free, Budget(macs=0.6), **settings)
    needed = 8 * 20 * 21  # of the widest consumer, 20 channels of classifier.4
    small = compress(model, limited, Budget(macs=0.6), **settings, max_memory=needed)
    assert limited.passes > free.passes
    for a, b in zip(small.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CalibrationError, match=r"classifier.4.*max_memory"):
        compress(model, data, Budget(macs=0.6), method=method, max_memory=needed - 1)
    anchored = get_method("interpolative")  # patches where they fit, otherwise channels
    assert compress(model, data, Budget(macs=0.6), method=anchored, max_memory=2 * needed)


def test_wishes_for_groups() -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    overrides = {"features.0": {"dense": True}, "features.4": {"rank": 6}}
    small = compress(model, data, Budget(macs=0.7), method="l2", overrides=overrides, multiple_of=2)
    assert small.features[0].out_channels == 8
    assert small.features[4].out_channels == 6
    assert small.features[8].out_channels % 2 == 0
    kept = compress(model, data, Budget(macs=0.9), method="l2", exclude=["features.0", "classifier.1"])
    assert (kept.features[0].out_channels, kept.classifier[1].out_features) == (8, 20)
    reasons = {edit.target: edit.reason for edit in plan_of(kept).edits}
    assert "excluded" in (reasons["features.0"] or "")


def widths_of(allocator: str = "iterative", **options: Any) -> list[int]:
    """Widths of the first three groups of a network of 8, 12 and 16 channels."""
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    options = {"method": "l2", "allocator": allocator} | options
    small = compress(model, data, Budget(macs=0.7), **options)
    assert model_cost(small, data[0]).macs <= 0.7 * model_cost(model, data[0]).macs
    return [small.features[i].out_channels for i in (0, 4, 8)]


@pytest.mark.parametrize("published", [False, True])
def test_step_by_step_obeys_wishes(published: bool) -> None:
    rule: Any = get_allocator("iterative", published=published, step=0.9)
    assert all(width % 4 == 0 for width in widths_of(rule, multiple_of=4))
    assert widths_of(rule, overrides={"features.4": {"rank": 7}})[1] == 7
    assert widths_of(rule, overrides={"features.0": {"dense": True}, "features.8": {"min_rank": 16}})[
        ::2
    ] == [8, 16]
    first, _, third = widths_of(rule, overrides={"*.0": {"max_rank": 3}, "*.8": {"multiple_of": 5}})
    assert first in (1, 2, 3, 8) and third in (5, 10, 15, 16)
    assert widths_of(rule, overrides={"features.0": {"rank": 2}, "features.4": {"rank": 3}})[:2] == [2, 3]


@pytest.mark.parametrize(
    "options",
    [{"allocator": "knapsack"}, {"allocator": "iterative"}, {"method": get_method("interpolative", eps=0.2)}],
)
def test_wishes_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnknownNameError, match="'nonsense"):
        widths_of(overrides={"nonsense*": {"rank": 3}}, **options)
    with pytest.raises(UnknownNameError, match="'rnk'"):
        widths_of(overrides={"*": {"rnk": 3}}, **options)
    with pytest.raises(RankwiseError, match="no candidate of rank 12"):
        widths_of(overrides={"features.4": {"rank": 12}}, **options)


def test_an_error_bound_obeys_wishes() -> None:
    method, wide = get_method("interpolative", eps=0.3), get_method("interpolative", eps=0.02)
    plain = widths_of("knapsack", method=method)
    even = widths_of("knapsack", method=method, multiple_of=4)
    assert any(width % 4 for width in plain)
    assert even == [4 * -(-width // 4) for width in plain]
    assert widths_of("knapsack", method=wide, overrides={"*": {"rank": 5}}) == [5, 5, 5]


def test_recoveries_leave_what_was_excluded() -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    out = ["features.0", "classifier.4"]
    options = {"budget": Budget(macs=0.7), "method": "interpolative", "exclude": out}
    small = compress(model, data, **options)
    assert outputs_left(model, plan_of(small).edits).untouched == set(out)
    recovered = compress(model, data, recovery=["closed-form"], **options)
    for name in out:
        assert torch.equal(small.get_submodule(name).weight, recovered.get_submodule(name).weight)
    assert not torch.equal(small.features[8].weight, recovered.features[8].weight)


def test_a_group_that_the_judge_does_not_see_stays_whole() -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    options: dict[str, Any] = {"method": get_method("l2"), "allocator": get_allocator("knapsack")}

    def judge(narrower: nn.Module) -> float:
        return float(narrower.features[4].out_channels < 12)

    stage = Narrowing(limits={}, judge=judge, **options)
    scene = stage.scene(copy.deepcopy(model), data[0], model_cost(model, data[0]))
    views, orders, curves = stage.survey(scene, data)
    assert [curve.name for curve in curves] == list(views) == ["features.4"]
    kept = stage.kept(scene, views, orders, [5])
    assert {name: len(units) for name, units in kept.items()} == {
        group.name: 5 if group.name == "features.4" else group.size for group in scene.free
    }


def test_a_judge_of_networks_decides_between_groups() -> None:
    """The judge minds nothing but the first group, which prediction alone would narrow."""
    net, batches = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    cost, first = model_cost(net, batches[0]), find_groups(net, batches[0])[0]
    seen: list[int] = []

    def judge(model: nn.Module) -> float:
        seen.append(sum(p.numel() for p in model.parameters()))
        width = model.get_submodule(first.producers[0].name).weight.shape[0]
        return 1.0 if width < first.size else 1e-9

    def widths(judge: Callable[[nn.Module], float] | None) -> dict[str, int]:
        stage = Narrowing(
            method=get_method("interpolative"), allocator=get_allocator("knapsack"),
            limits={"macs": int(0.7 * cost.macs)}, judge=judge,
        )  # fmt: skip
        edits = stage.run_(copy.deepcopy(net), net, batches[0], batches, cost)
        return {edit.target: edit.choice.get("rank", 0) for edit in edits}

    assert widths(None)[first.name] > 0
    judged = widths(judge)
    assert judged[first.name] == 0 and any(judged.values())
    assert max(seen) < cost.params


def test_errors_say_what_is_wrong() -> None:
    model, data = settled(SmallVGG, 3, 16, 16), random_batches(3, 16, 16)
    with pytest.raises(BudgetError, match="reachable"):
        compress(model, data, Budget(macs=0.001), method="interpolative")
    with pytest.raises(BudgetError, match="narrowed further"):
        compress(model, data, Budget(macs=0.001), method="l2", allocator="iterative")
    with pytest.raises(CalibrationError, match="'interpolative' needs calibration"):
        compress(model, None, Budget(macs=0.5), method="interpolative", example=data[0])
    assert model_cost(compress(model, None, Budget(macs=0.5), method="l2", example=data[0]), data[0]).params
    bad = [torch.full((2, 3, 16, 16), float("nan"))]
    with pytest.raises(CalibrationError, match=r"features.*batch 0"):
        compress(model, bad, Budget(macs=0.5), method="interpolative", example=data[0])
    with pytest.raises(RankwiseError, match="call of its own"):
        compress(model, data, Budget(macs=0.5), method=["l2", "pca"])
    with pytest.raises(RankwiseError, match="selector"):
        get_method("interpolative", selector="best")
    with pytest.raises(RankwiseError, match="refit"):
        get_method("l2", refit="twice")
