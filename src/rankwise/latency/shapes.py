"""The layers that a choice of a method leads to, with unset weights: what is timed before any is built."""

import json
from collections.abc import Sequence

from torch import nn

from rankwise.latency.table import Probe
from rankwise.methods.base import Choice, Method
from rankwise.methods.cp import CP, cp_factors
from rankwise.methods.folded import Folded
from rankwise.methods.foldings import chosen_foldings, fold_factors
from rankwise.methods.low_rank import two_factors
from rankwise.methods.tucker2 import Tucker2, tucker2_factors
from rankwise.network.factors import Factor, empty_chain
from rankwise.network.layer import Layer
from rankwise.network.spec import describe
from rankwise.statistics.record import LayerStatistics


def chain_of(method: Method, layer: Layer, choice: Choice) -> Sequence[Factor] | None:
    """The chain of layers behind ``choice``, with a bias; None where only building it tells."""
    if isinstance(method, Folded):
        (folding, *_) = chosen_foldings(layer.geometry, choice.get("folding", "channel"))
        return fold_factors(layer, folding, int(choice.get("slices", 1)), int(choice["rank"]), True)
    if isinstance(method, Tucker2):
        return tucker2_factors(layer.geometry, (int(choice["rank_out"]), int(choice["rank_in"])), True)
    if isinstance(method, CP):
        count = int(choice.get("factors", method.factors or 3))
        return cp_factors(layer.geometry, int(choice["rank"]), count, True)
    return two_factors(layer, int(choice["rank"]), True) if set(choice) == {"rank"} else None


def shape_of(
    method: Method, layer: Layer, choice: Choice, statistics: LayerStatistics | None = None
) -> nn.Module:
    """A module of the layers that ``method`` builds for ``choice``, whatever their weights."""
    chain = chain_of(method, layer, choice)
    return method.build(layer, statistics, choice) if chain is None else empty_chain(layer, chain)


def choice_probes(
    method: Method, layer: Layer, choice: Choice, statistics: LayerStatistics | None = None
) -> list[Probe]:
    """One probe per call of ``layer`` with what ``choice`` puts in its place."""
    text = json.dumps(describe(shape_of(method, layer, choice, statistics)))
    return [Probe(text, shape) for shape in layer.input_shapes]
