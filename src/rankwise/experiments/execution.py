"""One trial: compress, evaluate, recover, evaluate; of its files metrics.json is written last."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwise.budget import Budget
from rankwise.compress import compression
from rankwise.evaluation import evaluate
from rankwise.experiments import machine
from rankwise.experiments.context import Context
from rankwise.experiments.recover import recovered
from rankwise.experiments.single import METRICS_FILE, MODEL_FILE, PLAN_FILE
from rankwise.experiments.trials import Setting, Trial
from rankwise.experiments.variants import methods_of
from rankwise.files import json_text, write_text
from rankwise.io import save
from rankwise.network import model_cost
from rankwise.plan import Edit, plan_of
from rankwise.progress import Stopwatch
from rankwise.results import FORMAT, VERSION

TRIALS, CONFIG_FILE, FAILURE_FILE = "trials", "config.json", "failure.txt"


@dataclass(frozen=True)
class Job:
    """Where trials go, what was typed to run them, and the threads that each may use (0: as they are)."""

    out: Path
    command: str = ""
    threads: int = 0


@dataclass
class _Opened:
    """The context of the last trial of this process, for the next one."""

    key: tuple[Setting, Path] | None = None
    context: Context | None = None


_opened = _Opened()


def run_trials(trials: Sequence[Trial], job: Job) -> None:
    """Do those of ``trials`` that have no metrics yet, one after another.

    Raises:
        RankwiseError: the network or the data cannot be had. What goes wrong with one trial afterwards is
            written into its metrics instead.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    for trial in trials:
        if not (folder_of(trial, job.out) / METRICS_FILE).exists():
            run_trial(trial, _context(trial.setting, job.out), job)


def folder_of(trial: Trial, out: Path) -> Path:
    """The directory of ``trial``."""
    return out / TRIALS / trial.key


def _context(setting: Setting, out: Path) -> Context:
    key = (setting, out.resolve())
    if _opened.context is None or _opened.key != key:
        _opened.context = None  # its memory is free before the next one is opened
        _opened.context = Context.open(setting, out)
        _opened.key = key
    return _opened.context


def run_trial(trial: Trial, context: Context, job: Job) -> dict[str, Any]:
    """Do ``trial``; returns its metrics, which say why where it failed."""
    folder = folder_of(trial, job.out)
    content = trial.as_dict()
    write_text(folder / CONFIG_FILE, json_text(content))
    started = _now()
    machine.restart_peak()
    try:
        found = _figures(trial, context, folder)
    except Exception as error:
        write_text(folder / FAILURE_FILE, traceback.format_exc())
        found = {"failed": f"{type(error).__name__}: {error}"}
    metrics: dict[str, Any] = {
        **content,
        "format": FORMAT,
        "version": VERSION,
        **found,
        "memory": {"peak_bytes": machine.peak_bytes()},
        "versions": machine.versions(),
        "hardware": machine.hardware(),
        "weights": context.weights,
        "weights_file": content["weights"],
        "calibration": {**content["calibration"], **context.calibration},
        "command": job.command,
        "started": started,
        "finished": _now(),
    }
    write_text(folder / METRICS_FILE, json_text(metrics))
    return metrics


def _figures(trial: Trial, context: Context, folder: Path) -> dict[str, Any]:
    watch = Stopwatch()
    found: dict[str, Any] = {"original": context.original}
    model, stage = _compressed(trial, context, watch, folder), "compressed"
    with watch("evaluate"):
        found[stage] = _judged(model, context)
    if trial.recovery:
        with watch("recover"):
            (model, seconds), stage = recovered(trial, model, context, folder), "recovered"
        with watch("evaluate"):
            found[stage] = {**_judged(model, context), "seconds": seconds}
    plan = plan_of(model)
    save(model, folder / MODEL_FILE)
    plan.save(folder / PLAN_FILE)
    found[stage]["file_bytes"] = (folder / MODEL_FILE).stat().st_size
    found |= {"layers": [_layer(edit) for edit in plan.edits], "seconds": watch.seconds}
    if trial.repetition == 0:
        found["spectra"] = context.spectra
    return found


def _judged(model: nn.Module, context: Context) -> dict[str, Any]:
    """The figures of ``model`` beside the original's decisions, and the fractions of its cost."""
    cost = model_cost(model, context.bench.example).as_dict()
    whole = context.bench.cost.as_dict()
    fractions = {f"{name}_fraction": cost[name] / whole[name] for name in cost}
    return {**evaluate(model, context.test, context.decisions).to_json(), **cost, **fractions}


def _compressed(trial: Trial, context: Context, watch: Stopwatch, folder: Path) -> nn.Module:
    """The network within the budget, at once or by the steps of the schedule."""
    bench, setting = context.bench, trial.setting
    notes = {"model": setting.model, "data": setting.data, "calibration": len(bench.calibration.split)}
    options: dict[str, Any] = {
        "multiple_of": trial.multiple_of,
        "fold_batchnorm": trial.fold_batchnorm,
        "notes": notes,
    }
    first, *later = step_targets(trial.schedule.step, trial.target)
    done = bench.compress(trial.variant, Budget.of({trial.measure: first}), **options)
    watch.add(done.seconds)
    model = done.model
    for number, target in enumerate(later, 1):
        if trial.schedule.recover == "each":
            with watch("recover"):
                model, _ = recovered(trial, model, context, folder / f"step{number}")
        done = compression(
            model,
            bench.calibration,
            Budget.of({trial.measure: int(target * getattr(bench.cost, trial.measure))}),
            example=bench.example,
            method=methods_of(trial.variant.method, trial.variant.options),
            allocator=trial.variant.built_allocator(),
            include=trial.variant.include or None,
            exclude=trial.variant.exclude or None,
            seed=setting.seed,
            **options,
        )
        watch.add(done.seconds)
        model = done.model
    return model


def step_targets(step: float | None, target: float) -> list[float]:
    """The fractions to reach one after another: powers of ``step``, and ``target`` as the last."""
    if step is None:
        return [target]
    fractions, kept = [], step
    while kept > target:
        fractions.append(kept)
        kept *= step
    return [*fractions, target]


def _layer(edit: Edit) -> dict[str, Any]:
    """One row of the table of layers; which channels are kept is in the plan."""
    choice: dict[str, Any] = {name: value for name, value in edit.choice.items() if name != "kept"}
    return {
        "name": edit.target,
        "op": edit.op,
        "choice": choice,
        "before": edit.before,
        "after": edit.after,
        "error": edit.error,
        "scale": edit.scale,
        "reason": edit.reason,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
