"""The list of trials: complete, with keys that follow what is done and nothing else."""

from pathlib import Path

import pytest

from rankwise.errors import ExperimentError
from rankwise.experiments.trials import find_weights, groups, trials_of
from tests.experiments.small import experiment


def test_every_combination_is_a_trial_once(tmp_path: Path) -> None:
    trials = trials_of(experiment(repetitions=2), tmp_path)
    found = [(t.setting.seed, t.variant.method, t.variant.allocator, t.target) for t in trials]
    pairs = [("svd", "knapsack"), ("whitened", "knapsack"), ("whitened", "uniform")]
    assert found == [(s, *p, b) for s in (0, 1) for p in pairs for b in (0.8, 0.5)]
    assert len({t.key for t in trials}) == 12
    assert [t.repetition for t in trials] == [0] * 6 + [1] * 6


def test_recoveries_are_compared_like_methods(tmp_path: Path) -> None:
    trials = trials_of(experiment(methods="svd", recoveries=[[], "bias", ["bias", "batchnorm"]]), tmp_path)
    assert [t.label for t in trials[::2]] == [
        "svd / knapsack",
        "svd / knapsack + bias",
        "svd / knapsack + bias + batchnorm",
    ]
    assert len({t.key for t in trials}) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": {"examples": 65}},
        {"evaluation": {"limit": 61}},
        {"recovery": "batchnorm"},
        {"models": {"name": "digits_cnn", "train": {"epochs": 1}}},
        {"seeds": [5]},
        {"measure": "macs"},
        {"schedule": {"name": "iterative", "step": 0.9}},
        {"methods": {"name": "svd", "options": {"folding": "all"}}},
        {"layers": {"exclude": ["fc2"]}},
        {"multiple_of": 4},
    ],
    ids=str,
)
def test_a_key_follows_what_is_done(change: dict[str, object], tmp_path: Path) -> None:
    base: dict[str, object] = {"methods": "svd", "budgets": [0.5]}
    (before,) = trials_of(experiment(**base), tmp_path)
    (after,) = trials_of(experiment(**{**base, **change}), tmp_path)
    assert before.key != after.key


def test_a_key_does_not_follow_paths_titles_and_spelling(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("w.pt", "a/v.pt"):
        (tmp_path / name).write_bytes(b"the same")

    def key(**more: object) -> str:
        return trials_of(experiment(budgets=[0.5], methods="svd", **more), tmp_path)[0].key

    first = key(models={"name": "digits_cnn", "weights": "w.pt"})
    again = key(
        models={"name": "digits_cnn", "weights": "a/v.pt", "data": "digits"}, title="Another", seeds=[0]
    )
    assert first == again
    (tmp_path / "w.pt").write_bytes(b"another")
    assert key(models={"name": "digits_cnn", "weights": "w.pt"}) != first
    default = {"name": "svd", "options": {"folding": "channel"}}
    assert key() == trials_of(experiment(budgets=[0.5], methods=default), tmp_path)[0].key


def test_weights_are_looked_for_in_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKWISE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.pt").touch()
    assert find_weights("w.pt", tmp_path) == tmp_path / "data" / "w.pt"
    (tmp_path / "w.pt").touch()
    assert find_weights("w.pt", tmp_path) == tmp_path / "w.pt"
    with pytest.raises(ExperimentError, match=r"'v\.pt' is not there: looked for .*data/v\.pt"):
        find_weights("v.pt", tmp_path)


def test_equal_trials_and_missing_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="Two trials are the same: digits_cnn svd / knapsack"):
        trials_of(experiment(methods=["svd", "svd"]), tmp_path)
    with pytest.raises(ExperimentError, match="no usual data set"):
        trials_of(experiment(models="some.module:network"), tmp_path)


def test_groups_keep_what_shares_work_together_unless_there_are_too_few(tmp_path: Path) -> None:
    trials = trials_of(experiment(repetitions=2), tmp_path)
    assert [len(group) for group in groups(trials)] == [2, 4, 2, 4]
    many = groups(trials, 5)
    assert len(many) == 5 and sorted(t.key for g in many for t in g) == sorted(t.key for t in trials)
    assert len(groups(trials, 100)) == len(trials)
