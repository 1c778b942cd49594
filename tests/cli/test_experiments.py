"""The commands about experiments: what they print and write, and how they fail."""

import csv
import json
from pathlib import Path

import pandas
from tests.cli.test_cli import Run, run
from tests.experiments.small import written
from tests.report.synthetic import write_json

from rankwise.experiments.config import json_schema

__all__ = ["run"]

TEXT = """\
title: A small one
models: digits_cnn
methods: [diagonal, svd]
budgets: [0.9, 0.5]
calibration: {examples: 64}
evaluation: {limit: 60}
quick: {budgets: [0.9]}
"""


def test_run_then_results(run: Run, tmp_path: Path) -> None:
    file, out = str(written(tmp_path, TEXT)), str(tmp_path / "out")
    dry = run("run", file, "--out", out, "--dry-run")
    assert dry.returncode == 0 and dry.stdout.count("to do") == 5 and not (tmp_path / "out").exists()
    done = run("run", file, "--out", out, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "4 trials: 3 finished, 1 failed; --retry-failed does these again" in done.stdout
    assert max(map(len, (done.stdout + done.stderr).replace(str(tmp_path), "").splitlines())) <= 80
    assert "[4/4]" in done.stderr and "BudgetError" in done.stderr
    again = run("run", file, "--out", out, "--jobs", "1", "--json")
    assert json.loads(again.stdout)["finished"] == 3 and again.stderr == ""
    listed = json.loads(run("run", file, "--out", out, "--dry-run", "--json").stdout)
    assert sorted(trial["state"] for trial in listed["trials"]) == ["failed", *["finished"] * 3]
    quick = json.loads(run("run", file, "--out", out, "--quick", "--dry-run", "--json").stdout)
    assert (quick["finished"], quick["missing"]) == (2, 0)

    shown = run("results", out)
    assert "params=0.5" in shown.stdout and "4 trials, 1 failed, 0 unreadable" in shown.stdout
    table, parquet = tmp_path / "table.csv", tmp_path / "table.parquet"
    assert run("results", out, "--csv", str(table), "--parquet", str(parquet)).returncode == 0
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 4 and sum(row["failed"] != "" for row in rows) == 1
    assert list(pandas.read_parquet(parquet).key) == [row["key"] for row in rows]


def test_a_broken_file_is_named_and_counted(run: Run, tmp_path: Path) -> None:
    file, out = str(written(tmp_path, TEXT)), tmp_path / "out"
    run("run", file, "--out", str(out), "--jobs", "1", "--quick")
    broken = next(out.glob("trials/*/metrics.json"))
    broken.write_text("{")
    shown = run("results", str(out))
    assert str(broken) in shown.stderr and "1 trial, 0 failed, 1 unreadable" in shown.stdout


def test_mistakes_are_exit_code_1_with_a_place(run: Run, tmp_path: Path) -> None:
    wrong = run("run", str(written(tmp_path, TEXT.replace("svd", "svdd"))))
    assert wrong.returncode == 1
    assert "small.yaml:3: methods.1.name: Unknown method 'svdd'" in wrong.stderr.replace("\n", "")
    assert run("run", str(tmp_path / "none.yaml")).returncode == 1
    assert run("results", str(tmp_path)).returncode == 1
    assert run("run", str(written(tmp_path, TEXT)), "--engine", "clouds").returncode == 2


def test_nothing_finished_is_a_failure(run: Run, tmp_path: Path) -> None:
    file = str(written(tmp_path, TEXT.replace(", svd", "").replace("0.9, ", "", 1)))
    failed = run("run", file, "--out", str(tmp_path / "out"), "--jobs", "1")
    assert failed.returncode == 1 and "1 trial: 1 failed" in failed.stdout


def test_schema_is_the_one_in_the_documentation(run: Run, tmp_path: Path) -> None:
    assert json.loads(run("schema").stdout) == json_schema()
    path = tmp_path / "schema.json"
    run("schema", "--out", str(path))
    kept = Path(__file__).parents[2] / "docs" / "experiment.schema.json"
    assert path.read_text() == kept.read_text(), f"rankwise schema --out {kept}"


def test_results_of_a_single_compression_and_of_training(run: Run, tmp_path: Path) -> None:
    stage = {"top1": 0.9, "macs_fraction": 0.5}
    common = {"model": "m", "method": "auto", "allocator": "knapsack", "original": stage, "compressed": stage}
    write_json(tmp_path / "a" / "metrics.json", {**common, "budget": {"macs": 0.5}})
    write_json(tmp_path / "b" / "metrics.json", {**common, "budget": {"macs": 0.5, "params": 0.6}})
    write_json(tmp_path / "w" / "metrics.json", {**common, "budget": {"macs": 0.5}, "weights": "a1"})
    poor = {**common, "compressed": {"top1": 0.1}, "budget": {"macs": 0.5}, "weights": "b2"}
    write_json(tmp_path / "p" / "metrics.json", poor)
    write_json(tmp_path / "c" / "metrics.json", {"failed": "BudgetError: no"})
    write_json(tmp_path / "t" / "metrics.json", {"model": "m", "before": stage, "after": stage})
    shown = run("results", str(tmp_path))
    assert shown.returncode == 0 and "5 trials, 1 failed, 0 unreadable" in shown.stdout
    assert "m, weights b2: auto / knapsack" in shown.stdout and "10.00\n" in shown.stdout
    assert (
        "auto / knapsack" in shown.stdout
        and "macs=0.5,params=0.6" in shown.stdout
        and "90.00" in shown.stdout
    )
