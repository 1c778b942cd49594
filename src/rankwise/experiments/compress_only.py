"""What every method keeps of a network's decisions without any training: one sweep over budgets."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwise.budget import Budget
from rankwise.data import Batches, DataSet, Split
from rankwise.errors import RankwiseError
from rankwise.evaluation import Decisions, measure, record_decisions
from rankwise.experiments.journal import Journal, content_key
from rankwise.experiments.variants import Variant
from rankwise.experiments.workbench import Workbench, digest
from rankwise.models import LoadedModel
from rankwise.network import model_cost
from rankwise.plan import outputs_left
from rankwise.progress import Progress, silent
from rankwise.recovery import get_recovery
from rankwise.recovery.registry import Layers

HOPELESS = 0.2  # top-1 on the first images under which the others are not run

Peer = Callable[[nn.Module, Any, Batches, str, float], nn.Module]
"""A compressor that is not ours: ``peer(copy of the model, example, calibration, measure, fraction)``."""


@dataclass(frozen=True)
class Sweep:
    """Settings of a sweep; those that change a figure are part of the key of its rows."""

    measure: str = "params"
    fractions: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
    select: str = "test"
    limit_test: int | None = None
    screen: int | None = None
    calibration: int = 1024
    seed: int = 0
    batch_size: int = 128
    recovery: tuple[str, ...] = ()
    redo: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class _Made:
    """A compressed model, seconds by part, the outputs that changed layers have left, and what was done."""

    model: nn.Module
    seconds: dict[str, float]
    changed: Layers
    choices: dict[str, Any]


@dataclass(eq=False)
class CompressOnly:
    """One network and its data, with everything that several rows share computed once.

    ``journal.jsonl`` in ``out`` holds every finished row, ``statistics/`` what calibration found.
    """

    loaded: LoadedModel
    data: DataSet
    out: Path
    sweep: Sweep = field(default_factory=Sweep)
    peers: Mapping[str, Peer] = field(default_factory=dict)
    progress: Progress = silent

    def __post_init__(self) -> None:
        sweep = self.sweep
        self.journal = Journal(self.out / "journal.jsonl")
        self.model = self.loaded.module.eval()
        self.calibration = self.data.calibration(sweep.calibration, sweep.seed).batches(sweep.batch_size)
        self.parts = self._judged_on()
        self.weights = digest(self.model)
        drawn = {name: self._identity()[name] for name in ("model", "weights", "data", "calibration", "seed")}
        self.bench = Workbench(self.model, self.calibration, self.out / "statistics", drawn, sweep.seed)
        self.example, self.cost = self.bench.example, self.bench.cost
        self._decisions: list[Decisions] | None = None

    def run(self, variants: Sequence[Variant]) -> list[dict[str, Any]]:
        """One row per variant and fraction, those on disk included; fraction by fraction, in order."""
        todo = [(fraction, variant) for fraction in self.sweep.fractions for variant in variants]
        rows = []
        for done, (fraction, variant) in enumerate(todo):
            self.progress(f"{fraction} {variant.label}", done, len(todo))
            rows.append(self.row(variant, fraction))
        return rows

    def original(self) -> dict[str, Any]:
        """The figures of the network as it is."""
        hits = [d.decision == d.target for d in self.decisions if d.target is not None]
        top1 = float(torch.cat(hits).double().mean()) if hits else None
        return {**self.cost.as_dict(), "top1": top1, "examples": sum(map(len, self.decisions))}

    @property
    def decisions(self) -> list[Decisions]:
        """The original's decisions on the images that rows are judged on, part by part."""
        if self._decisions is None:
            self._decisions = [record_decisions(self.model, self._batches(part)) for part in self.parts]
        return self._decisions

    def row(self, variant: Variant, fraction: float) -> dict[str, Any]:
        """One row, from disk where it is there and has every recovery that is asked for."""
        settings = self._identity() | variant.as_dict() | {"target": fraction}
        key = content_key(settings)
        known = None if variant.method in self.sweep.redo else self.journal.get(key)
        wanted = [name for name in self.sweep.recovery if name not in (known or {}).get("recovered", {})]
        if known is not None and ("failed" in known or not wanted):
            return known
        row: dict[str, Any] = known or {"kind": "row", **settings, "label": variant.label}
        try:
            made = self._make(variant, fraction)
            row |= self._figures(made) if known is None else {}
            recovered = {name: self._recovered(made, name) for name in wanted}
            row["recovered"] = {**row.get("recovered", {}), **recovered}
        except (RankwiseError, ImportError) as error:
            row |= {"failed": f"{type(error).__name__}: {error}"}
        return self.journal.add(key, row)

    def rows(self) -> list[dict[str, Any]]:
        """Every row on disk that has the settings of this sweep, whatever its method and fraction."""
        settings = self._identity().items()
        return [r for r in self.journal.records() if r.get("kind") == "row" and settings <= r.items()]

    def _identity(self) -> dict[str, Any]:
        sweep = self.sweep
        return {
            "model": self.loaded.spec,
            "weights": self.weights,
            "data": self.data.name,
            "measure": sweep.measure,
            "select": sweep.select,
            "images": sum(map(len, self.parts)),
            "calibration": sweep.calibration,
            "seed": sweep.seed,
        }

    def _judged_on(self) -> list[Split]:
        """The images of the figures; with ``screen`` in two parts, the first of which may end it."""
        sweep = self.sweep
        split = self.data.testing() if sweep.select == "test" else self.data.validation(seed=sweep.seed)
        split = split if sweep.limit_test is None else split.take(sweep.limit_test)
        if sweep.screen is None or sweep.screen >= len(split):
            return [split]
        positions = torch.arange(len(split))
        return [split.subset(positions[: sweep.screen]), split.subset(positions[sweep.screen :])]

    def _batches(self, split: Split) -> Batches:
        return split.batches(self.sweep.batch_size)

    def _figures(self, made: _Made) -> dict[str, Any]:
        cost = model_cost(made.model, self.example)
        return {
            "params": cost.params,
            "macs": cost.macs,
            "params_fraction": cost.params / self.cost.params,
            "macs_fraction": cost.macs / self.cost.macs,
            **self._judge(made.model),
            "seconds": made.seconds,
            "choices": made.choices,
        }

    def _judge(self, model: nn.Module) -> dict[str, Any]:
        """Top-1, agreement and KL; of the first part alone where that is hopeless."""
        right, same, divergence = [], [], []
        for part, decisions in zip(self.parts, self.decisions, strict=True):
            found, _ = measure(model, self._batches(part), decisions)
            assert found.reference_decision is not None
            assert found.kl is not None
            same.append((found.decision == found.reference_decision).double())
            right.append(same[-1] if found.target is None else (found.decision == found.target).double())
            divergence.append(found.kl)
            if right[-1].mean() < HOPELESS:
                break
        examples = sum(map(len, same))
        return {
            "top1": float(torch.cat(right).mean()),
            "agreement": float(torch.cat(same).mean()),
            "kl": float(torch.cat(divergence).mean()),
            "examples": examples,
        }

    def _recovered(self, made: _Made, name: str) -> dict[str, Any]:
        """The figures after recovery ``name`` on the calibration images, cropped as in training."""
        work = copy.deepcopy(made.model)
        sweep = self.sweep
        batches = self.calibration.split.batches(
            sweep.batch_size, augment=self.data.augmentation, seed=sweep.seed
        )
        start = time.perf_counter()
        get_recovery(name)(work, self.model, batches, made.changed)
        return {"seconds": time.perf_counter() - start, **self._judge(work)}

    def _make(self, variant: Variant, fraction: float) -> _Made:
        if variant.method in self.peers:
            return self._by_peer(variant, fraction)
        done = self.bench.compress(variant, Budget.of({self.sweep.measure: fraction}))
        changed = outputs_left(self.model, done.plan.edits)
        single = [edit for edit in done.plan.edits if edit.op != "select"]
        choices = {edit.target: edit.choice or edit.reason for edit in single}
        return _Made(done.model, done.seconds, changed, choices)

    def _by_peer(self, variant: Variant, fraction: float) -> _Made:
        work = copy.deepcopy(self.model)
        start = time.perf_counter()
        made = self.peers[variant.method](work, self.example, self.calibration, self.sweep.measure, fraction)
        return _Made(made, {"build": time.perf_counter() - start}, {}, {})
