"""Times of all options of a layer from a few measured ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankwise.latency.shapes import choice_probes
from rankwise.latency.smooth import Floats, monotone
from rankwise.latency.table import LayerTimes, Probe, layer_probes
from rankwise.methods.base import Candidates, Method, is_rank
from rankwise.network.layer import Layer
from rankwise.statistics.record import LayerStatistics

POINTS = 7
"""Options of one structure that are timed."""


@dataclass(frozen=True, eq=False)
class Offer:
    """All that methods offer for one layer; ``origin[i]`` is method, candidates and index of option i + 1.

    ``usable`` marks the options that may be chosen, the dense one at index 0 included.
    """

    layer: Layer
    origin: Sequence[tuple[Method, Candidates, int]]
    usable: npt.NDArray[np.bool_]
    statistics: LayerStatistics | None = None


@dataclass(frozen=True, eq=False)
class _Curve:
    """Options of one structure, ascending in MACs, and the places among them that are timed."""

    options: npt.NDArray[np.int64]
    macs: Floats
    timed: npt.NDArray[np.int64]


def option_times(offers: Sequence[Offer], times: LayerTimes) -> list[Floats]:
    """Seconds of every option of every layer, the dense one first.

    Options of one structure (method and all of the choice but its ranks) take more time the more MACs
    they have. About seven are timed, all layers side by side; the others lie on the straight lines
    between the closest monotone values.
    """
    plans = [(offer, list(_curves(offer))) for offer in offers]
    probes = {
        (place, int(option)): _probes(offer, int(option))
        for place, (offer, curves) in enumerate(plans)
        for curve in curves
        for option in curve.options[curve.timed]
    }
    dense = [layer_probes(offer.layer) for offer in offers]
    times.measure(probe for several in (*dense, *probes.values()) for probe in several)
    columns = []
    for place, (offer, curves) in enumerate(plans):
        column = np.empty(len(offer.origin) + 1)
        column[0] = times.seconds(dense[place])
        for curve in curves:
            chosen = curve.options[curve.timed]
            known = np.array([times.seconds(probes[place, int(option)]) for option in chosen])
            column[curve.options] = np.interp(curve.macs, curve.macs[curve.timed], monotone(known))
        columns.append(column)
    return columns


def _probes(offer: Offer, option: int) -> list[Probe]:
    method, candidates, index = offer.origin[option - 1]
    return choice_probes(method, offer.layer, candidates.choice(index), offer.statistics)


def _curves(offer: Offer) -> list[_Curve]:
    by_structure: dict[tuple[object, ...], list[int]] = {}
    for place, (method, candidates, index) in enumerate(offer.origin):
        key = (id(method), *_structure(candidates.choice(index)))
        by_structure.setdefault(key, []).append(place + 1)
    return [_curve(offer, np.array(options)) for options in by_structure.values()]


def _structure(choice: Mapping[str, object]) -> list[tuple[str, object]]:
    """What of a choice says which layers there are, and not how wide they are."""
    return [
        (name, value == 0 if is_rank(name) else value)
        for name, value in choice.items()
        if not isinstance(value, float)
    ]


def _curve(offer: Offer, options: npt.NDArray[np.int64]) -> _Curve:
    found = [offer.origin[option - 1] for option in options]
    macs = np.array([candidates.macs[index] for _, candidates, index in found], dtype=np.float64)
    order = np.argsort(macs, kind="stable")
    options, macs = options[order], macs[order]
    usable = np.flatnonzero(offer.usable[options])
    if not usable.size:
        usable = np.arange(len(options))
    spread = np.unique(np.linspace(0, len(usable) - 1, POINTS).round().astype(np.int64))
    timed = usable[spread]
    return _Curve(options, macs, timed[np.unique(macs[timed], return_index=True)[1]])
