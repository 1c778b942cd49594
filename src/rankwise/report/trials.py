"""Results on disk, read as they are: one folder per trial, each with its ``metrics.json``."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from rankwise.errors import FileFormatError

FORMAT, VERSION = "rankwise.metrics", 1
EXPERIMENT_FORMAT, EXPERIMENT_VERSION = "rankwise.experiment", 1
METRICS_FILE, PLAN_FILE, EXPERIMENT_FILE, TRIAL_FILE = (
    "metrics.json", "plan.json", "experiment.json", "config.json",
)  # fmt: skip
STAGES = ("compressed", "recovered")
TEXT_LIMIT = 4000  # characters of any one text on the page

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One trial: the folder it lies in and what its ``metrics.json`` says."""

    folder: Path
    metrics: Json

    @property
    def failed(self) -> str | None:
        """Why it failed; None where it did not."""
        return text(self.metrics.get("failed")) or None

    def stage(self, name: str) -> Json:
        """The figures of "original", "compressed" or "recovered"; empty where there are none."""
        return table(self.metrics.get(name))


@dataclass(frozen=True)
class Results:
    """All that lies below a folder: experiments, trials, and the files that could not be read, with why."""

    path: Path
    experiments: tuple[Json, ...] = ()
    trials: tuple[Trial, ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = ()
    unfinished: int = 0  # folders with a trial's config and no metrics yet


@dataclass
class _Found:
    experiments: list[Json] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    unfinished: int = 0


def read_results(path: Path) -> Results:
    """Read every ``metrics.json`` and ``experiment.json`` at or below ``path``.

    Folders that were copied together are one result; a file that cannot be read is named, not fatal.

    Raises:
        FileFormatError: there is no such folder, or nothing in it that could be shown.
    """
    found = _Found()
    if not path.exists():
        raise FileFormatError(f"{str(path)!r} was given, and does not exist; allowed is a folder of results.")
    for folder, names in _folders(path):
        if EXPERIMENT_FILE in names:
            _take(found, folder / EXPERIMENT_FILE, found.experiments.append, _check_experiment)
        if METRICS_FILE in names:
            _take(
                found,
                folder / METRICS_FILE,
                lambda content, at=folder: found.trials.append(Trial(at, content)),
                _check_metrics,
            )
        elif TRIAL_FILE in names and EXPERIMENT_FILE not in names:
            found.unfinished += 1
    if not (found.experiments or found.trials or found.unreadable or found.unfinished):
        raise FileFormatError(
            f"{str(path)!r} was given, and holds no {METRICS_FILE}; allowed is a folder that "
            "`rankwise compress --out` or a run of an experiment wrote."
        )
    return Results(
        path, tuple(found.experiments), tuple(found.trials), tuple(found.unreadable), found.unfinished
    )


def result_files(path: Path) -> Iterator[Path]:
    """The files that :func:`read_results` would read, in its order."""
    for folder, names in _folders(path):
        yield from (folder / name for name in (EXPERIMENT_FILE, METRICS_FILE, TRIAL_FILE) if name in names)


def _folders(path: Path) -> Iterator[tuple[Path, set[str]]]:
    if path.is_file():
        yield path.parent, {path.name}
        return
    for folder, below, names in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(folder), set(names)


def _take(found: _Found, path: Path, keep: Any, check: Any) -> None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        found.unreadable.append((path, f"{type(error).__name__}: {error}"))
        return
    problem = check(content)
    if problem:
        found.unreadable.append((path, problem))
    else:
        keep(content)


def _check_header(content: Any, form: str, version: int) -> str:
    if not isinstance(content, dict):
        return "not a JSON object"
    if content.get("format", form) != form:
        return f"its 'format' is {text(content['format'])!r}, not {form!r}"
    given = content.get("version", version)
    if not isinstance(given, int) or given > version:
        return f"its version is {given!r}; this rankwise reads versions up to {version}"
    return ""


def _check_experiment(content: Any) -> str:
    return _check_header(content, EXPERIMENT_FORMAT, EXPERIMENT_VERSION)


def _check_metrics(content: Any) -> str:
    problem = _check_header(content, FORMAT, VERSION)
    if not problem and not text(content.get("failed")) and not table(content.get("compressed")):
        problem = "it has neither 'compressed' nor 'failed'"
    return problem


def table(value: Any) -> Json:
    """``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Json]:
    """The JSON objects in the list ``value``."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def text(value: Any) -> str:
    """``value`` as one text for people: lists joined, objects as ``name=value``; empty for nothing."""
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        value = ", ".join(f"{key}={text(entry)}" for key, entry in value.items() if entry is not None)
    elif isinstance(value, list):
        value = ", ".join(text(entry) for entry in value)
    shown = str(value)
    return shown if len(shown) <= TEXT_LIMIT else shown[:TEXT_LIMIT] + " ..."


def number(value: Any) -> float | None:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        return None
    return value
