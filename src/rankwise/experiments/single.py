"""One experiment: load, compress, evaluate, save. The command line and the benchmarks call it."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rankwise.allocation import get_allocator
from rankwise.budget import Budget
from rankwise.compress import Compression, compression
from rankwise.data import DataSet, load_data
from rankwise.errors import DataError, RankwiseError
from rankwise.evaluation import Comparison, Evaluation, compare, evaluate
from rankwise.experiments import machine
from rankwise.experiments.recovering import Recovering
from rankwise.experiments.variants import methods_of
from rankwise.files import json_text, write_text
from rankwise.io import load, read_plan, save
from rankwise.models import LoadedModel, load_model
from rankwise.network import Cost
from rankwise.network.batches import forward
from rankwise.network.digest import digest
from rankwise.network.state import preserved
from rankwise.progress import Progress, silent
from rankwise.results import FORMAT, VERSION

MODEL_FILE, PLAN_FILE, METRICS_FILE = "model.safetensors", "plan.json", "metrics.json"


@dataclass(frozen=True)
class Run:
    """What is compressed, how, and on which data; every field is JSON-able."""

    model: str
    data: str
    weights: str | None = None
    method: str = "auto"
    method_options: dict[str, Any] = field(default_factory=dict)
    allocator: str = "knapsack"
    allocator_options: dict[str, Any] = field(default_factory=dict)
    budget: str = "macs=0.5"
    recovery: tuple[str, ...] = ()
    calibration: int | None = None
    batch_size: int = 128
    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    multiple_of: int = 1
    max_memory: int | None = None
    fold_batchnorm: bool | None = None
    device: str = "cpu"


def prepare(run: Run) -> tuple[LoadedModel, DataSet]:
    """The network of ``run``, on its device, and the data set, prepared as the network reads it."""
    loaded = load_any(run.model, run.weights, seed=run.seed).on(run.device)
    return loaded, data_for(loaded, run.data)


def data_for(loaded: LoadedModel, spec: str) -> DataSet:
    """The data set ``spec``, prepared as the network reads it; the network is tried on two examples.

    Raises:
        DataError: the network cannot read it.
    """
    data = load_data(spec, transform=loaded.preprocessing)
    split = data.test or data.train
    if split is None or not len(split):
        return data
    few = split.take(2)  # not one: a network may squeeze its outputs
    try:
        with preserved(loaded.module), torch.no_grad():
            for batch in few.batches(2):
                forward(loaded.module.eval(), batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        read = "" if loaded.example is None else f"; allowed are such as {_shape(loaded.example)}"
        given = _shape(few.fetch(torch.arange(1)))
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"{loaded.spec!r} cannot read what {spec!r} gives, examples of {given}{read} ({why})."
        ) from error
    return data


def _shape(batch: torch.Tensor) -> str:
    """The shape of one example of ``batch``, as 3x32x32."""
    return "x".join(map(str, batch.shape[1:]))


def beside(
    done: Compression, both: Comparison, recovered: Evaluation | None = None
) -> dict[str, dict[str, Any]]:
    """``original``, ``compressed`` and, if given, ``recovered``: what evaluation and the costs say.

    Compressed is what came before recovery, recovered what came after it; both with the fractions kept.
    """
    original, final = _costs(done.original), _costs(done.final)
    cost = {**final, **{f"{name}_fraction": final[name] / original[name] for name in final}}
    stages = {
        "original": {**both.a.to_json(), **original},
        "compressed": {**both.b.to_json(), **cost},
    }
    return stages if recovered is None else {**stages, "recovered": {**recovered.to_json(), **cost}}


def _costs(cost: Cost) -> dict[str, int]:
    """Every cost that is known; ``latency`` in nanoseconds, where the budget was one of time."""
    return cost.as_dict() | ({"latency": cost.latency} if cost.latency else {})


def compress_run(
    run: Run, loaded: LoadedModel, data: DataSet, progress: Progress = silent, out: Path | None = None
) -> tuple[Compression, dict[str, float]]:
    """Compress the network of ``run`` on calibration examples out of the training split, and recover it.

    Returns what was done, and the seconds of each recovery. ``out`` is for the checkpoint of fine-tuning.
    """
    batches = data.calibration(run.calibration, run.seed).batches(run.batch_size)
    recovering = Recovering(data, batches, run.seed, out, progress)
    done = compression(
        loaded.module,
        batches,
        Budget.parse(run.budget),
        method=methods_of(run.method, run.method_options),
        allocator=get_allocator(run.allocator, **run.allocator_options),
        recovery=recovering.all(run.recovery),
        include=run.include or None,
        exclude=run.exclude or None,
        multiple_of=run.multiple_of,
        max_memory=run.max_memory,
        fold_batchnorm=run.fold_batchnorm,
        seed=run.seed,
        progress=progress,
        notes={**_architecture(run), "data": run.data, "calibration": len(batches.split)},
    )
    return done, recovering.seconds


def _architecture(run: Run) -> dict[str, str]:
    """What the plan says of the network; that of a saved file says it already."""
    if is_file(run.model):
        return {}
    return {"model": run.model} if run.weights is None else {"model": run.model, "weights": run.weights}


def execute(
    run: Run, out: Path | None = None, progress: Progress = silent, command: str = ""
) -> dict[str, Any]:
    """Compress, recover and evaluate; with ``out`` also save the model, the plan and the metrics there.

    Returns the metrics: ``original``, ``compressed`` and, with a recovery, ``recovered`` (accuracy,
    agreement and cost; the last also the ``seconds`` of each recovery), ``seconds``, and how they were made:
    ``command`` (what was typed), versions and hardware.
    """
    loaded, data = prepare(run)
    test = data.testing().batches(run.batch_size)
    done, recovering = compress_run(run, loaded, data, progress, out)
    start = time.perf_counter()
    progress("evaluate", 0, 1)
    both = compare(loaded.module, done.compressed, test)
    recovered = evaluate(done.model, test, loaded.module) if run.recovery else None
    seconds = {**done.seconds, "evaluate": time.perf_counter() - start}
    metrics: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": run.model,
        "data": run.data,
        "method": run.method,
        "method_options": run.method_options,
        "allocator": run.allocator,
        "allocator_options": run.allocator_options,
        "budget": Budget.parse(run.budget).as_dict(),
        "seed": run.seed,
        **beside(done, both, recovered),
        "seconds": seconds,
        "versions": machine.versions(),
        "hardware": machine.hardware(),
        "weights": digest(loaded.module),
        "command": command,
    }
    if "latency" in done.plan.settings[-1]:
        metrics["latency"] = done.plan.settings[-1]["latency"]
    saved = metrics["recovered" if run.recovery else "compressed"]
    if run.recovery:
        metrics["recovery"] = list(run.recovery)
        saved["seconds"] = recovering
    if out is not None:
        save(done.model, out / MODEL_FILE)
        done.plan.save(out / PLAN_FILE)
        saved["file_bytes"] = (out / MODEL_FILE).stat().st_size
        write_text(out / METRICS_FILE, json_text(metrics))
    return metrics


def is_file(spec: str) -> bool:
    """Whether ``spec`` is a saved network rather than the specification of one."""
    return Path(spec).suffix == ".safetensors" or Path(spec).is_file()


def load_any(
    spec: str, weights: str | None = None, skeleton: str | None = None, *, seed: int = 0
) -> LoadedModel:
    """A network by specification, or a saved one by the path of its file.

    Args:
        spec: what :func:`rankwise.models.load_model` takes, or a file that :func:`rankwise.save` wrote.
        weights: a weights file for a network by specification.
        skeleton: the architecture of a saved one, by default what its plan names.
        seed: of the random initial weights of a network by specification.

    Raises:
        RankwiseError: weights for a saved network, which has its own, or one of no known architecture.
    """
    if not is_file(spec):
        return load_model(spec, weights, seed=seed)
    if weights is not None:
        raise RankwiseError(
            f"The weights {weights!r} were given for {spec!r}, a file that holds its own; allowed are "
            "weights for a network by name."
        )
    path = Path(spec)
    settings = read_plan(path).settings
    named = skeleton or next((s["model"] for s in settings if "model" in s), None)
    if named is None:
        raise RankwiseError(
            f"The plan in {spec!r} does not name the architecture it belongs to; give it with --skeleton."
        )
    original = load_model(named)
    return LoadedModel(
        spec, load(path, original.module), original.example, original.preprocessing, original.dataset,
        original.task,
    )  # fmt: skip
