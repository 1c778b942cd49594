"""Finding layers, counting cost, tracing channel groups, surgery."""

from rankwise.network.batches import forward
from rankwise.network.batchnorm import fold_batchnorm_, following_batchnorm
from rankwise.network.cost import Cost, count_bytes, count_macs, count_params, model_cost
from rankwise.network.find import find_layers
from rankwise.network.layer import Geometry, Layer

__all__ = [
    "Cost",
    "Geometry",
    "Layer",
    "count_bytes",
    "count_macs",
    "count_params",
    "find_layers",
    "fold_batchnorm_",
    "following_batchnorm",
    "forward",
    "model_cost",
]
