"""The energy product against every choice there is, and against the greedy removal of the paper."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation import Knapsack, Table, get_allocator
from rankwise.allocation.problem import TOLERANCE
from rankwise.errors import BudgetError
from tests.allocation.tables import brute_force, dense_cost, errors, limits_of, random_tables, table, total


def lost(relative: list[float]) -> float:
    """1 minus the product of the kept energies, each at least 1e-12."""
    return 1.0 - math.prod(max(1.0 - error, 1e-12) for error in relative)


@given(
    seed=st.integers(0, 10_000), fractions=st.sampled_from([{"params": 0.5}, {"params": 0.6, "macs": 0.5}])
)
def test_equals_brute_force(seed: int, fractions: dict[str, float]) -> None:
    tables = random_tables(seed, 4, 5)
    limits = limits_of(tables, **fractions)
    best = brute_force(tables, limits, lost)
    allocator = get_allocator("energy_product")
    if best is None:
        with pytest.raises(BudgetError):
            allocator.allocate(tables, limits)
        return
    chosen = allocator.allocate(tables, limits)
    assert all(total(tables, chosen, measure) <= limit for measure, limit in limits.items())
    unused = min((limits[m] - total(tables, chosen, m)) / dense_cost(tables, m) for m in limits)
    found = lost(errors(tables, chosen))
    assert found == pytest.approx(best, abs=1e-6) or (found > best and unused <= TOLERANCE)


def spectra(seed: int) -> list[tuple[np.ndarray, int]]:
    """PCA eigenvalues of a few layers, and the cost of one rank of each."""
    draw = np.random.default_rng(seed)
    return [(np.arange(1, 17) ** -draw.uniform(0.3, 2.5), int(draw.integers(1, 30))) for _ in range(5)]


def greedy(layers: list[tuple[np.ndarray, int]], limit: int) -> float:
    """Zhang et al.: drop the eigenvalue with the smallest relative loss of energy per cost until it fits."""
    ranks = [len(values) for values, _ in layers]
    while sum(rank * cost for rank, (_, cost) in zip(ranks, layers, strict=True)) > limit:
        losses = [
            values[rank - 1] / values[:rank].sum() / cost if rank > 1 else np.inf
            for rank, (values, cost) in zip(ranks, layers, strict=True)
        ]
        ranks[int(np.argmin(losses))] -= 1
    return math.prod(v[:r].sum() / v.sum() for r, (v, _) in zip(ranks, layers, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_keeps_at_least_the_energy_of_the_greedy_removal(seed: int) -> None:
    layers = spectra(seed)
    tables: list[Table] = []
    for i, (values, cost) in enumerate(layers):
        error = [values[r:].sum() for r in range(1, 16)]
        tables.append(table(str(i), [r * cost for r in range(1, 16)], error, 16 * cost, 1, values.sum()))
    limit = sum(16 * cost for _, cost in layers) // 2
    chosen = get_allocator("energy_product").allocate(tables, {"params": limit})
    assert total(tables, chosen, "params") <= limit
    assert 1.0 - lost(errors(tables, chosen)) >= greedy(layers, limit) - 1e-9


def test_it_spreads_the_loss_where_the_sum_does_not() -> None:
    tables = [table(str(i), [10, 55], [0.9, 0.5], 100) for i in range(2)]
    limits = {"params": 110}
    assert errors(tables, get_allocator("energy_product").allocate(tables, limits)) == [0.5, 0.5]
    assert sorted(errors(tables, Knapsack().allocate(tables, limits))) == [0.0, 0.9]


def test_layers_without_energy_and_options_without_any_left_are_normal() -> None:
    constant = table("constant", [10], [0.0], 100, scale=0.0)
    hopeless = table("hopeless", [10, 20], [1.5, 1.0], 100)
    chosen = get_allocator("energy_product").allocate([constant, hopeless], {"params": 40})
    assert chosen[0] == 1 and chosen[1] in (1, 2)
