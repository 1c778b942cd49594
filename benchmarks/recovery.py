"""What each recovery brings: CIFAR-10 ResNet-20 at half the MACs, on the whole test split.

python benchmarks/recovery.py --out runs/recovery

Writes one JSON file per row into OUT and skips the rows that are there. Rows are compressed alike (whitened
SVD, exact knapsack, 1,024 unlabelled training images) and differ in the recovery. Distillation and
fine-tuning start from the closed-form result. Settings were chosen on held-out training images; the test
split is looked at once per row.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from rankwise.data.load import data_root
from rankwise.experiments.single import Run, execute
from rankwise.files import json_text, write_text

ROWS = {
    "none": (),
    "closed-form": ("closed-form",),
    "distill": ("closed-form", "distill"),
    "finetune:2": ("closed-form", "finetune:2"),
    "distill alone": ("distill",),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/recovery"))
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--rows", default="none,closed-form,distill,finetune:2")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"python {' '.join(sys.argv)}")
    processor = platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {processor}, {given.threads} thread(s), seed 0")
    print("recovery       top-1   agreement   KL      CPU s   wall s (recovery alone)")
    for name in given.rows.split(","):
        path = given.out / f"{name.replace(' ', '-').replace(':', '-')}.json"
        if not path.exists():
            run = Run(
                "cifar10_resnet20", "cifar10", weights=str(data_root() / "weights" / "cifar10_resnet20.pt"),
                budget=given.budget, recovery=ROWS[name],
            )  # fmt: skip
            start = time.process_time()
            metrics = execute(run, given.out / path.stem)
            write_text(path, json_text({**metrics, "cpu_seconds": time.process_time() - start}))
        found = json.loads(path.read_text())
        last = found.get("recovered", found["compressed"])
        wall = " + ".join(f"{seconds:.0f}" for seconds in last.get("seconds", {}).values()) or "0"
        print(
            f"{name:13} {100 * last['top1']:6.2f}  {100 * last['agreement']:8.2f}  {last['kl']:8.4f}"
            f"  {found['cpu_seconds']:6.0f}   {wall}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
