"""Seconds that ALDS takes for all candidates of torchvision's resnet50: all foldings, all slice counts.

    python benchmarks/alds_resnet50.py [--bound max] [--folding all]

Weights are random, which changes no operation. Aim: at most five minutes on two cores.
"""

import argparse
import platform
import time

import torch
from torchvision.models import resnet50

from rankwise.allocation import get_allocator
from rankwise.allocation.base import with_dense
from rankwise.methods import get_method
from rankwise.network import find_layers, model_cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bound", default="max", help="max, theorem, operator or energy")
    parser.add_argument("--folding", default="all")
    parser.add_argument("--fraction", type=float, default=0.5, help="of the parameters, for the allocation")
    options = parser.parse_args()
    torch.manual_seed(0)
    model, example = resnet50().eval(), torch.zeros(1, 3, 224, 224)
    layers = [layer for layer in find_layers(model, example) if layer.reason is None]
    method = get_method("alds", metric="identity", bound=options.bound, folding=options.folding)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, seed 0, {method}")  # fmt: skip

    started, tables, slowest = time.perf_counter(), [], (0.0, "")
    for layer in layers:
        if method.supports(layer) is None:
            begun = time.perf_counter()
            tables.append(with_dense(layer.name, method.candidates(layer, None), layer.cost))
            slowest = max(slowest, (time.perf_counter() - begun, layer.name))
    print(f"candidates: {sum(map(len, tables))} of {len(tables)} layers in "
          f"{time.perf_counter() - started:.1f} s; slowest {slowest[1]} {slowest[0]:.1f} s")  # fmt: skip

    total = model_cost(model, example).params
    dense = sum(int(table.candidates.params[0]) for table in tables)
    limit = int(options.fraction * total) - (total - dense)
    started = time.perf_counter()
    chosen = get_allocator("minimax").allocate(tables, {"params": limit})
    print(f"minimax at {options.fraction} of the parameters: {time.perf_counter() - started:.1f} s")

    by_name = {layer.name: layer for layer in layers}
    started = time.perf_counter()
    for table, index in zip(tables, chosen, strict=True):
        if index:
            method.build(by_name[table.name], None, table.candidates.choice(index))
    print(f"build: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
