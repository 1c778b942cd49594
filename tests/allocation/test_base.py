"""Tables, their undominated options, comparable errors, and the registry."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.allocation import (
    Allocator,
    allocators,
    get_allocator,
    normalize,
    register_allocator,
    undominated,
)
from rankwise.errors import CalibrationError, RankwiseError, UnknownNameError
from tests.allocation.tables import random_tables, table


def test_with_dense_puts_the_dense_layer_first() -> None:
    t = table("a", [10, 20], [0.5, 0.1], dense=30, positions=7)
    assert t.candidates.error.tolist() == [0.0, 0.5, 0.1]
    assert t.costs(["macs", "params", "bytes"]).tolist() == [[210, 30, 120], [70, 10, 40], [140, 20, 80]]
    assert t.candidates.choice(2) == {"rank": 2}
    assert t.options.tolist() == [0, 1, 2]


def test_a_table_refuses_errors_that_are_not_finite_and_names_the_layer() -> None:
    with pytest.raises(CalibrationError, match=r"conv7.*'rank': 2"):
        table("conv7", [10, 20], [0.5, np.nan], dense=30)


def test_a_table_refuses_columns_of_different_length_and_a_dense_option_with_an_error() -> None:
    t = table("a", [10, 20], [0.5, 0.1], dense=30)
    with pytest.raises(RankwiseError, match="bytes"):
        replace(t, bytes=t.bytes[1:])
    with pytest.raises(RankwiseError, match="option 0 must be dense"):
        replace(t, candidates=replace(t.candidates, error=t.candidates.error + 1))


@given(st.integers(0, 1000), st.sampled_from([("params",), ("params", "macs"), ("params", "macs", "bytes")]))
def test_undominated_is_what_comparing_all_pairs_leaves(seed: int, costs: tuple[str, ...]) -> None:
    t = random_tables(seed, 1, 12)[0]
    points = [(*row, e) for row, e in zip(t.costs(costs).tolist(), t.candidates.error, strict=True)]
    expected = [
        i
        for i, p in enumerate(points)
        if not any(
            all(a <= b for a, b in zip(q, p, strict=True)) and (q != p or j < i)
            for j, q in enumerate(points)
            if j != i
        )
    ]
    assert undominated(t, costs).tolist() == expected


def test_undominated_looks_only_at_what_is_allowed() -> None:
    t = table("a", [10, 20, 20], [0.5, 0.1, 0.2], dense=30)
    assert undominated(t, ["params"]).tolist() == [0, 1, 2]
    allowed = np.array([True, True, False, True])
    assert undominated(replace(t, allowed=allowed), ["params"]).tolist() == [0, 1, 3]


def test_normalize_relative_absolute_and_a_layer_without_scale() -> None:
    tables = [table("a", [1], [0.5], 3, scale=2.0), table("b", [1], [0.5], 3, scale=0.0)]
    assert [e.tolist() for e in normalize(tables)] == [[0.0, 0.25], [0.0, 0.5]]
    assert [e.tolist() for e in normalize(tables, "absolute")] == [[0.0, 0.5], [0.0, 0.5]]


def test_normalize_refuses_mixed_units_and_unknown_weightings() -> None:
    a, b = table("a", [1], [0.5], 3), table("b", [1], [0.5], 3)
    b = replace(b, candidates=replace(b.candidates, unit="operator"))
    with pytest.raises(RankwiseError, match=r"'operator' \(layer 'b'\), 'output' \(layer 'a'\)"):
        normalize([a, b])
    with pytest.raises(UnknownNameError, match="relative"):
        normalize([a], "relativ")  # type: ignore[arg-type]


def test_registry_holds_the_allocators_and_names_the_nearest() -> None:
    assert {"energy", "knapsack", "lrank", "minimax", "uniform"} <= allocators().keys()
    assert get_allocator("knapsack", weighting="absolute").config()["weighting"] == "absolute"
    with pytest.raises(UnknownNameError, match="Did you mean 'knapsack'"):
        get_allocator("knapsak")
    with pytest.raises(UnknownNameError, match="option of allocator 'uniform'"):
        get_allocator("uniform", weigthing="relative")


def test_a_taken_name_is_refused() -> None:
    @dataclass(frozen=True)
    class Other(Allocator):
        def allocate(self, tables, limits):  # type: ignore[no-untyped-def]
            return []

    with pytest.raises(ValueError, match="is taken by Uniform"):
        register_allocator("uniform")(Other)
