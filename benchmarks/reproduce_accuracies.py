"""Evaluate every pretrained network in RANKWISE_DATA/weights in full, beside the figures stated for it.

    RANKWISE_DATA=... python benchmarks/reproduce_accuracies.py [--only NAME ...] [--json FILE]

Exits with 1 when a figure is not reproduced: accuracies to one prediction, losses to 1e-4 (the MobileNet's
to 5e-4, since JPEG decoders differ). One to two minutes on one core.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rankwise.data import data_root, load_data
from rankwise.evaluation import evaluate
from rankwise.models import load_model

# name: file of weights, stated top-1, stated top-5, stated mean cross-entropy in nats
STATED: dict[str, tuple[str, float | None, float | None, float]] = {
    "cifar10_resnet20": ("cifar10_resnet20", 0.9173, None, 0.3727),
    "cifar10_resnet32": ("cifar10_resnet32", 0.9263, None, 0.3741),
    "cifar10_resnet8": ("cifar10_resnet8", 0.8719, None, 0.4064),
    "cifar10_vit": ("cifar10_vit", 0.7372, None, 0.7774),
    "mnist_lenet": ("mnist_lenet", 0.9896, None, 0.0319),
    "mobilenet_v1_075": ("imagenet_mobilenet_v1_0.75_224", 0.831, 0.954, 0.6517),
    "tinystories_llama": ("tinystories_llama_260k", None, None, 1.3861),
}


def row(name: str) -> dict[str, Any]:
    file, top1, top5, loss = STATED[name]
    loaded = load_model(name, data_root() / "weights" / f"{file}.pt")
    data = load_data(str(loaded.dataset), transform=loaded.preprocessing)
    start = time.perf_counter()
    found = evaluate(loaded.module, data.testing().batches(100))
    one = 1 / found.predictions
    same = (
        abs(found.loss - loss) <= (5e-4 if name == "mobilenet_v1_075" else 1e-4)
        and (top1 is None or abs(found.top1 - top1) <= one)
        and (top5 is None or abs(found.top5 - top5) <= one)
    )
    return {
        "network": name,
        "params": found.params,
        "examples": found.examples,
        "top1": found.top1,
        "stated_top1": top1,
        "top5": found.top5,
        "loss": found.loss,
        "stated_loss": loss,
        "perplexity": found.perplexity,
        "seconds": time.perf_counter() - start,
        "reproduced": same,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=STATED, default=list(STATED), metavar="NAME")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, 1 thread")
    print("command: " + " ".join(sys.argv))
    print(f"{'network':<20}{'params':>10}{'top-1':>9}{'stated':>9}{'loss':>9}{'stated':>9}{'seconds':>9}")
    rows = []
    for name in arguments.only:
        rows.append(found := row(name))
        stated = "-" if found["stated_top1"] is None else f"{100 * found['stated_top1']:.2f}"
        extra = f"  perplexity {found['perplexity']:.3f}" if found["perplexity"] else ""
        extra += f"  top-5 {100 * found['top5']:.1f}" if name == "mobilenet_v1_075" else ""
        print(
            f"{name:<20}{found['params']:>10,}{100 * found['top1']:>9.2f}{stated:>9}{found['loss']:>9.4f}"
            f"{found['stated_loss']:>9.4f}{found['seconds']:>9.1f}{extra}"
            f"{'' if found['reproduced'] else '  NOT REPRODUCED'}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(found["reproduced"] for found in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
