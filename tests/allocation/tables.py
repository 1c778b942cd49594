"""Small random tables, and the brute force over every choice that the allocators are checked against."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np

from rankwise.allocation import Table, with_dense
from rankwise.methods.base import Candidates
from rankwise.network.cost import Cost


def table(
    name: str,
    params: Sequence[int],
    error: Sequence[float],
    dense: int,
    positions: int = 1,
    scale: float = 1.0,
) -> Table:
    ranks = np.arange(1, len(params) + 1)
    cost = np.array(params)
    found = Candidates(cost, cost * positions, np.array(error, float), {"rank": ranks}, "output", scale)
    return with_dense(name, found, Cost(dense, dense * positions, 4 * dense))


def random_tables(seed: int, layers: int, options: int) -> list[Table]:
    """Options whose params and macs rank differently, some of them dominated."""
    generator = np.random.default_rng(seed)
    tables = []
    for i in range(layers):
        params = np.sort(generator.integers(1, 90, options))
        macs = generator.integers(1, 20) * params + generator.integers(0, 200, options)
        error = np.sort(generator.random(options))[::-1] * generator.uniform(0.2, 3)
        ranks = np.arange(1, options + 1)
        found = Candidates(
            params, macs, error.copy(), {"rank": ranks}, "output", float(generator.uniform(1, 4))
        )
        tables.append(with_dense(f"layer{i}", found, Cost(100, int(macs.max()) + 50, 400)))
    return tables


def dense_cost(tables: Sequence[Table], measure: str) -> int:
    return sum(int(t.costs([measure])[0, 0]) for t in tables)


def limits_of(tables: Sequence[Table], **fractions: float) -> dict[str, int]:
    return {measure: int(f * dense_cost(tables, measure)) for measure, f in fractions.items()}


def total(tables: Sequence[Table], chosen: Sequence[int], measure: str) -> int:
    return sum(int(t.costs([measure])[i, 0]) for t, i in zip(tables, chosen, strict=True))


def errors(tables: Sequence[Table], chosen: Sequence[int]) -> list[float]:
    """Relative errors of a choice."""
    return [float(t.candidates.error[i] / t.candidates.scale) for t, i in zip(tables, chosen, strict=True)]


def fits(tables: Sequence[Table], chosen: Sequence[int], limits: Mapping[str, int]) -> bool:
    return all(total(tables, chosen, measure) <= limit for measure, limit in limits.items())


def brute_force(
    tables: Sequence[Table], limits: Mapping[str, int], objective: Callable[[list[float]], object]
) -> object | None:
    """The best ``objective`` of the relative errors over every choice within the limits."""
    choices = product(*(t.options for t in tables))
    found = [objective(errors(tables, c)) for c in choices if fits(tables, c, limits)]
    return min(found, default=None)  # type: ignore[type-var]
