"""Latency budgets: what was asked for, what a second measurement says, and what the same share of MACs does.

    python benchmarks/latency.py --networks cifar10_resnet20,torchvision:resnet18 --batches 1,32
    RANKWISE_DATA=... python benchmarks/latency.py --accuracy --fractions 0.8,0.7 [--select validation]

The first form needs no weights and no data: channels are chosen by l2 without reconstruction, widths in
multiples of 8 (any for ResNet-20), for latency=F and again for macs=F. Its columns: the share of the
original's time that a new measurement after the compression finds, and the share of MACs. The second
compresses the pretrained ResNet-20 for latency=F at batch 32 in several ways, without labels and training,
beside torch-pruning searched to the same measured time; a row: time, MACs, top-1. One thread; rows.jsonl
and environment.json go to --out.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress_only import environment
from rankwise import Budget
from rankwise.compress import compression
from rankwise.data import data_root, load_data
from rankwise.errors import RankwiseError
from rankwise.evaluation import evaluate
from rankwise.files import json_text, write_text
from rankwise.latency import Clock, Effort, Job, ratio
from rankwise.methods import get_method
from rankwise.models import load_model
from rankwise.network import model_cost
from rankwise.network.batchnorm import fold_batchnorm_, following_batchnorm
from rankwise.plan import plan_of
from torch_pruning_peer import pruner

Row = dict[str, Any]
Finish = Callable[[nn.Module, Any], nn.Module]
AGAIN = Effort(least=15, most=400, seconds=10.0)
SEARCH = Effort(least=9, most=200, seconds=3.0)
NETWORKS = (
    "cifar10_resnet20,torchvision:resnet18,torchvision:resnet50,torchvision:mobilenet_v2,torchvision:vgg16"
)
# Share of the original that pretrained networks are compressed to, in these ways (--accuracy).
WAYS: dict[str, dict[str, Any]] = {
    "interpolative": {"method": "interpolative"},
    "interpolative, closed-form": {"method": "interpolative", "recovery": ("closed-form",)},
    "interpolative, folded": {"method": "interpolative", "fold_batchnorm": True},
    "interpolative, folded, closed-form": {
        "method": "interpolative",
        "fold_batchnorm": True,
        "recovery": ("closed-form",),
    },
    "auto": {"method": "auto"},
    "whitened, folded": {"method": "whitened", "fold_batchnorm": True},
}


def with_folding(network: nn.Module, example: Any) -> nn.Module:
    """A copy with its BatchNorms folded."""
    network = copy.deepcopy(network).eval()
    fold_batchnorm_(network, following_batchnorm(network, example))
    return network


def as_it_is(network: nn.Module, example: Any) -> nn.Module:
    return network.eval()


PEERS: dict[str, tuple[Any, Finish]] = {
    "torch-pruning taylor": (pruner("taylor", True), as_it_is),
    "torch-pruning taylor, folded": (pruner("taylor", True), with_folding),
    "torch-pruning l2, folded": (pruner("l2", True), with_folding),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--fractions", default="0.7,0.5")
    parser.add_argument(
        "--size", default="1:224,32:64", help="input pixels of the ImageNet networks, by batch"
    )
    parser.add_argument("--runtime", default="torch", choices=("torch", "onnxruntime"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=AGAIN.seconds, help="of the second measurement")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--ways", default="", help="of --accuracy, separated by semicolons; all by default")
    parser.add_argument("--select", default="test", choices=("test", "validation"))
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("runs/latency"))
    return parser.parse_args()


def measured(target: Any, original: nn.Module, small: nn.Module, example: Any, effort: Effort) -> float:
    """Time of ``small`` over that of ``original``, in a measurement of its own."""
    batch = target.batch(example)
    jobs = [Job(target.ready(model), batch) for model in (original, small)]
    return ratio(Clock(target)(jobs, effort))


def promised(options: argparse.Namespace) -> Iterator[Row]:
    """latency=F and macs=F of every network, batch size and fraction."""
    sizes = dict(pair.split(":") for pair in options.size.split(","))
    for name in options.networks.split(","):
        model = load_model(name).module.eval()
        for batch in options.batches.split(","):
            pixels = 32 if name.startswith("cifar") else int(sizes[batch])
            example = torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
            for fraction in map(float, options.fractions.split(",")):
                where = f"batch_size={batch},device={options.device},runtime={options.runtime}"
                row: Row = {"network": name, "batch": int(batch), "pixels": pixels, "asked": fraction}
                target = Budget.parse(f"latency={fraction},{where}").target
                step = 1 if pixels == 32 else 8
                for text in (f"latency={fraction},{where}", f"macs={fraction}"):
                    again = replace(AGAIN, seconds=options.seconds)
                    row[text.partition("=")[0]] = _one(
                        model, example, Budget.parse(text), target, step, again
                    )
                yield row


def _one(model: nn.Module, example: Any, budget: Budget, target: Any, step: int, again: Effort) -> Row:
    start = time.monotonic()
    method = get_method("l2", reconstruct=False)
    try:
        done = compression(
            model, None, budget, method=method, example=example, multiple_of=step, allocator="uniform"
        )
    except RankwiseError as error:
        return {"failed": str(error)}
    noted = done.plan.settings[-1].get("latency", {})
    return {
        "seconds": round(time.monotonic() - start, 1),
        "time": round(measured(target, model, done.model, example, again), 4),
        "macs": round(done.final.macs / done.original.macs, 4),
        **{key: noted[key] for key in ("original_ms", "measured", "rounds") if key in noted},
    }


def accurate(options: argparse.Namespace) -> Iterator[Row]:
    """The pretrained ResNet-20 at every fraction of its time, in every way, beside the peers."""
    loaded = load_model("cifar10_resnet20", data_root() / "weights" / "cifar10_resnet20.pt")
    data = load_data("cifar10", transform=loaded.preprocessing)
    batches = data.calibration(options.calibration).batches(128)
    judged = (data.validation() if options.select == "validation" else data.testing()).batches(500)
    example = next(iter(batches))
    model = loaded.module.eval()

    target = Budget(latency=1.0, batch_size=32, device=options.device, runtime=options.runtime).target

    def row(way: str, fraction: float, make: Callable[[], nn.Module]) -> Row:
        start = time.monotonic()
        found: Row = {"way": way, "asked": fraction, "judged on": options.select}
        try:
            small = make()
        except RankwiseError as error:
            return {**found, "failed": str(error)}
        found["seconds"] = round(time.monotonic() - start, 1)
        again = replace(AGAIN, seconds=options.seconds)
        found["time"] = round(measured(target, model, small, example, again), 4)
        found["macs"] = round(model_cost(small, example).macs / model_cost(model, example).macs, 4)
        notes = [note for note in plan_of(small).settings if "latency" in note]
        if notes:
            found |= {key: notes[-1][key] for key in ("chosen", "held_out_divergence") if key in notes[-1]}
            found |= {key: notes[-1]["latency"][key] for key in ("measured", "rounds")}
        return {**found, "top1": round(100 * float(evaluate(small, judged, resamples=1).top1 or 0), 2)}

    yield row("original", 1.0, lambda: model)
    yield row("original, folded", 1.0, lambda: with_folding(model, example))
    wanted = options.ways.split(";") if options.ways else [*WAYS, *PEERS]
    for fraction in map(float, options.fractions.split(",")):
        budget = Budget(latency=fraction, batch_size=32, device=options.device, runtime=options.runtime)
        for way in (way for way in WAYS if way in wanted):
            yield row(way, fraction, lambda w=way, b=budget: compression(model, batches, b, **WAYS[w]).model)
        for way, (peer, finish) in PEERS.items():
            if way in wanted:

                def share(small: nn.Module, end: Finish = finish) -> float:
                    return measured(target, model, end(small, example), example, SEARCH)

                def pruned(f: float = fraction, p: Any = peer, s: Any = share, end: Finish = finish) -> Any:
                    return end(p(model, example, batches, "latency", f, s), example)

                yield row(way, fraction, pruned)


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "environment.json", json_text(environment()))
    rows = accurate(options) if options.accuracy else promised(options)
    with (options.out / "rows.jsonl").open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
