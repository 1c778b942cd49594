"""Accuracy and agreement of a model, beside a reference: the figures that every report starts from."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import exp
from typing import Any

import torch
from torch import nn

from rankwise.errors import DataError
from rankwise.evaluation.intervals import Interval, bootstrap_rates
from rankwise.evaluation.outcomes import Decisions, Outcomes, measure
from rankwise.network.cost import count_bytes, count_macs, count_params
from rankwise.network.predictions import Task


@dataclass(frozen=True)
class Flips:
    """Predictions whose decision differs from the reference's, by whether each was right."""

    right_to_wrong: int
    wrong_to_right: int
    wrong_to_wrong: int


@dataclass(frozen=True)
class ClassResult:
    """One class: the examples whose label it is (without labels: on which the reference decides for it)."""

    label: int
    examples: int
    accuracy: float | None
    agreement: float | None


@dataclass(frozen=True)
class Evaluation:
    """How a model does on some data. Rates are fractions of the predictions, losses and KL are in nats.

    In classification an example is one prediction; in language modelling each token after the first
    is one. Figures that need labels, a reference, or more than five classes (``top5``) are None
    without them. ``intervals`` holds confidence intervals, by the bootstrap over examples, of "top1",
    "agreement", "right_to_wrong" and "wrong_to_right" (as rates).
    """

    task: Task
    examples: int
    predictions: int
    params: int
    macs: int
    bytes: int
    top1: float | None = None
    top5: float | None = None
    loss: float | None = None
    perplexity: float | None = None
    agreement: float | None = None
    flips: Flips | None = None
    kl: float | None = None
    per_class: tuple[ClassResult, ...] = field(default=(), repr=False)
    intervals: dict[str, Interval] = field(default_factory=dict)
    confidence: float = 0.95

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return asdict(self) | {"per_class": [asdict(result) for result in self.per_class]}


@dataclass(frozen=True)
class Change:
    """A prediction on which two models differ; ``position`` counts the predictions of the example."""

    example: int
    position: int
    label: int | None
    a: int
    b: int
    kl: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same data: ``b`` has ``a`` as its reference; ``changed`` lists where they differ."""

    a: Evaluation
    b: Evaluation
    changed: tuple[Change, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        changed = [asdict(change) for change in self.changed]
        return {"a": self.a.to_json(), "b": self.b.to_json(), "changed": changed}


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    reference: nn.Module | Decisions | None = None,
    *,
    task: Task | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Run ``model``, and ``reference`` where it is a model, once over ``loader``.

    Args:
        model: the model to evaluate; it is left as it was.
        loader: batches in any form that :mod:`rankwise.network.batches` knows.
        reference: the original, or its decisions from :func:`record_decisions` on the same loader.
        task: "classification" or "language"; by default by the number of output dimensions.
        confidence: of the intervals; ``resamples`` and ``seed`` of their bootstrap.

    Raises:
        DataError: the loader is empty, or labels or cached decisions do not fit.
        RankwiseError: NaN in an output, or models that do not decide between the same classes.
    """
    first = _FirstBatch(loader)
    outcomes, _ = measure(model, first, reference, task)
    return _summary(model, first, outcomes, confidence, resamples, seed)


def compare(
    a: nn.Module,
    b: nn.Module,
    loader: Iterable[Any],
    *,
    loader_a: Iterable[Any] | None = None,
    task: Task | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """``a`` and ``b`` example by example on the same data; arguments and errors as :func:`evaluate`.

    ``loader_a`` gives the same examples, in the same batches, as ``a`` reads them, where the two models
    prepare their inputs differently; by default both read ``loader``.
    """
    first = _FirstBatch(loader)
    first_of_a = first if loader_a is None else _FirstBatch(loader_a)
    outcomes, of_a = measure(b, first, a, task, None if loader_a is None else first_of_a)
    assert of_a is not None
    return Comparison(
        _summary(a, first_of_a, of_a, confidence, resamples, seed),
        _summary(b, first, outcomes, confidence, resamples, seed),
        tuple(_changes(outcomes)),
    )


class _FirstBatch:
    """A loader that remembers one example of its first batch, on which MACs are counted."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.example: Any = None

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.example is None:
                self.example = _one_example(batch)
            yield batch


def _one_example(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[:1]
    if isinstance(batch, Mapping):
        return {k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    return [v[:1] if isinstance(v, torch.Tensor) else v for v in batch]


def _summary(
    model: nn.Module, first: _FirstBatch, outcomes: Outcomes, confidence: float, resamples: int, seed: int
) -> Evaluation:
    flips, intervals = None, {}
    events = _events(outcomes)
    if events:
        if not 0 < confidence < 1 or resamples < 1:
            raise DataError(
                f"confidence={confidence}, resamples={resamples} were given; allowed are a confidence "
                "between 0 and 1 and at least one resample."
            )
        table = torch.stack([torch.ones_like(outcomes.example), *(e.long() for e in events.values())], 1)
        counts = table.new_zeros(outcomes.examples, table.shape[1]).index_add_(0, outcomes.example, table)
        found = bootstrap_rates(counts, resamples=resamples, confidence=confidence, seed=seed)
        intervals = {name: interval for name, interval in zip(events, found, strict=True) if name in REPORTED}
    if "wrong_to_wrong" in events:
        flips = Flips(*(int(events[f.name].sum()) for f in Flips.__dataclass_fields__.values()))
    loss = _mean(outcomes.loss)
    return Evaluation(
        task=outcomes.task,
        examples=outcomes.examples,
        predictions=len(outcomes.decision),
        params=count_params(model),
        macs=count_macs(model, first.example),
        bytes=count_bytes(model),
        top1=_mean(events.get("top1")),
        top5=_mean(outcomes.in_top5),
        loss=loss,
        perplexity=_perplexity(loss) if outcomes.task == "language" else None,
        agreement=_mean(events.get("agreement")),
        flips=flips,
        kl=_mean(outcomes.kl),
        per_class=_per_class(outcomes, events) if outcomes.task == "classification" else (),
        intervals=intervals,
        confidence=confidence,
    )


REPORTED = ("top1", "agreement", "right_to_wrong", "wrong_to_right")


def _mean(values: torch.Tensor | None) -> float | None:
    return None if values is None else float(values.double().mean())


def _perplexity(loss: float | None) -> float | None:
    return None if loss is None else exp(min(loss, 700.0))


def _events(outcomes: Outcomes) -> dict[str, torch.Tensor]:
    """What happened on each prediction, by name: bool ``(P,)``."""
    target, decision, reference = outcomes.target, outcomes.decision, outcomes.reference_decision
    events: dict[str, torch.Tensor] = {}
    if target is not None:
        events["top1"] = decision == target
    if reference is not None:
        events["agreement"] = decision == reference
    if target is not None and reference is not None:
        right, was_right = events["top1"], reference == target
        events["right_to_wrong"] = was_right & ~right
        events["wrong_to_right"] = ~was_right & right
        events["wrong_to_wrong"] = ~was_right & ~right & ~events["agreement"]
    return events


def _per_class(outcomes: Outcomes, events: dict[str, torch.Tensor]) -> tuple[ClassResult, ...]:
    labels = outcomes.reference_decision if outcomes.target is None else outcomes.target
    if labels is None:
        return ()
    totals = torch.bincount(labels, minlength=outcomes.classes).tolist()

    def rates(name: str) -> list[float | None]:
        if name not in events:
            return [None] * outcomes.classes
        hits = torch.bincount(labels[events[name]], minlength=outcomes.classes).tolist()
        return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]

    columns = zip(range(outcomes.classes), totals, rates("top1"), rates("agreement"), strict=True)
    return tuple(ClassResult(*row) for row in columns)


def _changes(outcomes: Outcomes) -> Iterator[Change]:
    assert outcomes.reference_decision is not None
    assert outcomes.kl is not None
    first_of_example = torch.searchsorted(outcomes.example, outcomes.example)
    for index in (outcomes.decision != outcomes.reference_decision).nonzero().flatten().tolist():
        yield Change(
            example=int(outcomes.example[index]),
            position=index - int(first_of_example[index]),
            label=None if outcomes.target is None else int(outcomes.target[index]),
            a=int(outcomes.reference_decision[index]),
            b=int(outcomes.decision[index]),
            kl=float(outcomes.kl[index]),
        )
