"""How long ``auto`` takes, part by part, and how that grows with depth. No image is judged.

    RANKWISE_DATA=... python benchmarks/auto_time.py --models cifar10_resnet8,cifar10_resnet20 --threads 2

1,024 training images, seed 0; the times of a machine that does other work mean nothing. One line per network:
seconds of the whole compression and of its parts.
"""

import argparse
import json
import time

import torch

from compress_only import environment
from rankwise import Automatic, Budget, compression
from rankwise.data import data_root, load_data
from rankwise.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="cifar10_resnet8,cifar10_resnet20,cifar10_resnet32")
    parser.add_argument("--budget", default="params=0.3")
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(environment()))
    for name in given.models.split(","):
        loaded = load_model(name, data_root() / "weights" / f"{name}.pt")
        data = load_data(str(loaded.dataset), transform=loaded.preprocessing)
        batches = data.calibration(seed=0).batches(128)
        start = time.monotonic()
        done = compression(loaded.module, batches, Budget.parse(given.budget), method=Automatic(given.effort))
        parts = {part: round(seconds) for part, seconds in done.seconds.items()}
        print(name, f"{time.monotonic() - start:.0f} s", parts, flush=True)


if __name__ == "__main__":
    main()
