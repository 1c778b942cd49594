"""How far a network is from the one that it imitates: at its outputs, and block by block."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import nn

from rankwise.network.batches import forward, output_tensor
from rankwise.recovery.divergence import divergence_terms
from rankwise.statistics.gradient import class_rows

Tensor = torch.Tensor
Criterion = Literal["kl", "mse"]

BLOCKS = 12  # places at most where the inner activations are compared


def criterion_for(output: Tensor) -> Criterion:
    """ "kl" for an output that reads as logits of two classes or more, "mse" for any other."""
    return "kl" if output.ndim >= 2 and class_rows(output).shape[1] > 1 else "mse"


def output_loss(expected: Tensor, found: Tensor, criterion: Criterion, temperature: float = 1.0) -> Tensor:
    """How far ``found`` is from ``expected``: one number, differentiable in ``found``.

    "kl" is the mean of KL(expected || found) of the softmaxes over ``temperature``, in nats, times
    ``temperature`` squared, so that gradients keep their size (Hinton, Vinyals and Dean 2015,
    arXiv 1503.02531, section 2.1). "mse" is :func:`relative_error`.
    """
    if criterion == "mse":
        return relative_error(expected, found)
    p, q = (torch.log_softmax(class_rows(logits).float() / temperature, 1) for logits in (expected, found))
    return divergence_terms(p, q).sum(1).mean() * temperature**2


def relative_error(expected: Tensor, found: Tensor) -> Tensor:
    """Squared difference over the squared deviation of ``expected`` from its mean over the batch.

    A single example has no such deviation: then it is over the square of ``expected``.
    """
    expected, found = expected.float(), found.float()
    several = expected.ndim > 0 and len(expected) > 1
    spread = (expected - expected.mean(0, keepdim=True) if several else expected).square().mean()
    return (found - expected).square().mean() / (spread + 1e-12)


@contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of the modules ``names`` in the latest forward pass, by name; tensors only."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    seen[name] = output

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        yield seen


def common_blocks(model: nn.Module, original: nn.Module, batch: Any) -> list[str]:
    """Names of the inner modules at whose outputs the two networks can be compared, in order of use.

    Those are modules that hold others, or where there are none the layers with weights, which both
    networks have and whose outputs on ``batch`` are tensors of one shape. Of more than :data:`BLOCKS`
    some are taken, evenly.
    """
    ours = {name for name, _ in model.named_modules()}
    held = [
        (name, module) for name, module in original.named_modules()
        if name and name in ours and not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
    ]  # fmt: skip
    holders = [name for name, module in held if any(True for _ in module.children())]
    layers = [name for name, module in held if name not in holders and any(True for _ in module.parameters())]
    for names in (holders, layers):
        with torch.no_grad(), watched(original, names) as expected, watched(model, names) as found:
            last = output_tensor(forward(original, batch))
            forward(model, batch)
        same = [
            name for name, value in expected.items()
            if name in found and found[name].shape == value.shape and value.ndim > 1 and value is not last
            and value.is_floating_point()
        ]  # fmt: skip
        if same:
            return same if len(same) <= BLOCKS else [same[i * len(same) // BLOCKS] for i in range(BLOCKS)]
    return []
