"""Latency budgets through the public verb, with a clock that counts instead of timing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankwise import Automatic, Budget, compress
from rankwise.auto.sensitivity import Probe
from rankwise.compress import compression
from rankwise.errors import BudgetError
from rankwise.latency import Offer, Target, option_times
from rankwise.methods import get_method
from rankwise.network import count_macs, find_layers
from rankwise.plan import plan_of
from rankwise.timed import Timed
from tests.latency.fake import FakeTimer, by_macs


@pytest.fixture(autouse=True)
def timer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTimer:
    fake = FakeTimer()

    def timer_for(target: Target) -> FakeTimer:
        return fake

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("rankwise.timed.timer_for", timer_for)
    monkeypatch.setattr("rankwise.latency.table.timer_for", timer_for)
    return fake


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1),
        nn.ReLU(), nn.Conv2d(48, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 25, 10),
    ).eval()  # fmt: skip


EXAMPLE = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def _share(fake: FakeTimer, small: nn.Module, net: nn.Module) -> float:
    seconds = [fake.seconds(m, count_macs(m, EXAMPLE[:1])) for m in (small, net)]
    return seconds[0] / seconds[1]


METHODS = {
    "l2": get_method("l2", reconstruct=False),
    "svd": get_method("svd"),
    "svd and cp": [get_method("svd"), get_method("cp")],
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("asked", [0.8, 0.5])
def test_weight_only_methods_take_the_time_asked_for(timer: FakeTimer, name: str, asked: float) -> None:
    net = _net()
    done = compression(net, None, Budget(latency=asked), method=METHODS[name], example=EXAMPLE)
    assert 0.95 * asked <= _share(timer, done.model, net) <= asked
    noted = done.plan.settings[-1]["latency"]
    assert abs(noted["measured"] - _share(timer, done.model, net)) < 1e-3
    assert abs(noted["predicted"] - noted["measured"]) < 0.05
    assert done.final.latency == round(done.original.latency * timer.seconds(done.model, count_macs(
        done.model, EXAMPLE[:1])) / timer.seconds(net, count_macs(net, EXAMPLE[:1])))  # fmt: skip
    assert plan_of(done.model).settings[-1]["budget"]["latency"] == asked


@pytest.mark.parametrize(
    ("method", "allocator"),
    [
        ("interpolative", "knapsack"),
        ("interpolative", "iterative"),
        ("whitened", "uniform"),
        ("pca", "minimax"),
    ],
)
def test_methods_with_data_take_the_time_asked_for(timer: FakeTimer, method: str, allocator: str) -> None:
    net = _net()
    small = compress(net, [EXAMPLE], Budget(latency=0.7), method=method, allocator=allocator)
    assert 0.6 <= _share(timer, small, net) <= 0.7


def test_the_limit_is_corrected_where_the_sum_of_parts_misleads(timer: FakeTimer) -> None:
    """In the whole network half of the time is spent elsewhere, whatever the widths are."""

    def misleading(module: nn.Module, macs: int) -> float:
        whole = any(isinstance(m, nn.Flatten) for m in module.modules())
        return by_macs(module, macs) * (0.4 if whole else 1.0) + (1e-3 if whole else 0.0)

    timer.seconds = misleading
    net = _net()
    done = compression(net, None, Budget(latency=0.8), method=METHODS["l2"], example=EXAMPLE)
    noted = done.plan.settings[-1]["latency"]
    assert len(noted["rounds"]) > 1
    assert 0.76 <= noted["measured"] <= 0.8
    assert 0.76 <= _share(timer, done.model, net) <= 0.8


def test_dense_wins_where_two_small_layers_are_slower(timer: FakeTimer) -> None:
    """A second layer costs more than any rank saves in the first one, not in the larger others."""
    timer.seconds = lambda module, macs: 3e-4 * by_macs(module, 0) / 2e-5 + macs * 1e-9
    net = _net()
    done = compression(net, None, Budget(latency=0.9), method="svd", example=EXAMPLE)
    edits = {edit.target: edit.op for edit in done.plan.edits}
    assert edits["0"] == "keep"
    assert edits["8"] == "keep"
    assert edits["3"] == "replace"


def test_a_budget_out_of_reach_says_what_is_in_reach(timer: FakeTimer) -> None:
    timer.seconds = lambda module, macs: 1e-3 + macs * 1e-10
    with pytest.raises(BudgetError, match="fastest network that was measured takes"):
        compress(_net(), None, Budget(latency=0.3), method="svd", example=EXAMPLE)


def test_folded_batchnorm_counts_as_time_won(timer: FakeTimer) -> None:
    timer.seconds = lambda module, macs: (
        by_macs(module, macs) + 5e-3 * any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    )
    net = _net()
    done = compression(
        net, None, Budget(latency=0.9), method=METHODS["l2"], example=EXAMPLE, fold_batchnorm=True
    )
    assert {edit.op for edit in done.plan.edits} == {"fold_batchnorm", "keep"}
    assert done.final.macs == done.original.macs


def test_auto_folds_batchnorm_where_time_is_asked_for_and_nowhere_else(timer: FakeTimer) -> None:
    net, batches = _net(), [EXAMPLE + 0.1 * i for i in range(4)]

    def folds(budget: Budget, method: Any, **options: bool) -> bool:
        done = compression(net, batches, budget, method=method, **options)
        return any(edit.op == "fold_batchnorm" for edit in done.plan.edits)

    fast = Automatic("fast")
    assert folds(Budget(latency=0.7), fast)
    assert not folds(Budget(latency=0.7), fast, fold_batchnorm=False)
    assert not folds(Budget(macs=0.7), fast)
    assert not folds(Budget(latency=0.7), "whitened")


def test_what_is_timed_hears_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    net, told, now = _net(), [], [0.0]
    monkeypatch.setattr("rankwise.progress.time.monotonic", lambda: now[0])

    def progress(name: str, done: int, total: int) -> None:
        told.append(name)
        now[0] = 100.0 if "finished" in told and name == "time networks" else 0.0

    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 3, 12, 12, generator=generator) for _ in range(6)]
    small = compress(
        net, batches, Budget(latency=0.6), method=Automatic("normal", seconds=10.0), progress=progress
    )
    assert plan_of(small).settings[0]["held_out_divergence"].keys() == {"fast, predicted", "fast, narrowed"}
    assert told[-1] == "time networks"


def test_wishes_for_layers_hold_for_auto(timer: FakeTimer) -> None:
    net, batches = _net(), [EXAMPLE + 0.1 * i for i in range(4)]
    wishes = {"3": {"dense": True}}
    done = compression(net, batches, Budget(latency=0.9), method=Automatic("fast"), overrides=wishes)
    assert {e.target: e.op for e in done.plan.edits if e.target == "3"} == {"3": "keep"}
    assert _share(timer, done.model, net) <= 0.9


def test_under_a_latency_budget_auto_measures_widths_too(
    timer: FakeTimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batches = _net(), [EXAMPLE + 0.1 * i for i in range(4)]
    measure, seen = Probe.of, set()

    def of(probe: Probe, model: nn.Module) -> float:
        seen.update(m.weight.shape[0] for m in model.modules() if isinstance(m, nn.Conv2d))
        return measure(probe, model)

    monkeypatch.setattr(Probe, "of", of)
    small = compress(net, batches, Budget(latency=0.6), method="auto")
    assert seen == {32, 48} | {8, 16, 24, 29} | {12, 36, 43}
    assert 0.5 <= _share(timer, small, net) <= 0.6
    assert "narrowed" in plan_of(small).settings[-1]["held_out_divergence"]


def test_absolute_times_and_other_measures_hold_together(timer: FakeTimer) -> None:
    net = _net()
    whole = timer.seconds(net, count_macs(net, EXAMPLE[:1]))
    budget = Budget(latency=f"{700 * whole:.6f}ms", params=0.5)
    done = compression(net, None, budget, method=METHODS["l2"], example=EXAMPLE)
    assert done.final.latency <= 0.7e9 * whole
    assert done.final.params <= 0.5 * done.original.params


def test_a_recipe_of_two_methods_is_refused() -> None:
    with pytest.raises(BudgetError, match="latency budget, whose split"):
        compress(_net(), [EXAMPLE], Budget(latency=0.7), method="interpolative+pca")


def test_layers_that_take_longer_alone_than_the_network_are_scaled_down(timer: FakeTimer) -> None:
    """A clock on which a network takes half of the time of its layers alone."""
    net = _net()
    timer.seconds = lambda module, macs: by_macs(module, macs) / (2 if len(list(module.modules())) > 5 else 1)
    timed = Timed(Budget(latency=0.5), net, EXAMPLE)
    svd, layers = get_method("svd"), find_layers(net, EXAMPLE)
    offers = []
    for layer in layers:
        candidates = svd.candidates(layer, None)
        origin = [(svd, candidates, i) for i in range(len(candidates))]
        offers.append(Offer(layer, origin, np.ones(len(origin) + 1, bool)))
    columns = timed.options(offers)
    assert sum(int(c[0]) for c in columns) == pytest.approx(timed.original, abs=len(layers))
    alone = option_times(offers, timed.times)
    for column, seconds in zip(columns, alone, strict=True):
        np.testing.assert_allclose(column, 0.5e9 * seconds, rtol=1e-3)
