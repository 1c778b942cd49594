"""How long a folder of many trials takes to read: synthetic metrics of the size that a ResNet-20 trial has.

    python benchmarks/results_load.py [--trials 1000] [--folder DIR]

Prints the megabytes of metrics, the seconds of rankwise.results.load, and the machine.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rankwise import results
from rankwise.experiments import machine
from rankwise.files import json_text, write_text

LAYERS, CLASSES, POINTS = 20, 10, 64


def metrics(number: int) -> dict[str, Any]:
    """Metrics like those of a real trial."""
    kept = 0.2 + 0.7 * (number % 20) / 20
    figures = {
        **{"task": "classification", "examples": 10_000, "top1": 0.9 * kept, "agreement": kept, "kl": 0.1},
        **{"params": 269_722, "macs": 40_551_040, "bytes": 1_090_000, "params_fraction": kept},
        "per_class": [
            {"label": label, "examples": 1000, "accuracy": kept, "agreement": kept}
            for label in range(CLASSES)
        ],
        "intervals": {name: {"low": 0.1, "high": 0.9} for name in ("top1", "agreement")},
    }
    cost = {"params": 36_864, "macs": 2_359_296}
    layer = {
        "op": "replace",
        "choice": {"rank": 8},
        "before": cost,
        "after": cost,
        "error": 0.1,
        "scale": 1.0,
    }
    return {
        **{"format": results.FORMAT, "version": results.VERSION, "key": f"{number:016x}"},
        **{"model": "cifar10_resnet20", "data": "cifar10", "method": f"method{number // 20 % 20}"},
        **{
            "allocator": "knapsack",
            "measure": "params",
            "target": kept,
            "seed": number // 400,
            "repetition": 0,
        },
        "label": f"method{number // 20 % 20} / knapsack",
        **{"original": figures, "compressed": figures, "recovered": figures},
        "layers": [{"name": f"layer{i}", **layer} for i in range(LAYERS)],
        "spectra": {f"layer{i}": [round(0.9**j, 4) for j in range(POINTS)] for i in range(LAYERS)},
        "seconds": {"calibrate": 1.0, "build": 0.1, "evaluate": 5.0},
        **{"versions": machine.versions(), "hardware": machine.hardware()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where they are written and stay [default: temporary]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        for number in range(given.trials):
            found = metrics(number)
            write_text(folder / "trials" / found["key"] / results.METRICS_FILE, json_text(found))
        size = sum(file.stat().st_size for file in folder.rglob(results.METRICS_FILE))
        start, cpu = time.perf_counter(), time.process_time()
        table = results.load(folder)
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps({"trials": len(table), "megabytes": size / 1e6, **spent, **machine.hardware()}))


if __name__ == "__main__":
    main()
