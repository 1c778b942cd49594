"""The stage behind ``method="auto"``: list, measure, allocate, search, build, refit, decide."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rankwise.allocation import Table
from rankwise.auto.effort import Effort, get_effort
from rankwise.auto.search import Joint, Selection, refine
from rankwise.auto.sensitivity import Probe, measured, some_examples
from rankwise.factorise import Batches, Factorisation, Options, Survey
from rankwise.methods import get_method
from rankwise.network import Cost
from rankwise.network.batches import forward, output_tensor
from rankwise.network.state import duplicate, evaluating
from rankwise.plan import Edit
from rankwise.recovery import divergence, refit_
from rankwise.recovery.divergence import has_classes
from rankwise.recovery.holdout import hold_out
from rankwise.stage import Stage


@dataclass(frozen=True, eq=False)
class Finalist:
    """An allocation, built and refitted: the network, its edits and its divergence on held-out examples."""

    name: str
    model: nn.Module
    edits: list[Edit]
    divergence: float


@dataclass(eq=False, kw_only=True)
class AutoStage(Stage):
    """Settings of the stage; :meth:`run_` changes a model in place and returns the edits.

    Args:
        effort: "fast", "normal" or "thorough".
        refit: end with the closed-form refit, which is also what allocations are compared by.
    """

    effort: str = "normal"
    refit: bool = True

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
        fit, held = hold_out(batches)
        level = get_effort(self.effort)
        stage = self._stage(level.methods("two_sided" if _classes(original, example) else "input"))
        survey = stage.survey(original, example, fit.batches)
        if not survey.options:
            return stage.realise_(work, original, fit.batches, survey, stage.allocate([], cost, stage.limits))
        found = self._search(stage, survey, level, original, fit, cost)
        finalists = [self._finalist(stage, *one, original, fit.batches, held) for one in found]
        best = min(finalists, key=lambda one: one.divergence)
        _adopt_(work, best)
        self.notes = {
            "effort": self.effort,
            "chosen": best.name,
            "held_out_divergence": {one.name: round(one.divergence, 6) for one in finalists},
        }
        return best.edits

    def _stage(self, methods: Sequence[Any]) -> Factorisation:
        return Factorisation(
            methods=methods, max_memory=self.max_memory, allocator=self.allocator, limits=self.limits,
            include=self.include, exclude=self.exclude, overrides=self.overrides, 
            multiple_of=self.multiple_of, min_rank=self.min_rank, seed=self.seed,
            progress=self.progress, watch=self.watch,
        )  # fmt: skip

    def _search(
        self,
        stage: Factorisation,
        survey: Survey,
        level: Effort,
        original: nn.Module,
        fit: Iterable[Any],
        cost: Cost,
    ) -> list[tuple[str, Survey, Selection]]:
        """The best allocations found, by their joint divergence before any refit."""

        def allocate(tables: Sequence[Table]) -> Selection:
            return tuple(stage.allocate(list(tables), cost, stage.limits))

        predicted = allocate([o.table for o in survey.options])
        if level.points == 0:
            return [("predicted", survey, predicted)]
        examples = some_examples(fit, level.examples)
        with self.watch("measure"):
            probe = Probe(duplicate(original), examples)
            offered = [(o.layer, offers_of(o)) for o in survey.options]
            known = measured(probe, offered, survey.statistics, level.points, self.progress)
            single = replace(survey, options=stage.tabulate(known))

        def build(options: Options, index: int) -> nn.Module:
            method, choice = options.pick(index)
            return method.build(options.layer, survey.statistics.get(options.layer.name), choice)

        with self.watch("search"):
            joint = Joint(probe, single.options, build)
            start = allocate([o.table for o in single.options])
            refined = refine(joint, start, allocate, level.rounds)
        found = {"predicted": (survey, predicted), "measured": (single, start), "refined": (single, refined)}
        values = {name: joint.value(selection) for name, (_, selection) in found.items()}
        if refined == start:
            del values["refined"]
        names = sorted(values, key=lambda name: values[name])[: level.finalists]
        return [(name, *found[name]) for name in names]

    def _finalist(
        self, stage: Factorisation, name: str, survey: Survey, selection: Selection,
        original: nn.Module, batches: Batches, held: Iterable[Any],
    ) -> Finalist:  # fmt: skip
        model = duplicate(original)
        edits = stage.realise_(model, original, batches, survey, selection)
        if self.refit:
            with self.watch("refit"):
                refit_(model, original, batches)
        return Finalist(name, model, edits, divergence(model, original, held))


def offers_of(options: Options) -> list[tuple[Any, Any]]:
    """What the methods offered for a layer, method by method."""
    seen = {id(candidates): (method, candidates) for method, candidates, _ in options.origin}
    return list(seen.values())


def _classes(model: nn.Module, example: Any) -> bool:
    with torch.no_grad(), evaluating(model):
        return has_classes(output_tensor(forward(model, example)))


def _adopt_(work: nn.Module, best: Finalist) -> None:
    """Give ``work`` the modules of the finalist."""
    for name, child in best.model.named_children():
        setattr(work, name, child)
