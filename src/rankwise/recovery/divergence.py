"""How far a network's outputs are from another's, without labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.batches import device_of, forward, output_tensor, to_device
from rankwise.network.state import preserved, unfused
from rankwise.statistics.gradient import class_rows

Tensor = torch.Tensor

_CERTAIN = 2.0  # standard errors of a mean difference beyond which it is not put down to chance


def has_classes(logits: Tensor) -> bool:
    """Whether an output can be read as logits of several classes."""
    return logits.dtype != torch.bool and logits.ndim >= 2 and logits.shape[-1 if logits.ndim <= 3 else 1] > 1


def examples_in(output: Tensor) -> int:
    """How many examples an output is of; one where it is a single number."""
    return len(output) if output.ndim else 1


def divergence_of(expected: Tensor, found: Tensor) -> Tensor:
    """KL(expected || found) of the softmaxes per prediction, (rows,), in nats.

    Outputs without a class dimension give their squared differences instead.

    Args:
        expected: logits of the original, (N, classes), (N, length, classes) or (N, classes, H, W, ...).
        found: the same of the other network.
    """
    if not has_classes(expected):
        return _difference(expected, found).square().flatten()
    p, q = (torch.log_softmax(class_rows(logits).double(), 1) for logits in (expected, found))
    return divergence_terms(p, q).sum(1).clamp_min(0.0)


def divergence_terms(p: Tensor, q: Tensor) -> Tensor:
    """e^p (p - q), entry by entry, of two logarithms of chances; 0 where the first chance is 0."""
    return torch.where(p == -torch.inf, 0.0, p.exp() * (p - q))


def _difference(expected: Tensor, found: Tensor) -> Tensor:
    """found - expected, float64; 0 where both are the same infinity."""
    if expected.dtype == torch.bool:
        expected, found = expected.double(), found.double()
    return torch.where(found == expected, 0.0, found - expected).double()


def squared_difference(expected: Tensor, found: Tensor) -> Tensor:
    """Mean squared difference of two outputs per prediction, (rows,), or per number without classes.

    Of logits the mean over the classes, which no softmax sees, is taken out first. What is left is, but
    for a factor, what the divergence of softmaxes at a high temperature measures (Hinton, Vinyals and Dean
    2015, arXiv 1503.02531, section 2.1).
    """
    if not has_classes(expected):
        return divergence_of(expected, found)
    difference = _difference(class_rows(expected), class_rows(found))
    return (difference - difference.mean(1, keepdim=True)).square().mean(1)


@dataclass(frozen=True, eq=False)
class Deviation:
    """How far a network's outputs are from another's, example by example, (examples,) each.

    ``divergences`` are means of :func:`divergence_of` over an example's predictions, ``squares`` those of
    :func:`squared_difference`.
    """

    divergences: Tensor
    squares: Tensor

    @property
    def divergence(self) -> float:
        """Mean over the examples; infinite where an output is not finite."""
        return _mean(self.divergences)

    @property
    def square(self) -> float:
        """Mean over the examples; infinite where an output is not finite."""
        return _mean(self.squares)


def _mean(values: Tensor) -> float:
    value = float(values.mean())
    return value if value == value else float("inf")


def deviation(model: nn.Module, original: nn.Module, batches: Iterable[Any]) -> Deviation:
    """How far ``model`` is from ``original`` on every example of ``batches``.

    Both networks run in evaluation mode and are left as they were.

    Raises:
        CalibrationError: there are no batches.
    """
    divergences: list[Tensor] = []
    squares: list[Tensor] = []
    device = device_of(original)
    with preserved(original), preserved(model), unfused(), torch.no_grad():
        original.eval()
        model.eval()
        for batch in batches:
            batch = to_device(batch, device)
            expected, found = (output_tensor(forward(m, batch)) for m in (original, model))
            if not examples_in(expected):
                continue
            for values, measure in ((divergences, divergence_of), (squares, squared_difference)):
                measured = measure(expected, found).reshape(examples_in(expected), -1)
                values.append(measured.mean(1).cpu())
    if not divergences:
        raise CalibrationError("The divergence of two networks was asked for without batches of examples.")
    return Deviation(torch.cat(divergences), torch.cat(squares))


def divergence(model: nn.Module, original: nn.Module, batches: Iterable[Any]) -> float:
    """The mean divergence of :func:`deviation`; infinite where an output is not finite."""
    return deviation(model, original, batches).divergence


def nearest(deviations: Sequence[Deviation]) -> int:
    """Which of several networks is nearest to the original, as the same examples tell.

    The mean divergence of a few examples depends on the one or two of which the original is unsure. So
    all networks compete whose divergence is above the least by no more than two standard errors of the
    paired difference, and of these the one with the least squared difference is taken.
    """
    best = min(range(len(deviations)), key=lambda i: deviations[i].divergence)
    competing = [i for i, one in enumerate(deviations) if i == best or _alike(one, deviations[best])]
    return min(competing, key=lambda i: deviations[i].square)


def _alike(one: Deviation, best: Deviation) -> bool:
    """Whether the divergence of ``one`` is above that of ``best`` by no more than chance explains."""
    more = one.divergences - best.divergences
    error = float(more.std(correction=1)) / len(more) ** 0.5 if len(more) > 1 else 0.0
    return float(more.mean()) <= _CERTAIN * error  # False where it is NaN
