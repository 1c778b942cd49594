"""Curves against scipy, brute force and figures by hand."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rankwise.report.curves import (
    Mean,
    Network,
    Point,
    curves,
    figures_of,
    mean,
    networks_of,
    pareto,
    within,
)
from rankwise.report.trials import Trial

rate = st.floats(0, 1, allow_nan=False)


def trial(method: str = "svd", target: float = 0.5, top1: float = 0.8, **more: Any) -> Trial:
    after = {"top1": top1, "params_fraction": target, "macs_fraction": target + 0.1}
    base = {"model": "m", "data": "d", "method": method, "measure": "params", "target": target}
    return Trial(Path("t"), {**base, "original": {"top1": 0.9}, "compressed": after, **more})


@given(st.lists(rate, min_size=2, max_size=6, unique=True))
def test_intervals_are_those_of_scipy(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, stats.describe(values).mean, stats.sem(values))
    found = mean(values)
    assert found.low == pytest.approx(low, abs=1e-12) and found.high == pytest.approx(high, abs=1e-12)
    cut = mean(values, 0.0, 1.0)
    assert cut.low == pytest.approx(max(0, low), abs=1e-12)
    assert cut.high == pytest.approx(min(1, high), abs=1e-12)


def test_a_single_repetition_has_no_interval() -> None:
    assert mean([0.5], 0, 1) == Mean(0.5)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.5, 0.6, 0.7])), max_size=8))
def test_the_front_is_what_no_point_beats(pairs: list[tuple[float, float]]) -> None:
    def beaten(pair: tuple[float, float]) -> bool:
        return any(o != pair and o[0] <= pair[0] and o[1] >= pair[1] for o in pairs)

    assert pareto(pairs) == sorted({pair for pair in pairs if not beaten(pair)})


@given(st.lists(st.tuples(rate, st.floats(-5, 1)), max_size=8), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_largest_reduction_within_a_loss(pairs: list[tuple[float, float]], delta: float) -> None:
    points = [Point({"macs": Mean(kept), "change": Mean(change)}, (0,)) for kept, change in pairs]
    fitting = [kept for kept, change in pairs if kept < 1 and change >= -delta - 1e-9]
    best = within(points, delta, "macs")
    assert (best is None) == (not fitting)
    assert best is None or pairs[best][0] == min(fitting)
    assert within(points, delta, "params") is None


def test_repetitions_become_one_point_and_targets_a_curve() -> None:
    given = [trial(target=0.8, top1=0.88), *(trial(top1=t, seed=i) for i, t in enumerate((0.8, 0.82)))]
    given.append(trial("pca", top1=0.7, failed="no"))
    networks, (curve,) = curves(given)
    assert networks == [Network("m", "d")] and curve.label == "svd" and curve.points["recovered"] == ()
    first, second = curve.points["compressed"]
    assert first.trials == (1, 2) and first.at("top1") == pytest.approx(0.81)
    assert first.at("change") == pytest.approx(-9) and first.at("agreement") is None
    assert second.trials == (0,) and second.figures["params"] == Mean(0.8)


def test_networks_of_one_name_are_told_apart_by_their_weights() -> None:
    given = [trial(weights="a1", top1=0.8), trial(weights="b2", top1=0.1), trial(weights="a1", seed=1)]
    networks, (first, second) = curves(given)
    assert networks == [Network("m", "d", "a1"), Network("m", "d", "b2")]
    assert networks[1].label == "m on d, weights b2"
    assert first.trials == (0, 2) and second.trials == (1,)
    alike = [trial(weights=name, train={"each_seed": True}) for name in ("a1", "b2")]
    assert networks_of(alike) == 2 * [Network("m", "d")]
    assert networks_of([trial(weights="a1"), trial(failed="no")]) == 2 * [Network("m", "d")]
    assert networks_of([trial(failed="no"), *given])[0] == networks[0]


def test_a_fraction_is_worked_out_where_it_is_not_given() -> None:
    metrics = {
        "original": {"params": 200, "latency": {"median": 0.02}, "top1": 0.9},
        "compressed": {"params": 50, "latency": 0.01, "macs_fraction": "half", "top1": "high"},
    }
    assert figures_of(Trial(Path(), metrics), "compressed") == {"params": 0.25, "latency": 0.5}
