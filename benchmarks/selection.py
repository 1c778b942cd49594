"""Channel selections side by side, and torch-pruning's pruners, on one budget of MACs each.

    RANKWISE_DATA=... python benchmarks/selection.py --model cifar10_resnet20 --fractions 0.7,0.5 \\
        --calibration 512 --limit-test 2500 --out runs/selection

Every selection sliced and with the interpolative reconstruction, every selector of ``interpolative``, the
iteration as published and ours, torch-pruning's magnitude and Taylor pruners (the latter with true labels):
same network, same calibration images, same process; before and after the two recalibrations of BatchNorm.
Writes journal.jsonl (the same command goes on where it stopped) and table.md. Cells as in compress_only.py.
"""

import argparse
import json
from pathlib import Path
from typing import get_args

import torch

from compress_only import environment, names, tell
from rankwise.data import data_root, load_data
from rankwise.experiments.compress_only import CompressOnly, Sweep
from rankwise.experiments.variants import Variant
from rankwise.files import write_text
from rankwise.methods.selection.interpolative import Selector
from rankwise.models import load_model
from rankwise.report.tables import markdown, pivot
from torch_pruning_peer import PEERS

SELECTIONS = ("l1", "l2", "bn_scale", "thinet", "pfp", "random")
RECOVERIES = ("batchnorm", "batchnorm-plain")
PUBLISHED = {"selector": "cholesky", "refit": "once", "ridge": 0.0, "intercept": False}
VARIANTS = (
    *(Variant("interpolative", {"selector": selector}) for selector in get_args(Selector)),
    *(Variant("interpolative", {"refit": refit}) for refit in ("once", "anchored")),
    Variant("interpolative", {"reconstruct": False}),
    *(Variant(name, {"reconstruct": again}) for name in SELECTIONS for again in (True, False)),
    *(Variant("pfp", {"randomized": True, "reconstruct": again}) for again in (True, False)),
    Variant("interpolative", {}, "iterative"),
    Variant("interpolative", PUBLISHED, "iterative", {"published": True}),
    *(Variant(name, {}, how) for name, (how, _) in PEERS.items()),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cifar10_resnet20")
    parser.add_argument("--weights", type=Path, help="by default RANKWISE_DATA/weights/MODEL.pt")
    parser.add_argument("--fractions", default="0.7,0.5", help="of the MACs")
    parser.add_argument(
        "--methods", default="", help="labels that start so, separated by commas; by default all"
    )
    parser.add_argument("--calibration", type=int, default=512, help="training images, without labels")
    parser.add_argument("--limit-test", type=int, help="judge on the first so many test images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/selection"))
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    loaded = load_model(given.model, given.weights or data_root() / "weights" / f"{given.model}.pt")
    data = load_data(str(loaded.dataset), transform=loaded.preprocessing)
    fractions = tuple(float(f) for f in names(given.fractions))
    sweep = Sweep(
        "macs", fractions, limit_test=given.limit_test, calibration=given.calibration, seed=given.seed,
        recovery=RECOVERIES,
    )  # fmt: skip
    bench = CompressOnly(loaded, data, given.out, sweep, {n: peer for n, (_, peer) in PEERS.items()}, tell)
    wanted = names(given.methods)
    bench.run([v for v in VARIANTS if not wanted or v.label.startswith(wanted)])
    order = [variant.label for variant in VARIANTS]
    rows = [row for row in bench.rows() if row["target"] in fractions and row["label"] in order]
    rows.sort(key=lambda row: order.index(row["label"]))
    head = ["selection / allocator", *map(str, fractions), "s"]
    parts = [json.dumps(environment()), f"original: {bench.original()}"]
    for name in ("", *RECOVERIES):
        parts += [
            f"after {name}" if name else "as it is",
            markdown(head, pivot(rows, fractions, name or None)),
        ]
    parts += sorted({f"{row['label']}: {row['failed']}" for row in rows if "failed" in row})
    text = "\n\n".join(parts) + "\n"
    write_text(given.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
