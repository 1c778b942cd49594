"""The commands that make and judge networks: compress, evaluate, compare, plan, apply."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.budget import Budget
from rankwise.cli import options
from rankwise.cli.console import percent, print_json, print_table, progress_bars, short
from rankwise.data import Batches
from rankwise.evaluation import Evaluation
from rankwise.evaluation import compare as compare_models
from rankwise.evaluation import evaluate as evaluate_model
from rankwise.evaluation.latency import time_on
from rankwise.experiments.recovering import parse_recovery
from rankwise.experiments.single import (
    METRICS_FILE,
    MODEL_FILE,
    PLAN_FILE,
    Run,
    compress_run,
    data_for,
    execute,
    load_any,
    prepare,
)
from rankwise.io import save
from rankwise.models import LoadedModel, load_model
from rankwise.plan import Plan, plan_of
from rankwise.reapply import apply as apply_plan
from rankwise.report.page import write_page_beside

Metrics = dict[str, Any]


def _accuracy(metrics: Metrics) -> str:
    if metrics.get("perplexity") is not None:
        return f"perplexity {metrics['perplexity']:.3f}"
    return percent(metrics.get("top1"))


def print_metrics(title: str, metrics: Metrics) -> None:
    """The table of one compression: original beside compressed, and recovered where it was."""
    original = metrics["original"]
    later = {name: metrics[name] for name in ("compressed", "recovered") if name in metrics}
    quality = "top-1" if original.get("perplexity") is None else "quality"
    rows = [
        [quality, _accuracy(original), *map(_accuracy, later.values()), ""],
        ["agreement", "", *(percent(found.get("agreement")) for found in later.values()), ""],
    ]
    for name in ("params", "macs", "bytes"):
        values = [short(found[name]) for found in later.values()]
        kept = percent(metrics["compressed"][f"{name}_fraction"])
        rows.append([name, short(original[name]), *values, kept])
    timed = metrics.get("latency")
    if timed is not None:
        after = f"{timed['measured'] * timed['original_ms']:.3f} ms"
        blank = [""] * (len(later) - 1)
        kept = percent(timed["measured"])
        rows.append(["latency", f"{timed['original_ms']:.3f} ms", after, *blank, kept])
    heads = ("", "original", *later, "kept")
    print_table(title, heads, rows, right=range(1, len(heads)))
    for name, seconds in metrics.get("recovered", {}).get("seconds", {}).items():
        typer.echo(f"{name}: {seconds:.0f} seconds")


def compress(
    model: options.FileOrModel,
    data: options.Data,
    weights: options.Weights = None,
    method: options.Method = "auto",
    method_option: options.MethodOptions = None,
    allocator: options.Allocator = "knapsack",
    allocator_option: options.AllocatorOptions = None,
    budget: options.BudgetText = "macs=0.5",
    recover: options.Recover = "none",
    calibration: options.Calibration = None,
    seed: options.Seed = 0,
    include: options.Include = None,
    exclude: options.Exclude = None,
    multiple_of: options.MultipleOf = 1,
    max_memory: options.MaxMemory = None,
    fold_batchnorm: options.FoldBatchNorm = None,
    device: options.Device = "cpu",
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """Compress a network or a saved file to a budget, recover, evaluate on the test split, save."""
    run = _run(model, data, weights, method, method_option, allocator, allocator_option, budget, recover,
               calibration, seed, include, exclude, multiple_of, max_memory, fold_batchnorm,
               device)  # fmt: skip
    if out is not None:
        options.keep_apart((out / MODEL_FILE, out / PLAN_FILE, out / METRICS_FILE), model, weights)
    with progress_bars(quiet=json) as progress:
        metrics = execute(run, out, progress, shlex.join(["rankwise", *sys.argv[1:]]))
    page = "" if out is None else write_page_beside(out)
    if json:
        print_json(metrics)
        return
    print_metrics(f"{model}, {method}, {allocator}, budget {budget}", metrics)
    if out is None:
        typer.echo("nothing was saved; --out DIR saves the model, the plan and the metrics")
        return
    typer.echo(f"written to {out}: {MODEL_FILE}, {PLAN_FILE}, {METRICS_FILE}")
    typer.echo(page)


def _run(
    model: str, data: str, weights: str | None, method: str, method_option: list[str] | None, allocator: str,
    allocator_option: list[str] | None, budget: str, recover: str, calibration: int | None,
    seed: int, include: list[str] | None, exclude: list[str] | None, multiple_of: int,
    max_memory: float | None, fold_batchnorm: bool | None, device: str,
) -> Run:  # fmt: skip
    options.tell_random(model, weights)
    return Run(
        model, data, weights, method, options.settings(method_option), allocator,
        options.settings(allocator_option), budget, parse_recovery(recover), calibration, seed=seed,
        include=tuple(include or ()), exclude=tuple(exclude or ()), multiple_of=multiple_of,
        max_memory=options.in_bytes(max_memory),
        fold_batchnorm=fold_batchnorm, device=device,
    )  # fmt: skip


def evaluate(
    model: options.FileOrModel,
    data: options.Data,
    weights: options.Weights = None,
    reference: Annotated[str | None, typer.Option(help="A FILE or MODEL to compare decisions with.")] = None,
    reference_weights: Annotated[str | None, typer.Option(help="Weights of the reference.")] = None,
    skeleton: Annotated[
        str | None, typer.Option(help="Architecture of the file, if its plan does not say.")
    ] = None,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """Evaluate a network or a saved file on the test split of a data set."""
    options.tell_random(model, weights)
    loaded = load_any(model, weights, skeleton).on(device)
    test = _testing(data, loaded)
    if reference is None:
        found = evaluate_model(loaded.module, test)
    else:
        options.tell_random(reference, reference_weights, "--reference-weights")
        original = load_any(reference, reference_weights).on(device)
        found = compare_models(original.module, loaded.module, test, loader_a=_testing(data, original)).b
    metrics = {"model": model, "data": data, **found.to_json(), **_latency(loaded, test)}
    if Path(model).is_file():
        metrics["file_bytes"] = Path(model).stat().st_size
    if json:
        print_json(metrics)
    else:
        print_figures(f"{model} on {data}", {"value": metrics})
        _print_flips(found, reference or "", "the network")


def _latency(loaded: LoadedModel, test: Batches) -> Metrics:
    """Milliseconds now, on the target of the latency budget that the network was compressed for, if any."""
    budgets = [s["budget"] for s in plan_of(loaded.module).settings if "latency" in s.get("budget", {})]
    if not budgets:
        return {}
    target = Budget(**budgets[-1]).target
    seconds = time_on(target, {"network": loaded.module}, next(iter(test)))
    return {"latency_ms": 1e3 * seconds["network"]}


def _testing(data: str, loaded: LoadedModel) -> Batches:
    """Batches of the test split, prepared as the network reads them."""
    return data_for(loaded, data).testing().batches()


def print_figures(title: str, columns: dict[str, Metrics]) -> None:
    """The plain numbers of one or several evaluations, side by side."""
    first = next(iter(columns.values()))
    rows = []
    for name in first:
        values = [metrics.get(name) for metrics in columns.values()]
        if name != "confidence" and any(isinstance(value, (int, float)) for value in values):
            rows.append([name, *(_figure(name, value) for value in values)])
    print_table(title, ("measure", *columns), rows, right=range(1, len(columns) + 1))


def _figure(name: str, value: Any) -> str:
    if value is None or name in ("top1", "top5", "agreement"):
        return percent(value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _print_flips(found: Evaluation, reference: str, network: str) -> None:
    if found.flips is not None:
        typer.echo(f"of {reference}'s right decisions {network} gets {found.flips.right_to_wrong} wrong, "
                   f"of its wrong ones {found.flips.wrong_to_right} right")  # fmt: skip


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="The reference: FILE or MODEL.")],
    second: Annotated[str, typer.Argument(metavar="B", help="FILE or MODEL.")],
    data: options.Data,
    first_weights: Annotated[str | None, typer.Option(help="Weights of A.")] = None,
    second_weights: Annotated[str | None, typer.Option(help="Weights of B.")] = None,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """Compare the decisions of two networks, example by example: agreement, flips, per-class figures."""
    options.tell_random(first, first_weights, "--first-weights")
    options.tell_random(second, second_weights, "--second-weights")
    a, b = load_any(first, first_weights).on(device), load_any(second, second_weights).on(device)
    both = compare_models(a.module, b.module, _testing(data, b), loader_a=_testing(data, a))
    if json:
        print_json({"data": data, "models": {"a": first, "b": second}, **both.to_json()})
        return
    print_figures(f"A {first}, B {second}, on {data}", {"A": both.a.to_json(), "B": both.b.to_json()})
    _print_flips(both.b, "A", "B")
    rows = [
        [str(c.label), str(c.examples), percent(c.accuracy), percent(c.agreement)] for c in both.b.per_class
    ]
    print_table("B per class", ("class", "examples", "accuracy", "agreement"), rows, right=(1, 2, 3))


def plan(
    model: options.ModelName,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="File for the plan.", callback=options.file)] = Path(PLAN_FILE),
    weights: options.Weights = None,
    method: options.Method = "auto",
    method_option: options.MethodOptions = None,
    allocator: options.Allocator = "knapsack",
    allocator_option: options.AllocatorOptions = None,
    budget: options.BudgetText = "macs=0.5",
    calibration: options.Calibration = None,
    seed: options.Seed = 0,
    include: options.Include = None,
    exclude: options.Exclude = None,
    multiple_of: options.MultipleOf = 1,
    max_memory: options.MaxMemory = None,
    fold_batchnorm: options.FoldBatchNorm = None,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """Decide what would be done to every layer, and write it as a plan to read or edit."""
    run = _run(model, data, weights, method, method_option, allocator, allocator_option, budget, "none",
               calibration, seed, include, exclude, multiple_of, max_memory, fold_batchnorm,
               device)  # fmt: skip
    options.keep_apart((out,), model, weights)
    with progress_bars(quiet=json) as progress:
        done, _ = compress_run(run, *prepare(run), progress)
    done.plan.save(out)
    if json:
        print_json({"plan": str(out), "original": done.plan.original, "final": done.plan.final})
        return
    rows = [
        [edit.target, edit.op, " ".join(f"{k}={v}" for k, v in edit.choice.items()) or (edit.reason or ""),
         short(edit.before.get("macs", 0)), short(edit.after.get("macs", 0))]
        for edit in done.plan.edits
    ]  # fmt: skip
    print_table(f"plan written to {out}", ("target", "edit", "choice", "MACs", "after"), rows, right=(3, 4))


def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.")],
    model: options.ModelName,
    data: options.OptionalData = None,
    weights: options.Weights = None,
    calibration: options.Calibration = None,
    seed: options.Seed = 0,
    max_memory: options.MaxMemory = None,
    device: options.Device = "cpu",
    out: Annotated[Path, typer.Option(help="File for the model.", callback=options.file)] = Path(MODEL_FILE),
    json: options.Json = False,
) -> None:
    """Build what a plan says, from the network's weights and calibration data, and save it."""
    options.keep_apart((out,), plan, weights)
    options.tell_random(model, weights)
    loaded = load_model(model, weights).on(device)
    batches = None
    if data is not None:
        batches = data_for(loaded, data).calibration(calibration, seed).batches()
    built = apply_plan(
        Plan.load(plan), loaded.module, batches, example=loaded.example, seed=seed,
        max_memory=options.in_bytes(max_memory),
    )  # fmt: skip
    save(built, out)
    cost = plan_of(built).final
    if json:
        print_json({"model": str(out), **cost})
    else:
        typer.echo(f"written to {out}: {short(cost['params'])} parameters, {short(cost['macs'])} MACs")
