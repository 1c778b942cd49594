"""Search on the joint divergence: errors of single layers do not add up when compression is strong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from rankwise.allocation import Table
from rankwise.auto.sensitivity import Probe
from rankwise.factorise import Options
from rankwise.network.surgery import replace_
from rankwise.progress import Progress, silent

Selection = tuple[int, ...]

_NOTCH = 0.05  # of a layer's dense cost: how far a neighbouring option is
_LARGEST = 8.0  # factor by which one round may change what a layer's error weighs


@dataclass(eq=False)
class Joint:
    """Measures selections of one option per layer: the divergence with all of them in place.

    Args:
        probe: of a copy of the original network, which is changed from selection to selection.
        options: per layer.
        build: makes the module of an option of a layer; called once per pair.
        progress: called as ``progress("search", selections measured, 0)``, before the next is.
    """

    probe: Probe
    options: Sequence[Options]
    build: Callable[[Options, int], nn.Module]
    progress: Progress = silent
    values: dict[Selection, float] = field(default_factory=dict)
    _modules: dict[tuple[str, int], nn.Module] = field(default_factory=dict)
    _now: dict[str, int] = field(default_factory=dict)

    def value(self, selection: Selection) -> float:
        """Mean divergence of the output from the original's, without any refit."""
        if selection not in self.values:
            self.progress("search", len(self.values), 0)
            for options, index in zip(self.options, selection, strict=True):
                name = options.layer.name
                if self._now.get(name, 0) != index:
                    replace_(self.probe.model, name, self._module(options, index))
                    self._now[name] = index
            self.values[selection] = self.probe.divergence()
        return self.values[selection]

    def _module(self, options: Options, index: int) -> nn.Module:
        if index == 0:
            return options.layer.module
        key = (options.layer.name, index)
        if key not in self._modules:
            self._modules[key] = self.build(options, index)
        return self._modules[key]

    def weights(self, selection: Selection, errors: Sequence[np.ndarray]) -> np.ndarray:
        """Per layer, how much more (or less) its error counts around ``selection`` than predicted.

        The slope of the measured joint divergence between a slightly cheaper and a slightly dearer
        option, over the predicted one's.
        """
        weights = np.ones(len(selection))
        for i, options in enumerate(self.options):
            down, up = neighbours(options.table, selection[i])
            if down == up:
                continue
            low, high = (self.value((*selection[:i], j, *selection[i + 1 :])) for j in (down, up))
            predicted = errors[i][down] - errors[i][up]
            if predicted > 0 and np.isfinite(low - high):
                weights[i] = max(low - high, 0.0) / predicted
        return np.clip(weights, 1 / _LARGEST, _LARGEST)


def neighbours(table: Table, index: int) -> tuple[int, int]:
    """The options a notch cheaper and a notch dearer than ``index``, or itself where there is none.

    A notch is 5 % of the layer's dense cost (parameters and MACs alike); among options beyond it the
    nearest with the smallest error is taken.
    """
    costs = table.costs(["params", "macs"]).astype(np.float64)
    price = (costs / np.maximum(costs[0], 1)).mean(1)
    error = table.candidates.error
    allowed = np.zeros(len(price), bool)
    allowed[table.options] = True
    here = price[index]

    def nearest(side: np.ndarray) -> int:
        found = np.flatnonzero(allowed & side)
        if not found.size:
            return index
        return int(found[np.lexsort((error[found], np.abs(price[found] - here).round(2)))[0]])

    down = nearest((price < here - _NOTCH) & (error > error[index]))
    up = nearest((price > here + _NOTCH) & (error < error[index]))
    return down, (0 if index == 0 else up)


def reweighted(options: Sequence[Options], weights: np.ndarray) -> list[Table]:
    """The tables with every layer's errors times its weight."""
    return [
        replace(
            o.table, candidates=replace(o.table.candidates, error=o.table.candidates.error * w, scale=1.0)
        )
        for o, w in zip(options, weights, strict=True)
    ]


def refine(
    joint: Joint, start: Selection, allocate: Callable[[Sequence[Table]], Selection], rounds: int
) -> Selection:
    """Selections of ever smaller joint divergence, each the exact optimum of corrected errors.

    In every round the slopes of the joint divergence are measured at the best selection, the errors of
    every layer are scaled to them, and the budget is shared anew; where that does not help, by half of
    the correction.

    Args:
        joint: measures selections.
        start: the first selection.
        allocate: the exact allocation for tables.
        rounds: most rounds.
    """
    best = start
    weights = np.ones(len(start))
    for _ in range(rounds):
        errors = [o.table.candidates.error * w for o, w in zip(joint.options, weights, strict=True)]
        slopes = joint.weights(best, errors)
        for power in (1.0, 0.5, 0.25):
            tried = weights * slopes**power
            found = allocate(reweighted(joint.options, tried))
            if joint.value(found) < joint.value(best):
                best, weights = found, tried
                break
        else:
            return best
    return best
