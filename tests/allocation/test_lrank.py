"""The C step of learned rank against enumeration, and lambda against the hull."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation import LearnedRank, c_step
from tests.allocation.tables import brute_force, fits, limits_of, random_tables, table


@given(seed=st.integers(0, 10_000), price=st.floats(0, 0.2), macs=st.floats(0, 0.01))
def test_c_step_minimises_error_plus_price(seed: int, price: float, macs: float) -> None:
    tables = random_tables(seed, 3, 6)
    for t, chosen in zip(tables, c_step(tables, {"params": price, "macs": macs}), strict=True):
        found = t.candidates
        values = [
            e + price * p + macs * m for e, p, m in zip(found.error, found.params, found.macs, strict=True)
        ]
        assert values[chosen] == pytest.approx(min(values), rel=1e-12)


def test_c_step_prefers_the_cheaper_of_equals_and_knows_both_weightings() -> None:
    t = table("a", [16, 32], [0.5, 0.25], dense=48, scale=2.0)
    assert c_step([t], {"params": 1 / 64}) == [1]  # 0.75 each
    assert c_step([t], {"params": 1 / 80}) == [0]
    assert c_step([t], {"params": 1 / 80}, "relative") == [1]


@given(seed=st.integers(0, 10_000), price=st.floats(0.005, 0.1))
def test_a_budget_that_a_price_reaches_exactly_gives_that_prices_choice(seed: int, price: float) -> None:
    tables = random_tables(seed, 4, 5)
    chosen = c_step(tables, {"params": price})
    limits = {"params": sum(int(t.candidates.params[i]) for t, i in zip(tables, chosen, strict=True))}
    found = LearnedRank().allocate(tables, limits)
    absolute = sum(t.candidates.error[i] for t, i in zip(tables, chosen, strict=True))
    assert fits(tables, found, limits)
    # A choice of the hull is optimal for its own cost, so nothing within that budget beats it.
    assert sum(t.candidates.error[i] for t, i in zip(tables, found, strict=True)) == pytest.approx(
        absolute, rel=1e-9
    )


def test_close_to_the_optimum_in_general() -> None:
    ratios = []
    for seed in range(20):
        tables = random_tables(seed, 4, 5)
        limits = limits_of(tables, params=0.5)
        chosen = LearnedRank(weighting="relative").allocate(tables, limits)
        relative = sum(
            t.candidates.error[i] / t.candidates.scale for t, i in zip(tables, chosen, strict=True)
        )
        ratios.append(relative / brute_force(tables, limits, sum))  # type: ignore[operator]
    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) < 1.3
