"""The commands about many trials: run an experiment, look at its results, print the schema of its file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rankwise.cli import options
from rankwise.cli.console import counted, errors, percent, print_json, print_table, progress_bars
from rankwise.errors import RankwiseError
from rankwise.experiments.config import json_schema
from rankwise.experiments.engines import Engine, Local, OnRay
from rankwise.experiments.execution import folder_of
from rankwise.experiments.machine import cores
from rankwise.experiments.runner import State, run_experiment, state_of
from rankwise.experiments.source import read_experiment
from rankwise.experiments.trials import Trial, trials_of
from rankwise.files import json_text, write_atomically, write_text
from rankwise.report.curves import Network, networks_of
from rankwise.report.trials import Trial as Read
from rankwise.results import Results, read, read_metrics

WIDTH = 80
COLUMNS = 5  # budgets in the table that is printed
_OUTCOMES = {"finished": "finished", "failed": "failed", "missing": "to do"}


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An experiment file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the trials [default: runs/ and the file's name].")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides the file: budgets.0=0.7")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use the file's section 'quick'.")] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Processes here, or a Ray cluster.")
    ] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="local: processes at once [default: one per core].")
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="ray: an existing cluster, or auto.")] = None,
    cpus: Annotated[int, typer.Option(min=1, help="ray: cores of each task.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="ray: GPUs of each task, for fine-tuning.")] = 0.0,
    memory: Annotated[float | None, typer.Option(min=0, help="ray: GiB of each task.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trials and do nothing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do failed trials again.")] = False,
    json: options.Json = False,
) -> None:
    """Run every trial of an experiment that is not done yet; interrupt and run again at any time."""
    if not dry_run:
        options.folder(out)
    experiment = read_experiment(file, overrides=change or [], quick=quick)
    trials = trials_of(experiment, file.parent)
    out = out or Path("runs") / f"{file.resolve().parent.name}-{file.stem}{'-quick' if quick else ''}"
    if dry_run:
        _list(trials, state_of(trials, out), out, json)
        return
    worker: Engine = Local(jobs or min(cores(), len(trials)))
    if engine == "ray":
        worker = OnRay(ray_address, cpus, gpus, options.in_bytes(memory))
    with progress_bars(quiet=json) as progress:

        def told(trial: Trial, metrics: dict[str, Any], done: int, total: int) -> None:
            if errors.is_terminal:
                progress("trials", done, total)
            if not errors.is_terminal or "failed" in metrics:
                errors.print(_line(trial, metrics, done, total), markup=False)

        state = run_experiment(
            experiment, trials, out, worker,
            command=["rankwise", *sys.argv[1:]], retry_failed=retry_failed, told=told,
        )  # fmt: skip
    found = [read_metrics(folder_of(trial, out)) for trial in trials]
    if json:
        print_json({"out": str(out), **_counts(state), "trials": [_short(f) for f in found if f]})
    else:
        _print(experiment.title, [f for f in found if f])
        typer.echo(f"{out}: {_summary(state)}")
    if not state.finished:
        raise typer.Exit(1)


def _line(trial: Trial, metrics: dict[str, Any], done: int, total: int) -> str:
    """One line of 80 columns at most about a trial that ended; the reason of a failure may take more."""
    head = f"[{done}/{total}] {trial.describe()}"
    if "failed" in metrics:
        return f"{head}: {metrics['failed']}"
    figure = _figure(metrics)
    return f"{head[: WIDTH - len(figure) - 2]}  {figure}"


def _figure(metrics: dict[str, Any]) -> str:
    saved = metrics.get("recovered") or metrics["compressed"]
    if saved.get("perplexity") is not None:
        return f"perplexity {saved['perplexity']:.3f}"
    return percent(saved.get("top1") if saved.get("top1") is not None else saved.get("agreement"))


def _counts(state: State) -> dict[str, int]:
    return {name: len(getattr(state, name)) for name in _OUTCOMES}


def _summary(state: State) -> str:
    parts = [f"{count} {_OUTCOMES[name]}" for name, count in _counts(state).items() if count]
    again = "; --retry-failed does these again" if state.failed else ""
    return f"{counted(sum(_counts(state).values()), 'trial')}: {', '.join(parts)}{again}"


def _list(trials: Sequence[Trial], state: State, out: Path, json: bool) -> None:
    outcome = {t.key: word for name, word in _OUTCOMES.items() for t in getattr(state, name)}
    if json:
        listed = [{"key": t.key, "state": outcome[t.key], "trial": t.describe()} for t in trials]
        print_json({"out": str(out), **_counts(state), "trials": listed})
        return
    for trial in trials:
        typer.echo(f"{outcome[trial.key]:8} {trial.key} {trial.describe()}")
    typer.echo(f"{out}: {_summary(state)}")


def _short(metrics: dict[str, Any]) -> dict[str, Any]:
    """What --json prints of a trial."""
    names = ("key", "model", "label", "measure", "target", "seed", "failed")
    saved = metrics.get("recovered") or metrics.get("compressed") or {}
    figures = ("top1", "agreement", "kl", "perplexity", "params_fraction", "macs_fraction")
    return {n: metrics[n] for n in names if n in metrics} | {n: saved[n] for n in figures if n in saved}


def _print(title: str, found: Sequence[dict[str, Any]]) -> None:
    """Per network, method and allocator the mean over the seeds, at some of the budgets."""
    targets = list(dict.fromkeys(map(_target, sorted(found, key=_kept, reverse=True))))
    step = max(1, -(-len(targets) // COLUMNS))
    shown = targets[::step]
    networks = networks_of([Read(Path(), metrics) for metrics in found])
    values: dict[tuple[Network, str], dict[str, list[dict[str, Any]]]] = {}
    for metrics, network in zip(found, networks, strict=True):
        of_row = values.setdefault((network, _label(metrics)), {})
        of_row.setdefault(_target(metrics), []).append(metrics)
    several = len(set(networks)) > 1
    rows = [
        [f"{its.label}: {label}" if several else label, *(_mean(of_row.get(target, [])) for target in shown)]
        for (its, label), of_row in values.items()
    ]
    head = ("method / allocator", *shown)
    print_table(title, head, rows, right=range(1, len(head)))


def _measure(metrics: dict[str, Any]) -> str:
    """The measures of the budget: one in an experiment, one or several of ``rankwise compress``."""
    return "+".join(_budget(metrics))


def _budget(metrics: dict[str, Any]) -> dict[str, Any]:
    """What was to be kept, by measure."""
    if "target" in metrics:
        return {str(metrics.get("measure")): metrics["target"]}
    return dict(metrics.get("budget") or {})


def _kept(metrics: dict[str, Any]) -> float:
    """The first number of the budget."""
    return next((kept for kept in _budget(metrics).values() if isinstance(kept, (int, float))), 0.0)


def _target(metrics: dict[str, Any]) -> str:
    """The budget as text: ``macs=0.5``."""
    return ",".join(f"{name}={kept}" for name, kept in _budget(metrics).items())


def _label(metrics: dict[str, Any]) -> str:
    """Method and allocator; an experiment has told its own apart."""
    both = " / ".join(str(metrics[name]) for name in ("method", "allocator") if name in metrics)
    return str(metrics.get("label") or both or "-")


def _mean(found: Sequence[dict[str, Any]]) -> str:
    """The mean top-1 in percent, or agreement where there are no labels; a dash where a trial failed."""
    saved = [metrics.get("recovered") or metrics.get("compressed") or {} for metrics in found]
    for name in ("top1", "agreement"):
        known = [figures[name] for figures in saved if figures.get(name) is not None]
        if known:
            return f"{100 * sum(known) / len(known):.2f}"
    return "-"


def results(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders of results.")],
    csv: Annotated[
        Path | None, typer.Option(help="Write the table there as CSV.", callback=options.file)
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="Write the table there as Parquet.", callback=options.file)
    ] = None,
    json: options.Json = False,
) -> None:
    """Show the trials in one or several folders, or write them as one table."""
    found = read(paths)
    _warn(found)
    if csv is not None or parquet is not None:
        table = found.table()
        if csv is not None:
            _written(csv, lambda path: table.to_csv(path, index=False), len(table))
        if parquet is not None:
            _written(parquet, lambda path: table.to_parquet(path, index=False), len(table))
        return
    if json:
        unreadable = {str(path): reason for path, reason in found.unreadable.items()}
        print_json({"trials": [_short(trial) for trial in found.trials], "unreadable": unreadable})
        return
    titles = [str(experiment.get("title", "")) for experiment in found.experiments]
    for measure in dict.fromkeys(map(_measure, found.trials)):
        _print(", ".join(titles), [trial for trial in found.trials if _measure(trial) == measure])
    failed = sum("failed" in trial for trial in found.trials)
    typer.echo(f"{counted(len(found.trials), 'trial')}, {failed} failed, {len(found.unreadable)} unreadable")


def _warn(found: Results) -> None:
    for path, reason in found.unreadable.items():
        errors.print(f"left out: {path}: {reason}", markup=False, soft_wrap=True)
    if found.unreadable:
        errors.print(f"unreadable: {counted(len(found.unreadable), 'file')}", markup=False)


def _written(path: Path, write: Any, count: int) -> None:
    try:
        write_atomically(path, write)
    except ImportError as error:
        raise RankwiseError(f"Writing {path} needs pyarrow: pip install rankwise[report].") from error
    typer.echo(f"written to {path}: {counted(count, 'trial')}", err=True)


def schema(
    out: Annotated[
        Path | None, typer.Option(help="File for it [default: print it].", callback=options.file)
    ] = None,
) -> None:
    """Print the JSON schema of experiment files, for editors."""
    if out is None:
        print_json(json_schema())
    else:
        write_text(out, json_text(json_schema()))
        typer.echo(f"written to {out}")
