"""Running an experiment: which trials are done, which are left, and one run at a time in one folder."""

import os
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from rankwise.errors import ExperimentError
from rankwise.experiments import machine
from rankwise.experiments.config import Experiment
from rankwise.experiments.engines import Engine
from rankwise.experiments.execution import FAILURE_FILE, Job, folder_of
from rankwise.experiments.trials import Trial
from rankwise.files import json_text, write_text
from rankwise.results import EXPERIMENT_FILE, METRICS_FILE, read_metrics

FORMAT, VERSION = "rankwise.experiment", 1

Told = Callable[[Trial, dict[str, Any], int, int], None]
"""Called for every trial that ends: the trial, its metrics, how many are done, of how many."""


def unheard(trial: Trial, metrics: dict[str, Any], done: int, total: int) -> None:
    """A :data:`Told` that says nothing."""


@dataclass
class State:
    """The trials of an experiment by what their directories say."""

    finished: list[Trial] = field(default_factory=list)
    failed: list[Trial] = field(default_factory=list)
    missing: list[Trial] = field(default_factory=list)


def state_of(trials: Sequence[Trial], out: Path) -> State:
    """Which of ``trials`` are done in ``out``; metrics that cannot be read count as missing."""
    state = State()
    for trial in trials:
        metrics = read_metrics(folder_of(trial, out))
        if metrics is None:
            state.missing.append(trial)
        else:
            (state.failed if "failed" in metrics else state.finished).append(trial)
    return state


def run_experiment(
    experiment: Experiment,
    trials: Sequence[Trial],
    out: Path,
    engine: Engine,
    *,
    command: Sequence[str] = (),
    retry_failed: bool = False,
    told: Told = unheard,
) -> State:
    """Do the ``trials`` of ``experiment`` that are not done in ``out``; the state afterwards.

    Args:
        experiment: what is written into ``experiment.json``, for the page.
        trials: those of :func:`trials_of`.
        out: the folder; shared with other machines where ``engine`` uses them.
        engine: who does the work.
        command: what was typed.
        retry_failed: whether trials that failed are done again.
        told: called for every trial that ends.

    Raises:
        ExperimentError: another run is at work in ``out``.
        RankwiseError: a network or data cannot be had.
    """
    with claimed(out):
        line = shlex.join(command)
        write_text(out / EXPERIMENT_FILE, json_text(_described(experiment, trials, line)))
        before = state_of(trials, out)
        todo = [*before.missing, *(before.failed if retry_failed else [])]
        for trial in todo:
            _tidy(folder_of(trial, out))
        if todo:
            watched = _Watched(todo, out, told, len(trials))
            engine.run(todo, Job(out, line), watched.look)
            watched.look()
        return state_of(trials, out)


def _tidy(folder: Path) -> None:
    """Remove the metrics of a trial that is done again, and what a killed process left half-written."""
    for path in (folder / METRICS_FILE, folder / FAILURE_FILE, *folder.glob(".*.part*")):
        path.unlink(missing_ok=True)


class _Watched:
    """Tells of trials whose metrics have come since the last look."""

    def __init__(self, todo: Sequence[Trial], out: Path, told: Told, total: int) -> None:
        self.open = {trial.key: trial for trial in todo}
        self.out, self.told, self.total = out, told, total

    def look(self) -> None:
        """Look once."""
        for key, trial in list(self.open.items()):
            metrics = read_metrics(folder_of(trial, self.out))
            if metrics is not None:
                del self.open[key]
                self.told(trial, metrics, self.total - len(self.open), self.total)


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold ``out`` for this run.

    Raises:
        ExperimentError: another run holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a+") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ExperimentError(
                f"Another run is at work in {out} ({file.read().strip() or 'just started'}). Wait for it, or "
                "give another folder with --out: folders can be merged by copying their trials."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _described(experiment: Experiment, trials: Sequence[Trial], command: str) -> dict[str, Any]:
    """The content of experiment.json."""
    settings = [trial.setting for trial in trials]
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": experiment.title,
        "description": experiment.description,
        "command": command,
        "versions": machine.versions(),
        "hardware": machine.hardware(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": ", ".join(dict.fromkeys(setting.model for setting in settings)),
        "data": ", ".join(dict.fromkeys(setting.data for setting in settings)),
        "published": [row.model_dump() for row in experiment.published],
        "trials": len(trials),
        "keys": [trial.key for trial in trials],
    }
