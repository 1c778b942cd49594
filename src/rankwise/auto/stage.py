"""The stage behind ``method="auto"``: list, measure, allocate, search, build, refit, decide."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from rankwise.allocation import Table
from rankwise.auto.effort import Effort, levels
from rankwise.auto.mixture import Mixture
from rankwise.auto.search import Joint, Selection, refine
from rankwise.auto.sensitivity import Probe, measured, some_examples
from rankwise.errors import BudgetError, RankwiseError
from rankwise.factorise import Batches, Factorisation, Options, Survey
from rankwise.methods import get_method
from rankwise.narrow import Narrowing
from rankwise.network import Cost, model_cost
from rankwise.network.batches import forward, output_tensor
from rankwise.network.names import filter_names
from rankwise.network.state import duplicate, evaluating
from rankwise.plan import Edit, Plan, outputs_left, reshape_
from rankwise.progress import Deadline, TimeIsUp
from rankwise.recovery import Refit, refit_
from rankwise.recovery.divergence import Deviation, deviation, has_classes, nearest
from rankwise.recovery.holdout import Part, hold_out
from rankwise.stage import Stage
from rankwise.statistics.distributed import is_distributed


@dataclass(frozen=True, eq=False)
class Finalist:
    """An allocation, built and refitted: the network, its edits and how far it is on held-out examples."""

    name: str
    model: nn.Module
    edits: list[Edit]
    deviation: Deviation
    settled: Any = None


Way = Callable[[nn.Module, Any, Part, Part, Cost, Effort], Iterator[Finalist]]
"""Finalists of a level: of the original network, an example, batches to fit and held out, and its cost."""


@dataclass(eq=False, kw_only=True)
class AutoStage(Stage):
    """Settings of the stage; :meth:`run_` changes a model in place and returns the edits.

    Args:
        effort: "fast", "normal" or "thorough".
        seconds: after which no more is tried than is finished; see :class:`Automatic`.
        left_out: why what might have competed could not be built.
    """

    effort: str = "normal"
    seconds: float | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.progress = self.deadline = Deadline(self.progress, self.seconds)
        if self.timed is not None:
            self.timed.progress = self.timed.times.progress = self.deadline

    def run_(
        self, work: nn.Module, original: nn.Module, example: Any, batches: Batches | None, cost: Cost
    ) -> list[Edit]:
        """Replace layers of ``work``, a copy of ``original`` of cost ``cost``, so that the limits hold.

        Without calibration batches, layers are compared by the error of their weights alone.

        Raises:
            BudgetError: the limits cannot be met.
            CalibrationError: NaN or infinite values, with layer and batch.
        """
        if batches is None:
            methods = [get_method("cp", effort=20.0, polish=5), get_method("svd")]
            return self._stage(methods).run_(work, original, example, None, cost)
        if self.seconds is not None and is_distributed():
            raise RankwiseError(
                "A number of seconds was given to 'auto' in several processes; allowed is one."
            )
        fit, held = hold_out(batches)
        finalists: list[Finalist] = []
        failures: dict[str, BudgetError] = {}
        with suppress(TimeIsUp):
            for name, level, ways in self._levels():
                for way in ways:
                    try:
                        for found in way(original, example, fit, held, cost, level):
                            finalists.append(replace(found, name=", ".join(filter(None, [name, found.name]))))
                    except BudgetError as failure:
                        failures.setdefault(name, failure)
                self.deadline.ready = True
                self.progress("finished", len(finalists), 0)
        if not finalists:
            raise failures.get("") or next(iter(failures.values()))
        best = finalists[nearest([one.deviation for one in finalists])]
        _adopt_(work, best)
        if self.timed is not None:
            self.timed.settled = best.settled
        self.notes = {
            "chosen": best.name,
            "held_out_divergence": {one.name: round(one.deviation.divergence, 6) for one in finalists},
            "held_out_square": {one.name: round(one.deviation.square, 6) for one in finalists},
        } | ({"left_out": self.left_out} if self.left_out else {})
        return best.edits

    def _levels(self) -> list[tuple[str, Effort, list[Way]]]:
        """What competes: a level, its name if it is not the one asked for, and its ways to build.

        Narrower channels compete under a latency budget, in the last level and, where time may run out,
        in the first.
        """
        found: list[tuple[str, Effort, list[Way]]] = []
        for name, level in levels(self.effort, self.seconds is not None):
            at_an_end = not name or (self.seconds is not None and not found)
            narrow = level.narrow or (self.timed is not None and at_an_end)
            ways: list[Way] = [self._factorised]
            if narrow and not self.overrides:  # those are about ranks
                ways.append(self._narrowed)
            found.append((name, level, ways))
        return found

    def _factorised(
        self, original: nn.Module, example: Any, fit: Part, held: Part, cost: Cost, level: Effort
    ) -> Iterator[Finalist]:
        """The best mixtures of factorisations, and one with narrower channels if that promises more."""
        stage, survey = self.surveyed(original, example, fit, level)
        known = self.measured(stage, survey, level, original, fit) if level.points else None
        start: Selection | None = None
        failure: BudgetError | None = None
        try:
            for name, options, selection in self._search(stage, survey, known, level, original, cost):
                start = start if options is survey else selection
                yield self._finalist(stage, name, finished(options, level), selection, original, fit, held)
        except BudgetError as error:
            failure = error
        if known is not None and self._may_mix(original):
            try:
                yield from self._mixed(original, example, fit, held, cost, level, known[0], start)
            except (RankwiseError, RuntimeError) as error:  # of networks that cannot be narrowed after all
                self.left_out["mixed"] = str(error)
        if failure is not None:
            raise failure

    def _may_mix(self, original: nn.Module) -> bool:
        """Whether channels may be chosen with ranks: not for times, wishes for ranks, many processes."""
        scripted = any(isinstance(m, torch.jit.ScriptModule) for m in original.modules())
        return not (self.timed or self.overrides or scripted or is_distributed())

    def _mixed(
        self, original: nn.Module, example: Any, fit: Part, held: Part, cost: Cost, level: Effort,
        single: Survey, start: Selection | None,
    ) -> Iterator[Finalist]:  # fmt: skip
        """Narrower channels and factorisations of what they leave; nothing where none are worth it.

        Args:
            single: options with measured errors.
            start: the best within the limits while all channels stay; None where there are none.
        """
        narrowing = self._narrowing(original, fit, level.examples // 2)
        scene = narrowing.scene(duplicate(original), example, cost)
        left_out = filter_names(scene.layers, self.include, self.exclude)
        scene.groups = [
            replace(g, reason=f"{p.name}: {left_out[p.name]}") if p is not None else g
            for g in scene.groups
            for p in [next((port for port in g.ports if port.name in left_out), None)]
        ]
        views, orders, curves = narrowing.survey(scene, fit)
        mixture = Mixture(self._stage([]), single.options, scene, curves)
        with self.watch("allocate"):
            widths = mixture.widths(start) if curves else None
        if widths is None:
            return
        kept = narrowing.kept(scene, views, orders, widths)
        errors = {c.name: float(c.error[k]) for c, k in zip(curves, widths, strict=True)}
        narrower = duplicate(original)
        edits = [
            replace(edit, error=errors[edit.target], scale=1.0, unit="loss")
            for edit in narrowing.redo_(narrower, original, example, fit, cost, kept)
            if edit.op == "select"
        ]
        stage, survey = self.surveyed(narrower, example, fit, level)
        single, _ = self.measured(stage, survey, level, narrower, fit)
        chosen = stage.allocate(
            [o.table for o in single.options], model_cost(narrower, example), stage.limits
        )
        model = duplicate(narrower)
        edits += stage.realise_(model, narrower, fit, finished(single, level), chosen)
        edits[:-1] = [replace(edit, refitted=False) for edit in edits[:-1]]  # all in one, after the last
        yield self._refitted("mixed", model, original, edits, fit, held)

    def _narrowed(
        self, original: nn.Module, example: Any, fit: Part, held: Part, cost: Cost, level: Effort
    ) -> Iterator[Finalist]:
        """Narrower channels by interpolative decomposition, which are faster wherever MACs are not."""
        model = duplicate(original)
        stage = self._narrowing(original, fit, level.points and level.examples)
        edits = stage.run_(model, original, example, fit, cost)
        yield self._refitted("narrowed", model, original, edits, fit, held)

    def _narrowing(self, original: nn.Module, fit: Part, examples: int) -> Narrowing:
        """The stage that narrows channels, with errors measured on ``examples``; 0 measures none."""
        probe = Probe(duplicate(original), some_examples(fit, examples)) if examples else None

        def judge(narrower: nn.Module) -> float:
            assert probe is not None
            self.progress("measure", probe.measured, 0)
            return probe.of(narrower)

        return Narrowing(
            method=get_method("interpolative"), judge=None if probe is None else judge, **self._common()
        )

    def _common(self) -> dict[str, Any]:
        """The settings that every stage has."""
        return {f.name: getattr(self, f.name) for f in fields(Stage) if f.name != "notes"}

    def _stage(self, methods: Sequence[Any]) -> Factorisation:
        return Factorisation(methods=methods, **self._common())

    def _search(
        self,
        stage: Factorisation,
        survey: Survey,
        known: tuple[Survey, Joint] | None,
        level: Effort,
        original: nn.Module,
        cost: Cost,
    ) -> list[tuple[str, Survey, Selection]]:
        """The best allocations found, by their joint divergence before any refit."""

        def allocate(tables: Sequence[Table]) -> Selection:
            return tuple(stage.allocate(list(tables), cost, stage.limits))

        if known is None or not survey.options:
            return [("predicted", survey, tuple(stage.choose(original, survey, cost)))]
        single, joint = known
        if self.timed is not None:
            return [("measured", single, tuple(stage.choose(original, single, cost)))]
        start = allocate([o.table for o in single.options])
        if level.finalists == 1:
            return [("measured", single, start)]
        predicted = allocate([o.table for o in survey.options])
        with self.watch("search"):
            refined = refine(joint, start, allocate, level.rounds)
        found = {"predicted": (survey, predicted), "measured": (single, start), "refined": (single, refined)}
        values = {name: joint.value(selection) for name, (_, selection) in found.items()}
        if refined == start:
            del values["refined"]
        names = sorted(values, key=lambda name: values[name])[: level.finalists]
        return [(name, *found[name]) for name in names]

    def measured(
        self, stage: Factorisation, survey: Survey, level: Effort, original: nn.Module, fit: Part
    ) -> tuple[Survey, Joint]:
        """The survey with errors in measured divergence, and what measures whole selections."""
        with self.watch("measure"):
            probe = Probe(duplicate(original), some_examples(fit, level.examples))
            single = survey
            if level.points:
                offered = [(o.layer, o.offers) for o in survey.options]
                known = measured(probe, offered, survey.statistics, level.points, self.progress)
                single = replace(survey, options=stage.tabulate(known))

        def build(options: Options, index: int) -> nn.Module:
            method, choice = options.pick(index)
            return method.build(options.layer, survey.statistics.get(options.layer.name), choice)

        return single, Joint(probe, single.options, build, self.progress)

    def surveyed(
        self, original: nn.Module, example: Any, fit: Part, level: Effort
    ) -> tuple[Factorisation, Survey]:
        """The stage of the competing methods, and all that they offer."""
        stage = self._stage(level.methods("two_sided" if _classes(original, example) else "input"))
        return stage, stage.survey(original, example, fit)

    def _finalist(
        self, stage: Factorisation, name: str, survey: Survey, selection: Selection,
        original: nn.Module, fit: Part, held: Part,
    ) -> Finalist:  # fmt: skip
        model = duplicate(original)
        edits = stage.realise_(model, original, fit, survey, selection)
        return self._refitted(name, model, original, edits, fit, held)

    def _refitted(
        self,
        name: str,
        model: nn.Module,
        original: nn.Module,
        edits: list[Edit],
        fit: Part,
        held: Part,
    ) -> Finalist:
        """The refit holds out the same examples, for its ridges; the rest of ``auto`` never sees them."""
        with self.watch("refit"):
            kept = outputs_left(original, edits)
            refit_(model, original, fit.batches, kept, Refit(max_memory=self.max_memory), self.progress)
        settled = None if self.timed is None else self.timed.settled
        edits = [replace(edit, refitted=edit.refitted is not False) for edit in edits]
        return Finalist(name, model, edits, deviation(model, original, held), settled)


def finished(survey: Survey, level: Effort) -> Survey:
    """The survey with methods that work as hard as ``level`` does on what was chosen."""
    methods = {id(m): level.finished(m) for o in survey.options for m, _, _ in o.origin}
    options = [replace(o, origin=[(methods[id(m)], c, i) for m, c, i in o.origin]) for o in survey.options]
    return replace(survey, options=options)


def _classes(model: nn.Module, example: Any) -> bool:
    with torch.no_grad(), evaluating(model):
        return has_classes(output_tensor(forward(model, example)))


def _adopt_(work: nn.Module, best: Finalist) -> None:
    """Make ``work`` the finalist, edit by edit: its own containers stay, whoever else refers to them."""
    reshape_(work, Plan(tuple(best.edits)))
    work.load_state_dict(best.model.state_dict())
