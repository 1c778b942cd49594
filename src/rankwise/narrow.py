"""The stage that keeps some channels of each group: find, calibrate, rank, allocate widths, cut, refit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rankwise.allocation import apply_overrides
from rankwise.allocation.iterative import Iterative
from rankwise.allocation.measured import scaled_to
from rankwise.allocation.widths import WidthCurve, allocate_widths, allowed_widths, narrowest, width_tables
from rankwise.errors import BudgetError, CalibrationError
from rankwise.iterate import Iteration
from rankwise.methods.base import Unit
from rankwise.methods.selection import ChannelMethod, GroupView
from rankwise.methods.selection.interpolative import Interpolative
from rankwise.network import Cost
from rankwise.network.batches import reusable
from rankwise.network.select import apply_selection_, one_by_one, selection_of
from rankwise.network.state import duplicate
from rankwise.plan import Edit
from rankwise.scene import Batches, Scene, refit_
from rankwise.stage import Stage
from rankwise.statistics.channels import ChannelMoments

JUDGED = (0.25, 0.5, 0.75, 0.9)
"""Widths, as shares of a group, whose effect is measured."""


Groups = tuple[dict[str, GroupView], dict[str, Any], list[WidthCurve]]
"""By group what a method sees and the order in which units stay, and the errors of all widths."""


@dataclass(frozen=True)
class Outcome:
    """Per group the units that stay, and the predicted error of that with the error of keeping none.

    In the unit "loss" the second number is 1.
    """

    kept: dict[str, list[int]]
    error: dict[str, tuple[float, float]]
    unit: Unit = "output"


@dataclass(eq=False, kw_only=True)
class Narrowing(Stage):
    """Settings of the stage; :meth:`run_` changes a model in place and returns the edits.

    ``known`` holds what an earlier stage measured of the same model and calibration, and takes what this
    one adds, where all groups are narrowed at once. ``judge`` measures how much worse a narrowed network
    is; where it is given, the predicted errors of all widths are scaled to what it says of a few.
    """

    method: ChannelMethod
    known: dict[str, ChannelMoments] | None = None
    judge: Callable[[nn.Module], float] | None = None

    def run_(
        self, work: nn.Module, original: nn.Module, example: Any, batches: Batches | None, cost: Cost
    ) -> list[Edit]:
        """Narrow ``work``, a copy of ``original`` of cost ``cost``, so that the limits hold.

        Returns one edit per channel group, in the order in which they run, those left alone included.

        Raises:
            BudgetError: the limits cannot be met.
            CalibrationError: the method needs calibration batches and there are none.
        """
        batches = reusable(batches)
        scene = self.scene(work, example, cost)
        return self._finished(scene, original, example, batches, self._outcome(scene, batches))

    def scene(self, model: nn.Module, example: Any, cost: Cost) -> Scene:
        """``model``, of cost ``cost``, with its groups and what their consumers read."""
        timing = None if self.timed is None else self.timed.widths
        return Scene.of(
            model, example, self.method, cost, self.include, self.exclude, self.seed, self.max_memory, timing
        )

    def redo_(
        self,
        work: nn.Module,
        original: nn.Module,
        example: Any,
        batches: Batches | None,
        cost: Cost,
        kept: Mapping[str, Sequence[int]],
    ) -> list[Edit]:
        """As :meth:`run_`, with the units that stay given by group instead of chosen anew.

        Raises:
            PlanError: the model has no such group, or not so many units.
            CalibrationError: the method reconstructs and there are no calibration batches.
        """
        scene = Scene.of(work, example, self.method, cost, seed=self.seed, max_memory=self.max_memory)
        scene.measure(batches)
        views = {group.name: scene.view(group) for group in scene.free if group.name in kept}
        apply_selection_(work, selection_of(scene.groups, kept), scene.folds(views, kept))
        every = {group.name: list(kept.get(group.name, range(group.size))) for group in scene.free}
        outcome = Outcome(every, dict.fromkeys(every, (0.0, 0.0)))
        return self._finished(scene, original, example, batches, outcome)

    def _finished(
        self, scene: Scene, original: nn.Module, example: Any, batches: Batches | None, outcome: Outcome
    ) -> list[Edit]:
        changed = {g.name: outcome.kept[g.name] for g in scene.free if len(outcome.kept[g.name]) < g.size}
        if changed and self.method.reconstruct and self.method.refit != "once":
            self._refit(original, example, batches, scene, changed)
        return self._edits(scene, changed, outcome)

    def _outcome(self, scene: Scene, batches: Batches | None) -> Outcome:
        if isinstance(self.allocator, Iterative):
            with self.watch("allocate"):
                limits = self._corrected(self.allocator, scene, batches)
                return self._iterated(self.allocator, limits, scene, batches)
        return self._at_once(scene, batches)

    def _iterated(
        self, rule: Iterative, limits: Mapping[str, int], scene: Scene, batches: Batches | None
    ) -> Outcome:
        iteration = Iteration(rule, limits, self.overrides, self.min_rank, self.multiple_of, self.progress)
        return Outcome(*iteration.run_(scene, batches))

    def _corrected(self, rule: Iterative, scene: Scene, batches: Batches | None) -> Mapping[str, int]:
        """The limits; that of latency such that a network narrowed within it takes the time asked for."""
        if self.timed is None:
            return self.limits

        def choose(limits: Mapping[str, int]) -> tuple[Mapping[str, int], nn.Module, Outcome]:
            trial = scene.copied()
            return limits, trial.model, self._iterated(rule, limits, trial, batches)

        def predict(chosen: tuple[Mapping[str, int], nn.Module, Outcome]) -> int:
            return scene.widths.cost(chosen[2].kept).latency

        return self.timed.settle(choose, predict, lambda chosen: chosen[1], self.limits, 1)[0]

    def _at_once(self, scene: Scene, batches: Batches | None) -> Outcome:
        """All groups from one pass over the original network."""
        views, orders, curves = self.survey(scene, batches)
        with self.watch("allocate"):
            widths = self._widths(scene, views, orders, curves)
        kept = self.kept(scene, views, orders, widths)
        with self.watch("build"):
            changed = {g.name: kept[g.name] for g in scene.free if len(kept[g.name]) < g.size}
            folds = scene.folds(views, changed)
            apply_selection_(scene.model, selection_of(scene.groups, changed), folds)
        unit: Unit = "output" if self.judge is None else "loss"
        error = {
            c.name: (float(c.error[k]), float(c.error[0]) if unit == "output" else 1.0)
            for c, k in zip(curves, widths, strict=True)
        }
        return Outcome(kept, error, unit)

    def survey(self, scene: Scene, batches: Batches | None) -> Groups:
        """What is known of the groups of ``scene`` before any budget: views, orders and curves of error."""
        with self.watch("calibrate"):
            scene.moments |= self.known or {}
            scene.measure(batches, scene.intakes.keys() - scene.moments.keys())
            if self.known is not None:
                self.known |= scene.moments
        views, orders, curves = {}, {}, []
        with self.watch("decompose"):
            for done, group in enumerate(scene.free):
                self.progress("decompose", done, len(scene.free))
                view = views[group.name] = scene.view(group)
                orders[group.name] = self.method.order(view)
                curves.append(WidthCurve(group.name, self.method.errors(view, orders[group.name]).numpy()))
        if self.judge is not None:
            with self.watch("measure"):
                judged = [self._judged(self.judge, scene, views[c.name], orders[c.name], c) for c in curves]
            curves = [curve for curve in judged if curve is not None]
            views = {curve.name: views[curve.name] for curve in curves}
        return views, orders, curves

    def kept(
        self, scene: Scene, views: Mapping[str, GroupView], orders: Mapping[str, Any], widths: Sequence[int]
    ) -> dict[str, list[int]]:
        """The units that stay, with one width for every group of the ``views``; all of other groups."""
        whole = {group.name: list(range(group.size)) for group in scene.free}
        chosen = zip(views.items(), widths, strict=True)
        return whole | {name: self.method.kept(view, orders[name], k) for (name, view), k in chosen}

    def _judged(
        self,
        judge: Callable[[nn.Module], float],
        scene: Scene,
        view: GroupView,
        order: Any,
        curve: WidthCurve,
    ) -> WidthCurve | None:
        """The curve in the unit of ``judge``, who sees the network with this group alone narrowed.

        None where that changes nothing at all: what reads such a group is not seen by the judge.
        """
        name, known = curve.name, {}
        for width in sorted({max(1, round(share * curve.size)) for share in JUDGED} - {curve.size}):
            kept = {name: self.method.kept(view, order, width)}
            model = duplicate(scene.model)
            apply_selection_(model, selection_of(scene.groups, kept), scene.folds({name: view}, kept))
            known[width] = judge(model)
        if known and max(known.values()) == 0:
            return None
        return replace(curve, error=scaled_to(curve.error, known, float(curve.error[0]))) if known else curve

    def _widths(
        self, scene: Scene, views: Mapping[str, Any], orders: Mapping[str, Any], curves: Sequence[WidthCurve]
    ) -> list[int]:
        sizes = [(view.group.name, view.group.size) for view in views.values()]
        units = {name: order.tolist() for name, order in orders.items()}

        def cost(widths: Sequence[int]) -> Cost:
            chosen = zip(sizes, widths, strict=True)
            return scene.widths.cost({name: units[name][:k] for (name, size), k in chosen if k < size})

        if isinstance(self.method, Interpolative) and self.method.eps is not None:
            allowed = allowed_widths(dict(sizes), self.overrides, self.multiple_of, self.min_rank)
            wanted = {name: self.method.rank(view) or view.group.size for name, view in views.items()}
            widths = [next((w for w in allowed[n] if w >= k), allowed[n][-1]) for n, k in wanted.items()]
            self._check_eps(cost(widths))
            return widths
        tables = width_tables(curves, cost, self.multiple_of, self.min_rank)
        tables = apply_overrides(tables, self.overrides)
        if not tables:
            self._check_eps(scene.cost)
            return []

        def choose(limits: Mapping[str, int]) -> list[int]:
            return allocate_widths(self.allocator, tables, cost, limits)

        def shaped(widths: Sequence[int]) -> nn.Module:
            chosen = zip(sizes, widths, strict=True)
            kept = {name: units[name][:k] for (name, size), k in chosen if k < size}
            copied = duplicate(scene.model)
            apply_selection_(copied, selection_of(scene.groups, kept))
            return copied

        if self.timed is None:
            return choose(self.limits)
        least = cost(narrowest(tables)).latency
        return self.timed.settle(choose, lambda widths: cost(widths).latency, shaped, self.limits, least)

    def _check_eps(self, reached: Cost) -> None:
        missed = [m for m, limit in self.limits.items() if getattr(reached, m) > limit]
        if missed:
            raise BudgetError(
                f"The budget {missed[0]} <= {self.limits[missed[0]]:,} is not met: the channels that "
                f"{self.method.name} may remove leave {getattr(reached, missed[0]):,}. Allow more, a larger "
                "eps, or another method."
            )

    def _refit(
        self,
        original: nn.Module,
        example: Any,
        batches: Batches | None,
        scene: Scene,
        changed: Mapping[str, Sequence[int]],
    ) -> None:
        if batches is None:
            raise CalibrationError("The anchored refit needs calibration batches and none were given.")
        selection = selection_of(scene.groups, changed)
        narrowed = {
            name: (intake.slots, selection.modules[name].get("out"))
            for name, intake in scene.intakes.items()
            if "in" in selection.modules.get(name, {})
        }
        with self.watch("refit"):
            refit_(scene.model, original, example, batches, self.method, narrowed, self.max_memory)

    def _edits(self, scene: Scene, changed: Mapping[str, Sequence[int]], outcome: Outcome) -> list[Edit]:
        steps = one_by_one(scene.groups, changed)
        edits, done = [], {}
        before = scene.widths.cost({})
        for group in scene.groups:
            if group.name not in changed:
                edits.append(Edit("keep", group.name, reason=group.reason or "kept by the allocator"))
                continue
            done[group.name] = changed[group.name]
            after = scene.widths.cost(done)
            error, scale = outcome.error[group.name]
            edits.append(
                Edit(
                    "select",
                    group.name,
                    self.method.name,
                    self.method.config(),
                    {"rank": len(changed[group.name]), "of": group.size, "kept": list(changed[group.name])},
                    error,
                    scale,
                    outcome.unit,
                    {"params": before.params, "macs": before.macs},
                    {"params": after.params, "macs": after.macs},
                    selection=steps[group.name].to_json(),
                )
            )
            before = after
        return edits
