"""Rank multiples, smallest and largest ranks, and overrides by glob."""

from dataclasses import replace

import numpy as np
import pytest

from rankwise.allocation import apply_overrides, restrict, with_dense
from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.methods.base import Candidates
from rankwise.network.cost import Cost
from tests.allocation.tables import table


def _ranks(t) -> list[int]:  # type: ignore[no-untyped-def]
    return [int(t.candidates.choices["rank"][i]) for i in t.options]


def _layer(name: str, full: int):  # type: ignore[no-untyped-def]
    return table(name, range(10, 10 + full), np.linspace(1, 0.1, full).tolist(), dense=200)


def test_multiples_keep_dense_and_the_full_rank() -> None:
    assert _ranks(restrict(_layer("a", 18), multiple_of=8)) == [0, 8, 16, 18]
    assert _ranks(restrict(_layer("a", 5), multiple_of=8)) == [0, 5]


def test_smallest_and_largest_rank() -> None:
    assert _ranks(restrict(_layer("a", 9), min_rank=3, max_rank=5)) == [0, 3, 4, 5]
    assert _ranks(restrict(restrict(_layer("a", 9), min_rank=3), multiple_of=2)) == [0, 4, 6, 8, 9]
    with pytest.raises(RankwiseError, match="multiple_of=0"):
        restrict(_layer("a", 9), multiple_of=0)


def test_the_full_rank_is_that_of_the_same_structure_and_every_rank_must_suit() -> None:
    choices = {
        "rank_in": np.array([4, 3, 4, 2, 4]),
        "rank_out": np.array([8, 8, 5, 6, 3]),
        "folding": np.array(["x", "x", "x", "y", "y"]),
    }
    n = np.arange(1, 6)
    found = Candidates(n, n, n[::-1] * 0.1, choices, "weight")
    t = restrict(with_dense("a", found, Cost(9, 9, 36)), multiple_of=4)
    assert t.options.tolist() == [0, 1]
    t = restrict(with_dense("a", found, Cost(9, 9, 36)), multiple_of=2)
    assert t.options.tolist() == [0, 1, 4]


def test_options_without_a_rank_stay() -> None:
    found = Candidates(np.array([1]), np.array([1]), np.array([0.5]), {"blocks": np.array([3])}, "output")
    assert restrict(with_dense("a", found, Cost(9, 9, 36)), multiple_of=8, min_rank=8).options.tolist() == [
        0,
        1,
    ]


def test_rank_zero_is_a_part_that_is_not_there() -> None:
    choices = {"blocks": np.array([3, 3, 3]), "rank": np.array([0, 1, 2])}
    n = np.arange(1, 4)
    found = Candidates(n, n, n[::-1] * 0.1, choices, "output")
    assert restrict(with_dense("a", found, Cost(9, 9, 36)), min_rank=2).options.tolist() == [0, 1, 3]


def test_overrides_by_glob_later_ones_win() -> None:
    tables = [_layer("stem", 9), _layer("stage1.conv1", 9), _layer("stage1.conv2", 9), _layer("fc", 9)]
    tables[3] = replace(tables[3], allowed=np.arange(10) % 3 == 0)
    done = apply_overrides(
        tables,
        {
            "stem": {"dense": True},
            "stage1.*": {"max_rank": 4, "min_rank": 2},
            "*conv2": {"max_rank": 3},
            "fc": {"rank": 5},
        },
    )
    assert [_ranks(t) for t in done] == [[0], [0, 2, 3, 4], [0, 2, 3], [5]]
    assert tables[0].allowed is None


def test_overrides_name_what_is_wrong() -> None:
    tables = [_layer("stem", 9)]
    with pytest.raises(UnknownNameError, match=r"layer in overrides 'stemm'.*Did you mean 'stem'"):
        apply_overrides(tables, {"stemm": {"dense": True}})
    with pytest.raises(UnknownNameError, match="'ranks'"):
        apply_overrides(tables, {"stem": {"ranks": 3}})
    with pytest.raises(RankwiseError, match="'stem' has no candidate of rank 12; its ranks: 1 to 9"):
        apply_overrides(tables, {"stem": {"rank": 12}})
