"""The minimax allocator against every choice there is, and against the heuristic of the ALDS paper."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation import Energy, Minimax
from rankwise.errors import BudgetError
from tests.allocation.alds_heuristic import alds_table, group_spectra, heuristic
from tests.allocation.tables import brute_force, dense_cost, errors, fits, limits_of, random_tables, total


def _sorted(values: list[float]) -> list[float]:
    return sorted(values, reverse=True)


@given(
    seed=st.integers(0, 10_000),
    fractions=st.sampled_from(
        [{"params": 0.45}, {"params": 0.6, "macs": 0.5}, {"params": 0.5, "macs": 0.6, "bytes": 0.5}]
    ),
)
def test_the_largest_error_is_the_smallest_possible(seed: int, fractions: dict[str, float]) -> None:
    tables = random_tables(seed, 4, 5)
    limits = limits_of(tables, **fractions)
    best = brute_force(tables, limits, max)
    if best is None:
        with pytest.raises(BudgetError):
            Minimax().allocate(tables, limits)
        return
    chosen = Minimax().allocate(tables, limits)
    assert fits(tables, chosen, limits)
    assert max(errors(tables, chosen)) == best


@given(seed=st.integers(0, 10_000))
def test_with_one_budget_the_sorted_errors_are_the_lexicographic_optimum(seed: int) -> None:
    tables = random_tables(seed, 4, 5)
    limits = limits_of(tables, params=0.55)
    try:
        chosen = Minimax().allocate(tables, limits)
    except BudgetError:
        return
    best = brute_force(tables, limits, _sorted)
    unused = (limits["params"] - total(tables, chosen, "params")) / dense_cost(tables, "params")
    assert _sorted(errors(tables, chosen)) == best or unused <= 0.01


@given(seed=st.integers(0, 10_000), low=st.floats(0.3, 0.9), step=st.floats(0.02, 0.4))
def test_the_largest_error_falls_as_the_budget_grows(seed: int, low: float, step: float) -> None:
    tables = random_tables(seed, 10, 15)
    small, large = (limits_of(tables, params=f, macs=f) for f in (low, low + step))
    try:
        tight = max(errors(tables, Minimax().allocate(tables, small)))
    except BudgetError:
        return
    assert max(errors(tables, Minimax().allocate(tables, large))) <= tight


def test_energy_finds_the_same_bound_under_one_budget() -> None:
    for seed in range(10):
        tables = random_tables(seed, 8, 15)
        limits = limits_of(tables, macs=0.6)
        ours, energy = (max(errors(tables, a.allocate(tables, limits))) for a in (Minimax(), Energy()))
        assert energy == pytest.approx(ours, rel=1e-12)


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7])
def test_never_above_the_heuristic_of_the_paper(keep: float) -> None:
    generator = np.random.default_rng(0)
    shapes = [(8, 3, 3, 3), (8, 8, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (10, 16, 1, 1)]
    spectra = [group_spectra(s, generator) for s in shapes]
    tables = [
        alds_table(f"layer{i}", s, spectrum)
        for i, (s, spectrum) in enumerate(zip(shapes, spectra, strict=True))
    ]
    limit = int(keep * sum(int(np.prod(s)) for s in shapes))
    theirs = heuristic(shapes, spectra, limit, seed=0)
    chosen = Minimax().allocate(tables, {"params": limit})
    assert total(tables, chosen, "params") <= limit
    assert theirs.params <= limit
    assert max(errors(tables, chosen)) <= theirs.largest_error
