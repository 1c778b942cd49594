"""Training some of the weights only: masks on gradients, as in kzhang14/Pruning."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from rankwise.errors import TrainingError
from rankwise.recovery.finetune import Adjust

Tensor = torch.Tensor


def masked(masks: Mapping[str, Tensor]) -> Adjust:
    """The ``adjust`` of :func:`rankwise.recovery.finetune.finetune` that holds weights still.

    ``masks`` has, by parameter name, 1 where a weight is trained and 0 where it is not. Weight decay moves
    held weights all the same: train with ``weight_decay=0``.
    """

    def through(mask: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda parameter, gradient: gradient * mask.to(gradient.device)

    return {name: through(mask) for name, mask in masks.items()}


def largest_weights(model: nn.Module, share: float) -> dict[str, Tensor]:
    """Masks of the largest ``share`` of every weight with two dimensions or more, by magnitude.

    Source: kzhang14/Pruning, ModelPrune_VGG-PromoteHighWeights, which takes the largest signed values.
    """
    if not 0 < share <= 1:
        raise TrainingError(f"A share of {share} of the weights was given; allowed is above 0, up to 1.")
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            count = max(1, round(share * parameter.numel()))
            mask = torch.zeros(parameter.numel(), device=parameter.device)
            mask[parameter.detach().abs().flatten().topk(count).indices] = 1.0
            masks[name] = mask.view_as(parameter)
    return masks


def tiled_diagonals(model: nn.Module) -> dict[str, Tensor]:
    """Masks of the linear layers: one weight per input, in row ``input mod outputs``.

    Source: kzhang14/Pruning, ModelPrune_VGG-DiagonalFC; the other weights are held, not removed.
    """
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            columns = torch.arange(module.in_features, device=module.weight.device)
            mask = torch.zeros_like(module.weight)
            mask[columns % module.out_features, columns] = 1.0
            masks[f"{name}.weight" if name else "weight"] = mask
    return masks
