"""Schedules: their stages, budgets of the original, resumption, and the two kinds of constrained training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankwise import Budget, plan_of
from rankwise.errors import BudgetError, TrainingError
from rankwise.network import model_cost
from rankwise.network.recompose import recompose
from rankwise.recovery.finetune import finetune
from rankwise.recovery.masks import largest_weights, masked, tiled_diagonals
from rankwise.recovery.training import FineTuning
from rankwise.schedule import Alternation, Schedule, Stage, cascade, iterative, one_shot, retrain_sweep
from tests.recovery.digits import batches, network

pytest.importorskip("lightning_fabric")
ROOT = Path(__file__).parents[1]


def test_stages() -> None:
    assert one_shot(0.5, 3) == [Stage(0.5, 3)]
    assert cascade([0.8, 0.5], 2) == [Stage(0.8, 2), Stage(0.5, 2, 0)]
    steps = iterative(0.5, 1, step=0.8)
    assert [s.fraction for s in steps] == pytest.approx([0.8, 0.64, 0.512, 0.5])
    assert [s.after for s in steps] == [None, 0, 1, 2]
    assert retrain_sweep(0.5, [1, 4]) == [Stage(0.5, 0), Stage(None, 1, 0), Stage(None, 4, 0)]
    with pytest.raises(BudgetError, match=r"step=1.5"):
        iterative(0.5, 1, step=1.5)


@pytest.mark.parametrize("merge", [True, False])
def test_every_stage_keeps_its_fraction_of_the_original(tmp_path: Path, merge: bool) -> None:
    train, validation = batches(size=50, train=300)
    inputs = [x for x, _ in train.split.batches(100)]
    model = network()
    schedule = Schedule(stages=cascade([0.8, 0.6], 2), training=FineTuning(epochs=1, lr=0.1), merge=merge)
    done = schedule.run(model, inputs, train, validation, out=tmp_path)
    kept = [model_cost(net, inputs[0]).macs / model_cost(model, inputs[0]).macs for net in done]
    assert 0.7 < kept[0] <= 0.8 and 0.5 < kept[1] <= 0.6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))
    replaced = [edit.target for edit in plan_of(done[1]).changes()]
    assert all("." not in target for target in replaced) == merge or not merge
    assert len(plan_of(done[1]).settings) == 2
    with pytest.raises(TrainingError, match="measure was 'macs', now 'params'"):
        Schedule(stages=schedule.stages, training=schedule.training, merge=merge, measure="params").run(
            model, inputs, train, validation, out=tmp_path
        )


def test_killed_at_a_random_step_each_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    jobs = ["one-shot", "iterative", "cascade", "retrain-sweep", "alternation"]
    moments = [f"step:{n}" for n in torch.randint(1, 6, (1,)).tolist()] + ["write:2"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.recovery.killed", str(tmp_path), ",".join(jobs), *moments],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    expected = {"codes": [0, -9, -9, 0], "same": True}
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(jobs, expected), moments


def test_the_alternation_draws_the_weights_to_low_rank(tmp_path: Path) -> None:
    train, validation = batches(size=50, train=300)
    example = next(iter(train))[0]
    model = network()

    def distance(mu: float) -> float:
        run = Alternation(
            budget=Budget(params=0.5), rounds=3, finish=0, mu=mu, growth=1.0,
            training=FineTuning(epochs=1, lr=0.02, momentum=0.0, schedule="constant"),
        )  # fmt: skip
        out = tmp_path / str(mu)
        small = run.run(model, train, validation, example=example, out=out).model
        dense = torch.nn.utils.parameters_to_vector(_dense(out, model).parameters())
        low = recompose(small, model)
        assert low is not None
        return (dense - torch.nn.utils.parameters_to_vector(low.parameters())).norm().item()

    assert distance(10.0) < 0.5 * distance(0.0)


def _dense(out: Path, model: nn.Module) -> nn.Module:
    from rankwise.io import load

    return load(out / "round2" / "tuned.safetensors", model)


def test_masks_hold_weights() -> None:
    train, validation = batches(size=50, train=100)
    model = network()
    masks = largest_weights(model, 0.1)
    assert {name: round(float(m.mean()), 2) for name, m in masks.items()} == {
        "0.weight": 0.1,
        "4.weight": 0.1,
    }
    settings: dict[str, Any] = {"epochs": 1, "lr": 0.05, "weight_decay": 0.0}
    tuned = dict(
        finetune(model, train, validation, adjust=masked(masks), **settings).model.named_parameters()
    )
    for name, before in model.named_parameters():
        moved = tuned[name] != before
        assert bool(moved.any()) and (name not in masks or not bool((moved & (masks[name] == 0)).any()))
    diagonal = tiled_diagonals(model)["4.weight"]
    assert diagonal.sum(0).tolist() == [1.0] * 128 and float(diagonal[3, 13]) == 1.0
    with pytest.raises(TrainingError, match="share of 0"):
        largest_weights(model, 0)
