"""A small experiment on embedded data, for the tests of everything that runs one."""

from pathlib import Path
from typing import Any

from rankwise.experiments.config import Experiment
from rankwise.experiments.execution import folder_of
from rankwise.experiments.trials import Trial
from rankwise.results import read_metrics

TEXT = """\
title: A small one
models: {name: digits_cnn}
data: digits
methods: [svd, {name: whitened, allocators: [knapsack, uniform]}]
budgets: [0.8, 0.5]
calibration: {examples: 64}
evaluation: {limit: 60}
"""

VARYING = ("seconds", "memory", "started", "finished", "command", "hardware")
"""What may differ between two runs of one trial."""


def written(folder: Path, text: str = TEXT, name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def experiment(**changes: Any) -> Experiment:
    base: dict[str, Any] = {
        "title": "A small one",
        "models": "digits_cnn",
        "methods": ["svd", {"name": "whitened", "allocators": ["knapsack", "uniform"]}],
        "budgets": [0.8, 0.5],
        "calibration": {"examples": 64},
        "evaluation": {"limit": 60},
    }
    return Experiment.model_validate(base | changes)


def figures(trials: list[Trial], out: Path) -> list[dict[str, Any]]:
    """The metrics of ``trials`` without what may differ between two runs."""
    found = [read_metrics(folder_of(trial, out)) for trial in trials]
    return [{k: v for k, v in (metrics or {}).items() if k not in VARYING} for metrics in found]
