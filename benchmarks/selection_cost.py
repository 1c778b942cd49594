"""What channel selection costs: one shot on ResNet-50, and 50 steps of the iteration on a CIFAR VGG-16.

    python benchmarks/selection_cost.py [--images 64] [--steps 50] [--only resnet50|vgg16] [--published]

Random weights and images, one thread. Prints seconds of the processor (not of the clock), and for the
iteration how many inputs of consumers were measured and how many MACs were computed, beside what measuring
everything anew in each step would take. ResNet-50: 64 images of 224x224, ``interpolative`` with its default
selector and one pass (``refit="once"``), uniform widths at 0.7 of the MACs.
"""

import argparse
import platform
import time
from contextlib import suppress

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from rankwise import Budget, compression
from rankwise.allocation.iterative import Iterative
from rankwise.errors import BudgetError
from rankwise.iterate import Iteration
from rankwise.methods import get_method
from rankwise.models import load_model
from rankwise.network import model_cost
from rankwise.scene import Scene

PUBLISHED = {"selector": "cholesky", "refit": "once", "ridge": 0.0, "intercept": False}


class Enough(Exception):
    """All steps that were asked for are done."""


def resnet50(images: int) -> None:
    """One shot, from the network to the narrower one."""
    model = torchvision.models.resnet50(num_classes=1000).eval()
    batches = list(torch.randn(images, 3, 224, 224).split(16))
    start = time.process_time()
    method = get_method("interpolative", refit="once")
    done = compression(model, batches, Budget(macs=0.7), method=method, allocator="uniform")
    parts = {name: round(seconds, 1) for name, seconds in done.seconds.items()}
    kept = done.final.macs / done.original.macs
    print(f"ResNet-50, {images} images: {time.process_time() - start:.0f} CPU seconds, MACs {kept:.3f}")
    print(f"  of the clock, which others shared: {parts}", flush=True)


def vgg16(images: int, steps: int, published: bool) -> None:
    """Steps of the iteration, stopped when there are ``steps`` of them."""
    model = load_model("cifar10_vgg16_bn", seed=0).module
    batches = list(torch.randn(images, 3, 32, 32).split(64))
    cost = model_cost(model, batches[0][:1])
    method = get_method("interpolative", **(PUBLISHED if published else {}))
    rule = Iterative(published=published)

    def tell(stage: str, done: int, total: int) -> None:
        if done == steps:
            raise Enough

    scene = Scene.of(model, batches[0][:1], method, cost)
    iteration = Iteration(rule, {"macs": 1}, {}, progress=tell)
    measured: list[int] = []
    flops: list[int] = []
    measure = Scene.measure

    def counted(now: Scene, data: object, names: set[str]) -> None:
        measured.append(len(names))
        with FlopCounterMode(display=False) as counter:
            measure(now, batches, names)
        flops.append(counter.get_total_flops())

    Scene.measure = counted  # type: ignore[method-assign,assignment] # only to count
    start = time.process_time()
    with suppress(Enough, BudgetError):
        iteration.run_(scene, batches)
    seconds = time.process_time() - start
    Scene.measure = measure  # type: ignore[method-assign] # as it was
    macs = sum(flops) // 2
    everything = len(scene.intakes) * len(measured)
    print(
        f"VGG-16, {images} images, {len(measured)} steps{' as published' if published else ''}: "
        f"{seconds:.0f} CPU seconds; inputs measured {sum(measured)} of {everything}; MACs computed "
        f"{macs / 1e9:.0f} G, the whole network each time {cost.macs * images * len(measured) / 1e9:.0f} G",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", choices=("resnet50", "vgg16"))
    parser.add_argument("--published", action="store_true", help="the iteration as published")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread")
    if given.only != "vgg16":
        resnet50(given.images)
    if given.only != "resnet50":
        vgg16(given.images, given.steps, given.published)


if __name__ == "__main__":
    main()
