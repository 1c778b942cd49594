"""What every method keeps of a network's decisions without any training: one sweep over budgets."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwise.allocation import get_allocator
from rankwise.budget import Budget
from rankwise.compress import compression
from rankwise.data import Batches, DataSet, Split
from rankwise.errors import RankwiseError
from rankwise.evaluation import Decisions, measure, record_decisions
from rankwise.experiments.journal import Journal, content_key
from rankwise.experiments.variants import Variant
from rankwise.factorise import Factorisation, Survey
from rankwise.methods import Method, get_method
from rankwise.models import LoadedModel
from rankwise.network import Cost, find_layers, model_cost
from rankwise.network.batches import first_batch
from rankwise.progress import Progress, Stopwatch, silent
from rankwise.recovery import get_recovery
from rankwise.statistics import LayerStatistics, collect
from rankwise.statistics.files import load_statistics, save_statistics

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
    """A compressed model, seconds by part, the layers or groups changed, and what was done to each."""

    model: nn.Module
    seconds: dict[str, float]
    changed: list[str]
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
        self.example = first_batch(self.calibration)
        self.cost: Cost = model_cost(self.model, self.example)
        self.parts = self._judged_on()
        self.weights = _digest(self.model)
        self._decisions: list[Decisions] | None = None
        self._surveys: dict[str, tuple[Factorisation, Survey]] = {}
        self._statistics: dict[str, tuple[dict[str, LayerStatistics], float]] = {}

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
        method = get_method(variant.method, **variant.options)
        allocator = get_allocator(variant.allocator, **variant.allocator_options)
        budget = Budget(**{self.sweep.measure: fraction})
        if not isinstance(method, Method):
            done = compression(
                self.model,
                self.calibration,
                budget,
                method=method,
                allocator=allocator,
                include=variant.include or None,
                seed=self.sweep.seed,
            )
            kept = {e.target: e.selection for e in done.plan.changes()}
            return _Made(done.model, done.seconds, list(kept), {})
        base, survey = self._survey(method, variant.include)
        watch = Stopwatch()
        stage = copy.copy(base)
        stage.allocator, stage.limits, stage.watch = allocator, budget.limits(self.cost), watch
        work = copy.deepcopy(self.model)
        edits = stage.apply_(work, self.model, self.calibration, self.cost, survey)
        seconds = {**base.watch.seconds, **watch.seconds}
        seconds["calibrate"] = base.watch.seconds.get("calibrate", 0.0) + watch.seconds.get("calibrate", 0.0)
        changed = [edit.target for edit in edits if edit.op == "replace"]
        choices = {e.target: e.choice if e.op == "replace" else e.reason for e in edits}
        return _Made(work, seconds, changed, choices)

    def _by_peer(self, variant: Variant, fraction: float) -> _Made:
        work = copy.deepcopy(self.model)
        start = time.perf_counter()
        made = self.peers[variant.method](work, self.example, self.calibration, self.sweep.measure, fraction)
        return _Made(made, {"build": time.perf_counter() - start}, [], {})

    def _survey(self, method: Method, include: tuple[str, ...]) -> tuple[Factorisation, Survey]:
        """All options of ``method``, once for all allocators and fractions."""
        key = repr((method, include))
        if key not in self._surveys:
            stage = Factorisation(
                methods=[method],
                allocator=get_allocator("uniform"),
                limits={},
                include=include or None,
                seed=self.sweep.seed,
            )
            statistics, seconds = self._statistics_for(method)
            survey = stage.survey(self.model, self.example, self.calibration, statistics)
            stage.watch.seconds["calibrate"] = seconds
            self._surveys[key] = (stage, survey)
        return self._surveys[key]

    def _statistics_for(self, method: Method) -> tuple[dict[str, LayerStatistics], float]:
        """What ``method`` requires, from memory, from disk or by one pass; with the seconds of that pass."""
        requires = frozenset(method.requires) - {"target"}
        if not requires:
            return {}, 0.0
        asked = {
            **self._identity(),
            "measure": "",
            "select": "",
            "images": 0,
            "requires": sorted(requires),
            "labels": _labels(method) if "gradient" in requires else "",
            "curvature": repr(getattr(method, "curvature", None)) if "curvature" in requires else "",
        }
        key = content_key(asked)
        if key not in self._statistics:
            self._statistics[key] = self._collected(key, method, requires)
        return self._statistics[key]

    def _collected(
        self, key: str, method: Method, requires: frozenset[Any]
    ) -> tuple[dict[str, LayerStatistics], float]:
        path = self.out / "statistics" / f"{key}.safetensors"
        known = self.journal.get(key)
        if known is not None and path.exists():
            return load_statistics(path), float(known["seconds"])
        layers = [layer for layer in find_layers(self.model, self.example) if layer.reason is None]
        start = time.perf_counter()
        found = collect(
            self.model,
            layers,
            self.calibration,
            {layer.name: requires for layer in layers},
            loss=_labels(method),
            curvature=getattr(method, "curvature", None),
            seed=self.sweep.seed,
        )
        seconds = time.perf_counter() - start
        save_statistics(found, path)
        self.journal.add(key, {"kind": "statistics", "requires": sorted(requires), "seconds": seconds})
        return found, seconds


def _labels(method: Method) -> Any:
    """Whose labels the gradients of the method's loss are taken with."""
    return getattr(method, "labels", "sampled")


def _digest(model: nn.Module) -> str:
    """A short name for the weights of ``model``."""
    state = sha256()
    for name, value in model.state_dict().items():
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]
