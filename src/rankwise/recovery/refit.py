"""Closed-form recovery: every layer refitted, in order, onto what the original network does there.

Sequential anchored reduced-rank regression with residual correction: no labels, no training. After
Zhang et al. 2015 (arXiv 1505.06798, section 3.2.2: targets of the original, inputs of the compressed
network) and He et al. 2017 (arXiv 1707.06168, section 3.2: skip connections).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.linalg.metric import damped
from rankwise.network.additions import Sight, sights
from rankwise.network.batches import batch_size, device_of, forward, output_tensor, to_device
from rankwise.network.batchnorm import following_batchnorm
from rankwise.network.find import find_layers
from rankwise.network.layer import Layer
from rankwise.network.replay import LIMIT, Prefix
from rankwise.network.state import evaluating, preserved, unfused
from rankwise.progress import Progress, silent
from rankwise.recovery.bias import biased
from rankwise.recovery.divergence import has_classes
from rankwise.recovery.holdout import SHARE, hold_out, unless_harmful_
from rankwise.recovery.mixing import mixed
from rankwise.recovery.registry import Layers, register_recovery, untouched_of
from rankwise.recovery.regression import Regression, Subject
from rankwise.recovery.wanted import Pair, Wanted, shared_batchnorm
from rankwise.statistics import LayerStatistics, Statistic, collect
from rankwise.statistics.accumulate import Accumulator
from rankwise.statistics.collect import naming_batch

Tensor = torch.Tensor
Sums = tuple[LayerStatistics, LayerStatistics | None, LayerStatistics]

RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)

_WORSE = 1.1  # times the error on held-out examples up to which a fit to blends too is preferred


@dataclass(frozen=True)
class Refit:
    """Settings of the closed-form recovery.

    Args:
        ridges: weights that hold a layer at what it is, relative to the mean variance of an input; the
            best on held-out examples is taken, layer by layer.
        holdout: share of the batches held out; they choose the ridge and accept or refuse each layer.
        residual: fit the sum behind a skip connection instead of the layer's own output, so that the
            errors of earlier layers are corrected, not carried along.
        gradient: weigh output errors of factorised layers by the loss gradient's second moment in the
            original network (labels drawn from its own softmax), as ``kfac`` does; not of layers that no
            gradient reaches.
        damping: added to that weight, relative to its mean diagonal.
        mixup: share of another example in the blends that are fitted to beside the examples
            (:func:`rankwise.recovery.mixing.mixed`), as many again; 0 makes none.
        iterations: Gauss-Newton steps on the factors of a layer, where there are more than two.
        largest: columns of a layer's matrix up to which it is refitted: its sums take that squared.
        max_memory: bytes that the sums of one layer may take; a layer that needs more is left as it is.
            With a number, outputs of earlier layers are not kept between passes but computed again.
    """

    ridges: tuple[float, ...] = RIDGES
    holdout: float = SHARE
    residual: bool = True
    gradient: bool = True
    damping: float = 1.0
    mixup: float = 0.35
    iterations: int = 20
    largest: int = 4608
    max_memory: int | None = None


@dataclass(frozen=True)
class Fitted:
    """What became of one layer: its error on held-out examples before and after, and the ridge.

    ``reason`` says why a layer was left as it was.
    """

    before: float = 0.0
    after: float = 0.0
    ridge: float | None = None
    reason: str | None = None


def refit_(
    model: nn.Module,
    original: nn.Module,
    batches: Iterable[Any],
    layers: Layers = (),
    settings: Refit | None = None,
    progress: Progress = silent,
) -> dict[str, Fitted]:
    """Refit every layer of ``model``, dense ones too, onto what ``original`` does there.

    In the order of execution, with all earlier layers already refitted: the layer's input patches u in
    ``model`` are regressed onto its output y in ``original``, corrected for what earlier layers left of
    the skip connection that is added to it; the ridge holds the layer at the original's weights. A layer
    of two factors gets the best of their rank (reduced-rank regression), one of several (CP, Tucker)
    Gauss-Newton steps on all its factors. What the mean leaves goes into the bias, or out of the mean
    of the BatchNorm that reads the layer. No parameter is added.

    Args:
        model: a compressed network; changed in place.
        original: the network that it comes from, with the same names of modules; left as it is.
        batches: calibration batches, read once per layer; labels are not read.
        layers: for layers that lost outputs, which of the original's outputs they still have, in order;
            a :class:`rankwise.recovery.Changed` names those too that keep their weights and biases.
        settings: see :class:`Refit`.
        progress: called as ``progress("refit", done, total)``, in layers, and while gradients are collected.

    Returns:
        What became of each layer, in order.

    Raises:
        CalibrationError: no batches, or NaN or infinite values, with the layer.
    """
    with torch.inference_mode(False), unfused(), preserved(original), evaluating(original), evaluating(model):
        return _Run(model, original, batches, layers, settings or Refit()).all(progress)


class _Run:
    """One run over all layers."""

    def __init__(
        self, model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Layers, settings: Refit
    ) -> None:
        self.model, self.original, self.settings = model, original, settings
        self.kept = layers if isinstance(layers, Mapping) else {}
        self.untouched = untouched_of(layers)
        self.fit, self.held = hold_out(batches, settings.holdout)
        if not len(self.fit):
            raise CalibrationError("The closed-form refit was given no calibration batches; it needs one.")
        self.device = device_of(original)
        self.example = to_device(next(iter(self.fit)), self.device)
        self.norms = following_batchnorm(original, self.example)
        memory = 2 * LIMIT if self.settings.max_memory is None else 0
        self.prefixes = Prefix(original, self.example, memory), Prefix(model, self.example, memory)

    def all(self, progress: Progress) -> dict[str, Fitted]:
        """Every layer that may be touched, in order."""
        found = [layer for layer in find_layers(self.original, self.example) if layer.reason is None]
        subjects = [s for layer in found if (s := Subject.of(layer, self.model)) is not None]
        reasons = {s.layer.name: self._left_alone(s) for s in subjects}
        metrics = self._metrics([s for s in subjects if s.chain and not reasons[s.layer.name]], progress)
        done = {}
        for count, subject in enumerate(subjects):
            progress("refit", count, len(subjects))
            name = subject.layer.name
            reason = reasons[name]
            done[name] = Fitted(reason=reason) if reason else self._refit(subject, metrics.get(name))
        return done

    def _left_alone(self, subject: Subject) -> str | None:
        """Why the sums of a layer, over the examples to fit, blends and those held out, are not made."""
        if subject.layer.name in self.untouched:
            return "left out by name"
        columns, largest = subject.geometry.columns, self.settings.largest
        if columns > largest:
            return f"its matrix has {columns} columns; at most {largest} are refitted"
        layer, allowed = Layer(subject.path, subject.module, subject.geometry), self.settings.max_memory
        parts = 3 if self.settings.mixup else 2
        needed = parts * Accumulator.bytes_needed(layer, frozenset({"target"}), 0, None)  # inputs included
        if allowed is not None and needed > allowed:
            return f"its sums take up to {needed} bytes, max_memory={allowed}"
        return None

    def _metrics(self, chains: Sequence[Subject], progress: Progress) -> dict[str, Tensor]:
        """Second moments of the loss gradient at the outputs of ``chains`` in the original network."""
        with torch.no_grad():
            logits = output_tensor(forward(self.original, self.example))
        layers = [s.layer for s in chains if s.geometry.out_channels == s.layer.geometry.out_channels]
        if not self.settings.gradient or not layers or not has_classes(logits):
            return {}
        wanted: dict[str, frozenset[Statistic]] = {layer.name: frozenset({"gradient"}) for layer in layers}
        limit = self.settings.max_memory
        found = collect(self.original, layers, self.fit, wanted, max_memory=limit, progress=progress)
        damping = self.settings.damping
        known = {name: s for name, s in found.items() if s.positions > 0 and not s.without_gradient}
        return {name: damped(s.gradient_moment, damping) for name, s in known.items()}

    def _refit(self, subject: Subject, metric: Tensor | None) -> Fitted:
        plain, both, held = self._statistics(subject)
        if plain.positions <= 0:
            return Fitted(reason="no calibration example reached it")
        place = self._place(subject)

        def regression(fit: LayerStatistics) -> Regression:
            return Regression(
                fit, held if held.positions > 0 else plain, place is not None, metric,
                self.settings.ridges, self.settings.iterations,
            )  # fmt: skip

        alone = regression(plain)
        free, found = alone.free(subject), None
        if both is not None:
            more = regression(both)
            freer = more.free(subject)
            if freer.error <= _WORSE * free.error:
                found = more.solve(subject, freer)
        if found is None or not found.after < found.before:
            found = alone.solve(subject, free)
        if not found.after < found.before:
            return Fitted(found.before, found.before, None, "held-out examples speak against it")
        found.store_(subject)
        if place is not None:
            place(found.intercept)
        return Fitted(found.before, found.after, found.ridge)

    def _statistics(self, subject: Subject) -> Sums:
        """Moments over the examples to fit, over these and their blends, and over those held out."""
        layer = Layer(subject.path, subject.module, subject.geometry)
        axis = -1 if layer.geometry.kind == "linear" else 1
        wanted = Wanted(self.kept.get(subject.layer.name), axis, self.settings.residual)
        pairs: dict[str | None, Pair | None] = {}
        needed = frozenset[Statistic]({"input", "target"})
        sums = {part: Accumulator(layer, subject.module, needed, 0, 0) for part in ("fit", "blends", "held")}
        examples = dict.fromkeys(sums, 0)
        for part, place, batch in self._passes():
            examples[part] += batch_size(batch)
            for first, second in self._calls(subject, batch, place):
                if first.batchnorm not in pairs:
                    pairs[first.batchnorm] = shared_batchnorm(self.original, self.model, first, second)
                target = wanted.target(first, second, pairs[first.batchnorm])
                with naming_batch(max(place, ~place)):
                    sums[part].update(second.input, target, None, target)
        plain, both, held = (sums[part].finish(examples[part]) for part in sums)
        if both.positions <= 0:
            return plain, None, held
        both += plain  # in place: a fourth set of sums would take memory that was not reckoned with
        return plain, both, held

    def _passes(self) -> Iterator[tuple[str, int, Any]]:
        """What is run: the part it belongs to, a number of its own, and the batch."""
        for index, batch in enumerate(self.fit, self.fit.start):
            batch = to_device(batch, self.device)
            yield "fit", index, batch
            blends = mixed(self.original, batch, self.settings.mixup) if self.settings.mixup else None
            if blends is not None:
                yield "blends", ~index, blends
        if self.held is not self.fit:
            for index, batch in enumerate(self.held, self.held.start):
                yield "held", index, to_device(batch, self.device)

    def _calls(self, subject: Subject, batch: Any, place: int) -> list[tuple[Sight, Sight]]:
        """What each call of the layer sees in both networks, on the batch numbered ``place``."""
        name, calls = subject.layer.name, subject.layer.calls
        with self.prefixes[0].until(name, place, batch):
            before = sights(self.original, batch, name, calls)
        with self.prefixes[1].until(subject.path, place, batch):
            now = sights(self.model, batch, subject.path, calls)
        if len(before) != len(now):
            raise CalibrationError(
                f"Layer {name!r} is called {len(before)} times by the original network and {len(now)} times "
                "by the compressed one; the refit needs the same calls."
            )
        return list(zip(before, now, strict=True))

    def _place(self, subject: Subject) -> Callable[[Tensor], None] | None:
        """Stores an intercept: as the bias, or out of the mean of the BatchNorm that reads the layer."""
        bias = biased(subject.module)
        norm = self.norms.get(subject.layer.name)
        mean = None if norm is None else self.model.get_submodule(norm).running_mean
        if bias is not None:
            return lambda value: _copy(bias, value)
        if isinstance(mean, Tensor):
            return lambda value: _copy(mean, mean.double() - value.to(mean.device))
        return None


def _copy(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(value.reshape(tensor.shape))


@register_recovery("closed-form")
def _closed_form(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Layers) -> None:
    """Sequential anchored regression of every layer, undone where held-out outputs are then further away."""
    fit, held = hold_out(batches)
    if not len(fit):
        raise CalibrationError("The closed-form refit was given no calibration batches; it needs one.")
    unless_harmful_(model, original, held, lambda: refit_(model, original, fit.batches, layers))
