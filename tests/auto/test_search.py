"""The search on a joint objective whose terms interact, against all selections."""

from itertools import product
from types import SimpleNamespace

import numpy as np

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


def test_neighbours_are_a_notch_away_on_either_side() -> None:
    found = table("a")
    assert neighbours(found, 2) == (3, 1)
    assert neighbours(found, 0) == (1, 0)
    assert neighbours(found, 4) == (4, 3)
