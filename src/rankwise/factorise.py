"""The stage that replaces single layers: find, calibrate, list candidates, allocate, build."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from rankwise.allocation import Table, apply_overrides, restrict, with_dense
from rankwise.errors import BudgetError, CalibrationError, RankwiseError
from rankwise.latency import Offer, shape_of
from rankwise.methods import Candidates, Choice, Method, Statistic
from rankwise.network import Cost, Layer, find_layers
from rankwise.network.batchnorm import following_scales
from rankwise.network.rectifier import following_rectifier
from rankwise.network.spec import describe
from rankwise.network.state import duplicate
from rankwise.network.surgery import replace_
from rankwise.plan import Edit
from rankwise.progress import Progress
from rankwise.stage import Stage
from rankwise.statistics import LayerStatistics, collect
from rankwise.threads import in_threads

Batches = Iterable[Any]
Offers = Sequence[tuple[Method, Candidates]]
Pick = tuple[Layer, Method, Choice]
SENSITIVITIES = frozenset[Statistic](("gradient", "curvature"))
"""What says nothing of a layer that no gradient of the output reaches."""
_ROOT = "it is the model itself, which cannot be replaced inside itself: wrap it in nn.Sequential"


@dataclass(frozen=True, eq=False)
class Options:
    """All that may be done to one layer: a table whose option 0 leaves it dense.

    ``origin[i]`` says which method option ``i + 1`` comes from, and which candidate of it it is.
    """

    layer: Layer
    table: Table
    origin: Sequence[tuple[Method, Candidates, int]]

    @property
    def offers(self) -> list[tuple[Method, Candidates]]:
        """What the methods offered, method by method."""
        seen = {id(candidates): (method, candidates) for method, candidates, _ in self.origin}
        return list(seen.values())

    def pick(self, option: int) -> tuple[Method, Choice]:
        """The method and the choice behind ``option``, which is not 0."""
        method, candidates, index = self.origin[option - 1]
        return method, candidates.choice(index)

    def edit(self, option: int) -> Edit:
        """What choosing ``option`` does, but for the module."""
        before = {"params": self.layer.cost.params, "macs": self.layer.cost.macs}
        if option == 0:
            return Edit("keep", self.layer.name, before=before, after=before, reason="kept by the allocator")
        method, candidates, index = self.origin[option - 1]
        after = {"params": int(candidates.params[index]), "macs": int(candidates.macs[index])}
        return Edit(
            "replace",
            self.layer.name,
            method.name,
            method.config(),
            candidates.choice(index),
            float(candidates.error[index]),
            candidates.scale,
            candidates.unit,
            before,
            after,
        )


def build_each(
    picked: Sequence[Pick], statistics: Mapping[str, LayerStatistics], progress: Progress
) -> list[nn.Module]:
    """The replacements, in order, of methods that do not depend on one another's."""

    def build(pick: Pick) -> nn.Module:
        layer, method, choice = pick
        return method.build(layer, statistics.get(layer.name), choice)

    return in_threads(build, picked, lambda count: progress("build", count, len(picked)))


def merged(offers: Offers) -> Candidates:
    """The candidates of several methods for one layer as one; what a method lacks is -1, 0.0 or ""."""
    if len(offers) == 1:
        return offers[0][1]
    units = {candidates.unit: method.name for method, candidates in offers}
    if len(units) > 1:
        found = ", ".join(f"{name!r} in {unit!r}" for unit, name in units.items())
        raise RankwiseError(f"Methods with errors in different units cannot compete: {found}.")
    kinds = {name: values.dtype.kind for _, c in offers for name, values in c.choices.items()}
    blank = {name: {"i": -1, "U": "", "S": ""}.get(kind, 0) for name, kind in kinds.items()}
    columns = {
        name: np.concatenate([c.choices.get(name, np.full(len(c), blank[name])) for _, c in offers])
        for name in kinds
    }
    return Candidates(
        np.concatenate([c.params for _, c in offers]),
        np.concatenate([c.macs for _, c in offers]),
        np.concatenate([c.error for _, c in offers]),
        columns,
        offers[0][1].unit,
        max(c.scale for _, c in offers),
        np.concatenate([np.ones(len(c), bool) if c.fitted is None else c.fitted for _, c in offers]),
    )


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of a model before any budget: its layers, their statistics and all their options.

    ``kept`` says why layers without options have none, where it is the calibration data.
    """

    layers: Sequence[Layer]
    statistics: Mapping[str, LayerStatistics]
    options: Sequence[Options]
    kept: Mapping[str, str]


@dataclass(eq=False, kw_only=True)
class Factorisation(Stage):
    """Settings of the stage; :meth:`run_` changes a model in place and returns the edits.

    Its two halves are public: the survey of a model holds for every allocator and every limit.
    ``known`` is one that was made before, with the same methods.
    """

    methods: Sequence[Method]
    known: Survey | None = None

    def run_(
        self, work: nn.Module, original: nn.Module, example: Any, batches: Batches | None, cost: Cost
    ) -> list[Edit]:
        """Replace layers of ``work``, a copy of ``original`` of cost ``cost``, so that the limits hold.

        Returns one edit per layer, in execution order, those that keep a layer included.
        """
        survey = self.known or self.survey(work, example, batches)
        return self.apply_(work, original, batches, cost, survey)

    def layers(self, model: nn.Module, example: Any) -> list[Layer]:
        """The layers of ``model`` with what the methods want to know of the modules that follow them."""
        layers = find_layers(model, example, self.include, self.exclude)
        layers = [layer if layer.name else replace(layer, reason=layer.reason or _ROOT) for layer in layers]
        if any(getattr(method, "batchnorm", False) for method in self.methods):
            scales = following_scales(model, example)
            layers = [replace(layer, output_scale=scales.get(layer.name)) for layer in layers]
        if any(getattr(method, "rectified", False) for method in self.methods):
            rectifiers = following_rectifier(model, example)
            layers = [replace(layer, rectifier=rectifiers.get(layer.name)) for layer in layers]
        return layers

    def survey(
        self,
        model: nn.Module,
        example: Any,
        batches: Batches | None,
        statistics: Mapping[str, LayerStatistics] | None = None,
    ) -> Survey:
        """Find the layers of ``model``, calibrate unless ``statistics`` are given, and list all options."""
        layers = self.layers(model, example)
        able = {layer.name: self._able(layer) for layer in layers}
        if statistics is None:
            statistics = self.collect(model, [layer for layer in layers if able[layer.name]], batches, able)
        options, kept = self._options(layers, able, statistics)
        return Survey(layers, statistics, options, kept)

    def apply_(
        self, work: nn.Module, original: nn.Module, batches: Batches | None, cost: Cost, survey: Survey
    ) -> list[Edit]:
        """Choose one option per layer within the limits and replace the layers of ``work``.

        ``survey`` may be that of another copy of ``original``. Returns as :meth:`run_` does.
        """
        return self.realise_(work, original, batches, survey, self.choose(work, survey, cost))

    def realise_(
        self,
        work: nn.Module,
        original: nn.Module,
        batches: Batches | None,
        survey: Survey,
        options: Sequence[int],
    ) -> list[Edit]:
        """As :meth:`apply_`, with the option of every entry of ``survey.options`` given."""
        chosen = list(zip(survey.options, options, strict=True))
        edits = {o.layer.name: o.edit(index) for o, index in chosen}
        picked = [(o.layer, *o.pick(index)) for o, index in chosen if index > 0]
        built = self.build_(work, original, batches, picked, survey.statistics)
        edits |= {name: replace(edits[name], module=describe(module)) for name, module in built.items()}
        return [edits.get(layer.name) or self._kept(layer, survey.kept) for layer in survey.layers]

    def _able(self, layer: Layer) -> list[Method]:
        """The methods that can treat ``layer``."""
        if layer.reason is not None:
            return []
        return [method for method in self.methods if method.supports(layer) is None]

    def _kept(self, layer: Layer, reasons: Mapping[str, str]) -> Edit:
        cost = {"params": layer.cost.params, "macs": layer.cost.macs}
        reason = layer.reason or reasons.get(layer.name)
        if reason is None:
            refusals = {method.supports(layer) for method in self.methods}
            reason = "; ".join(sorted(filter(None, refusals)))
        return Edit("keep", layer.name, before=cost, after=cost, reason=reason)

    def collect(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        batches: Batches | None,
        able: Mapping[str, Sequence[Method]],
        reference: nn.Module | None = None,
    ) -> dict[str, LayerStatistics]:
        """The statistics that the methods in ``able`` ask for, of those ``layers`` that have any."""
        needs: dict[str, frozenset[Statistic]] = {
            layer.name: frozenset().union(*(method.requires for method in able[layer.name]))
            for layer in layers
        }
        if reference is None:
            needs = {name: need - {"target"} for name, need in needs.items()}
        needs = {name: need for name, need in needs.items() if need}
        if not needs:
            return {}
        if batches is None:
            wanting = sorted({m.name for methods in able.values() for m in methods if m.requires})
            raise CalibrationError(
                f"Method {', '.join(map(repr, wanting))} needs calibration batches and none were given; "
                "pass some, or use a weight-only method such as 'svd'."
            )
        used = [method for name in needs for method in able[name]]
        with self.watch("calibrate"):
            return collect(
                model,
                [layer for layer in layers if layer.name in needs],
                batches,
                needs,
                reference=reference,
                loss=next((m.labels for m in used if hasattr(m, "labels")), None),
                curvature=next((m.curvature for m in used if hasattr(m, "curvature")), None),
                max_memory=self.max_memory,
                seed=self.seed,
                progress=self.progress,
            )

    def _options(
        self,
        layers: Sequence[Layer],
        able: Mapping[str, Sequence[Method]],
        statistics: Mapping[str, LayerStatistics],
    ) -> tuple[list[Options], dict[str, str]]:
        kept: dict[str, str] = {}
        usable = dict(able)
        reached = []
        for layer in layers:
            known = statistics.get(layer.name)
            if known is not None and known.without_gradient:
                usable[layer.name] = [m for m in able[layer.name] if not m.requires & SENSITIVITIES]
            if known is not None and known.positions <= 0:
                kept[layer.name] = "no calibration example reached it"
            elif usable[layer.name]:
                reached.append(layer)
            elif able[layer.name]:
                kept[layer.name] = "no gradient of the compared output reached it"

        def offers_for(layer: Layer) -> Offers:
            known = statistics.get(layer.name)
            found = [(method, method.candidates(layer, known)) for method in usable[layer.name]]
            return [(method, candidates) for method, candidates in found if len(candidates)]

        with self.watch("decompose"):
            self.progress("decompose", 0, len(reached))
            found = in_threads(
                offers_for, reached, lambda count: self.progress("decompose", count, len(reached))
            )
        offered = [(layer, offers) for layer, offers in zip(reached, found, strict=True) if offers]
        return self.tabulate(offered), kept

    def tabulate(self, offered: Sequence[tuple[Layer, Offers]]) -> list[Options]:
        """The options of layers, given what the methods offer; ranks restricted, overrides applied."""
        options = []
        for layer, offers in offered:
            table = with_dense(layer.name, merged(offers), layer.cost, layer.weight.element_size())
            table = restrict(table, multiple_of=self.multiple_of, min_rank=self.min_rank)
            origin = [(method, c, index) for method, c in offers for index in range(len(c))]
            options.append(Options(layer, table, origin))
        tables = apply_overrides([o.table for o in options], self.overrides)
        return [replace(o, table=t) for o, t in zip(options, tables, strict=True)]

    def _timed_tables(self, survey: Survey) -> list[Table]:
        """The tables of all options with what each takes on the target of the latency budget."""
        assert self.timed is not None
        offers = []
        for o in survey.options:
            usable = np.isin(np.arange(len(o.table)), o.table.options)
            offers.append(Offer(o.layer, o.origin, usable, survey.statistics.get(o.layer.name)))
        with self.watch("time"):
            columns = self.timed.options(offers)
        return [replace(o.table, latency=c) for o, c in zip(survey.options, columns, strict=True)]

    def choose(self, work: nn.Module, survey: Survey, cost: Cost) -> list[int]:
        """Option per layer with options; under a latency budget corrected by what networks really take."""
        if self.timed is None:
            missed = [m for m, limit in self.limits.items() if getattr(cost, m) > limit]
            if missed and not survey.options:
                raise BudgetError(self._nothing_to_change(missed[0], getattr(cost, missed[0]), survey))
            return self.allocate([o.table for o in survey.options], cost, self.limits)
        tables = self._timed_tables(survey)
        columns = [table.costs(["latency"])[:, 0] for table in tables]
        fixed = cost.latency - sum(int(column[0]) for column in columns)

        def shaped(chosen: Sequence[int]) -> nn.Module:
            copied = duplicate(work)
            for o, index in zip(survey.options, chosen, strict=True):
                if index > 0:
                    known = survey.statistics.get(o.layer.name)
                    method, choice = o.pick(index)
                    replace_(copied, o.layer.name, shape_of(method, o.layer, choice, known))
            return copied

        return self.timed.settle(
            lambda limits: self.allocate(tables, cost, limits),
            lambda chosen: fixed + sum(int(c[i]) for c, i in zip(columns, chosen, strict=True)),
            shaped,
            self.limits,
            fixed + sum(int(c[t.options].min()) for c, t in zip(columns, tables, strict=True)),
        )

    def allocate(self, tables: Sequence[Table], cost: Cost, limits: Mapping[str, int]) -> list[int]:
        """Option per table, the limits being those of the whole model of cost ``cost``."""
        with self.watch("allocate"):
            left: dict[str, int] = {}
            for measure, limit in limits.items():
                costs = [table.costs([measure])[:, 0] for table in tables]
                total = getattr(cost, measure)
                fixed = total - sum(int(c[0]) for c in costs)
                least = [int(c[t.options].min()) for c, t in zip(costs, tables, strict=True)]
                if fixed + sum(least) > limit:
                    raise BudgetError(self._impossible(measure, limit, total, fixed, least, tables))
                left[measure] = limit - fixed
            return self.allocator.allocate(tables, left) if tables else []

    def _nothing_to_change(self, measure: str, total: int, survey: Survey) -> str:
        reasons = [f"{x.name!r}: {self._kept(x, survey.kept).reason}" for x in survey.layers]
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        listed = "; ".join(reasons[:3]) or "none with weights was found"
        said = self._impossible(measure, self.limits[measure], total, total, [], [])
        return f"{said} No layer can be changed: {listed}{more}."

    def _impossible(
        self, measure: str, limit: int, total: int, fixed: int, least: Sequence[int], tables: Sequence[Table]
    ) -> str:
        smallest = fixed + sum(least)
        holders = sorted(zip(least, (t.name for t in tables), strict=True), reverse=True)[:3]
        names = ", ".join(f"{name} ({value})" for value, name in holders)
        methods = "+".join(method.name for method in self.methods)
        return (
            f"The budget {measure} <= {limit} ({limit / total:.4f} of {total}) cannot be met by {methods}: "
            f"the smallest reachable is {smallest} ({smallest / total:.4f}). Of that, {fixed} lie outside "
            f"the layers that it can change; most is held by {names or 'no single layer'}. "
            f"Allowed: {measure}={smallest / total + 5e-4:.3f} or more, or another method."
        )

    def build_(
        self,
        work: nn.Module,
        original: nn.Module,
        batches: Batches | None,
        picked: Sequence[Pick],
        statistics: Mapping[str, LayerStatistics],
    ) -> dict[str, nn.Module]:
        """Replace each picked layer of ``work``; for a sequential method, after calibrating it anew."""
        built: dict[str, nn.Module] = {}
        alone = [one for one in picked if not one[1].sequential]
        with self.watch("build"):
            made = build_each(alone, statistics, self.progress)
            built |= {one[0].name: module for one, module in zip(alone, made, strict=True)}
        for done, (layer, method, choice) in enumerate(picked):
            if method.sequential:
                self.progress("build", done, len(picked))
                known = self.collect(work, [layer], batches, {layer.name: [method]}, original)[layer.name]
                with self.watch("build"):
                    built[layer.name] = method.build(layer, known, choice)
            replace_(work, layer.name, built[layer.name])
        return {layer.name: built[layer.name] for layer, _, _ in picked}
