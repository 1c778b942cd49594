"""Channels and ranks under one budget: costs against built networks, the choice against all choices."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rankwise
from rankwise.allocation import get_allocator
from rankwise.allocation.widths import WidthCurve
from rankwise.auto.mixture import GAIN, Mixture
from rankwise.factorise import Factorisation
from rankwise.methods import get_method
from rankwise.narrow import Narrowing
from rankwise.network import model_cost
from rankwise.network.select import apply_selection_, selection_of
from rankwise.network.surgery import replace_
from rankwise.plan import plan_of
from rankwise.recovery import divergence

KNAPSACK = get_allocator("knapsack")


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 10, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(90, 8), nn.ReLU(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(14, 10), nn.ReLU(), nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 6)).eval()


def mixture(
    model: nn.Module, example: torch.Tensor, methods: Sequence[str], limits: dict[str, int], seed: int = 0
) -> Mixture:
    """Ranks with the relative errors of the weights, widths with random errors of the same size."""
    stage = Factorisation(methods=[get_method(m) for m in methods], allocator=KNAPSACK, limits=limits)
    offered = [
        (o.layer, [(m, replace(c, error=c.error / c.scale, unit="loss", scale=1.0)) for m, c in o.offers])
        for o in stage.survey(model, example, None).options
    ]
    narrowing = Narrowing(method=get_method("l2", reconstruct=False), allocator=KNAPSACK, limits={})
    scene = narrowing.scene(model, example, model_cost(model, example))
    rng = np.random.default_rng(seed)
    curves = []
    for group in scene.free:
        lost = np.cumsum(rng.exponential(0.2 / group.size, group.size) * np.linspace(0, 2, group.size))
        curves.append(WidthCurve(group.name, np.concatenate([lost[::-1], [0.0]])))
    return Mixture(stage, stage.tabulate(offered), scene, curves)


@pytest.mark.parametrize("widths", [(12, 10, 8), (7, 10, 8), (12, 1, 3), (5, 6, 2)])
def test_costs_are_those_of_the_network_that_is_built(widths: tuple[int, ...]) -> None:
    model, example = convnet(), torch.zeros(1, 3, 8, 8)
    mixed = mixture(model, example, ["cp", "tucker2", "svd"], {"params": 1})
    rng = np.random.default_rng(sum(widths))
    kept = {c.name: range(k) for c, k in zip(mixed.curves, widths, strict=True) if k < c.size}
    narrower = copy.deepcopy(model)
    apply_selection_(narrower, selection_of(mixed.scene.groups, kept))
    for _ in range(8):
        chosen = [int(rng.integers(len(o.table))) for o in mixed.options]
        built, most = copy.deepcopy(narrower), model_cost(narrower, example)
        for o, index in zip(mixed.options, chosen, strict=True):
            if index == 0:
                continue
            method, choice = o.pick(index)
            stage = Factorisation(methods=[method], allocator=KNAPSACK, limits={})
            layer = next(x for x in stage.layers(narrower, example) if x.name == o.layer.name)
            fits = {k: v for k, v in choice.items() if k.startswith("rank")}
            if max(fits.values()) > min(layer.geometry.in_channels, layer.geometry.out_channels):
                chosen[mixed.options.index(o)] = 0  # such a rank cannot be built between these widths
                continue
            replace_(built, o.layer.name, method.build(layer, None, choice))
        assert mixed._cost(chosen, widths).as_dict() == model_cost(built, example).as_dict()
        assert mixed._dense(widths).as_dict() == most.as_dict()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.15, 0.3])
def test_the_choice_comes_near_the_best_of_all_choices(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    model, example = perceptron(), torch.zeros(1, 14)
    whole = model_cost(model, example)
    limit = int(share * whole.params)
    mixed = mixture(model, example, ["svd"], {"params": limit}, seed)
    start, first = None, np.inf
    if share > 0.27:  # below, nothing but narrower channels meets the budget
        start = tuple(mixed.stage.allocate([o.table for o in mixed.options], whole, {"params": limit}))
        first = mixed._error(start, [c.size for c in mixed.curves])

    def least(widths: tuple[int, ...]) -> float:
        tables = [o.table for o in mixed._between(widths)]
        spare = limit - mixed._dense(widths).params + sum(int(t.candidates.params[0]) for t in tables)
        pairs = zip(
            product(*(t.candidates.params for t in tables)),
            product(*(t.candidates.error for t in tables)),
            strict=True,
        )
        ranks = min((sum(errors) for costs, errors in pairs if sum(costs) <= spare), default=np.inf)
        return float(ranks) + sum(float(c.error[k]) for c, k in zip(mixed.curves, widths, strict=True))

    best = min(least(widths) for widths in product(*(range(1, c.size + 1) for c in mixed.curves)))
    found = mixed.widths(start)
    if found is None:
        assert best > 0.9 * GAIN * first
    else:
        assert least(tuple(found)) <= min(1.25 * best, GAIN * first)


class Copies(nn.Module):
    """Hidden channels that nearly come in fours, of low rank; blocks in a list, a parameter at the root."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Linear(24, 64), nn.Linear(64, 64)
        with torch.no_grad():
            for layer in (first, second):
                own = torch.randn(16, 5) @ torch.randn(5, layer.in_features)
                own = own.repeat(4, 1) / own.std()
                layer.weight.copy_((own + 0.03 * torch.randn_like(own)) * torch.rand(len(own), 1))
        self.blocks = nn.ModuleList([nn.Sequential(first, nn.ReLU()), nn.Sequential(second, nn.ReLU())])
        self.steps = list(self.blocks)
        self.gain = nn.Parameter(torch.rand(64) + 0.5)
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.steps[1](self.steps[0](x) * self.gain))


BUDGET = rankwise.Budget(params=0.15)


@pytest.fixture(scope="module")
def redundant() -> tuple[nn.Module, list[torch.Tensor], nn.Module]:
    torch.manual_seed(0)
    model = Copies().eval()
    data = [torch.randn(64, 24) for _ in range(8)]
    return model, data, rankwise.compress(model, data, BUDGET, method="auto")


def test_copies_of_channels_go_and_what_is_left_is_factorised(
    redundant: tuple[nn.Module, list[torch.Tensor], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, small = redundant
    notes = plan_of(small).settings[0]
    assert notes["chosen"] == "mixed" and notes["held_out_divergence"].keys() == {"measured", "mixed"}
    assert model_cost(small, data[0]).params <= 0.15 * model_cost(model, data[0]).params
    changes = plan_of(small).changes()
    selected, replaced = ({e.target for e in changes if e.op == op} for op in ("select", "replace"))
    assert selected & replaced  # a layer that has lost outputs is factorised too
    assert all(edit.unit == "loss" for edit in changes)
    monkeypatch.setattr(Mixture, "widths", lambda self, start: None)
    ranks = rankwise.compress(model, data, BUDGET, method="auto")
    fresh = [torch.randn(256, 24)]
    assert divergence(small, model, fresh) < 0.6 * divergence(ranks, model, fresh)


def test_the_mixture_runs_what_it_holds_and_is_stored(
    redundant: tuple[nn.Module, list[torch.Tensor], nn.Module], tmp_path: Path
) -> None:
    _, _, small = redundant
    assert all(a is b for a, b in zip(small.steps, small.blocks, strict=True))
    path = tmp_path / "small.safetensors"
    rankwise.save(small, path)
    x = torch.randn(64, 24)
    with torch.no_grad():
        assert torch.equal(rankwise.load(path, Copies()).eval()(x), small(x))


def test_its_plan_builds_the_mixture_again_among_other_calls(
    redundant: tuple[nn.Module, list[torch.Tensor], nn.Module],
) -> None:
    model, data, small = redundant
    last = rankwise.compress(small, data, rankwise.Budget(params=0.97), method="svd")
    x = torch.randn(64, 24)
    for network in (small, last):
        again = rankwise.apply(rankwise.Plan.from_json(plan_of(network).to_json()), model, data)
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(x), network.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wish", [{"exclude": ["head"]}, {"include": ["blocks.0.0", "head"]}])
def test_layers_left_out_by_name_lose_no_channels(
    redundant: tuple[nn.Module, list[torch.Tensor], nn.Module], wish: dict[str, list[str]]
) -> None:
    model, data, _ = redundant
    small = rankwise.compress(model, data, rankwise.Budget(params=0.9), method="auto", **wish)
    tight = rankwise.compress(model, data, rankwise.Budget(params=0.4), method="auto", exclude=["head"])
    left = "blocks.1.0" if "include" in wish else "head"
    assert torch.equal(small.get_submodule(left).weight, model.get_submodule(left).weight)
    assert torch.equal(tight.head.weight, model.head.weight)


def test_wishes_for_layers_leave_channels_alone(
    redundant: tuple[nn.Module, list[torch.Tensor], nn.Module],
) -> None:
    model, data, _ = redundant
    wish = {"head": {"dense": True}}
    small = rankwise.compress(model, data, rankwise.Budget(params=0.3), method="auto", overrides=wish)
    assert plan_of(small).settings[0]["held_out_divergence"].keys() == {"measured"}


class Routed(nn.Module):
    """Which expert runs depends on the batch, so that channels traced on one batch do not tell all."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 32)
        self.experts = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])
        self.last = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        expert = self.experts[int(x.mean() > 0)]
        return self.last(expert(self.first(x).relu()).relu())


def test_a_network_that_cannot_be_narrowed_is_factorised() -> None:
    torch.manual_seed(0)
    model = Routed().eval()
    data = [torch.randn(32, 12) + (-1) ** i for i in range(8)]
    small = rankwise.compress(model, data, rankwise.Budget(params=0.7), method="auto")
    notes = plan_of(small).settings[0]
    assert notes["chosen"] == "measured"
    assert "cannot be multiplied" in notes["left_out"]["mixed"]


def test_a_scripted_part_is_no_obstacle() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(torch.jit.script(nn.Linear(12, 12)), nn.ReLU(), nn.Linear(12, 12), nn.Linear(12, 4))
    data = [torch.randn(32, 12) for _ in range(8)]
    small = rankwise.compress(model.eval(), data, rankwise.Budget(params=0.8), recovery="distill")
    assert plan_of(small).settings[0]["chosen"] == "measured"
