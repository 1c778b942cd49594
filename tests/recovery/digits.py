"""What the tests of training share: a small network and its data; also a script that fine-tunes them."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwise.data import Batches, load_data


def network(seed: int = 0) -> nn.Module:
    """8x8 digits to ten classes, without BatchNorm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
        )


def batches(size: int = 32, train: int = 400, validation: int = 100) -> tuple[Batches, Batches]:
    """Shuffled training batches and validation batches of the digits."""
    split = load_data("digits").training()
    first, second, _ = torch.arange(len(split)).split([train, validation, len(split) - train - validation])
    return split.subset(first).batches(size, shuffle=True), split.subset(second).batches(64)


def loader(size: int) -> torch.utils.data.DataLoader[Any]:
    """The training examples of :func:`batches` in a DataLoader, in order."""
    split = batches()[0].split
    assert split.labels is not None
    inputs = split.transform(split.fetch(torch.arange(len(split))))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, split.labels), size)


def main(out: str, options: dict[str, Any]) -> None:
    """Fine-tune the network; rank 0 writes its weights and history into ``out``."""
    from rankwise.recovery.finetune import finetune

    torch.set_num_threads(1)
    size = options.pop("size", 32)
    train, validation = batches(size)
    data = loader(size) if options.pop("loader", False) else train
    done = finetune(network(), data, validation, out=Path(out), **options)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.save({"state": done.model.state_dict(), "history": done.history}, f"{out}/result{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
