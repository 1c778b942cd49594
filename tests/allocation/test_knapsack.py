"""The knapsack against every choice there is, and against the other allocators."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation import Knapsack, Uniform
from rankwise.allocation.problem import TOLERANCE
from rankwise.errors import BudgetError
from tests.allocation.tables import brute_force, dense_cost, errors, fits, limits_of, random_tables, total


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


def test_the_optimum_gives_way_only_to_use_the_budget() -> None:
    """An independent search over both objectives: the best error, and the best within 1 % of the limit."""
    seen = set()
    for seed in range(30):
        tables = random_tables(seed, 3, 4)
        limits = limits_of(tables, params=0.6)
        whole = dense_cost(tables, "params")
        best = brute_force(tables, limits, sum)
        chosen = Knapsack(gap=1e-9).allocate(tables, limits)
        unused = (limits["params"] - total(tables, chosen, "params")) / whole
        optimal = sum(errors(tables, chosen)) == pytest.approx(best, rel=1e-8)
        seen.add((optimal, unused <= TOLERANCE))
        assert optimal or unused <= TOLERANCE
    assert (True, True) in seen


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
