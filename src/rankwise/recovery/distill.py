"""Distillation without labels: a compressed network learns to answer as the original does."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import cos, inf, isfinite, pi
from statistics import median
from typing import Any

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.batches import (
    batch_size,
    detached,
    device_of,
    forward,
    mapped,
    output_tensor,
    to_device,
)
from rankwise.network.state import preserved, unfused
from rankwise.progress import Progress, silent
from rankwise.recovery.divergence import examples_in
from rankwise.recovery.holdout import Divisible, settled
from rankwise.recovery.imitation import (
    Criterion,
    common_blocks,
    criterion_for,
    output_loss,
    relative_error,
    watched,
)
from rankwise.recovery.registry import Layers, register_recovery, untouched_of

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Settings of :func:`distill_`.

    Args:
        steps: optimizer steps, one batch each.
        temperature: of the softmaxes that are compared.
        blocks: weight of the relative squared error at the outputs of inner blocks, on average over them,
            beside the divergence at the network's output; 0 compares outputs only.
        criterion: "kl" or "mse" at the output; by default "kl" where the output reads as logits.
        rates: learning rates of Adam that are tried, each for ``trial`` steps from the start; the one
            with the lowest loss on the held-out examples is used.
        trial: see ``rates``.
        held_out: share of the examples that are never trained on.
        every: steps between two looks at the held-out examples.
        patience: looks in succession that are worse than the start after which it stops. (While the rate
            is high the loss is noisy; the cosine schedule brings the gain at the end.)
        clip: largest norm of the gradient of all parameters.
        seconds: a limit: the steps are cut to what fits, as measured while rates were tried. None sets
            no limit; within it, or without it, the result does not depend on time.
    """

    steps: int = 240
    temperature: float = 2.0
    blocks: float = 1.0
    criterion: Criterion | None = None
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    trial: int = 12
    held_out: float = 0.2
    every: int = 20
    patience: int = 4
    clip: float = 1.0
    seconds: float | None = 480.0


@dataclass(eq=False)
class Distilled:
    """What :func:`distill_` did: losses on the held-out examples (KL in nats, or relative error).

    ``after`` is never above ``before``. ``tried`` holds the loss after the trial of each rate.
    """

    before: float
    after: float
    steps: int
    rate: float | None
    tried: dict[float, float] = field(default_factory=dict)
    criterion: Criterion = "kl"


def distill_(
    model: nn.Module,
    original: nn.Module,
    batches: Iterable[Any],
    settings: Distillation | None = None,
    *,
    layers: Layers = (),
    progress: Progress = silent,
    **changes: Any,
) -> Distilled:
    """Train ``model`` in place to give the outputs of ``original``, without labels.

    Both networks run in evaluation mode: BatchNorm keeps its running statistics, dropout is off. All
    parameters of ``model`` that require gradients are trained, by Adam under a cosine schedule. The
    weights with the lowest loss on held-out examples stay; where nothing is better than the start, the
    start stays.

    Args:
        model: the compressed network, changed in place.
        original: the network to imitate; it is left as it was.
        batches: inputs, labels are not read. :class:`rankwise.data.Batches` are divided by example and
            augmented anew in each pass where they augment. Of other batches the last ones are held out;
            where two passes differ (a loader that shuffles), those of one pass are used.
        settings: see :class:`Distillation`; ``changes`` replace single ones.
        layers: a :class:`rankwise.recovery.Changed` names layers that are not trained.
        progress: called after every look at the held-out examples.

    Raises:
        CalibrationError: no batches, or outputs that are not finite or differ in shape.
    """
    settings = replace(settings or Distillation(), **changes)
    with torch.inference_mode(False), preserved(original), preserved(model), unfused(), torch.enable_grad():
        train, held = _divided(batches, settings.held_out)
        original.eval().requires_grad_(False)
        model.eval()
        for name in untouched_of(layers):
            model.get_submodule(name).requires_grad_(False)
        return _Run(model, original, train, held, settings, progress).run()


def _divided(batches: Iterable[Any], share: float) -> tuple[Iterable[Any], list[Any]]:
    """Batches to train on, which can be iterated over again and again, and held-out ones."""
    if isinstance(batches, Divisible):
        train, held = batches.divide(share)
        return train, list(held)
    kept = list(settled(batches))
    if not kept:
        raise CalibrationError("Distillation was given no batches.")
    if len(kept) > 1:
        count = min(max(1, round(share * len(kept))), len(kept) - 1)
        return kept[:-count], kept[-count:]
    rows = batch_size(kept[0])
    cut = rows - max(1, round(share * rows))
    whole = rows < 2
    return [_rows(kept[0], slice(None if whole else cut))], [_rows(kept[0], slice(0 if whole else cut, None))]


def _rows(batch: Any, rows: slice) -> Any:
    """The examples ``rows`` of a batch; what has no dimension of examples is left whole."""
    count = batch_size(batch)
    return mapped(batch, lambda tensor: tensor[rows] if tensor.ndim and len(tensor) == count else tensor)


@dataclass(eq=False)
class _Run:
    """One distillation: both networks in evaluation mode, the original without gradients."""

    model: nn.Module
    original: nn.Module
    train: Iterable[Any]
    held: list[Any]
    settings: Distillation
    progress: Progress
    criterion: Criterion = "kl"

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.device = device_of(self.model)
        first = to_device(self.held[0], self.device)
        self.names = common_blocks(self.model, self.original, first) if self.settings.blocks > 0 else []
        self.expected = [self._teach(batch) for batch in self.held]
        with torch.no_grad():
            found = self._forward(self.model, first)
        if found.shape != self.expected[0].shape:
            raise CalibrationError(
                f"The model's output has shape {tuple(found.shape)}, the original's "
                f"{tuple(self.expected[0].shape)}; distillation needs the same."
            )
        self.criterion = self.settings.criterion or criterion_for(found)

    def run(self) -> Distilled:
        before = self.loss()
        if not isfinite(before):
            raise CalibrationError("Distillation was given networks with NaN or infinite outputs.")
        done = Distilled(before, before, 0, None, criterion=self.criterion)
        if not self.parameters or before == 0.0:
            return done
        start = self._state()
        begin = time.perf_counter()
        times: list[float] = []
        look = 0.0
        for rate in self.settings.rates:
            self._restore(start)
            times += _seconds(self._steps(self.settings.trial, rate, warm=self.settings.trial // 3))
            before_look = time.perf_counter()
            done.tried[rate] = self.loss()
            look = time.perf_counter() - before_look
        spent = time.perf_counter() - begin
        self._restore(start)
        done.rate = min(done.tried, key=lambda rate: done.tried[rate])
        if isfinite(done.tried[done.rate]):
            steps = self.settings.steps
            if self.settings.seconds is not None:
                left = self.settings.seconds - spent
                steps = min(steps, affordable(left, times, look / self.settings.every))
            self._main(done, start, steps)
        return done

    def _main(self, done: Distilled, best: list[Tensor], steps: int) -> None:
        assert done.rate is not None
        worse = 0
        for step in self._steps(steps, done.rate, warm=steps // 20, decay=True):
            done.steps = step
            if step % self.settings.every and step != steps:
                continue
            loss = self.loss()
            self.progress("distill", step, steps)
            worse = worse + 1 if loss > done.before else 0
            if loss < done.after:
                done.after, best = loss, self._state()
            if worse >= self.settings.patience or not isfinite(loss):
                break
        self._restore(best)

    def _steps(self, steps: int, rate: float, *, warm: int, decay: bool = False) -> Iterator[int]:
        """Take ``steps`` steps, yielding the number of each; stops before one whose loss is not finite."""
        optimizer = torch.optim.Adam(self.parameters, rate)
        names, settings = self.names, self.settings
        with watched(self.original, names) as expected, watched(self.model, names) as found:
            for step, batch in enumerate(_endless(self.train, steps), 1):
                factor = min(1.0, step / (warm + 1))
                if decay and step > warm:
                    factor = 0.5 * (1 + cos(pi * (step - 1 - warm) / max(1, steps - warm)))
                optimizer.param_groups[0]["lr"] = rate * factor
                batch = detached(to_device(batch, self.device))
                teacher = self._teach(batch)
                output = self._forward(self.model, batch)
                loss = output_loss(teacher, output, self.criterion, settings.temperature)
                if names:
                    errors = [relative_error(expected[name], found[name]) for name in names]
                    loss = loss + settings.blocks * torch.stack(errors).mean()
                if not isfinite(loss.item()):
                    return
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, settings.clip)
                optimizer.step()
                yield step
        optimizer.zero_grad()

    def _teach(self, batch: Any) -> Tensor:
        with torch.no_grad():
            return self._forward(self.original, batch)

    @staticmethod
    def _forward(network: nn.Module, batch: Any) -> Tensor:
        return output_tensor(forward(network, batch))

    @torch.no_grad()
    def loss(self) -> float:
        """The criterion at temperature 1 on the held-out examples; infinite where it is not finite."""
        total, rows = 0.0, 0
        for batch, expected in zip(self.held, self.expected, strict=True):
            found = self._forward(self.model, batch)
            count = examples_in(expected)
            total, rows = total + float(output_loss(expected, found, self.criterion)) * count, rows + count
        return total / rows if isfinite(total) else inf

    def _state(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def _restore(self, state: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, state, strict=True):
            parameter.copy_(value)


def _seconds(steps: Iterator[int]) -> list[float]:
    """Take all ``steps``, and say how long each took."""
    marks = [time.perf_counter(), *(time.perf_counter() for _ in steps)]
    return [end - begin for begin, end in pairwise(marks)]


def affordable(left: float, times: Sequence[float], look: float) -> int:
    """How many steps fit into ``left`` seconds, at least one.

    A step takes the median of ``times``, of which the first have woken a device, and its share ``look`` of
    a look at the held-out examples.
    """
    each = (median(times) if times else 0.0) + look
    return max(1, int(left / max(each, 1e-9)))


def _endless(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """``count`` batches, in as many passes as that takes."""
    given = 0
    while given < count:
        before = given
        for batch in batches:
            given += 1
            yield batch
            if given == count:
                return
        if given == before:
            raise CalibrationError("Distillation was given no batches to train on.")


@register_recovery("distill")
def _distill(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Layers) -> None:
    """Distillation with the default settings."""
    distill_(model, original, batches, layers=layers)
