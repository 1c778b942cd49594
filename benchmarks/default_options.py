"""Defaults are chosen here: options compared on held-out training images, never on test images.

    RANKWISE_DATA=... python benchmarks/default_options.py [--only kfac] [--images 2000]

CIFAR-10 ResNet-20, one thread, calibration and validation out of the training split (seed 0, disjoint),
no labels in calibration, no training. Prints agreement with the original and top-1 on the validation images.
"""

import argparse

import torch

from rankwise import Budget, compression
from rankwise.allocation import get_allocator
from rankwise.data import data_root, load_data
from rankwise.evaluation import evaluate, record_decisions
from rankwise.methods import get_method
from rankwise.models import load_model

ROWS = [  # method, its options, weighting of the knapsack, recovery, budget
    ("whitened", {}, "relative", (), "params=0.7"),
    ("whitened", {}, "absolute", (), "params=0.7"),
    ("whitened", {}, "relative", ("batchnorm",), "params=0.5"),
    ("whitened", {}, "relative", ("batchnorm-plain",), "params=0.5"),
    ("whitened", {}, "relative", (), "params=0.5"),
    ("kfac", {"damping": 1.0}, "relative", (), "macs=0.5"),
    ("kfac", {"damping": 0.1}, "relative", (), "macs=0.5"),
    ("kfac", {"damping": 0.01}, "relative", (), "macs=0.5"),
    ("hessian", {"estimate": "averaged"}, "relative", (), "macs=0.5"),
    ("hessian", {"estimate": "local", "rounds": 4}, "relative", (), "macs=0.5"),
    ("asymmetric", {}, "relative", (), "macs=0.5"),
    ("asymmetric", {"metric": "gradient"}, "relative", (), "macs=0.5"),
    ("asymmetric", {"regressor": "response"}, "relative", (), "macs=0.5"),
    ("interpolative", {"selector": "output", "refit": "patches"}, "relative", (), "macs=0.5"),
    ("interpolative", {"selector": "cholesky", "refit": "patches"}, "relative", (), "macs=0.5"),
    ("interpolative", {"selector": "output", "refit": "anchored"}, "relative", (), "macs=0.5"),
    ("interpolative", {"selector": "output", "refit": "once"}, "relative", (), "macs=0.5"),
    ("interpolative", {"selector": "cholesky", "refit": "once"}, "relative", (), "macs=0.5"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="one method")
    parser.add_argument("--images", type=int, default=2000, help="validation images")
    parser.add_argument("--calibration", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model("cifar10_resnet20", data_root() / "weights" / "cifar10_resnet20.pt")
    data = load_data("cifar10", transform=loaded.preprocessing)
    calibration = data.calibration(arguments.calibration, 0).batches(128)
    validation = data.validation(arguments.images, 0).batches(250)
    decisions = record_decisions(loaded.module, validation)
    for name, options, weighting, recovery, budget in ROWS:
        if arguments.only not in (None, name):
            continue
        allocator = get_allocator("knapsack", weighting=weighting)
        method = get_method(name, **options)
        done = compression(
            loaded.module,
            calibration,
            Budget.parse(budget),
            method=method,
            allocator=allocator,
            recovery=recovery,
        )
        found = evaluate(done.model, validation, decisions, resamples=1)
        print(
            name,
            options,
            weighting,
            recovery,
            budget,
            f"agreement {found.agreement:.4f} top-1 {found.top1:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
