"""Rank multiples, smallest and largest ranks, and overrides by glob."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.allocation import apply_overrides, get_allocator, restrict, with_dense
from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.factorise import Factorisation, Survey
from rankwise.methods import get_method, methods
from rankwise.methods.base import Candidates, Method, is_rank
from rankwise.network.cost import Cost
from tests.allocation.tables import table


def _ranks(t) -> list[int]:  # type: ignore[no-untyped-def]
    return [int(t.candidates.choices["rank"][i]) for i in t.options]


def _layer(name: str, full: int):  # type: ignore[no-untyped-def]
    return table(name, range(10, 10 + full), np.linspace(1, 0.1, full).tolist(), dense=200)


def test_multiples_keep_dense_and_layers_too_small_for_one() -> None:
    assert _ranks(restrict(_layer("a", 18), multiple_of=8)) == [0, 8, 16]
    assert _ranks(restrict(_layer("a", 5), multiple_of=8)) == [0, 1, 2, 3, 4, 5]
    assert _ranks(restrict(_layer("a", 18))) == list(range(19))


def test_smallest_and_largest_rank() -> None:
    assert _ranks(restrict(_layer("a", 9), min_rank=3, max_rank=5)) == [0, 3, 4, 5]
    assert _ranks(restrict(restrict(_layer("a", 9), min_rank=3), multiple_of=2)) == [0, 4, 6, 8]
    with pytest.raises(RankwiseError, match="multiple_of=0"):
        restrict(_layer("a", 9), multiple_of=0)


def test_every_rank_must_suit_and_nothing_else_of_a_choice_matters() -> None:
    choices = {
        "rank_in": np.array([4, 3, 4, 2, 4]),
        "rank_out": np.array([8, 8, 5, 6, 0]),
        "low_rank": np.array([2, 2, 0, 3, 1]),  # too small for a multiple of 4
        "folding": np.array(["x", "x", "x", "y", "y"]),
        "cancellation": np.array([1.0, 1.1, 1.2, 1.3, 1.4]),
    }
    n = np.arange(1, 6)
    found = Candidates(n, n, n[::-1] * 0.1, choices, "weight")
    t = restrict(with_dense("a", found, Cost(9, 9, 36)), multiple_of=4)
    assert t.options.tolist() == [0, 1, 5]
    t = restrict(with_dense("a", found, Cost(9, 9, 36)), multiple_of=2)
    assert t.options.tolist() == [0, 1]


@pytest.fixture(scope="module")
def surveyed() -> Callable[..., Survey]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 20, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(320, 18),
    ).eval()  # fmt: skip
    batches = [(torch.randn(64, 3, 6, 6), torch.randint(18, (64,))) for _ in range(6)]

    def survey(*found: Method, **wishes: Any) -> Survey:
        settings: dict[str, Any] = {"allocator": get_allocator("knapsack"), "limits": {}}
        return Factorisation(methods=found, **settings, **wishes).survey(net, batches[0], batches)

    return survey


CP = {"effort": 2.0, "polish": 2}
LAYERED = sorted(name for name, method in methods().items() if issubclass(method, Method))


@pytest.mark.parametrize("name", [*LAYERED, "cp of auto"])
def test_the_ranks_of_every_method_are_multiples(name: str, surveyed: Callable[..., Survey]) -> None:
    config = {**CP, "interpolated": True, "points": 5} if " " in name else CP if name == "cp" else {}
    plain = surveyed(method := get_method(name.split()[0], **config))
    narrowed = surveyed(method, multiple_of=8)
    assert plain.options and all(len(o.table.options) == len(o.table) for o in plain.options)
    for options in narrowed.options:
        choices = options.table.candidates.choices
        assert any(map(is_rank, choices))
        offered = options.table.options[1:]
        assert 0 < len(offered) < len(options.table) - 1
        for ranks in (values for kind, values in choices.items() if is_rank(kind)):
            assert (ranks[offered] % 8 == 0).all() or ranks.max() < 8


def test_an_exact_rank_holds_whatever_the_competing_methods_call_theirs(
    surveyed: Callable[..., Survey],
) -> None:
    competing = [get_method("svd"), get_method("tucker2"), get_method("cp", **CP)]
    for names, wish in ((["svd", "tucker2"], 8), (["svd"], 7)):
        (found,) = (
            o for o in surveyed(*competing, overrides={"2": {"rank": wish}}).options if o.layer.name == "2"
        )
        picked = [found.pick(int(option)) for option in found.table.options]
        assert {method.name for method, _ in picked} >= set(names)
        assert all(wish in c.values() for _, c in picked)
        assert {v for _, c in picked for k, v in c.items() if is_rank(k)} == {wish}


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
