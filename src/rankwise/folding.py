"""Folding every BatchNorm into the layer before it, as edits of a plan."""

from typing import Any

from torch import nn

from rankwise.network import Cost, count_bytes, count_params, find_layers
from rankwise.network.batchnorm import fold_batchnorm_, following_batchnorm
from rankwise.network.names import Patterns
from rankwise.plan import Edit


def fold_following_(
    model: nn.Module, example: Any, cost: Cost, include: Patterns | None, exclude: Patterns | None
) -> list[Edit]:
    """Fold the BatchNorms of ``model``, of cost ``cost``, into layers that may change; one edit for each."""
    layers = find_layers(model, example, include, exclude)
    free = {layer.name for layer in layers if layer.reason is None}
    pairs = {n: norm for n, norm in following_batchnorm(model, example).items() if n in free}
    edits = []
    for layer, batchnorm in pairs.items():
        fold_batchnorm_(model, {layer: batchnorm})
        after = Cost(count_params(model), cost.macs, count_bytes(model))
        edits.append(
            Edit(
                "fold_batchnorm", layer, choice={"batchnorm": batchnorm},
                before={"params": cost.params, "macs": cost.macs},
                after={"params": after.params, "macs": after.macs},
            )
        )  # fmt: skip
        cost = after
    return edits
