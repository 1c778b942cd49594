"""The search on a joint objective whose terms interact, against all selections."""

from collections.abc import Sequence
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from rankwise.allocation import Table, get_allocator, with_dense
from rankwise.auto.search import Joint, neighbours, refine
from rankwise.methods import Candidates
from rankwise.network import Cost

WEIGHTS = np.array([1.0, 9.0, 0.2])  # what the layers' errors really count


def table(name: str) -> Table:
    costs = np.array([80, 60, 40, 20])
    error = np.array([0.1, 0.4, 1.0, 3.0])
    offered = Candidates(costs, costs, error, {"rank": costs}, "loss", 1.0)
    return with_dense(name, offered, Cost(100, 100, 400), 4)


class Counted(Joint):
    """Errors weighted, plus a term that no single layer shows."""

    def value(self, selection: tuple[int, ...]) -> float:
        self.values[selection] = truth(selection)
        return self.values[selection]


def truth(selection: tuple[int, ...]) -> float:
    errors = np.array([0.0, 0.1, 0.4, 1.0, 3.0])[list(selection)]
    return float((WEIGHTS * errors).sum() + 0.5 * errors[0] * errors[2])


def options() -> list[SimpleNamespace]:
    return [SimpleNamespace(table=table(f"l{i}"), layer=SimpleNamespace(name=f"l{i}")) for i in range(3)]


def allocate(tables: list[Table]) -> tuple[int, ...]:
    return tuple(get_allocator("knapsack", weighting="absolute").allocate(tables, {"params": 180}))


def test_refinement_comes_near_the_joint_optimum() -> None:
    joint = Counted(SimpleNamespace(), options(), lambda *_: None)  # type: ignore[arg-type] # stand-ins
    start = allocate([o.table for o in joint.options])
    found = refine(joint, start, allocate, rounds=4)  # type: ignore[arg-type] # stand-ins
    costs = np.array([100, 80, 60, 40, 20])
    best = min(truth(s) for s in product(range(5), repeat=3) if costs[list(s)].sum() <= 180)
    assert truth(found) <= truth(start)
    assert truth(start) > 1.5 * best
    assert truth(found) < 1.1 * best


def test_no_round_changes_nothing() -> None:
    joint = Counted(SimpleNamespace(), options(), lambda *_: None)  # type: ignore[arg-type] # stand-ins
    assert refine(joint, (1, 2, 3), allocate, rounds=0) == (1, 2, 3)  # type: ignore[arg-type] # stand-ins


def every(*weights: float) -> dict[tuple[int, ...], float]:
    """The joint divergence of all selections where it is the weighted sum of the errors."""
    error = [0.0, 0.1, 0.4, 1.0, 3.0]
    return {
        s: sum(w * error[i] for w, i in zip(weights, s, strict=True)) for s in product(range(5), repeat=3)
    }


def test_a_round_changes_a_weight_by_no_more_than_a_factor() -> None:
    joint = Joint(SimpleNamespace(), options(), lambda *_: None, values=every(100.0, 0.001, 2.0))  # type: ignore[arg-type] # stand-ins
    errors = [o.table.candidates.error for o in joint.options]
    assert joint.weights((2, 2, 2), errors) == pytest.approx([8.0, 1 / 8, 2.0])


def test_a_correction_that_does_not_help_is_tried_by_half() -> None:
    values = every(4.0, 1.0, 1.0)
    joint = Joint(SimpleNamespace(), options(), lambda *_: None, values=values)  # type: ignore[arg-type] # stand-ins
    start, dearer, better = (2, 2, 2), (2, 2, 3), (1, 2, 2)
    tried: list[float] = []

    def allocate(tables: Sequence[Table]) -> tuple[int, ...]:
        tried.append(float(tables[0].candidates.error[2] / 0.4))
        return better if len(tried) == 2 else dearer

    assert refine(joint, start, allocate, rounds=1) == better
    assert tried == pytest.approx([4.0, 2.0])
    tried[:] = [0.0, 0.0]  # the second never comes
    assert refine(joint, start, allocate, rounds=1) == start
    assert tried[2:] == pytest.approx([4.0, 2.0, 2.0**0.5])


def test_the_joint_divergence_is_that_of_the_modules_asked_for_each_built_once() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    parts = [
        SimpleNamespace(layer=SimpleNamespace(name=name, module=module))
        for name, module in model.named_children()
    ]
    built: list[tuple[str, int]] = []

    def build(part: SimpleNamespace, index: int) -> nn.Module:
        built.append((part.layer.name, index))
        return nn.Linear(1, 1 + index + 10 * int(part.layer.name))

    def divergence() -> float:
        return sum(module.out_features for module in model)  # type: ignore[misc] # a Sequential

    joint = Joint(SimpleNamespace(model=model, divergence=divergence), parts, build)  # type: ignore[arg-type] # stand-ins
    for first, second in ((1, 0), (2, 0), (2, 1), (0, 1), (1, 2), (0, 0), (1, 0), (2, 2)):
        expected = 1 + first + (11 + second if second else 1)
        assert joint.value((first, second)) == expected
    assert sorted(built) == [("0", 1), ("0", 2), ("1", 1), ("1", 2)]


def test_neighbours_are_a_notch_away_on_either_side() -> None:
    found = table("a")
    assert neighbours(found, 2) == (3, 1)
    assert neighbours(found, 0) == (1, 0)
    assert neighbours(found, 4) == (4, 3)
