"""Channel selections side by side, and torch-pruning's pruners on the same budget.

    RANKWISE_DATA=... python benchmarks/selection.py --model cifar10_resnet8 --macs 0.7 \\
        --calibration 256 --test 2000 --out FOLDER

Every selection is run sliced, reconstructed once, anchored and on patches (``refit``), with the same
allocator; torch-pruning (magnitude, BatchNorm scale, Taylor with labels) searches its own pruning ratio
until the same MACs are met. Each result is evaluated as it is and after the same BatchNorm recalibration.
One row: top-1 and agreement with the original, in per cent. Writes rows.jsonl.
"""

import argparse
import copy
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwise import Budget, compress
from rankwise.allocation import get_allocator
from rankwise.data import load_data
from rankwise.errors import RankwiseError
from rankwise.methods import get_method
from rankwise.models import load_model
from rankwise.network import model_cost
from rankwise.recovery.batchnorm import recalibrate_batchnorm_

Batch = tuple[torch.Tensor, torch.Tensor]
SELECTIONS = ("interpolative", "l1", "l2", "bn_scale", "thinet", "pfp", "random")
MODES: dict[str, dict[str, Any]] = {
    "sliced": {"reconstruct": False},
    "once": {"reconstruct": True, "refit": "once"},
    "anchored": {"reconstruct": True, "refit": "anchored"},
    "patches": {"reconstruct": True, "refit": "patches"},
}
PEERS = ("magnitude", "bn_scale", "taylor")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="cifar10_resnet8")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--macs", type=float, default=0.7)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--allocator", default="uniform")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def predict(model: nn.Module, batches: list[Batch]) -> torch.Tensor:
    """Top-1 decisions on all batches."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) for x, _ in batches])


def torch_pruning(model: nn.Module, kind: str, macs: float, batches: list[Batch]) -> nn.Module:
    """``model`` pruned by torch-pruning with the largest width whose MACs are within ``macs`` of it."""
    import torch_pruning as tp

    example = batches[0][0][:1]
    limit = macs * model_cost(model, example).macs
    importance: Any = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "bn_scale": tp.importance.BNScaleImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }[kind]()
    low, high, best = 0.0, 0.95, None
    for _ in range(12):
        ratio = (low + high) / 2
        work = copy.deepcopy(model).eval()
        if kind == "taylor":
            for x, y in batches:
                nn.functional.cross_entropy(work(x), y).backward()
        last = [m for m in work.modules() if isinstance(m, nn.Linear)][-1:]
        pruner = tp.pruner.BasePruner(
            work, example, importance=importance, pruning_ratio=ratio, ignored_layers=last
        )
        pruner.step()
        work.zero_grad()
        if model_cost(work, example).macs <= limit:
            high, best = ratio, work
        else:
            low = ratio
    if best is None:
        raise RankwiseError(f"torch-pruning {kind} does not reach {macs} of the MACs.")
    return best


def candidates(
    options: argparse.Namespace, model: nn.Module, batches: list[Batch]
) -> Iterator[tuple[str, str, Any]]:
    """(name, mode, function that gives the smaller model)."""
    inputs = [x for x, _ in batches]
    budget = Budget(macs=options.macs)
    for name in SELECTIONS:
        for mode, config in MODES.items():
            method = get_method(name, **config)
            yield (
                name,
                mode,
                lambda m=method: compress(model, inputs, budget, method=m, allocator=options.allocator),
            )
    published = get_method("interpolative", selector="cholesky", refit="once", ridge=0.0, intercept=False)
    rule = get_allocator("iterative", published=True)
    yield (
        "interpolative",
        "iditer as published",
        lambda: compress(model, inputs, budget, method=published, allocator=rule),
    )
    for allocator in ("knapsack", "minimax", "iterative"):
        yield (
            "interpolative",
            f"patches / {allocator}",
            lambda a=allocator: compress(model, inputs, budget, method="interpolative", allocator=a),
        )
    for kind in PEERS:
        yield f"torch-pruning {kind}", "sliced", lambda k=kind: torch_pruning(model, k, options.macs, batches)


def main() -> None:
    """Run all rows and print them as they come."""
    options = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(options.model, options.weights)
    data = load_data("cifar10", transform=loaded.preprocessing)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(data.train), generator=generator)[: options.calibration]
    batches = list(data.train.subset(chosen).batches(128))
    test = list(data.test.take(options.test).batches(500))
    labels = torch.cat([y for _, y in test])
    decisions = predict(loaded.module, test)
    whole = model_cost(loaded.module, batches[0][0][:1])
    print(shlex.join(sys.argv), platform.processor(), f"torch {torch.__version__}", sep=" | ")
    print(f"{options.model}: top-1 {100 * float((decisions == labels).double().mean()):.2f}, {whole}")
    with (options.out / "rows.jsonl").open("a") as file:
        for name, mode, build in candidates(options, loaded.module, batches):
            start = time.perf_counter()
            row: dict[str, Any] = {
                "model": options.model,
                "method": name,
                "mode": mode,
                "budget": options.macs,
            }
            try:
                small = build()
                row["seconds"] = round(time.perf_counter() - start, 1)
                row["macs"] = model_cost(small, batches[0][0][:1]).macs / whole.macs
                for step in ("", " recalibrated"):
                    if step:
                        recalibrate_batchnorm_(small, [x for x, _ in batches], original=None)
                    found = predict(small, test)
                    row[f"top1{step}"] = 100 * float((found == labels).double().mean())
                    row[f"agreement{step}"] = 100 * float((found == decisions).double().mean())
            except Exception as error:  # a peer's failure is a result too
                row["failed"] = f"{type(error).__name__}: {error}"[:200]
            file.write(json.dumps(row) + "\n")
            file.flush()
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    main()
