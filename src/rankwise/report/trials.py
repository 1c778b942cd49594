"""What the page is made of: trials as they lie on disk, read with doubt, since any field may be missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from rankwise.results import METRICS_FILE, read

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
        return (text(self.metrics["failed"]) or "no reason given") if "failed" in self.metrics else None

    def stage(self, name: str) -> Json:
        """The figures of "original", "compressed" or "recovered"; empty where there are none."""
        return table(self.metrics.get(name))


@dataclass(frozen=True)
class Study:
    """All that lies below a folder: experiments, trials, and the files that could not be read, with why."""

    path: Path
    experiments: tuple[Json, ...] = ()
    trials: tuple[Trial, ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = ()


def read_study(path: Path) -> Study:
    """What :func:`rankwise.results.read` finds below ``path``, a folder or one ``metrics.json``.

    Trials come in the order of the experiments that they belong to, others after them.

    Raises:
        FileFormatError: there is no such folder, or it holds no results.
    """
    folder = path.parent if path.name == METRICS_FILE else path
    found = read(folder)
    trials = [Trial(at, metrics) for at, metrics in zip(found.folders, found.trials, strict=True)]
    keys = [key for experiment in found.experiments for key in keys_of(experiment)]
    places = {key: place for place, key in reversed(list(enumerate(keys)))}
    trials.sort(key=lambda trial: places.get(text(trial.metrics.get("key")), len(keys)))
    return Study(folder, tuple(found.experiments), tuple(trials), tuple(found.unreadable.items()))


def keys_of(experiment: Json) -> list[str]:
    """The trials of ``experiment``, in its order."""
    keys = experiment.get("keys")
    return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []


def table(value: Any) -> Json:
    """``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Json]:
    """The JSON objects in the list ``value``."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def text(value: Any) -> str:
    """``value`` as one text for people: lists joined, objects as ``name=value``; empty for nothing.

    An object with a name begins with it: ``iterative (step=0.9)``.
    """
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        entries = {key: text(entry) for key, entry in value.items() if key != "name"}
        inside = ", ".join(f"{key}={entry}" for key, entry in entries.items() if entry)
        name = text(value.get("name"))
        value = f"{name} ({inside})" if name and inside else name or inside
    elif isinstance(value, list):
        value = ", ".join(text(entry) for entry in value)
    shown = str(value)
    return shown if len(shown) <= TEXT_LIMIT else shown[:TEXT_LIMIT] + " ..."


def number(value: Any) -> float | None:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        return None
    return value
