"""The knapsack against every choice there is, and against the other allocators."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation import Knapsack, Table, Uniform
from rankwise.allocation.problem import TOLERANCE
from rankwise.errors import BudgetError
from tests.allocation.tables import (
    brute_force,
    dense_cost,
    errors,
    fits,
    limits_of,
    random_tables,
    table,
    total,
)


@given(
    seed=st.integers(0, 10_000),
    fractions=st.sampled_from(
        [{"params": 0.45}, {"params": 0.6, "macs": 0.5}, {"params": 0.5, "macs": 0.6, "bytes": 0.5}]
    ),
)
def test_equals_brute_force(seed: int, fractions: dict[str, float]) -> None:
    tables = random_tables(seed, 4, 5)
    limits = limits_of(tables, **fractions)
    best = brute_force(tables, limits, sum)
    if best is None:
        with pytest.raises(BudgetError):
            Knapsack(gap=1e-9).allocate(tables, limits)
        return
    chosen = Knapsack(gap=1e-9).allocate(tables, limits)
    assert fits(tables, chosen, limits)
    unused = min((limits[m] - total(tables, chosen, m)) / dense_cost(tables, m) for m in limits)
    found = sum(errors(tables, chosen))
    # A larger error is only right where it buys the use of a budget that the optimum leaves unused.
    assert found == pytest.approx(best, rel=1e-8) or (found > best and unused <= TOLERANCE)


def within_tolerance(tables: list[Table], limit: int) -> list[tuple[int, ...]]:
    """Every choice that comes within 1 % of the dense parameters below the limit."""
    floor = limit - TOLERANCE * dense_cost(tables, "params")
    return [c for c in product(*(t.options for t in tables)) if floor <= total(tables, c, "params") <= limit]


def test_the_optimum_gives_way_only_to_the_best_that_uses_the_budget() -> None:
    """An independent search over both objectives: the best error, and the best within 1 % of the limit."""
    seen = set()
    for seed in range(60):
        tables = random_tables(seed, 3, 4)
        limits = limits_of(tables, params=0.6)
        best = brute_force(tables, limits, sum)
        near = within_tolerance(tables, limits["params"])
        chosen = Knapsack(gap=1e-9).allocate(tables, limits)
        found = sum(errors(tables, chosen))
        if near:
            assert tuple(chosen) in near
            assert found == pytest.approx(min(sum(errors(tables, c)) for c in near), rel=1e-8)
        else:
            assert found == pytest.approx(best, rel=1e-8)
        seen.add((bool(near), found == pytest.approx(best, rel=1e-8)))
    assert seen == {(True, True), (True, False), (False, True)}


@pytest.mark.parametrize("extra", [0.0, 1e-12])
def test_what_costs_more_at_the_same_error_uses_the_budget(extra: float) -> None:
    """Not the option that costs a layer everything: it was taken when equal errors were dropped."""
    tables = [
        table("careful", [10, 70], [1.0, 1e-9], 100),
        table("careless", [10, 20, 30], [1e-9, 1e-9 + extra, 1e-9 + 2 * extra], 100),
    ]
    assert Knapsack().allocate(tables, {"params": 100}) == [2, 3]


@given(seed=st.integers(0, 10_000), fraction=st.floats(0.3, 0.95))
def test_never_worse_than_uniform(seed: int, fraction: float) -> None:
    tables = random_tables(seed, 6, 20)
    limits = limits_of(tables, params=fraction)
    try:
        uniform = sum(errors(tables, Uniform().allocate(tables, limits)))
    except BudgetError:
        return
    assert sum(errors(tables, Knapsack().allocate(tables, limits))) <= uniform * (1 + 1e-5) + 1e-12


@given(seed=st.integers(0, 10_000), low=st.floats(0.3, 0.9), step=st.floats(0.02, 0.4))
def test_error_falls_as_the_budget_grows(seed: int, low: float, step: float) -> None:
    tables = random_tables(seed, 12, 25)
    small, large = limits_of(tables, params=low), limits_of(tables, params=low + step)
    try:
        tight = sum(errors(tables, Knapsack().allocate(tables, small)))
    except BudgetError:
        return
    assert sum(errors(tables, Knapsack().allocate(tables, large))) <= tight * (1 + 1e-5) + 1e-12
