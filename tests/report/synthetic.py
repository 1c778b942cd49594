"""A made-up folder of results: the figures follow a formula, so that what the page shows can be checked."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METHODS = ("whitened", "alds", "pca", "svd", "cp", "interpolative", "kfac", "asymmetric", "thinet", "l1")
TARGETS = (0.2, 0.35, 0.5, 0.65, 0.8)
LAYERS = ["conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)), "linear"]
CLASSES = 10
STEPS = ("calibrate", "decompose", "allocate", "build", "evaluate")


def accuracy(quality: float, kept: float) -> float:
    """Top-1 of a method of this quality (0 to 1) that keeps this fraction."""
    return 0.9173 - (1 - kept) ** 2 * (1.15 - quality) * 0.6


def metrics(
    method: str, target: float, repetition: int, noise: random.Random, quality: float, /, **more: Any
) -> dict[str, Any]:
    """One trial's metrics.json."""
    top1 = accuracy(quality, target) + noise.gauss(0, 0.004)
    macs = min(1.0, target + 0.12)
    original = {"top1": 0.9173, "loss": 0.3, "params": 269722, "macs": 40551040, "bytes": 1078888}
    per_class = [
        {"label": c, "examples": 1000, "accuracy": 0.9 + 0.008 * c, "agreement": None} for c in range(CLASSES)
    ]

    def after(value: float, **extra: Any) -> dict[str, Any]:
        return {
            "top1": value,
            "loss": 0.3 + 0.9173 - value,
            "agreement": min(1.0, value + 0.06),
            "kl": 0.3 * (0.95 - value),
            "params": round(original["params"] * target),
            "macs": round(original["macs"] * macs),
            "bytes": round(original["bytes"] * target),
            "params_fraction": target - 0.001 * noise.random(),
            "macs_fraction": macs,
            "bytes_fraction": target,
            "examples": 10000,
            "flips": {
                "right_to_wrong": round(900 * (1 - target)),
                "wrong_to_right": 90,
                "wrong_to_wrong": 60,
            },
            "per_class": [
                row
                | {
                    "accuracy": max(0.0, row["accuracy"] - (0.9173 - value) * 2 * noise.random()),
                    "agreement": min(1.0, value + 0.05 * noise.random()),
                }
                for row in per_class
            ],
            **extra,
        }

    kept = [min(1.0, max(0.05, target * (0.6 + 0.8 * noise.random()))) for _ in LAYERS]
    return {
        "format": "rankwise.metrics",
        "version": 1,
        "key": f"{method}-{target}-{repetition}",
        "model": "cifar10_resnet20",
        "data": "cifar10",
        "method": method,
        "method_options": {},
        "allocator": "knapsack",
        "measure": "params",
        "target": target,
        "repetition": repetition,
        "seed": repetition,
        "original": {**original, "examples": 10000, "per_class": per_class},
        "compressed": after(top1, file_bytes=round(1078888 * target + 4000)),
        "seconds": {step: 0.5 + 3 * noise.random() for step in STEPS},
        "memory": {"peak_bytes": int(4e8 + 2e8 * noise.random())},
        "versions": {"rankwise": "0.1.0", "torch": "2.14.1", "python": "3.11.7"},
        "hardware": {"cpu": "made-up processor", "threads": 1},
        "weights": "sha256:0f3e9b6a",
        "calibration": {"examples": 1024, "ids_hash": "a7c1"},
        "layers": [
            {
                "name": name,
                "op": "replace" if fraction < 1 else "keep",
                "choice": {"rank": max(1, round(32 * fraction))},
                "before": {"params": 9216, "macs": 2359296},
                "after": {"params": round(9216 * fraction), "macs": round(2359296 * fraction)},
                "error": (1 - fraction) * 3.0,
                "scale": 10.0,
            }
            for name, fraction in zip(LAYERS, kept, strict=True)
        ],
        **({"recovered": after(top1 + (0.9173 - top1) * 0.7)} if more.pop("recovered", False) else {}),
        **more,
    }


def write_results(
    out: Path,
    methods: Iterable[str] = METHODS[:6],
    targets: Iterable[float] = TARGETS,
    repetitions: int = 3,
    **more: Any,
) -> Path:
    """Write an experiment with one folder per trial into ``out``; ``more`` goes into every trial."""
    noise = random.Random(0)
    trials = 0
    names = list(methods)
    targets = list(targets)
    for place, method in enumerate(names):
        for target in targets:
            for repetition in range(repetitions):
                quality = 1 - place / max(1, len(names))
                write_json(
                    out / "trials" / f"{trials:04d}" / "metrics.json",
                    metrics(method, target, repetition, noise, quality, **more),
                )
                trials += 1
    write_json(out / "experiment.json", experiment(trials))
    return out


def experiment(trials: int, **more: Any) -> dict[str, Any]:
    """An experiment.json with two published works in it."""
    alds = {
        "work": "Liebenwein et al. 2021",
        "model": "cifar10_resnet20",
        "method": "alds",
        "retrained": True,
    }
    return {
        "format": "rankwise.experiment",
        "version": 1,
        "title": "Made-up sweep",
        "description": "Figures from a formula, to look at the page with.",
        "command": "rankwise run recipes/made_up.yaml --out runs/made_up",
        "created": "2026-11-25 18:00 UTC",
        "trials": trials,
        "published": [
            {**alds, "measure": "params", "kept": 0.255, "top1": 90.92, "loss": 0.47, "source": "Table 1"},
            {**alds, "measure": "params", "kept": 0.4, "top1": 91.4, "loss": 0.1, "source": "Figure 4"},
            {**alds, "measure": "macs", "kept": 0.327, "top1": 90.92, "loss": 0.47, "source": "Table 1"},
            {
                "work": "Zhang et al. 2016", "model": "cifar10_resnet20", "method": "pca",
                "measure": "params", "kept": 0.502, "top1": 90.99, "loss": 0.11, "agreement": None,
                "retrained": False,
            },
        ],
        **more,
    }  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON, its folder made first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
