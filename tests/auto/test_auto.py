"""``method="auto"``: the budget is met, held-out examples decide, and everything about it is in the plan."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.network.skip_net import SkipNet, images
from torch import nn

import rankwise
from rankwise.allocation import get_allocator
from rankwise.auto import EFFORTS, Automatic, AutoStage
from rankwise.errors import BudgetError, RankwiseError, UnknownNameError
from rankwise.network import model_cost
from rankwise.plan import plan_of
from rankwise.progress import Deadline, TimeIsUp
from rankwise.recovery import divergence
from rankwise.recovery.divergence import Deviation, deviation
from rankwise.recovery.holdout import hold_out


def net() -> nn.Module:
    torch.manual_seed(0)
    return SkipNet(8).eval()


def batches() -> list[torch.Tensor]:
    return [images(16, seed) for seed in range(8)]


@pytest.fixture(scope="module")
def done() -> tuple[nn.Module, nn.Module]:
    model = net()
    return model, rankwise.compress(model, batches(), rankwise.Budget(macs=0.4), method="auto")


def test_the_budget_is_met_and_the_network_is_plain(done: tuple[nn.Module, nn.Module]) -> None:
    model, small = done
    kept = model_cost(small, images(1)).macs / model_cost(model, images(1)).macs
    assert 0.3 < kept <= 0.4
    assert all(type(m).__module__.startswith(("torch.nn", "tests.")) for m in small.modules())


def test_it_is_closer_to_the_original_than_single_methods(done: tuple[nn.Module, nn.Module]) -> None:
    model, small = done
    fresh = [images(64, 99)]
    for method in ("whitened", "kfac", "svd"):
        other = rankwise.compress(model, batches(), rankwise.Budget(macs=0.4), method=method)
        assert divergence(small, model, fresh) < divergence(other, model, fresh)


def test_the_plan_tells_what_was_measured(done: tuple[nn.Module, nn.Module], tmp_path: object) -> None:
    small = done[1]
    plan = plan_of(small)
    (settings,) = plan.settings
    assert settings["methods"] == [{"name": "auto", "effort": "normal"}]
    assert settings["chosen"] in settings["held_out_divergence"]
    assert settings["held_out_square"].keys() == settings["held_out_divergence"].keys()
    assert len({edit.method for edit in plan.changes()}) >= 1
    path = f"{tmp_path}/small.safetensors"
    rankwise.save(small, path)
    again = rankwise.load(path, net())
    x = images(3, 5)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), small.eval()(x))


@pytest.mark.parametrize("folded", [False, True])
def test_its_plan_builds_the_same_network_again_the_refit_included(folded: bool) -> None:
    model, data = net(), batches()
    small = rankwise.compress(
        model, data, rankwise.Budget(macs=0.5), method=Automatic("fast"), fold_batchnorm=folded
    )
    again = rankwise.apply(plan_of(small), model, data)
    x = images(4, 7)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), small.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_plan_of_several_calls_refits_after_those_of_auto_alone() -> None:
    model, data = net(), batches()
    first = rankwise.compress(model, data, rankwise.Budget(macs=0.8), method="interpolative+pca")
    second = rankwise.compress(first, data, rankwise.Budget(macs=0.7), method=Automatic("fast"))
    third = rankwise.compress(second, data, rankwise.Budget(macs=0.9), method="svd")
    plan = plan_of(third)
    assert [any(edit.refitted for edit in step) for step in plan.steps()] == [False, False, True, False]
    again = rankwise.apply(rankwise.Plan.from_json(plan.to_json()), model, iter(data), example=data[0])
    x = images(4, 7)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), third.eval()(x), rtol=1e-3, atol=1e-4)


def test_a_stream_of_batches_is_kept_for_what_follows() -> None:
    data = batches()
    options = {"method": Automatic("fast"), "recovery": "bias", "example": data[0]}
    states = [
        rankwise.compress(net(), given, rankwise.Budget(macs=0.6), **options).state_dict()
        for given in (iter(data), data)
    ]
    assert all(torch.equal(v, states[1][n]) for n, v in states[0].items())


def test_the_original_is_left_alone_and_the_same_seed_gives_the_same_network() -> None:
    model = net()
    kept = copy.deepcopy(model.state_dict())
    method = Automatic(effort="fast")
    made = [rankwise.compress(model, batches(), rankwise.Budget(params=0.5), method=method) for _ in range(2)]
    assert all(torch.equal(v, kept[n]) for n, v in model.state_dict().items())
    states = [m.state_dict() for m in made]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][n]) for n, v in states[0].items())


def test_without_data_the_weights_decide() -> None:
    small = rankwise.compress(net(), None, rankwise.Budget(params=0.6), method="auto", example=images(1))
    assert sum(p.numel() for p in small.parameters()) <= 0.6 * sum(p.numel() for p in net().parameters())


def test_networks_without_classes_are_compared_by_squared_differences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 1)
    )
    data = [images(16, seed) for seed in range(8)]
    small = rankwise.compress(model.eval(), data, rankwise.Budget(macs=0.5), method=Automatic("fast"))
    plain = rankwise.compress(model, data, rankwise.Budget(macs=0.5), method="svd")
    assert divergence(small, model, [images(64, 9)]) < divergence(plain, model, [images(64, 9)])


def test_held_out_examples_have_no_part_in_the_candidates() -> None:
    data = batches()
    data[-1] = data[-1] * float("nan")  # whoever read it would say so
    fit, held = hold_out(data)
    assert len(held) == 1
    stage = AutoStage(allocator=get_allocator("knapsack"), limits={}, effort="fast")
    _, survey = stage.surveyed(net(), images(1), fit, EFFORTS["fast"])
    assert survey.options


def test_a_level_competes_with_the_one_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EFFORTS, "more", replace(EFFORTS["fast"], ranks=3, besides="fast"))
    model, data = net(), batches()
    notes = []
    for effort in ("fast", "more"):
        small = rankwise.compress(model, data, rankwise.Budget(macs=0.5), method=Automatic(effort))
        notes.append(plan_of(small).settings[0])
    less, more = (note["held_out_divergence"] for note in notes)
    assert more.keys() == {"predicted", "fast, predicted"}
    assert more["fast, predicted"] == less["predicted"]


@pytest.mark.parametrize("place", [0, 1])
def test_the_nearest_on_held_out_examples_is_the_result(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.setitem(EFFORTS, "more", replace(EFFORTS["fast"], ranks=3, besides="fast"))
    given: list[Deviation] = []

    def pick(deviations: list[Deviation]) -> int:
        given.extend(deviations)
        return place

    monkeypatch.setattr("rankwise.auto.stage.nearest", pick)
    model, data = net(), batches()
    small = rankwise.compress(model, data, rankwise.Budget(macs=0.5), method=Automatic("more"))
    notes = plan_of(small).settings[0]
    assert notes["chosen"] == ["fast, predicted", "predicted"][place]
    held = deviation(small, model, hold_out(data)[1])
    torch.testing.assert_close(held.squares, given[place].squares)
    assert notes["held_out_divergence"][notes["chosen"]] == pytest.approx(held.divergence, abs=1e-6)
    assert notes["held_out_square"][notes["chosen"]] == pytest.approx(held.square, abs=1e-6)


def test_when_the_time_is_over_it_has_what_is_finished() -> None:
    model, data, budget = net(), batches(), rankwise.Budget(macs=0.5)
    told: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append(stage)

    hurried = rankwise.compress(
        model, data, budget, method=Automatic("thorough", seconds=1e-3), progress=progress
    )
    fast = rankwise.compress(model, data, budget, method=Automatic("fast"))
    assert plan_of(hurried).settings[0]["held_out_divergence"].keys() == {"fast, predicted"}
    assert all(torch.equal(v, hurried.state_dict()[n]) for n, v in fast.state_dict().items())
    assert told[-1] == "finished" and "refit" in told
    patient = rankwise.compress(model, data, budget, method=Automatic("normal", seconds=1e6))
    notes = plan_of(patient).settings[0]
    assert notes["held_out_divergence"].keys() == {"fast, predicted", "measured"}
    assert notes["chosen"] in notes["held_out_divergence"]


def test_a_deadline_stops_only_what_has_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("rankwise.progress.time.monotonic", lambda: now[0])
    told: list[tuple[str, int, int]] = []
    deadline = Deadline(lambda *given: told.append(given), 10.0)
    now[0] = 11.0
    deadline("build", 1, 2)
    deadline.ready, now[0] = True, 9.0
    deadline("build", 2, 2)
    now[0] = 11.0
    with pytest.raises(TimeIsUp):
        deadline("refit", 0, 2)
    assert told == [("build", 1, 2), ("build", 2, 2), ("refit", 0, 2)]


@pytest.mark.parametrize("stage", ["calibrate", "decompose", "build", "measure", "search", "refit"])
def test_stopped_in_the_middle_it_leaves_nothing_behind(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    least = replace(EFFORTS["fast"], cp=1.0, ranks=2, draft=2, polish=2)
    levels = {"fast": least, "more": replace(least, points=2, rounds=1, finalists=2)}
    monkeypatch.setattr("rankwise.auto.effort.EFFORTS", levels)
    now, told = [0.0], []
    monkeypatch.setattr("rankwise.progress.time.monotonic", lambda: now[0])

    def progress(name: str, done: int, total: int) -> None:
        told.append(name)
        if name == stage and "finished" in told:
            now[0] = 100.0

    model, data, threads = net().train(), batches(), torch.get_num_threads()
    budget = rankwise.Budget(macs=0.5)
    method = Automatic("more", seconds=10.0)
    small = rankwise.compress(model, data, budget, method=method, progress=progress)
    assert told[-1] == stage and now[0] == 100.0
    assert plan_of(small).settings[0]["held_out_divergence"].keys() == {"fast, predicted"}
    fast = rankwise.compress(model, data, budget, method=Automatic("fast"))
    assert all(torch.equal(v, small.state_dict()[n]) for n, v in fast.state_dict().items())
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()
    for network in (model, small):
        assert all(m.training for m in network.modules())
        assert all(p.requires_grad for p in network.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_its_plan_builds_the_same_network_within_the_same_memory() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 48),
        nn.Tanh(),
        nn.Linear(48, 48),
        nn.Tanh(),
        nn.Linear(48, 48),
        nn.Tanh(),
        nn.Linear(48, 4),
    )
    data = [torch.randn(32, 8) for _ in range(8)]
    limit = 3 * 8 * 48 * (48 + 1) * 2  # moments of 48 inputs for each part, not those of 48 targets as well
    small, bound = (
        rankwise.compress(model, data, rankwise.Budget(macs=0.5), method=Automatic("fast"), max_memory=memory)
        for memory in (None, limit)
    )
    again = rankwise.apply(plan_of(bound), model, data, max_memory=limit)
    x = torch.randn(16, 8)
    with torch.no_grad():
        assert not torch.allclose(small(x), bound(x), atol=1e-3)
        torch.testing.assert_close(again(x), bound(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan"), True, "2m"])
def test_seconds_are_a_positive_number(seconds: object) -> None:
    with pytest.raises(RankwiseError, match="positive numbers"):
        Automatic(seconds=seconds)  # type: ignore[arg-type] # what a command line may bring
    assert "seconds" not in Automatic().config()
    assert Automatic("fast", 2.5).config() == {"effort": "fast", "seconds": 2.5}


def test_bad_wishes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="effort"):
        Automatic(effort="norml")
    with pytest.raises(RankwiseError, match="auto"):
        rankwise.compress(net(), batches(), rankwise.Budget(macs=0.5), method=["auto", "svd"])
    with pytest.raises(BudgetError, match="smallest reachable"):
        rankwise.compress(net(), batches(), rankwise.Budget(params=0.001), method=Automatic("fast"))
    assert list(EFFORTS) == ["fast", "normal", "thorough"]
