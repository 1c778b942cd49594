"""Learning and compressing in turns, and masked training, beside plain fine-tuning of the same length.

python benchmarks/alternation.py digits
python benchmarks/alternation.py mnist

Every row trains the network in total as many epochs on the same batches: plain fine-tuning after one
compression, the alternation at several penalties, and fine-tuning in which only some weights move. The
last epoch counts for all. Train loss is that of the first 1,000 training images, in evaluation mode. The
penalty and the share are not chosen here: every value is shown.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rankwise import Budget, compress
from rankwise.allocation.lrank import LearnedRank
from rankwise.data import DataSet, load_data
from rankwise.data.load import data_root
from rankwise.methods import get_method
from rankwise.models import load_model, train_digits
from rankwise.recovery.finetune import finetune
from rankwise.recovery.masks import largest_weights, masked, tiled_diagonals
from rankwise.recovery.training import FineTuning
from rankwise.schedule import Alternation


@torch.no_grad()
def judged(model: nn.Module, batches: Iterable[Any]) -> tuple[float, float]:
    """Mean loss and top-1."""
    model.eval()
    pairs = [(model(inputs), labels) for inputs, labels in batches]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return float(cross_entropy(logits, labels)), float((logits.argmax(1) == labels).double().mean())


def network(name: str, data: DataSet) -> nn.Module:
    if name == "digits":
        return train_digits(data.training().batches(64, shuffle=True, seed=0), 0)
    return load_model("mnist_lenet", data_root() / "weights" / "mnist_lenet.pt").module


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=["digits", "mnist"])
    parser.add_argument("--fractions", default="0.1,0.05")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--finish", type=int, default=4)
    parser.add_argument("--mu", default="1e-3,1e-2,1e-1")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--images", type=int, default=10000, help="training images at most")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"python {' '.join(sys.argv)}\ntorch {torch.__version__}, 1 thread, seed 0")
    data = load_data(given.data)
    model = network(given.data, data)
    split = data.fitting().take(given.images)
    train, validation = split.batches(64, shuffle=True), data.validation().batches(256)
    seen, test = split.take(1000).batches(250), data.testing().batches(250)
    example = next(iter(train))[0][:1]
    epochs = given.rounds + given.finish
    training = FineTuning(epochs=epochs, lr=given.lr, keep_best=False)
    print(f"original: test top-1 {judged(model, test)[1]:.4f}; {len(split)} images, {epochs} epochs in all")

    def show(label: str, found: nn.Module) -> None:
        (loss, _), (test_loss, top1) = judged(found, seen), judged(found, test)
        print(
            f"  {label:28} train loss {loss:.5f}  test loss {test_loss:.5f}  top-1 {100 * top1:.2f}",
            flush=True,
        )

    for fraction in map(float, given.fractions.split(",")):
        print(f"params={fraction:g}")
        budget = Budget(params=fraction)
        small = compress(
            model, None, budget, method=get_method("svd"), allocator=LearnedRank(weighting="absolute"),
            example=example,
        )  # fmt: skip
        show("C step alone", small)
        show("C step, then fine-tuning", finetune(small, train, validation, training).model)
        for mu in map(float, given.mu.split(",")):
            run = Alternation(
                budget=budget, rounds=given.rounds, finish=given.finish, mu=mu, training=training
            )
            with tempfile.TemporaryDirectory() as out:
                done = run.run(model, train, validation, example=example, out=Path(out))
            show(f"alternation, mu from {mu:g}", done.model)
        held = {f"largest {share:.0%} trained": largest_weights(small, share) for share in (0.1, 0.5)}
        for label, masks in {**held, "tiled diagonals trained": tiled_diagonals(small)}.items():
            done = finetune(small, train, validation, training, adjust=masked(masks), weight_decay=0.0)
            show(label, done.model)


if __name__ == "__main__":
    main()
