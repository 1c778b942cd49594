"""Widths of a chain whose costs are products, under allocators that add costs up."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from rankwise.allocation import Allocator, Table, get_allocator, restrict
from rankwise.allocation.widths import WidthCurve, allocate_widths, width_tables
from rankwise.errors import BudgetError
from rankwise.network.cost import Cost


def _cost(widths: Sequence[int]) -> Cost:
    chain = [3, *widths, 5]
    macs = sum(a * b for a, b in itertools.pairwise(chain))
    return Cost(macs, 7 * macs, 4 * macs)


def _curves(*sizes: int) -> list[WidthCurve]:
    rng = np.random.default_rng(0)
    return [WidthCurve(f"g{i}", np.append(np.cumsum(rng.random(n))[::-1], 0.0)) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("name", ["uniform", "knapsack", "minimax", "energy", "iterative"])
@pytest.mark.parametrize("limits", [{"macs": 3000}, {"params": 300, "bytes": 1100}])
def test_limits_hold_and_are_used(name: str, limits: dict[str, int]) -> None:
    tables = width_tables(_curves(20, 16, 12), _cost)
    widths = allocate_widths(get_allocator(name), tables, _cost, limits)
    left = {m: limit - getattr(_cost(widths), m) for m, limit in limits.items()}
    assert all(value >= 0 for value in left.values())
    wider = [[*widths[:i], widths[i] + 1, *widths[i + 1 :]] for i in range(3) if widths[i] < (20, 16, 12)[i]]
    assert all(any(getattr(_cost(w), m) > limit for m, limit in limits.items()) for w in wider)


def test_only_allowed_widths_are_taken() -> None:
    tables = width_tables(_curves(20, 16), _cost, multiple_of=4, min_width=8)
    widths = allocate_widths(get_allocator("uniform"), tables, _cost, {"params": 300})
    assert all(w % 4 == 0 and w >= 8 for w in widths)
    tables = [restrict(table, max_rank=10) for table in width_tables(_curves(20, 16), _cost)]
    assert len(tables[0].options) == 11  # dense and 1 to 10


@dataclass(frozen=True)
class Fixed(Allocator):
    """Whatever the limits, all groups three narrower than they are."""

    def allocate(self, tables: Sequence[Table], limits: Mapping[str, int]) -> list[int]:
        return [3] * len(tables)


def test_what_is_left_goes_where_the_error_falls_most_per_cost() -> None:
    def cost(widths: Sequence[int]) -> Cost:
        return Cost(widths[0] + 4 * widths[1] + widths[2])

    errors = ([9, 8, 7, 3, 1, 0], [20, 19, 18, 12, 5, 0], [9, 8, 1.2, 0.8, 0.4, 0])
    curves = [WidthCurve(f"g{i}", np.array(error, float)) for i, error in enumerate(errors)]
    tables = width_tables(curves, cost)
    narrow = cost([2, 2, 2]).params
    for left, expected in ((1, [3, 2, 2]), (2, [4, 2, 2]), (6, [4, 3, 2]), (7, [5, 3, 2]), (8, [5, 3, 3])):
        assert allocate_widths(Fixed(), tables, cost, {"params": narrow + left}) == expected


def test_an_impossible_budget_says_what_is_reachable() -> None:
    with pytest.raises(BudgetError, match="macs: 10 allowed, 63 reachable"):
        allocate_widths(get_allocator("uniform"), width_tables(_curves(20, 16), _cost), _cost, {"macs": 10})
