"""A run: what is on disk afterwards, what is not done twice, and what goes wrong without harm."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise import Budget, compress
from rankwise.data import load_data
from rankwise.errors import DataError, ExperimentError
from rankwise.evaluation import compare, evaluate
from rankwise.experiments import context, execution, workbench
from rankwise.experiments.config import Experiment
from rankwise.experiments.engines import Local
from rankwise.experiments.execution import folder_of, step_targets
from rankwise.experiments.runner import State, claimed, run_experiment, state_of
from rankwise.experiments.trials import Trial, trials_of
from rankwise.models import load_model
from rankwise.results import load_network, read, read_metrics
from tests.experiments.small import TEXT, experiment, figures, written


def run(given: Experiment, out: Path, jobs: int = 1, **more: Any) -> State:
    return run_experiment(given, trials_of(given, out), out, Local(jobs), **more)


def test_a_trial_says_what_compress_and_compare_say(tmp_path: Path) -> None:
    given = experiment(methods="whitened", budgets=[0.6])
    (trial,) = run(given, tmp_path).finished
    metrics = read_metrics(folder_of(trial, tmp_path))
    assert metrics is not None
    model, data = load_model("digits_cnn").module, load_data("digits")
    small = compress(model, data.calibration(64, 0).batches(128), Budget(params=0.6), method="whitened")
    found = compare(model, small, data.testing().take(60).batches(128))
    for stage, evaluation in (("original", found.a), ("compressed", found.b)):
        expected = json.loads(json.dumps(evaluation.to_json()))
        shown = {name: metrics[stage][name] for name in expected}
        both = shown.pop("kl"), expected.pop("kl")
        assert both[0] == (None if both[1] is None else pytest.approx(both[1], rel=1e-3, abs=1e-9))
        assert shown == expected
    folder = folder_of(trial, tmp_path)
    again = load_network(folder)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in small.state_dict().items())
    assert (
        metrics["compressed"]["file_bytes"]
        == (folder_of(trial, tmp_path) / "model.safetensors").stat().st_size
    )
    assert {layer["name"] for layer in metrics["layers"]} == set(metrics["spectra"])
    assert all(values[0] == 1.0 for values in metrics["spectra"].values())
    assert {"calibrate", "decompose", "allocate", "build", "evaluate"} <= metrics["seconds"].keys()
    assert metrics["calibration"]["examples"] == 64 and len(metrics["weights"]) == 16
    assert {"config.json", "metrics.json", "model.safetensors", "plan.json"} == {
        path.name for path in folder.iterdir()
    }


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = experiment()
    first = run(given, tmp_path)
    assert len(first.finished) == 6 and not first.failed
    monkeypatch.setattr(execution, "run_trial", None)
    told: list[Trial] = []
    again = run(given, tmp_path, told=lambda trial, *_: told.append(trial))
    assert again == first and told == []
    more = experiment(budgets=[0.8, 0.5, 0.3])
    assert len(state_of(trials_of(more, tmp_path), tmp_path).missing) == 3


def test_statistics_are_collected_once_and_methods_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, int] = {"collect": 0, "survey": 0}

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(workbench, "collect", counted("collect", workbench.collect))
    survey = counted("survey", workbench.Factorisation.survey)
    monkeypatch.setattr(workbench.Factorisation, "survey", survey)
    run(experiment(methods=["whitened", "kfac", "svd"], allocators=["knapsack", "uniform"]), tmp_path)
    assert calls == {"collect": 2, "survey": 3}


def test_a_budget_out_of_reach_fails_its_trial_only(tmp_path: Path) -> None:
    given = experiment(methods=["diagonal", "svd"], budgets=[0.9, 0.5])
    state = run(given, tmp_path)
    (failed,) = state.failed
    metrics = read_metrics(folder_of(failed, tmp_path))
    assert metrics is not None and metrics["failed"].startswith("BudgetError: The budget params")
    assert metrics["method"] == "diagonal" and metrics["target"] == 0.5
    assert len(state.finished) == 3
    told: list[str] = []
    assert run(given, tmp_path, told=lambda t, *_: told.append(t.key)).failed == [failed] and told == []
    run(given, tmp_path, told=lambda t, *_: told.append(t.key), retry_failed=True)
    assert told == [failed.key]


def test_an_error_of_the_program_fails_its_trial_with_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(execution, "save", broken)
    (failed,) = run(experiment(methods="svd", budgets=[0.5]), tmp_path).failed
    assert "planted" in (folder_of(failed, tmp_path) / "failure.txt").read_text()


def test_metrics_that_cannot_be_read_are_made_again(tmp_path: Path) -> None:
    given = experiment(methods="svd")
    broken, whole = run(given, tmp_path).finished
    (folder_of(broken, tmp_path) / "metrics.json").write_text('{"format": "rankwise.met')
    assert state_of([broken, whole], tmp_path).missing == [broken]
    assert len(read(tmp_path).unreadable) == 1
    told: list[str] = []
    run(given, tmp_path, told=lambda t, *_: told.append(t.key))
    assert told == [broken.key] and not read(tmp_path).unreadable


def test_missing_data_stop_the_run_and_leave_no_failure(tmp_path: Path) -> None:
    given = experiment(models="lenet300_100", data=f"imagefolder:{tmp_path}/nothing")
    with pytest.raises(DataError, match="nothing"):
        run(given, tmp_path)
    assert len(state_of(trials_of(given, tmp_path), tmp_path).missing) == 6


def test_two_runs_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    with (
        claimed(tmp_path),
        pytest.raises(ExperimentError, match=r"Another run is at work .*process \d+"),
    ):
        run(experiment(), tmp_path)
    assert len(run(experiment(methods="svd"), tmp_path).finished) == 2


def test_a_network_is_trained_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    train = context.train_classifier_
    monkeypatch.setattr(context, "train_classifier_", lambda *a, **k: calls.append(1) or train(*a, **k))
    model = {"name": "digits_cnn", "train": {"epochs": 1}}
    state = run(experiment(models=model, methods="svd", repetitions=2), tmp_path)
    found = [read_metrics(folder_of(trial, tmp_path)) for trial in state.finished]
    assert len(calls) == 1 and len({m["weights"] for m in found if m}) == 1
    assert found[0] is not None and found[0]["original"]["top1"] > 0.5
    each = {"name": "digits_cnn", "train": {"epochs": 1, "each_seed": True}}
    state = run(experiment(models=each, methods="svd", repetitions=2), tmp_path)
    assert len({(read_metrics(folder_of(t, tmp_path)) or {})["weights"] for t in state.finished}) == 2


def test_a_recovery_is_told_apart_and_saved(tmp_path: Path) -> None:
    (trial,) = run(experiment(methods="svd", budgets=[0.3], recovery="bias"), tmp_path).finished
    metrics = read_metrics(folder_of(trial, tmp_path))
    assert metrics is not None
    assert metrics["recovered"]["kl"] != metrics["compressed"]["kl"]
    test = load_data("digits").testing().take(60).batches(128)
    saved = compare(load_model("digits_cnn").module, load_network(folder_of(trial, tmp_path)), test)
    assert saved.b.kl == pytest.approx(metrics["recovered"]["kl"], rel=1e-3)
    assert "recover" in metrics["seconds"]


TRAIN = {"name": "finetune", "epochs": 1, "lr": 0.01}


@pytest.mark.parametrize(
    "row",
    [TRAIN, {"name": "distill", "steps": 20}, {**TRAIN, "mix": 0.5, "processes": 2}],
    ids=["finetune", "distill", "processes"],
)
def test_training_is_a_recovery_with_settings(row: dict[str, Any], tmp_path: Path) -> None:
    model = {"name": "digits_cnn", "train": {"epochs": 2}}
    (trial,) = run(experiment(models=model, methods="svd", budgets=[0.25], recovery=row), tmp_path).finished
    folder = folder_of(trial, tmp_path)
    metrics = read_metrics(folder)
    assert metrics is not None and metrics["recovered"]["loss"] < metrics["compressed"]["loss"]
    assert list(metrics["recovered"]["seconds"]) == metrics["recovery"]
    assert metrics["recovered"]["params"] == metrics["compressed"]["params"]
    names = {path.name for path in folder.rglob("*")}
    assert ("log.csv" in names) == (row["name"] == "finetune") and "checkpoint.pt" not in names
    test = load_data("digits").testing().take(60).batches(128)
    assert evaluate(load_network(folder), test).loss == pytest.approx(metrics["recovered"]["loss"])


def test_a_schedule_can_recover_after_each_step(tmp_path: Path) -> None:
    schedule = {"name": "iterative", "step": 0.7, "recover": "each"}
    given = experiment(methods="svd", budgets=[0.4], schedule=schedule, recovery="closed-form")
    (trial,) = run(given, tmp_path).finished
    metrics = read_metrics(folder_of(trial, tmp_path))
    assert metrics is not None and metrics["recovered"]["params_fraction"] <= 0.4
    last = experiment(
        methods="svd", budgets=[0.4], schedule={**schedule, "recover": "last"}, recovery="closed-form"
    )
    (other,) = run(last, tmp_path).finished
    assert other.key != trial.key
    assert (read_metrics(folder_of(other, tmp_path)) or {})["compressed"]["kl"] != metrics["compressed"]["kl"]


def test_a_schedule_goes_down_in_steps(tmp_path: Path) -> None:
    assert step_targets(None, 0.5) == [0.5]
    assert step_targets(0.8, 0.5) == pytest.approx([0.8, 0.64, 0.512, 0.5])
    assert step_targets(0.5, 0.5) == [0.5]
    given = experiment(methods="svd", budgets=[0.5], schedule={"name": "iterative", "step": 0.7})
    (trial,) = run(given, tmp_path).finished
    metrics = read_metrics(folder_of(trial, tmp_path))
    assert metrics is not None and metrics["compressed"]["params_fraction"] <= 0.5
    assert len([layer for layer in metrics["layers"] if layer["name"] == "conv1"]) == 2
    load_network(folder_of(trial, tmp_path))


def test_a_class_can_be_left_out_of_calibration(tmp_path: Path) -> None:
    calibration = {"examples": 64, "without_classes": [3]}
    given = experiment(methods="whitened", budgets=[0.5], calibration=calibration)
    (trial,) = run(given, tmp_path).finished
    metrics = read_metrics(folder_of(trial, tmp_path))
    labels = load_data("digits").calibration(64, 0).labels
    assert labels is not None and metrics is not None
    assert metrics["calibration"]["examples"] == int((labels != 3).sum()) < 64


@pytest.mark.parametrize(("stop", "jobs"), [(signal.SIGKILL, "2"), (signal.SIGINT, "1")])
def test_a_run_that_is_stopped_loses_and_repeats_nothing(
    stop: signal.Signals, jobs: str, tmp_path: Path
) -> None:
    # So many that the signal comes before the end, however busy the machine.
    many = [round(0.9 - 0.02 * i, 2) for i in range(25)]
    path, out = written(tmp_path, TEXT.replace("[0.8, 0.5]", str(many))), tmp_path / "out"
    command = [sys.executable, "-m", "rankwise", "run", str(path), "--out", str(out), "--jobs", jobs]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 240
    while len(list(out.glob("trials/*/metrics.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(stop)
    _, said = process.communicate(timeout=240)
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    if stop is signal.SIGINT:
        assert process.returncode == 1 and "Traceback" not in said, said
    before = {file: file.stat().st_mtime_ns for file in out.glob("trials/*/metrics.json")}
    assert len(before) >= 2
    given = experiment(data="digits", budgets=many)
    state = run(given, out)
    assert len(state.finished) == 3 * len(many)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert not [file for file in out.rglob("*") if ".part" in file.name]
    run(given, tmp_path / "whole")
    assert figures(trials_of(given, out), out) == figures(trials_of(given, out), tmp_path / "whole")
