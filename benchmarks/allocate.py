"""CPU seconds that each allocator takes, by number of layers, candidates per layer and budgets.

python benchmarks/allocate.py [--layers 100] [--options 500] [--seeds 3] [--allocators knapsack,minimax]
"""

import argparse
import os
import platform
import time

import numpy as np
import scipy

from rankwise.allocation import Table, get_allocator, with_dense
from rankwise.methods.base import Candidates
from rankwise.network.cost import Cost


def table(name: str, options: int, generator: np.random.Generator) -> Table:
    """A low-rank layer: ``options`` ranks, a spectrum falling as a power, macs = params x positions."""
    positions = int(generator.choice([1, 16, 49, 64, 196, 256, 784, 1024]))
    per_rank = int(generator.integers(64, 4096))
    ranks = np.arange(1, options + 1)
    power = np.arange(1.0, options + 2) ** -generator.uniform(0.2, 2.0) * generator.uniform(
        0.5, 1.5, options + 1
    )
    power = np.sort(power)[::-1]
    tail = np.cumsum(power[::-1])[::-1]
    scale = float(tail[0] * generator.uniform(0.1, 10))
    error = tail[1:] / tail[0] * scale
    params = ranks * per_rank
    dense = int(params[-1] * generator.uniform(0.45, 0.75))
    found = Candidates(params, params * positions, error, {"rank": ranks}, "output", scale)
    return with_dense(name, found, Cost(dense, dense * positions, 4 * dense))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--options", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--allocators", default="uniform,energy,lrank,minimax,knapsack")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, scipy {scipy.__version__}")
    print(f"{args.layers} layers x {args.options} candidates")
    print(f"{'allocator':10s} {'budgets':34s} {'seed':>4s} {'seconds':>8s} {'errors':>10s}  kept")
    for seed in range(args.seeds):
        generator = np.random.default_rng(seed)
        tables = [table(f"layer{i}", args.options, generator) for i in range(args.layers)]
        total = {m: sum(int(t.costs([m])[0, 0]) for t in tables) for m in ("params", "macs", "bytes")}
        for budget in (
            {"params": 0.5},
            {"params": 0.5, "macs": 0.4},
            {"params": 0.6, "macs": 0.5, "bytes": 0.55},
        ):
            limits = {m: int(f * total[m]) for m, f in budget.items()}
            asked = ",".join(f"{m}={f}" for m, f in budget.items())
            for name in args.allocators.split(","):
                start = time.process_time()
                chosen = get_allocator(name).allocate(tables, limits)
                seconds = time.process_time() - start
                pairs = list(zip(tables, chosen, strict=True))
                errors = [t.candidates.error[i] / t.candidates.scale for t, i in pairs]
                kept = [sum(int(t.costs([m])[i, 0]) for t, i in pairs) / total[m] for m in limits]
                print(
                    f"{name:10s} {asked:34s} {seed:4d} {seconds:8.2f} {sum(errors):10.5f}",
                    " ".join(f"{k:.4f}" for k in kept),
                    flush=True,
                )


if __name__ == "__main__":
    main()
