"""Narrower channels and factorisations under one budget: solved in turns, since their costs multiply.

A rank costs less where fewer channels enter and leave its layer, and a channel costs less between layers
of small ranks. So each round takes costs to be linear around what is known, chooses ranks and widths
together, and then the ranks anew at what they really cost between these widths.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import numpy.typing as npt

from rankwise.allocation import Table
from rankwise.allocation.widths import WidthCurve, width_tables
from rankwise.auto.search import Selection
from rankwise.errors import BudgetError
from rankwise.factorise import Factorisation, Options
from rankwise.latency.shapes import chain_of
from rankwise.methods import Candidates, Method
from rankwise.network import Cost, Layer
from rankwise.network.factors import chain_cost
from rankwise.network.select import apply_selection_, selection_of
from rankwise.network.state import duplicate
from rankwise.scene import Scene

ROUNDS = 6
STARTS = (1.0, 0.5, 0.25)
"""Shares of all channels that are kept where the rounds begin, the first with the ranks that are given."""

GAIN = 0.7
"""Share of the predicted error that is left at most where narrower channels are worth a trial."""

_Numbers = npt.NDArray[np.int64]


@dataclass(eq=False)
class Mixture:
    """What single layers' options and single groups' widths lose, and what they cost together.

    Args:
        stage: allocates, within its limits.
        options: per layer, with measured errors.
        scene: the network with its channel groups, nothing narrowed.
        curves: one per group, with errors in the unit of the options.
    """

    stage: Factorisation
    options: Sequence[Options]
    scene: Scene
    curves: Sequence[WidthCurve]

    def __post_init__(self) -> None:
        self._skeleton = duplicate(self.scene.model).to("meta")

    def widths(self, start: Selection | None) -> list[int] | None:
        """The widths of least predicted error, with the ranks that the limits then allow.

        Args:
            start: the best options within the limits while all channels stay; None where there are none.

        Returns:
            One width per curve; None where narrower channels leave more than :data:`GAIN` of the error.
        """
        whole = [curve.size for curve in self.curves]
        worth = GAIN * self._error(start, whole) if start else inf
        least, best = worth, whole
        tried = {tuple(whole)}
        for share in STARTS:
            widths = [max(1, round(share * size)) for size in whole]
            with suppress(BudgetError):  # no choice, or costs are further from linear than the budget bears
                selection = (start or self._cheapest()) if widths == whole else self._ranks(widths)
                for _ in range(ROUNDS):
                    self.stage.progress("allocate", len(tried), 0)
                    widths = self._around(selection, widths)
                    if tuple(widths) in tried:
                        break
                    tried.add(tuple(widths))
                    selection = self._ranks(widths)
                    if (error := self._error(selection, widths)) < least:
                        least, best = error, widths
        return best if least < worth else None

    def _cheapest(self) -> Selection:
        """The option of every layer that takes the least of the limits."""
        names = list(self.stage.limits)
        limits = np.array([max(1, self.stage.limits[name]) for name in names])
        prices = [(o.table.costs(names) / limits).sum(1) for o in self.options]
        return tuple(
            int(o.table.options[price[o.table.options].argmin()])
            for o, price in zip(self.options, prices, strict=True)
        )

    def _error(self, selection: Selection, widths: Sequence[int]) -> float:
        ranks = sum(float(o.table.candidates.error[i]) for o, i in zip(self.options, selection, strict=True))
        return ranks + sum(float(c.error[k]) for c, k in zip(self.curves, widths, strict=True))

    def _ranks(self, widths: Sequence[int]) -> Selection:
        """The best options between layers of these widths, at their true costs."""
        tables = [o.table for o in self._between(widths)]
        return tuple(self.stage.allocate(tables, self._dense(widths), self.stage.limits))

    def _around(self, selection: Selection, widths: Sequence[int]) -> list[int]:
        """The widths of the best choice of ranks and widths, costs being linear around this one."""
        here = self._cost(selection, widths)
        slopes = []
        for place, width in enumerate(widths):
            other = width // 2 if width > 1 else min(2, self.curves[place].size)
            there = self._cost(selection, [*widths[:place], other, *widths[place + 1 :]])
            step = width - other or 1
            slopes.append([(a - b) / step for a, b in zip(_row(here), _row(there), strict=True)])
        slope = np.array(slopes).reshape(-1, 3)

        def linear(changed: Sequence[int]) -> Cost:
            return here + Cost(*np.rint((np.array(changed) - widths) @ slope).astype(int).tolist())

        layers = [o.table for o in self._between(widths)]
        settings = self.stage.multiple_of, self.stage.min_rank
        groups = width_tables(self.curves, linear, *settings, unit="loss")
        now = [*selection, *(c.size - k for c, k in zip(self.curves, widths, strict=True))]
        tables = [*layers, *groups]
        total = here + sum((_saved(t, i) for t, i in zip(tables, now, strict=True)), Cost())
        found = self.stage.allocate(tables, total, self.stage.limits)[len(layers) :]
        return [c.size - i for c, i in zip(self.curves, found, strict=True)]

    def _cost(self, selection: Selection, widths: Sequence[int]) -> Cost:
        """Of the network with these options between layers of these widths."""
        total, layers = self._dense(widths), self._layers(widths)
        for o, index in zip(self.options, selection, strict=True):
            if index > 0:
                method, candidates, place = o.origin[index - 1]
                new = layers[o.layer.name]
                (params,), (macs,) = costs_between(method, o.layer, new, candidates, [place])
                size = new.weight.element_size()
                total += Cost(int(params), int(macs), int(params) * size) - new.cost
        return total

    def _dense(self, widths: Sequence[int]) -> Cost:
        """Of the network with nothing but its groups narrowed."""
        return self.scene.widths.cost(self._kept(widths))

    def _between(self, widths: Sequence[int]) -> list[Options]:
        """The options at what they cost between layers of these widths."""
        layers = self._layers(widths)
        offered = []
        for o in self.options:
            new, offers = layers[o.layer.name], []
            for method, candidates in o.offers:
                every = range(len(candidates))
                params, macs = costs_between(method, o.layer, new, candidates, every)
                offers.append((method, replace(candidates, params=params, macs=macs)))
            offered.append((new, offers))
        return self.stage.tabulate(offered)

    def _layers(self, widths: Sequence[int]) -> dict[str, Layer]:
        """The layers that have options, without weights, when the groups have these widths."""
        narrower = duplicate(self._skeleton)
        apply_selection_(narrower, selection_of(self.scene.groups, self._kept(widths)))
        layers = [o.layer for o in self.options]
        return {x.name: replace(x, module=narrower.get_submodule(x.name)).renewed() for x in layers}

    def _kept(self, widths: Sequence[int]) -> dict[str, range]:
        pairs = zip(self.curves, widths, strict=True)
        return {curve.name: range(width) for curve, width in pairs if width < curve.size}


def costs_between(
    method: Method, old: Layer, new: Layer, candidates: Candidates, indices: Sequence[int]
) -> tuple[_Numbers, _Numbers]:
    """Parameters and MACs of candidates for ``old`` in ``new``, the same layer with other widths.

    Where only building tells what a choice leads to, its share of the dense layer's cost stays.
    """
    params, macs = candidates.params[indices].copy(), candidates.macs[indices].copy()
    for place, index in enumerate(indices):
        choice = candidates.choice(index)
        before, after = (chain_of(method, layer, choice) for layer in (old, new))
        if before is None or after is None:
            params[place] = params[place] * new.cost.params // max(1, old.cost.params)
            macs[place] = macs[place] * new.cost.macs // max(1, old.cost.macs)
            continue
        was, now = chain_cost(old, before), chain_cost(new, after)
        biases = new.geometry.out_channels - old.geometry.out_channels  # the chains' last layers have one
        params[place] += now[0][0] - was[0][0] - (biases if params[place] != was[0][0] else 0)
        macs[place] += now[1][0] - was[1][0]
    return params, macs


def _row(cost: Cost) -> tuple[int, int, int]:
    return cost.params, cost.macs, cost.bytes


def _saved(table: Table, option: int) -> Cost:
    """What ``option`` costs less than the first one of ``table``."""
    costs = table.costs(["params", "macs", "bytes"])
    return Cost(*(costs[0] - costs[option]).tolist())
