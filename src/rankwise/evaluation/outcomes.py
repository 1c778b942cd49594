"""What a model decides on every prediction: one per example, or one per token in language modelling."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from rankwise.errors import DataError, RankwiseError
from rankwise.network.predictions import Predictions, Task, predict
from rankwise.network.state import preserved

ROWS = 4096  # predictions scored at a time in float64


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Per prediction (P of them): its example, its target, the model's decision and how it compares.

    Without labels ``target``, ``loss`` and ``in_top5`` are None; without a reference
    ``reference_decision`` and ``kl`` are None. ``in_top5`` is None too where there are five
    classes or fewer.
    """

    task: Task
    classes: int
    examples: int
    example: torch.Tensor = field(repr=False)  # (P,) int64, 0..examples - 1
    decision: torch.Tensor = field(repr=False)  # (P,) int64
    target: torch.Tensor | None = field(default=None, repr=False)  # (P,) int64
    loss: torch.Tensor | None = field(default=None, repr=False)  # (P,) float64, nats
    in_top5: torch.Tensor | None = field(default=None, repr=False)  # (P,) bool
    reference_decision: torch.Tensor | None = field(default=None, repr=False)  # (P,) int64
    kl: torch.Tensor | None = field(default=None, repr=False)  # (P,) float64, KL(reference || model), nats


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a reference decided on a loader, kept so that it need not run again.

    Memory: four bytes per prediction and class.
    """

    decision: torch.Tensor = field(repr=False)  # (P,) int64
    log_probabilities: torch.Tensor = field(repr=False)  # (P, classes) float32
    target: torch.Tensor | None = field(default=None, repr=False)  # (P,) int64, to recognise the loader by

    def __len__(self) -> int:
        return len(self.decision)


def _predict(model: nn.Module, batch: Any, task: Task | None) -> Predictions:
    found = predict(model, batch, task)
    if torch.isnan(found.logits).any() or torch.isposinf(found.logits).any():
        raise RankwiseError("The model's output holds NaN or infinite values on the data it is evaluated on.")
    return found


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits.double(), 1)


def _divergence(reference: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """KL(reference || model) per row, from log-probabilities ``(rows, classes)``."""
    terms = reference.exp() * (reference - model)
    return torch.where(reference.isneginf(), 0.0, terms).sum(1).clamp_min(0.0)


def _score(predictions: Predictions, reference: Decisions | None) -> dict[str, torch.Tensor]:
    """Decision, loss, in_top5, kl and the reference's decision of a batch, by name, each ``(P,)``."""
    parts: dict[str, list[torch.Tensor]] = {}
    logits, target = predictions.logits, predictions.target
    expected = None if reference is None else reference.log_probabilities
    if expected is not None and expected.shape != logits.shape:
        raise RankwiseError(
            f"The reference decides on {tuple(expected.shape)} (predictions, classes), the model on "
            f"{tuple(logits.shape)}: they cannot be compared on this data."
        )
    for rows in (slice(start, start + ROWS) for start in range(0, max(1, len(logits)), ROWS)):
        log_probabilities = _log_probabilities(logits[rows])
        parts.setdefault("decision", []).append(logits[rows].argmax(1))
        if target is not None:
            own = target[rows].unsqueeze(1)
            parts.setdefault("loss", []).append(-log_probabilities.gather(1, own).squeeze(1))
            if logits.shape[1] > 5:
                top = logits[rows].topk(5, 1).indices
                parts.setdefault("in_top5", []).append((top == own).any(1))
        if expected is not None:
            of_reference = expected[rows].to(logits.device).double()
            parts.setdefault("kl", []).append(_divergence(of_reference, log_probabilities.float().double()))
    if reference is not None:
        parts["reference_decision"] = [reference.decision]
    return {name: torch.cat(tensors).cpu() for name, tensors in parts.items()}


def _decide(predictions: Predictions) -> Decisions:
    """The decisions of one batch, on the device they were made on."""
    logits = predictions.logits
    rows = [_log_probabilities(part).float() for part in logits.split(ROWS)]
    return Decisions(logits.argmax(1), torch.cat(rows), predictions.target)


class _Collector:
    """Outcomes of successive batches, put together."""

    def __init__(self) -> None:
        self.parts: dict[str, list[torch.Tensor]] = {}
        self.examples = 0
        self.first: Predictions | None = None

    def add(self, predictions: Predictions, reference: Decisions | None) -> None:
        scores = _score(predictions, reference)
        scores["example"] = predictions.example.cpu() + self.examples
        if predictions.target is not None:
            scores["target"] = predictions.target.cpu()
        for name, values in scores.items():
            self.parts.setdefault(name, []).append(values)
        self.examples += predictions.examples
        self.first = self.first or predictions

    def outcomes(self) -> Outcomes:
        if self.first is None or not sum(map(len, self.parts.get("decision", []))):
            raise DataError("The data to evaluate on are empty: no batch holds a prediction to score.")
        values = {name: torch.cat(tensors) for name, tensors in self.parts.items()}
        return Outcomes(self.first.task, self.first.logits.shape[1], self.examples, **values)


class _Cached:
    """Slices of cached decisions, batch after batch."""

    def __init__(self, decisions: Decisions) -> None:
        self.decisions = decisions
        self.position = 0

    def next(self, predictions: Predictions) -> Decisions:
        window = slice(self.position, self.position + len(predictions.logits))
        self.position = window.stop
        target = self.decisions.target
        same = window.stop <= len(self.decisions) and (
            target is None
            or predictions.target is None
            or torch.equal(target[window], predictions.target.cpu())
        )
        if not same:
            self.refuse()
        return Decisions(self.decisions.decision[window], self.decisions.log_probabilities[window])

    def refuse(self) -> None:
        raise DataError(
            f"The reference's decisions ({len(self.decisions)} predictions) were recorded on other data, or "
            "on the same in another order: record them on this loader."
        )


def _passes(loader: Iterable[Any], *models: nn.Module | None) -> Iterator[Any]:
    """The batches of ``loader``, with the models in evaluation mode and without gradients meanwhile."""
    present = [model for model in models if model is not None]
    if not present:
        yield from loader
        return
    with preserved(present[0]), torch.no_grad():
        present[0].eval()
        yield from _passes(loader, *present[1:])


def _paired(loader: Iterable[Any], other: Iterable[Any] | None) -> Iterator[tuple[Any, Any]]:
    """Each batch of ``loader`` with that of ``other``, or with itself."""
    if other is None:
        yield from ((batch, batch) for batch in loader)
        return
    for pair in zip_longest(loader, other):
        if any(batch is None for batch in pair):
            raise DataError("The two loaders give different numbers of batches; they must pair up.")
        yield pair


def _check_same(predictions: Predictions, others: Predictions) -> None:
    """Make sure that two models were given the same examples, as far as their targets tell."""
    same = len(predictions.example) == len(others.example)
    if same and predictions.target is not None and others.target is not None:
        same = torch.equal(predictions.target.cpu(), others.target.cpu())
    if not same:
        raise DataError("The two models were given different examples, or the same in another order.")


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    reference: nn.Module | Decisions | None = None,
    task: Task | None = None,
    reference_loader: Iterable[Any] | None = None,
) -> tuple[Outcomes, Outcomes | None]:
    """Outcomes of ``model``, and of ``reference`` where it is a model: one forward pass each per batch.

    Args:
        model: the model to evaluate; runs in evaluation mode and is left as it was.
        loader: batches as :func:`rankwise.network.batches.split_batch` takes them.
        reference: the original model, or its :class:`Decisions` on the same batches.
        task: "classification" or "language"; by default language where the output has three dimensions.
        reference_loader: the same examples in the same batches as a reference model reads them, where
            the two models prepare their inputs differently; by default ``loader``.

    Raises:
        DataError: no predictions, labels that do not fit, cached decisions of another loader, or a
            ``reference_loader`` of other examples.
        RankwiseError: NaN in an output, or models that do not decide between the same classes.
    """
    own, other = _Collector(), _Collector()
    cached = _Cached(reference) if isinstance(reference, Decisions) else None
    original = reference if isinstance(reference, nn.Module) else None
    for batch, reference_batch in _passes(_paired(loader, reference_loader), model, original):
        predictions = _predict(model, batch, task)
        expected = None
        if original is not None:
            reference_predictions = _predict(original, reference_batch, task)
            _check_same(predictions, reference_predictions)
            other.add(reference_predictions, None)
            expected = _decide(reference_predictions)
        elif cached is not None:
            expected = cached.next(predictions)
        own.add(predictions, expected)
    if cached is not None and cached.position != len(cached.decisions):
        cached.refuse()
    return own.outcomes(), None if original is None else other.outcomes()


def record_decisions(model: nn.Module, loader: Iterable[Any], task: Task | None = None) -> Decisions:
    """The :class:`Decisions` of ``model`` on ``loader``, to be passed as ``reference`` again and again.

    Raises:
        DataError: there are no predictions.
    """
    parts = []
    for batch in _passes(loader, model):
        decided = _decide(_predict(model, batch, task))
        target = None if decided.target is None else decided.target.cpu()
        parts.append(Decisions(decided.decision.cpu(), decided.log_probabilities.cpu(), target))
    if not sum(map(len, parts)):
        raise DataError("The data to evaluate on are empty: no batch holds a prediction to score.")
    targets = [part.target for part in parts if part.target is not None]
    return Decisions(
        torch.cat([part.decision for part in parts]),
        torch.cat([part.log_probabilities for part in parts]),
        torch.cat(targets) if len(targets) == len(parts) else None,
    )
