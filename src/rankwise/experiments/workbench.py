"""One network, its data and one draw of calibration examples, with what several compressions share."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.allocation import get_allocator
from rankwise.budget import Budget
from rankwise.compress import Compression, compression
from rankwise.data import Batches
from rankwise.experiments.journal import content_key
from rankwise.experiments.variants import Variant, methods_of
from rankwise.factorise import Factorisation, Survey
from rankwise.files import json_text, write_text
from rankwise.methods import Method
from rankwise.methods.selection import ChannelMethod
from rankwise.network import Cost, find_layers, model_cost
from rankwise.network.batches import first_batch
from rankwise.network.digest import digest as digest
from rankwise.progress import Progress, silent
from rankwise.statistics import LayerStatistics, collect
from rankwise.statistics.channels import ChannelMoments
from rankwise.statistics.files import load_statistics, save_statistics

Found = tuple[dict[str, LayerStatistics], float]
"""Statistics by layer, and the seconds that the pass over the data took."""


@dataclass(eq=False)
class Workbench:
    """A network and its calibration batches; ``identity`` says which they are, JSON-able.

    Statistics are kept in ``folder``, one file for each set that a method may require, so that they are
    collected once for all methods, allocators, budgets and processes. What is listed of a method is kept
    in memory, until :meth:`forget`.
    """

    model: nn.Module
    calibration: Batches
    folder: Path
    identity: Mapping[str, Any]
    seed: int = 0
    max_memory: int | None = None
    progress: Progress = silent
    _surveys: dict[str, tuple[Survey, dict[str, float]]] = field(default_factory=dict, repr=False)
    _statistics: dict[str, Found] = field(default_factory=dict, repr=False)
    _moments: dict[str, tuple[dict[str, ChannelMoments], dict[str, float]]] = field(
        default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        self.model.eval()
        self.example = first_batch(self.calibration)
        self.cost: Cost = model_cost(self.model, self.example)

    def forget(self) -> None:
        """Free what is held in memory; statistics are still on disk."""
        for held in (self._surveys, self._statistics, self._moments):
            held.clear()

    def compress(self, variant: Variant, budget: Budget, multiple_of: int = 1, **options: Any) -> Compression:
        """The network compressed as ``variant`` says; ``options`` are those of :func:`compression`.

        ``seconds`` include the shared work, whoever did it.
        """
        methods = methods_of(variant.method, variant.options)
        common: dict[str, Any] = {
            "include": variant.include or None,
            "exclude": variant.exclude or None,
            "multiple_of": multiple_of,
            "max_memory": self.max_memory,
            "seed": self.seed,
            "progress": self.progress,
        }
        before: dict[str, float] = {}
        alone = isinstance(methods, list) and not options.get("fold_batchnorm")
        layerwise = [method for method in methods if isinstance(method, Method)]
        if alone and len(layerwise) == len(methods):
            options["survey"], before = self._survey(layerwise, common)
        elif alone and isinstance(methods[0], ChannelMethod):
            key = repr((methods[0].needs_sensitivity, common["include"], common["exclude"]))
            options["moments"], before = self._moments.setdefault(key, ({}, {}))
        done = compression(
            self.model,
            self.calibration,
            budget,
            example=self.example,
            method=methods,
            allocator=variant.built_allocator(),
            **common,
            **options,
        )
        if options.get("moments") and not before:
            before["calibrate"] = done.seconds.get("calibrate", 0.0)
            return done
        for part, spent in before.items():
            done.seconds[part] = done.seconds.get(part, 0.0) + spent
        return done

    def _survey(self, methods: list[Method], common: Mapping[str, Any]) -> tuple[Survey, dict[str, float]]:
        """All options of ``methods``, once for all allocators and budgets, and the seconds that it took."""
        key = repr((methods, common["include"], common["exclude"], common["multiple_of"]))
        if key not in self._surveys:
            uniform = get_allocator("uniform")
            stage = Factorisation(methods=methods, allocator=uniform, limits={}, **common)
            statistics, seconds = self._statistics_for(methods)
            survey = stage.survey(self.model, self.example, self.calibration, statistics)
            self._surveys[key] = survey, {**stage.watch.seconds, "calibrate": seconds}
        return self._surveys[key]

    def _statistics_for(self, methods: list[Method]) -> Found:
        """What ``methods`` require, from memory, from disk or by one pass."""
        requires = frozenset().union(*(method.requires for method in methods)) - {"target"}
        if not requires:
            return {}, 0.0
        labels = next((m.labels for m in methods if hasattr(m, "labels")), "sampled")
        curvature = next((m.curvature for m in methods if hasattr(m, "curvature")), None)
        asked = {
            **self.identity,
            "requires": sorted(requires),
            "labels": labels if "gradient" in requires else "",
            "curvature": repr(curvature) if "curvature" in requires else "",
        }
        key = content_key(asked)
        if key not in self._statistics:
            path = self.folder / f"{key}.safetensors"
            with locked(path.with_suffix(".lock")):
                self._statistics[key] = self._read(path) or self._collect(path, requires, labels, curvature)
        return self._statistics[key]

    def _read(self, path: Path) -> Found | None:
        note = path.with_suffix(".json")
        if not (path.exists() and note.exists()):
            return None
        return load_statistics(path), float(json.loads(note.read_text())["seconds"])

    def _collect(self, path: Path, requires: frozenset[Any], labels: Any, curvature: Any) -> Found:
        layers = [layer for layer in find_layers(self.model, self.example) if layer.reason is None]
        start = time.perf_counter()
        found = collect(
            self.model,
            layers,
            self.calibration,
            {layer.name: requires for layer in layers},
            loss=labels,
            curvature=curvature,
            max_memory=self.max_memory,
            seed=self.seed,
            progress=self.progress,
        )
        seconds = time.perf_counter() - start
        save_statistics(found, path)
        write_text(path.with_suffix(".json"), json_text({"requires": sorted(requires), "seconds": seconds}))
        return found, seconds


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file ``path`` for one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        flock(file, LOCK_EX)
        yield
