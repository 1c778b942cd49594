"""Time of calibration, decomposition and allocation, and peak memory, on three networks.

    RANKWISE_DATA=... python benchmarks/time_and_memory.py [--networks resnet20 resnet50 vgg16]
        [--methods svd whitened pca] [--threads 1] [--json FILE]

resnet20 is CIFAR's with trained weights on 1,024 images (random ones without RANKWISE_DATA); resnet50 and
vgg16 are torchvision's with random weights on 64 random images of 224 x 224. Every row is a process of its
own, so that its peak resident memory is its own; "load" is the peak before compression starts: libraries,
model, images and one plain forward pass. Times are CPU seconds of the process: other work on the machine
disturbs them less than it does the clock. "x forward" is calibration over a plain forward pass, in
evaluation mode without gradients, over the same images. Ten to twenty minutes on one core.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import nn

from rankwise import Budget
from rankwise.compress import compression
from rankwise.data import load_data
from rankwise.models import load_model

SEED = 0
COLUMNS = ("forward", "calibrate", "x forward", "decompose", "allocate", "build", "load GiB", "peak GiB")


def random_images(count: int, batch: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(batch, *shape, generator=generator) for _ in range(count // batch)]


def resnet20() -> tuple[nn.Module, list[Any]]:
    root = os.environ.get("RANKWISE_DATA")
    if not root:
        return load_model("cifar10_resnet20", seed=SEED).module, random_images(1024, 128, (3, 32, 32))
    weights = Path(root) / "weights" / "cifar10_resnet20.pt"
    loaded = load_model("cifar10_resnet20", weights)
    data = load_data("cifar10", transform=loaded.preprocessing, root=root)
    return loaded.module, list(data.calibration(1024, SEED).batches(128))


def from_torchvision(name: str) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(SEED)
    return torchvision.models.get_model(name), random_images(64, 8, (3, 224, 224))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, list[Any]]]] = {
    "resnet20": resnet20,
    "resnet50": lambda: from_torchvision("resnet50"),
    "vgg16": lambda: from_torchvision("vgg16"),
}


def forward_seconds(model: nn.Module, batches: list[Any]) -> float:
    """The faster of two passes over all batches; the first also warms up."""
    model.eval()
    seconds = []
    with torch.no_grad():
        for _ in range(2):
            start = time.process_time()
            for batch in batches:
                model(batch if isinstance(batch, torch.Tensor) else batch[0])
            seconds.append(time.process_time() - start)
    return min(seconds)


def peak() -> float:
    """Peak resident memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(network: str, method: str, threads: int) -> dict[str, Any]:
    """One row: ``method`` on ``network`` at half its parameters."""
    torch.set_num_threads(threads)
    model, batches = NETWORKS[network]()
    plain = forward_seconds(model, batches)
    loaded = peak()
    with mock.patch("rankwise.progress.time.perf_counter", time.process_time):
        done = compression(model, batches, Budget(params=0.5), method=method, seed=SEED)
    found = {"forward": plain, "calibrate": 0.0, **done.seconds, "load GiB": loaded, "peak GiB": peak()}
    found["x forward"] = found["calibrate"] / plain
    return {"network": network, "method": method, **{column: found[column] for column in COLUMNS}}


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every row, each measured in a process of its own."""
    for network in args.networks:
        for method in args.methods:
            command = [sys.executable, __file__, "--one", network, method, "--threads", str(args.threads)]
            yield json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=["svd", "whitened", "pca"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "METHOD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args.threads)))
        return
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} used, CPU seconds",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "seed": SEED,
        "command": " ".join(["python", *sys.argv]),
    }
    for key, value in about.items():
        print(f"{key}: {value}")
    print(f"{'network':10s}{'method':10s}" + "".join(f"{column:>11s}" for column in COLUMNS), flush=True)
    found = []
    for row in rows(args):
        found.append(row)
        numbers = "".join(f"{row[column]:11.2f}" for column in COLUMNS)
        print(f"{row['network']:10s}{row['method']:10s}{numbers}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({**about, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
