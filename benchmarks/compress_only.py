"""Every method at every budget on the real test set: no labels, no training, one set of calibration images.

    RANKWISE_DATA=... python benchmarks/compress_only.py --model cifar10_resnet20 \\
        --fractions 0.9,0.8,0.7,0.6,0.5,0.4,0.3 [--measure params|macs] [--methods a,b] [--roles default]

Writes journal.jsonl (every finished row; the same command goes on where it stopped), results.json,
results_MEASURE.csv and plot_MEASURE.png into --out. One thread, so that ratios of seconds mean something.
A cell: top-1 % / agreement % [fraction of the parameters kept, of the MACs]; "~" where the first images gave
under 20 % and the others were not run; "cannot" where the budget cannot be met (results.json says why).
"""

import argparse
import csv
import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

from rankwise import __version__
from rankwise.allocation import allocators
from rankwise.data import data_root, load_data
from rankwise.experiments.compress_only import CompressOnly, Sweep
from rankwise.experiments.variants import Variant, variants
from rankwise.files import write_text
from rankwise.models import load_model
from rankwise.report.plots import plot_sweep
from rankwise.report.tables import pivot, text, write_csv
from torch_pruning_peer import PEERS

# Which of our configurations is the method of which published code (--peers).
SAME_METHOD = {
    "BALF act-aware auto": "whitened / knapsack",
    "BALF act-aware energy": "whitened / energy",
    "BALF plain-SVD auto": "svd / knapsack",
    "BALF plain-SVD energy": "svd / energy",
    "pca-compress PCA": "pca / uniform / conv1,layer1.*,layer?.[12].*,layer?.0.conv2",
    "torchprune PCA": "pca / energy_product",
    "torchprune ALDS": "alds metric=identity folding=channel / minimax",
    "torchprune ALDS+ (30 seeds, 4 foldings)": "alds metric=identity / minimax",
    "torchprune SVD": "svd / uniform",
    "torchprune SVD-Energy": "svd / energy",
    "torchprune L-Rank (C-step)": "svd / lrank",
    "CP uniform compression": "cp factors=4 / uniform",
    "Tucker-2 uniform rank fraction": "tucker2 / uniform",
    "ID one-shot uniform (port)": "interpolative selector=cholesky refit=once / uniform / layer?.*.conv1",
    "ID iditer step 0.9 (port)": "interpolative selector=cholesky refit=once / iterative",
    "Torch-Pruning GroupMagnitude L2 uniform": "l2 / uniform / layer?.*.conv1",
}


def environment() -> dict[str, Any]:
    """Hardware, versions and the command, for results.json."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "rankwise": __version__,
        "commit": commit,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def read_peers(path: Path | None, model: str, measure: str) -> list[dict[str, Any]]:
    """Rows of other codes on the same network and data, out of a CSV that is not part of this package."""
    if path is None:
        return []
    with path.open() as file:
        found = [
            r for r in csv.DictReader(file) if model.endswith(r["network"]) and r["target_kind"] == measure
        ]
    return [
        {
            "label": r["method"],
            "target": float(r["target"]),
            "params_fraction": float(r["params_frac"]),
            "macs_fraction": float(r["macs_frac"]),
            "top1": float(r["top1"]) / 100,
            "agreement": float(r["agreement"]) / 100,
            "seconds": {"all": float(r["seconds"])},
            "examples": int(r["images"]),
            "images": 10000,
        }
        for r in found
    ]


def beside(rows: list[dict[str, Any]], peers: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Our figure of the same method beside each figure of a peer, and the difference in top-1."""
    ours = {(row["label"], row["target"]): row for row in rows if "top1" in row}
    lines = []
    for peer in peers:
        label = SAME_METHOD.get(peer["label"], "")
        mine = ours.get((label, peer["target"]))
        if mine is not None:
            gain = 100 * (mine["top1"] - peer["top1"])
            kept = [f"{r['params_fraction']:.3f} {r['macs_fraction']:.3f}" for r in (peer, mine)]
            tops = [f"{100 * r['top1']:.2f}" for r in (peer, mine)]
            cells = [label, f"{peer['target']}", tops[0], kept[0], tops[1], kept[1], f"{gain:+.2f}"]
            lines.append((peer["label"], cells))
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cifar10_resnet20")
    parser.add_argument("--weights", type=Path, help="by default RANKWISE_DATA/weights/MODEL.pt")
    parser.add_argument("--data", help="by default the network's usual data set")
    parser.add_argument("--fractions", default="0.9,0.8,0.7,0.6,0.5,0.4,0.3")
    parser.add_argument("--measure", choices=("params", "macs"), default="params")
    parser.add_argument("--methods", default="", help="names separated by commas; all by default")
    parser.add_argument("--roles", default="default,paper,variant", help="which configurations of each")
    parser.add_argument("--calibration", type=int, default=1024, help="training images, without labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--select", choices=("test", "validation"), default="test",
                        help="validation: held-out training images, for choices")  # fmt: skip
    parser.add_argument("--limit-test", type=int, help="judge on the first so many images only")
    parser.add_argument("--screen", type=int, help="stop a row whose first so many images give under 20 %%")
    parser.add_argument("--recovery", default="", help="recoveries to show beside, separated by commas")
    parser.add_argument("--redo", default="", help="methods whose rows on disk are made anew")
    parser.add_argument("--peers", type=Path, help="CSV with figures of other codes, shown beside")
    parser.add_argument("--report", action="store_true", help="run nothing: tables and plot of what is there")
    parser.add_argument("--out", type=Path, default=Path("runs/compress_only"))
    return parser.parse_args()


def tell(label: str, done: int, total: int) -> None:
    print(f"[{datetime.now():%H:%M:%S}] {done + 1}/{total} {label}", file=sys.stderr, flush=True)


def chosen(methods: tuple[str, ...], roles: tuple[str, ...]) -> list[Variant]:
    """Our variants and the pruners of torch-pruning, all of them where no methods are named."""
    own = [name for name in methods if name not in PEERS]
    found = variants(own or None, roles, allocators()) if own or not methods else []
    spread = {name: how for name, (how, _) in PEERS.items() if not methods or name in methods}
    return [*found, *(Variant(name, {}, how, role="paper") for name, how in spread.items())]


def names(given: str) -> tuple[str, ...]:
    return tuple(name for name in given.split(",") if name)


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    weights = given.weights or data_root() / "weights" / f"{given.model}.pt"
    loaded = load_model(given.model, weights, seed=given.seed)
    data = load_data(given.data or str(loaded.dataset), transform=loaded.preprocessing)
    fractions = tuple(float(f) for f in names(given.fractions))
    sweep = Sweep(
        given.measure, fractions, given.select, given.limit_test, given.screen, given.calibration, given.seed,
        recovery=names(given.recovery), redo=frozenset(names(given.redo)),
    )  # fmt: skip
    peers_here = {name: peer for name, (_, peer) in PEERS.items()}
    bench = CompressOnly(loaded, data, given.out, sweep, peers_here, progress=tell)
    if not given.report:
        bench.run(chosen(names(given.methods), names(given.roles)))
    rows = [row for row in bench.rows() if row["target"] in fractions]
    peers = read_peers(given.peers, given.model, given.measure)
    original = bench.original()
    here = {"environment": environment(), "original": original, "settings": vars(given)}
    write_text(given.out / "results.json", json.dumps({**here, "rows": rows}, indent=1, default=str) + "\n")
    write_csv(rows, given.out / f"results_{given.measure}.csv")
    title = f"{given.model}: compressed without labels or training ({given.select} images)"
    picture = given.out / f"plot_{given.measure}.png"
    plot_sweep(rows, picture, given.measure, title, peers, original["top1"])
    print(json.dumps(here["environment"]) + f"\noriginal: {original}\n")
    head = ["method / allocator", *map(str, fractions), "s"]
    print(text(head, pivot(rows, fractions)))
    for name in sweep.recovery:
        print(f"\nafter recovery {name}\n\n{text(head, pivot(rows, fractions, name))}")
    if peers:
        print(f"\nother codes\n\n{text(head, pivot(peers, fractions))}\n")
        versus = ["peer", "ours", "target", "its top-1", "[params, MACs]", "ours", "[params, MACs]", "gain"]
        print(text(versus, beside(rows, peers)))
    for label, reason in {row["label"]: row["failed"] for row in rows if "failed" in row}.items():
        print(f"\n{label}: {reason}")


if __name__ == "__main__":
    main()
