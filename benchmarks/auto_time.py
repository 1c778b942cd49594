"""How long ``auto`` takes, part by part, and how that grows with depth and width. No image is judged.

    RANKWISE_DATA=... python benchmarks/auto_time.py --models cifar10_resnet20,wide2 --threads 2

Training images of CIFAR-10, seed 0; the times of a machine that does other work mean nothing. "wideK" is the
wide residual network of depth 16 and width K. Networks that have no weights in RANKWISE_DATA have random
ones, with BatchNorm's statistics those of the images. One line per network: parameters, seconds of the whole
compression and of its parts.
"""

import argparse
import json
import time

import torch
from torch.optim.swa_utils import update_bn

from compress_only import environment
from rankwise import Automatic, Budget, compression
from rankwise.data import data_root, load_data
from rankwise.models import LoadedModel, load_model
from rankwise.models.wide_resnet import CifarWideResNet


def network(name: str) -> tuple[LoadedModel, bool]:
    """The network called ``name``, and whether it is a trained one."""
    if name.startswith("wide"):
        torch.manual_seed(0)
        wide = CifarWideResNet(width=int(name.removeprefix("wide"))).eval()
        return LoadedModel(name, wide, torch.zeros(1, 3, 32, 32), "cifar10", "cifar10"), False
    weights = data_root() / "weights" / f"{name}.pt"
    return load_model(name, weights if weights.exists() else None), weights.exists()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="cifar10_resnet8,cifar10_resnet20,cifar10_resnet32")
    parser.add_argument("--budget", default="params=0.3")
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(environment()))
    for name in given.models.split(","):
        loaded, trained = network(name)
        data = load_data(str(loaded.dataset), transform=loaded.preprocessing)
        batches = data.calibration(given.images, seed=0).batches(128)
        if not trained:
            update_bn(batches, loaded.module)
        start = time.monotonic()
        done = compression(loaded.module, batches, Budget.parse(given.budget), method=Automatic(given.effort))
        parts = {part: round(seconds) for part, seconds in done.seconds.items()}
        params = sum(p.numel() for p in loaded.module.parameters())
        print(name, params, f"{time.monotonic() - start:.0f} s", parts, flush=True)


if __name__ == "__main__":
    main()
