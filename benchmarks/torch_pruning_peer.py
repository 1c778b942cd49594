"""torch-pruning's magnitude and Taylor pruners on the budgets of compress_only.py, in the same process."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rankwise.data import Batches
from rankwise.network import model_cost

Peer = Callable[[nn.Module, Any, Batches, str, float], nn.Module]
Share = Callable[[nn.Module], float]
STEPS = 9  # bisections of the pruning ratio


def inner_layers(model: nn.Module) -> set[str] | None:
    """The layers to narrow: the first of each block of a CIFAR ResNet, whose residual stream
    torch-pruning cannot prune (IndexError at the padded shortcuts); None for all but the classifier."""
    blocks = {name for name, m in model.named_modules() if name.endswith(".conv1") and hasattr(m, "weight")}
    return blocks or None


def labelled_gradients(model: nn.Module, batches: Batches) -> dict[str, torch.Tensor]:
    """The gradient of the summed cross-entropy with the true labels, by parameter."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    for inputs, labels in batches:
        cross_entropy(model(inputs), labels, reduction="sum").backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def pruner(importance: str, everywhere: bool) -> Peer:
    """A peer: ``importance`` "l2" or "taylor", ranked over the whole network or within each layer.

    The ratio is the smallest, to 1/512, that meets the budget: that share of a counted measure, or of what
    ``share`` says of a smaller model (of its time, say).
    """

    def peer(
        model: nn.Module,
        example: Any,
        batches: Batches,
        measure: str,
        fraction: float,
        share: Share | None = None,
    ) -> nn.Module:
        import torch_pruning as tp

        given = tp.importance
        score = (
            given.GroupTaylorImportance() if importance == "taylor" else given.GroupMagnitudeImportance(p=2)
        )
        gradients = labelled_gradients(model, batches) if importance == "taylor" else {}
        whole = model_cost(model, example)

        def counted(small: nn.Module) -> float:
            return float(getattr(model_cost(small, example), measure) / getattr(whole, measure))

        kept = counted if share is None else share
        inner = inner_layers(model)
        image = example[0][:1] if isinstance(example, (tuple, list)) else example[:1]

        def pruned(ratio: float) -> nn.Module:
            work = copy.deepcopy(model)
            for name, p in work.named_parameters():
                p.grad = gradients.get(name)
            layers = [(n, m) for n, m in work.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
            ignored = [m for n, m in layers[:-1] if inner is not None and n not in inner]
            tp.pruner.MetaPruner(
                work, image, score, global_pruning=everywhere, pruning_ratio=ratio,
                ignored_layers=[*ignored, layers[-1][1]],
            ).step()  # fmt: skip
            return work

        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            fits = kept(pruned(middle)) <= fraction
            low, high = (low, middle) if fits else (middle, high)
        return pruned(high)

    return peer


PEERS: dict[str, tuple[str, Peer]] = {
    "torch-pruning taylor": ("global", pruner("taylor", True)),
    "torch-pruning l2": ("global", pruner("l2", True)),
    "torch-pruning l2 per layer": ("uniform", pruner("l2", False)),
}
"""By name: how the ratio is spread over the layers, and the compressor."""
