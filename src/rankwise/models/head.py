"""A network for other classes: its last layer replaced by a fresh one."""

import torch
from torch import nn

from rankwise.errors import RankwiseError
from rankwise.network.batches import output_tensor
from rankwise.network.state import preserved, seeded
from rankwise.network.surgery import replace_


def replace_head_(module: nn.Module, classes: int, example: torch.Tensor | None, seed: int = 0) -> None:
    """Give ``module`` ``classes`` outputs: its last layer is replaced by one with random weights.

    That is the last linear or 1x1 convolutional layer, in the order of the modules, with as many outputs
    as the network has on ``example`` (without an example: the last linear layer).

    Raises:
        RankwiseError: there is no such layer.
    """
    outputs = None
    if example is not None:
        with preserved(module), torch.no_grad():
            outputs = output_tensor(module.eval()(example)).shape[-1]
    with seeded(seed):
        for name, layer in reversed(list(module.named_modules())):
            fresh: nn.Module | None = None
            if isinstance(layer, nn.Linear) and outputs in (None, layer.out_features):
                fresh = nn.Linear(layer.in_features, classes, layer.bias is not None)
            elif (
                isinstance(layer, nn.Conv2d) and outputs == layer.out_channels and layer.kernel_size == (1, 1)
            ):
                fresh = nn.Conv2d(layer.in_channels, classes, 1, bias=layer.bias is not None)
            if fresh is not None and name:
                replace_(module, name, fresh.train(layer.training))
                return
    raise RankwiseError(
        f"{type(module).__name__} has no last layer that could be replaced for {classes} classes."
    )
