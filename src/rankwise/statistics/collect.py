"""One streaming pass over calibration batches that collects what the methods ask for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.batches import (
    batch_size,
    detached,
    device_of,
    forward,
    length_of,
    split_batch,
    to_device,
)
from rankwise.network.layer import Layer
from rankwise.network.state import preserved, unfused
from rankwise.statistics.accumulate import Accumulator
from rankwise.statistics.curvature import Curvature, add_curvature_
from rankwise.statistics.distributed import all_reduce, is_distributed, rank
from rankwise.statistics.gradient import Loss, loss_function
from rankwise.statistics.hooks import hooked
from rankwise.statistics.record import LayerStatistics, Statistic
from rankwise.statistics.waves import in_waves

Tensor = torch.Tensor
Weights = Callable[[Any], Tensor]
Requires = Mapping[str, frozenset[Statistic]]


def collect(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Iterable[Any],
    requires: Requires,
    *,
    reference: nn.Module | None = None,
    loss: Loss | None = None,
    curvature: Curvature | None = None,
    weights: Weights | None = None,
    max_memory: int | None = None,
    samples: int = 1024,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, LayerStatistics]:
    """Statistics of ``layers`` while ``model`` runs over ``batches``, each batch once per wave.

    The model runs in evaluation mode and is left as it was found. Under ``torch.distributed`` every
    rank passes its own share of the batches and gets the statistics of all.

    Args:
        model: the network whose layers' inputs and outputs are seen.
        layers: as found by ``find_layers``; those that ``requires`` does not name are skipped.
        batches: in any form that :func:`rankwise.network.batches.forward` takes; moved to the
            model's device. Consumed lazily.
        requires: per layer name any of "input", "output", "gradient", "samples", "target" and
            "curvature".
        reference: the network whose outputs are the "target", by the same layer names.
        loss: for "gradient": None draws labels from the model's own predictions (the Fisher
            information), "targets" takes the batches' targets with cross-entropy, and a function
            ``loss(output, target)`` gives one number, the mean over the batch, or one per example.
        curvature: how "curvature" is estimated; it takes passes of its own over ``batches``.
        weights: a function from a batch to a non-negative weight per example; None weighs all alike.
        max_memory: bytes that the sums may take at once; more are collected in several waves over
            ``batches``, which must then be iterable several times.
        samples: rows kept per layer for "samples".
        seed: of the samples and of the labels drawn.
        progress: called as ``progress("calibrate", batches done, batches in all or 0)``.

    Raises:
        CalibrationError: no batch; NaN or infinite activations, with layer and batch; a one-shot
            iterator where several waves are needed; one layer alone above ``max_memory``.
    """
    wanted = [layer for layer in layers if requires.get(layer.name)]
    if not wanted:
        return {}
    target = [layer.name for layer in wanted if "target" in requires[layer.name]]
    if target and reference is None:
        raise CalibrationError(f"The statistic 'target' of layer {target[0]!r} needs reference=, a network.")
    run = _Run(model, reference, loss, weights, samples, seed)
    found: dict[str, LayerStatistics] = {}
    with torch.inference_mode(False), preserved(model), unfused():
        model.eval()
        model.requires_grad_(False)
        stream, examples = _sized(batches)
        waves = _waves(wanted, requires, max_memory, samples, examples)
        if len(waves) > 1 and iter(batches) is batches:
            raise CalibrationError(
                f"max_memory={max_memory} needs {len(waves)} passes over the batches, but an iterator that "
                "can be read once was given; pass a list or a DataLoader, or allow more memory."
            )
        for index, wave in enumerate(waves):
            tell = _teller(progress, index, len(waves), length_of(batches))
            found |= run.wave(wave, requires, stream if index == 0 else batches, tell)
    curved = [layer for layer in wanted if "curvature" in requires[layer.name]]
    if curved:
        add_curvature_(found, model, curved, batches, curvature or Curvature(seed=seed + 7919 * rank()))
    return all_reduce(found)


@contextmanager
def naming_batch(index: int) -> Iterator[None]:
    """A CalibrationError raised inside says which of the calibration batches it is about."""
    try:
        yield
    except CalibrationError as error:
        raise CalibrationError(f"In calibration batch {index}: {str(error).rstrip('.')}.") from error


def _sized(batches: Iterable[Any]) -> tuple[Iterable[Any], int | None]:
    """``batches`` again, not read further than its first, and how many examples it holds, if it tells."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return (), 0
    length = length_of(batches)
    return chain([first], iterator), None if length is None else length * batch_size(first)


def _waves(
    layers: Sequence[Layer], requires: Requires, limit: int | None, samples: int, examples: int | None
) -> list[list[Layer]]:
    """Layers in groups whose sums fit into ``limit`` bytes, in order."""
    needed = {}
    for layer in layers:
        rows = None if examples is None else examples * layer.positions
        needed[layer.name] = Accumulator.bytes_needed(layer, requires[layer.name], samples, rows)
    by_name = {layer.name: layer for layer in layers}
    return [[by_name[name] for name in wave] for wave in in_waves(needed, limit)]


def _teller(
    progress: Callable[[str, int, int], None] | None, wave: int, waves: int, length: int | None
) -> Callable[[int], None]:
    known = length or 0

    def tell(done: int) -> None:
        if progress is not None:
            progress("calibrate", wave * known + done, waves * known)

    return tell


@dataclass(frozen=True)
class _Run:
    """What stays the same over all waves."""

    model: nn.Module
    reference: nn.Module | None
    loss: Loss | None
    weights: Weights | None
    samples: int
    seed: int

    def wave(
        self,
        layers: Sequence[Layer],
        requires: Requires,
        batches: Iterable[Any],
        tell: Callable[[int], None],
    ) -> dict[str, LayerStatistics]:
        """One pass over ``batches`` for ``layers``."""
        seed = self.seed + 7919 * rank()
        sums = {
            layer.name: Accumulator(
                layer, self.model.get_submodule(layer.name), requires[layer.name], self.samples, seed
            )
            for layer in layers
        }
        loss = loss_function(self.loss, seed)
        examples, count = 0.0, 0
        device = device_of(self.model)
        for count, batch in enumerate(batches, 1):
            batch = detached(to_device(batch, device))
            weights = self._weights(batch, count - 1)
            examples += batch_size(batch) if weights is None else float(weights.sum())
            with naming_batch(count - 1):
                self._batch(sums, batch, weights, loss)
            tell(count)
        if count == 0 and not is_distributed():
            raise CalibrationError("The calibration loader is empty: it gave no batch; it must give one.")
        return {name: accumulator.finish(examples) for name, accumulator in sums.items()}

    def _weights(self, batch: Any, index: int) -> Tensor | None:
        if self.weights is None:
            return None
        weights = torch.as_tensor(self.weights(batch), dtype=torch.float64).flatten()
        if len(weights) != batch_size(batch) or not torch.isfinite(weights).all() or (weights < 0).any():
            raise CalibrationError(
                f"In calibration batch {index}: {len(weights)} weights were given for {batch_size(batch)} "
                "examples; allowed is one finite, non-negative number per example."
            )
        return weights

    def _batch(self, sums: Mapping[str, Accumulator], batch: Any, weights: Tensor | None, loss: Any) -> None:
        targets = self._targets(sums, batch)
        gradients = {name for name, accumulator in sums.items() if "gradient" in accumulator.wanted}

        def seen(name: str, x: Tensor, y: Tensor) -> Tensor | None:
            with torch.no_grad():
                wanted = targets.get(name)
                sums[name].update(x, y, weights, wanted.pop(0) if wanted else None)
            if name not in gradients:
                return None
            leaf = y if y.requires_grad else y.detach().requires_grad_()
            leaf.register_hook(lambda gradient: sums[name].add_gradient(gradient, weights))
            return leaf.clone()  # so that an in-place activation does not change what the hook sees

        with torch.set_grad_enabled(bool(gradients)), hooked(self.model, sums, seen):
            output = forward(self.model, batch)
            if gradients:
                total = loss(output, split_batch(self.model, batch)[2], batch_size(batch))
                if total.requires_grad:
                    total.backward()

    def _targets(self, sums: Mapping[str, Accumulator], batch: Any) -> dict[str, list[Tensor]]:
        """The reference's outputs on ``batch``, per layer, in the order of its calls."""
        names = [name for name, accumulator in sums.items() if "target" in accumulator.wanted]
        outputs: dict[str, list[Tensor]] = {name: [] for name in names}
        if not names or self.reference is None:
            return outputs
        with preserved(self.reference), torch.no_grad():
            self.reference.eval()
            with hooked(self.reference, names, lambda name, x, y: outputs[name].append(y.clone())):
                forward(self.reference, batch)
        return outputs
