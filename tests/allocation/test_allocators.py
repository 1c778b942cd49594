"""What every allocator promises: budgets met and used, errors named, and the same answer twice."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation import Allocator, get_allocator, restrict
from rankwise.errors import BudgetError, UnknownNameError
from tests.allocation.tables import dense_cost, errors, fits, limits_of, random_tables, table, total

NAMES = ["energy", "energy_product", "iterative", "knapsack", "lrank", "minimax", "uniform"]
BUDGETS = [
    {"params": 0.5},
    {"macs": 0.7},
    {"params": 0.6, "macs": 0.5},
    {"params": 0.7, "macs": 0.6, "bytes": 0.65},
]


@pytest.fixture(params=NAMES)
def allocator(request: pytest.FixtureRequest) -> Allocator:
    return get_allocator(request.param)


def fine_tables(layers: int = 8, options: int = 60):  # type: ignore[no-untyped-def]
    """Low-rank layers with fine steps: rank r costs r, the dense layer two thirds of the full rank."""
    generator = np.random.default_rng(0)
    tables = []
    for i in range(layers):
        step = int(generator.integers(5, 40))
        spectrum = np.sort(generator.random(options) ** generator.uniform(1, 6))[::-1]
        tail = np.cumsum(spectrum[::-1])[::-1]
        params = np.arange(1, options + 1) * step
        error = np.append(tail[1:], 0.0)
        tables.append(
            table(
                f"layer{i}",
                params.tolist(),
                error.tolist(),
                int(params[-1] * 2 // 3),
                4 ** (i % 4),
                float(tail[0]),
            )
        )
    return tables


@pytest.mark.parametrize("fractions", BUDGETS, ids=str)
def test_budgets_are_met_and_used_to_one_percent(allocator: Allocator, fractions: dict[str, float]) -> None:
    tables = fine_tables()
    limits = limits_of(tables, **fractions)
    chosen = allocator.allocate(tables, limits)
    assert len(chosen) == len(tables)
    assert fits(tables, chosen, limits)
    unused = [(limits[m] - total(tables, chosen, m)) / dense_cost(tables, m) for m in limits]
    assert min(unused) <= 0.01


@given(seed=st.integers(0, 10_000), name=st.sampled_from(NAMES), fractions=st.sampled_from(BUDGETS))
def test_met_or_refused_with_the_truth(seed: int, name: str, fractions: dict[str, float]) -> None:
    tables = random_tables(seed, 4, 5)
    limits = limits_of(tables, **fractions)
    try:
        chosen = get_allocator(name).allocate(tables, limits)
    except BudgetError:
        assert not any(fits(tables, c, limits) for c in product(*(t.options for t in tables)))
    else:
        assert fits(tables, chosen, limits)
        assert chosen == get_allocator(name).allocate(tables, limits)


@given(seed=st.integers(0, 10_000), name=st.sampled_from(NAMES))
def test_coarse_options_still_use_the_budget_where_a_sensible_choice_does(seed: int, name: str) -> None:
    tables = random_tables(seed, 3, 4)
    limits = limits_of(tables, params=0.6)
    try:
        chosen = get_allocator(name).allocate(tables, limits)
    except BudgetError:
        return
    whole = dense_cost(tables, "params")
    better = [
        c
        for c in product(*(t.options for t in tables))
        if limits["params"] - 0.01 * whole <= total(tables, c, "params") <= limits["params"]
        and max(errors(tables, c)) <= max(errors(tables, chosen))
        and sum(errors(tables, c)) < sum(errors(tables, chosen))
    ]
    unused = (limits["params"] - total(tables, chosen, "params")) / whole
    assert unused <= 0.01 or not better


def test_a_budget_that_leaves_everything_leaves_everything_dense(allocator: Allocator) -> None:
    tables = fine_tables(3)
    assert allocator.allocate(tables, limits_of(tables, params=1.0, macs=1.5)) == [0, 0, 0]
    assert allocator.allocate(tables, {}) == [0, 0, 0]
    assert allocator.allocate([], {"params": 3}) == []


def test_impossible_budgets_say_what_is_reachable_and_who_holds_it_up(allocator: Allocator) -> None:
    tables = [
        table("stem", [50, 60], [0.5, 0.1], 100, 9),
        table("wide", [700, 800], [0.5, 0.1], 1000),
        table("fc", [1], [0.5], 10),
    ]
    with pytest.raises(
        BudgetError, match=r"params: at most 600 .*smallest reachable 751 of 1,110.*wide \(700\), stem"
    ):
        allocator.allocate(tables, {"params": 600, "macs": 10_000})
    with pytest.raises(BudgetError, match=r"there is no layer"):
        allocator.allocate([], {"params": -1})
    with pytest.raises(UnknownNameError, match="'flops'"):
        allocator.allocate(tables, {"flops": 600})


def test_budgets_that_are_only_reachable_one_by_one_are_refused(allocator: Allocator) -> None:
    tables = []
    for name in "ab":
        t = table(name, [10, 50], [0.5, 0.5], 100)
        t.candidates.macs[:] = [100, 50, 10]
        tables.append(t)
    assert fits(tables, allocator.allocate(tables, {"params": 60, "macs": 60}), {"params": 60, "macs": 60})
    with pytest.raises(BudgetError, match=r"together, though each can alone: macs: .*; params: "):
        allocator.allocate(tables, {"params": 50, "macs": 50})


def test_only_allowed_options_are_chosen(allocator: Allocator) -> None:
    tables = [restrict(t, multiple_of=8, min_rank=8) for t in fine_tables()]
    limits = limits_of(tables, params=0.5)
    chosen = allocator.allocate(tables, limits)
    ranks = [t.candidates.choice(i)["rank"] for t, i in zip(tables, chosen, strict=True)]
    assert all(r % 8 == 0 or r == 60 for r in ranks)
    assert fits(tables, chosen, limits)


def test_iterative_takes_the_smallest_error_per_cost_saved_and_gives_back_what_it_can() -> None:
    rule = get_allocator("iterative")
    tables = [table("a", [90], [0.1], 100), table("b", [80], [0.15], 100), table("c", [90], [0.12], 100)]
    assert rule.allocate(tables, {"params": 280}) == [0, 1, 0]  # not a and c, whose errors are smaller
    tables = [table("a", [90], [0.01], 100), table("b", [70], [0.1], 100)]
    assert rule.allocate(tables, {"params": 175}) == [0, 1]  # a was taken first, and was not enough
