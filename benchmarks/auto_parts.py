"""What each part of ``auto`` brings on the pretrained ResNet-20, judged on validation images.

    RANKWISE_DATA=... python benchmarks/auto_parts.py --budget params=0.3 --seeds 0,1,2

Every row is ``auto`` with one more part: ranks by predicted output error, by measured divergence, searched
on the joint divergence, with the metric of inputs and loss gradients, with narrower channels competing. A
seed draws other calibration images. A line: divergence from the original (nats), squared difference of the
centred logits and agreement after the closed-form refit, on 5,000 training images that no row has seen,
the first two also on blends of them (decision 0026 says which tells how much), and seconds; mean and half of
the range over seeds at the end. The test set is not read. rows.jsonl and environment.json go to --out.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from compress_only import environment
from rankwise import Automatic, Budget, compress, plan_of
from rankwise.auto import EFFORTS, Effort
from rankwise.data import data_root, load_data
from rankwise.evaluation import evaluate, record_decisions
from rankwise.files import json_text, write_text
from rankwise.methods import Method
from rankwise.models import load_model
from rankwise.recovery.divergence import deviation
from rankwise.recovery.mixing import mixed

ONE = EFFORTS["normal"]


@dataclass(frozen=True)
class OneSided(Effort):
    """The same effort with the methods' input metric, whatever the outputs are."""

    def methods(self, metric: Literal["two_sided", "input"]) -> list[Method]:
        return super().methods("input")


def one_sided(**changes: Any) -> Effort:
    return OneSided(**{**vars(ONE), **changes})


PARTS = {
    "predicted": one_sided(points=0),
    "measured": one_sided(),
    "searched": one_sided(rounds=2, finalists=2),
    "two-sided, predicted": Effort(**{**vars(ONE), "points": 0}),
    "two-sided, measured": ONE,
    "two-sided, searched": Effort(**{**vars(ONE), "rounds": 2, "finalists": 2}),
    "two-sided, narrower channels": Effort(**{**vars(ONE), "narrow": True}),
    "thorough": EFFORTS["thorough"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", default="params=0.3")
    parser.add_argument("--seeds", default="0,1,2", help="of the calibration images")
    parser.add_argument("--images", type=int, default=1024, help="for calibration")
    parser.add_argument("--parts", default=";".join(PARTS), help="separated by semicolons")
    parser.add_argument("--out", type=Path, default=Path("runs/auto_parts"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    EFFORTS.update(PARTS)
    loaded = load_model("cifar10_resnet20", data_root() / "weights" / "cifar10_resnet20.pt")
    data = load_data("cifar10", transform=loaded.preprocessing)
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "environment.json", json_text(environment()))
    found: dict[str, list[float]] = {}
    with (given.out / "rows.jsonl").open("a") as file:
        for seed in map(int, given.seeds.split(",")):
            batches = data.calibration(given.images, seed).batches(128)
            judged = data.validation(seed=seed).batches(500)
            decisions = record_decisions(loaded.module, judged)
            for part in given.parts.split(";"):
                start = time.monotonic()
                small = compress(
                    loaded.module, batches, Budget.parse(given.budget), method=Automatic(part), seed=seed
                )
                seconds = time.monotonic() - start
                figures = evaluate(small, judged, decisions, resamples=1)
                blends = (mixed(loaded.module, batch, 0.35) for batch in judged)
                plain, blended = (deviation(small, loaded.module, each) for each in (judged, blends))
                row = {"part": part, "budget": given.budget, "seed": seed, "images": given.images,
                       **plan_of(small).settings[0], "kl": figures.kl, "agreement": figures.agreement,
                       "square": plain.square, "of blends": [blended.divergence, blended.square],
                       "seconds": round(seconds)}  # fmt: skip
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(row, flush=True)
                found.setdefault(part, []).append(float(figures.kl or 0.0))
    for part, values in found.items():
        print(f"{part}: {sum(values) / len(values):.4f} ± {(max(values) - min(values)) / 2:.4f}")


if __name__ == "__main__":
    main()
