"""Reading what experiments left on disk: every trial as a row of a table, and its network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rankwise.errors import FileFormatError, RankwiseError
from rankwise.io import load as load_file
from rankwise.models import load_model

if TYPE_CHECKING:
    import pandas

FORMAT, VERSION = "rankwise.metrics", 1
EXPERIMENT_FILE, METRICS_FILE, MODEL_FILE = "experiment.json", "metrics.json", "model.safetensors"

TRAINING = "it is of a training run, which is no trial"

_IDENTITY = (
    *("key", "model", "data", "method", "allocator", "label", "measure", "target", "repetition", "seed"),
    *("method_options", "allocator_options", "schedule", "recovery", "failed", "weights"),
    *("started", "finished", "command"),
)
_STAGES = ("original", "compressed", "recovered")
_FIGURES = (
    *("top1", "top5", "loss", "perplexity", "agreement", "kl", "params", "macs", "bytes", "examples"),
    *("params_fraction", "macs_fraction", "bytes_fraction", "file_bytes"),
)


@dataclass(frozen=True)
class Results:
    """Trials as they lie on disk: their metrics, their directories, and what could not be read.

    ``experiments`` are the contents of the ``experiment.json`` files; ``unreadable`` maps paths to reasons.
    """

    trials: list[dict[str, Any]]
    folders: list[Path]
    experiments: list[dict[str, Any]] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def table(self) -> "pandas.DataFrame":
        """One row per trial, one column per figure: ``compressed_top1``, ``seconds``, ``failed``, ...

        Figures without a prefix are those of the network as it was saved: recovered, or else compressed.

        Raises:
            RankwiseError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise RankwiseError("A table of results needs pandas: pip install rankwise[report].") from error
        rows = [_row(trial, folder) for trial, folder in zip(self.trials, self.folders, strict=True)]
        return pandas.DataFrame(rows)


def load(path: str | Path | Sequence[str | Path]) -> "pandas.DataFrame":
    """The table of all trials under ``path``: a folder of results, one above several, or several of them.

    What ``rankwise compress --out`` wrote counts as a trial, what ``rankwise finetune`` wrote does not.

    Files that cannot be read are left out; ``table.attrs["unreadable"]`` maps their paths to the reasons.

    Raises:
        FileFormatError: there is no such folder, or it holds no trials.
        RankwiseError: pandas is not installed.
    """
    found = read(path)
    table = found.table()
    table.attrs["unreadable"] = {str(name): reason for name, reason in found.unreadable.items()}
    return table


def read(path: str | Path | Sequence[str | Path]) -> Results:
    """As :func:`load`, the metrics as they are. A trial that lies in several folders is taken once.

    Raises:
        FileFormatError: there is no such folder, or it holds no trials.
    """
    roots = [Path(path)] if isinstance(path, (str, Path)) else [Path(one) for one in path]
    trials: dict[str, tuple[dict[str, Any], Path]] = {}
    experiments, unreadable = [], {}
    for root in roots:
        if not root.is_dir():
            raise FileFormatError(f"There is no folder {str(root)!r} with results.")
        for file in sorted(root.rglob(EXPERIMENT_FILE)):
            content, reason = _json(file)
            if reason is None:
                experiments.append(content)
            else:
                unreadable[file] = reason
        for file in sorted(root.rglob(METRICS_FILE)):
            content, reason = _metrics(file)
            if reason == TRAINING:
                continue
            if reason is not None:
                unreadable[file] = reason
                continue
            key = content.get("key", str(file.parent))
            known = trials.get(key)
            if known is None or "failed" in known[0]:
                trials[key] = content, file.parent
    if not trials and not unreadable and not experiments:
        raise FileFormatError(
            f"No trials under {', '.join(map(str, roots))}: "
            "rankwise run and rankwise compress --out write some."
        )
    return Results([t for t, _ in trials.values()], [f for _, f in trials.values()], experiments, unreadable)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """The metrics in the directory of one trial; None where there are none that can be read."""
    content, reason = _metrics(folder / METRICS_FILE)
    return content if reason is None else None


def _metrics(file: Path) -> tuple[dict[str, Any], str | None]:
    content, reason = _json(file)
    if reason is not None:
        return {}, reason
    version = content.get("version", VERSION)
    if content.get("format", FORMAT) != FORMAT or not isinstance(content.get("key", ""), str):
        return {}, f"its format is not {FORMAT!r}"
    if not isinstance(version, int) or version > VERSION:
        return {}, f"it has version {version!r}; this rankwise reads versions up to {VERSION}"
    stages = [content.get(stage, {}) for stage in _STAGES]
    if {"before", "after"} <= content.keys():
        return {}, TRAINING
    if not all(isinstance(stage, dict) for stage in stages) or not ("failed" in content or stages[1]):
        return {}, "it has neither figures nor the reason of a failure"
    return content, None


def _json(file: Path) -> tuple[dict[str, Any], str | None]:
    """The content of ``file``, or why it cannot be read."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        return {}, error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        return {}, f"it is no JSON: {error}"
    return (content, None) if isinstance(content, dict) else ({}, "it holds no JSON object")


def _row(trial: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    row = {name: _plain(trial.get(name)) for name in _IDENTITY}
    saved = trial.get("recovered") or trial.get("compressed") or {}
    row |= {name: saved.get(name) for name in _FIGURES}
    for stage in _STAGES:
        row |= {f"{stage}_{name}": trial.get(stage, {}).get(name) for name in _FIGURES}
    spent = trial.get("seconds") or {}
    row |= {f"seconds_{part}": value for part, value in spent.items()}
    row["seconds"] = sum(spent.values()) if spent else None
    row["peak_bytes"] = (trial.get("memory") or {}).get("peak_bytes")
    for group in ("hardware", "versions", "calibration"):
        row |= {f"{group}_{name}": _plain(value) for name, value in (trial.get(group) or {}).items()}
    row["folder"] = str(folder)
    return row


def _plain(value: Any) -> Any:
    """A value for a cell: mappings and lists as JSON text."""
    return json.dumps(value) if isinstance(value, (dict, list)) else value


def load_network(folder: str | Path) -> nn.Module:
    """The network that the trial in ``folder`` made, in evaluation mode.

    Raises:
        FileFormatError: the directory holds no finished trial.
        RankwiseError: its architecture is not known here, or does not fit the file.
    """
    folder = Path(folder)
    metrics = read_metrics(folder)
    if metrics is None or "failed" in metrics:
        why = "" if metrics is None else f": it failed with {metrics['failed']}"
        raise FileFormatError(f"{str(folder)!r} is not the directory of a finished trial{why}.")
    return load_file(folder / MODEL_FILE, load_model(metrics["model"]).module).eval()
