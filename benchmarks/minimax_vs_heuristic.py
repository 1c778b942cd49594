"""Largest error and seconds of the minimax allocator and of the search in the ALDS paper, on real shapes.

Random weights with power-law spectra, all divisors k, folding 0, budget on parameters. From the repository:
python -m benchmarks.minimax_vs_heuristic [--networks resnet20,resnet56,vgg16] [--keep 0.7,0.5,0.3] [--seed 0]
"""

import argparse
import os
import platform
import time

import numpy as np
import scipy
import torch
from tests.allocation.alds_heuristic import Shape, alds_table, group_spectra, heuristic

from rankwise.allocation import Minimax


def resnet(blocks: int) -> list[Shape]:
    """CIFAR ResNet of 6 blocks + 2 layers, option-A shortcuts."""
    shapes: list[Shape] = [(16, 3, 3, 3)]
    before = 16
    for width in (16, 32, 64):
        for _ in range(blocks):
            shapes += [(width, before, 3, 3), (width, width, 3, 3)]
            before = width
    return [*shapes, (10, 64, 1, 1)]


def vgg16() -> list[Shape]:
    """VGG-16 for CIFAR: 13 convolutions and one classifier."""
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convs: list[Shape] = [(f, c, 3, 3) for f, c in zip(widths, [3, *widths], strict=False)]
    return [*convs, (10, 512, 1, 1)]


NETWORKS = {"resnet20": lambda: resnet(3), "resnet56": lambda: resnet(9), "vgg16": vgg16}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="resnet20,resnet56,vgg16")
    parser.add_argument("--keep", default="0.7,0.5,0.3")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}, torch {torch.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {versions}")
    columns = [
        "network",
        "keep",
        "minimax",
        "seconds",
        "released",
        "seconds",
        "corrected",
        "seconds",
        "never above",
    ]
    print("".join(f"{c:>12s}" for c in columns))
    for network in args.networks.split(","):
        generator, shapes = np.random.default_rng(args.seed), NETWORKS[network]()
        start = time.perf_counter()
        spectra = [group_spectra(shape, generator) for shape in shapes]
        tables = [alds_table(f"layer{i}", s, e) for i, (s, e) in enumerate(zip(shapes, spectra, strict=True))]
        options = sum(map(len, tables))
        spectra_seconds = time.perf_counter() - start
        for keep in map(float, args.keep.split(",")):
            limit = int(keep * sum(int(np.prod(s)) for s in shapes))
            start = time.perf_counter()
            chosen = Minimax().allocate(tables, {"params": limit})
            row = [
                max(t.candidates.error[i] for t, i in zip(tables, chosen, strict=True)),
                time.perf_counter() - start,
            ]
            for released in (True, False):
                start = time.perf_counter()
                row += [heuristic(shapes, spectra, limit, args.seed, released).largest_error]
                row += [time.perf_counter() - start]
            good = row[0] <= min(row[2], row[4])
            print(
                f"{network:>12s}{keep:12.2f}" + "".join(f"{v:12.4f}" for v in row) + f"{good!s:>12s}",
                flush=True,
            )
        print(
            f"{'':12s}{options} options in {len(tables)} layers; spectra took {spectra_seconds:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
