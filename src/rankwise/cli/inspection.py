"""The commands that only look: inspect, methods, tradeoff."""

from typing import Annotated, Any

import torch
import typer

from rankwise.allocation import allocators
from rankwise.auto import Automatic
from rankwise.auto import tradeoff as tradeoff_curve
from rankwise.cli import options
from rankwise.cli.console import percent, print_json, print_table, progress_bars, short
from rankwise.errors import RankwiseError
from rankwise.experiments.single import data_for, load_any
from rankwise.methods import get_method
from rankwise.methods import methods as known_methods
from rankwise.models import load_model
from rankwise.network import Layer, find_layers, model_cost


def _spectrum(layer: Layer) -> dict[str, Any]:
    """Ranks per group that keep 50, 90, 99 % of the weights' squared Frobenius norm, and the full rank."""
    values = torch.linalg.svdvals(layer.matrix()).square().sum(0)
    kept = values.cumsum(0) / values.sum().clamp_min(1e-300)
    ranks = {f"rank{p}": int((kept < p / 100).sum()) + 1 for p in (50, 90, 99)}
    return {name: min(rank, len(values)) for name, rank in ranks.items()} | {"full": len(values)}


def _describe(layer: Layer, method: str) -> dict[str, Any]:
    g = layer.geometry
    return {
        "name": layer.name,
        "kind": type(layer.module).__name__,
        "in_channels": g.in_channels,
        "out_channels": g.out_channels,
        "kernel_size": list(g.kernel_size),
        "stride": list(g.stride),
        "groups": g.groups,
        "positions": layer.positions,
        "calls": layer.calls,
        "params": layer.cost.params,
        "macs": layer.cost.macs,
        "reason": layer.reason or get_method(method).supports(layer),
        "spectrum": None if layer.reason else _spectrum(layer),
    }


def inspect(
    model: options.FileOrModel,
    data: options.OptionalData = None,
    weights: options.Weights = None,
    method: Annotated[str, typer.Option(help="The method whose reasons are shown.")] = "whitened",
    json: options.Json = False,
) -> None:
    """List every layer: shape, cost, the ranks its spectrum needs, and why it cannot be helped, if so."""
    loaded = load_any(model, weights)
    example: Any = loaded.example
    if data is not None:
        found = data_for(loaded, data)
        split = found.test or found.train
        if split is None:
            raise RankwiseError(f"Data set {data!r} has no examples to look at.")
        example = next(iter(split.take(1).batches(1)))
    if example is None:
        raise RankwiseError(f"{model} comes without an example input; give one with --data.")
    layers = [_describe(layer, method) for layer in find_layers(loaded.module, example)]
    cost = model_cost(loaded.module, example).as_dict()
    if json:
        print_json({"model": model, "cost": cost, "layers": layers})
        return
    rows = []
    for layer in layers:
        shape = f"{layer['in_channels']}>{layer['out_channels']}"
        if layer["kernel_size"]:
            shape += " " + "x".join(map(str, layer["kernel_size"]))
        if layer["groups"] > 1:
            shape += f" g{layer['groups']}"
        s = layer["spectrum"]
        ranks = "" if s is None else f"{s['rank50']}/{s['rank90']}/{s['rank99']}/{s['full']}"
        note = layer["reason"] or ""
        rows.append([layer["name"], shape, short(layer["params"]), short(layer["macs"]), ranks, note])
    total = {name: short(value) for name, value in cost.items()}
    title = f"{model}: {total['params']} parameters, {total['macs']} MACs, {total['bytes']} bytes"
    columns = ("layer", "shape", "params", "MACs", "rank 50/90/99/full", "left alone because")
    print_table(title, columns, rows, right=(2, 3, 4))


def tradeoff(
    model: options.ModelName,
    data: options.Data,
    weights: options.Weights = None,
    measure: Annotated[str, typer.Option(help="What the budgets are of: params or macs.")] = "macs",
    fractions: Annotated[str, typer.Option(help="The budgets, by commas.")] = "0.9,0.8,0.7,0.6,0.5,0.4,0.3",
    effort: Annotated[str, typer.Option(help="fast, normal or thorough.")] = "normal",
    calibration: options.Calibration = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """How far the outputs move at every budget, from one set of measurements, before any recovery."""
    if measure not in ("params", "macs"):
        raise RankwiseError(f"The measure {measure!r} was given; allowed are params and macs.")
    try:
        wanted = [float(part) for part in fractions.split(",")]
    except ValueError as error:
        raise RankwiseError(
            f"The fractions {fractions!r} were given; allowed are numbers by commas."
        ) from error
    options.tell_random(model, weights)
    loaded = load_model(model, weights, seed=seed).on(device)
    examples = data_for(loaded, data).calibration(calibration, seed)
    with progress_bars(quiet=json) as progress:
        points = tradeoff_curve(
            loaded.module, examples.batches(), "params" if measure == "params" else "macs", wanted,
            effort=effort, seed=seed, progress=progress,
        )  # fmt: skip
    if json:
        print_json({"model": model, "data": data, "tradeoff": [point.to_json() for point in points]})
        return
    rows = [
        [
            f"{p.asked:g}",
            percent(p.params_fraction),
            percent(p.macs_fraction),
            f"{p.predicted:.4f}",
            f"{p.kl:.4f}",
        ]
        for p in points
    ]
    columns = (measure, "params kept", "MACs kept", "KL, sum of layers", "KL, measured")
    print_table(f"{model}, before any recovery", columns, rows, right=(1, 2, 3, 4))


def methods(json: options.Json = False) -> None:
    """List every method and allocator, what each needs, and where it comes from."""
    found = [
        {
            "name": name,
            "summary": kind.summary,
            "needs": sorted(get_method(name).requires) or ["weights only"],
            "source": kind.source,
        }
        for name, kind in known_methods().items()
    ]
    mixed = {"name": Automatic.name, "summary": Automatic.summary, "needs": [], "source": "docs/auto.md"}
    found.insert(0, mixed)
    shares = [{"name": n, "summary": k.summary, "source": k.source} for n, k in allocators().items()]
    if json:
        print_json({"methods": found, "allocators": shares})
        return
    rows = [[m["name"], m["summary"], ", ".join(m["needs"]), m["source"]] for m in found]
    print_table("methods", ("name", "what it does", "needs", "source"), rows)
    print_table(
        "allocators",
        ("name", "what it does", "source"),
        [[s["name"], s["summary"], s["source"]] for s in shares],
    )
