"""Second moments of the channels that layers read, for choosing channels and refitting their readers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.batches import device_of, forward, to_device
from rankwise.network.layer import Layer
from rankwise.network.replay import Replay
from rankwise.network.state import preserved, unfused
from rankwise.statistics.patches import as_examples, patches

Tensor = torch.Tensor


@dataclass(frozen=True)
class Intake:
    """How one layer reads channels: ``slots`` neighbouring inputs belong to one channel.

    ``slots`` is 1 but for a linear layer after a flatten, where it is the number of positions.
    """

    layer: Layer
    slots: int = 1

    @property
    def channels(self) -> int:
        """Number of channels that are read."""
        return self.layer.geometry.in_channels // self.slots

    def rows(self, x: Tensor) -> Tensor:
        """An input as float64 rows ``(positions, channels)``: one per position and slot.

        The input may have another number of channels than the layer (that of a reference network).
        """
        x = as_examples(self.layer.geometry, x)
        if self.layer.geometry.kind == "linear":
            x = x.reshape(len(x), -1, self.slots).transpose(1, 2)  # (N, slots, channels)
        else:
            x = x.movedim(1, -1)
        return x.reshape(-1, x.shape[-1]).double()

    def weight(self) -> Tensor:
        """The layer's weight as float64 ``(out, channels, kernel elements or slots)``."""
        if self.layer.geometry.kind == "linear":
            kernel = self.layer.kernel()
            return kernel.reshape(len(kernel), -1, self.slots)
        return self.layer.kernel().flatten(2)


@dataclass
class ChannelMoments:
    """Float64 sums over rows of what one layer reads: n channels now, m in the reference network."""

    rows: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(0))  # (n,)
    square: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # (n, n)
    target: Tensor | None = None  # (m,)
    cross: Tensor | None = None  # (n, m)
    sensitivity: Tensor | None = None  # (n,) largest share of a channel in any output entry

    @property
    def mean(self) -> Tensor:
        """E[z], (n,)."""
        return self.total / self.rows

    @property
    def moment(self) -> Tensor:
        """E[z z^T], (n, n)."""
        return self.square / self.rows

    def add(self, z: Tensor, reference: Tensor | None = None) -> None:
        """Add rows ``z`` (rows, n), and those of the reference network (rows, m) for the same positions."""
        if self.rows == 0:
            n = z.shape[1]
            self.total, self.square = z.new_zeros(n), z.new_zeros(n, n)
            if reference is not None:
                m = reference.shape[1]
                self.target, self.cross = z.new_zeros(m), z.new_zeros(n, m)
        self.rows += len(z)
        self.total += z.sum(0)
        self.square.addmm_(z.mT, z)
        if reference is not None:
            assert self.target is not None and self.cross is not None
            self.target += reference.sum(0)
            self.cross.addmm_(z.mT, reference)


def collect_channels(
    model: nn.Module,
    intakes: Mapping[str, Intake],
    batches: Iterable[Any],
    *,
    reference: nn.Module | None = None,
    sensitivity: bool = False,
    by_patch: bool = False,
    replays: Sequence[Replay] = (),
) -> dict[str, ChannelMoments]:
    """Moments of what the layers named in ``intakes`` read while ``model`` runs over ``batches``.

    With ``reference``, a network with layers of the same names, it runs beside ``model`` and the cross
    moments with what its layers read are summed up too. With ``sensitivity`` also the channels'
    largest shares in any output entry, as provable filter pruning needs them. With ``by_patch`` the
    rows are the layers' input patches instead of channels, and those of the reference network are its
    layers' outputs there. ``replays``, one per network, keep outputs of earlier passes over the same
    batches. The models run in evaluation mode and are left as they were found.

    Raises:
        CalibrationError: no batch, or NaN or infinite activations (names layer and batch).
    """
    found = {name: ChannelMoments() for name in intakes}
    device = device_of(model)
    models = [model] if reference is None else [model, reference]
    count = 0
    with torch.no_grad(), _inputs_of(models, intakes) as inputs:
        for count, batch in enumerate(batches, start=1):
            batch = to_device(batch, device)
            for network, replay in zip_longest(models, replays):
                kept = nullcontext() if replay is None else replay.batch(network, count, batch)
                with suppress(_AllSeen), kept:
                    forward(network, batch)
            for name, moments in found.items():
                for call, x in enumerate(inputs[0][name]):
                    z = _patch_rows(intakes[name], x) if by_patch else intakes[name].rows(x)
                    there = None
                    if reference is not None:
                        seen_there = inputs[1][name][call]
                        there = (
                            _outputs(reference.get_submodule(name), intakes[name], seen_there)
                            if by_patch
                            else intakes[name].rows(seen_there)
                        )
                    moments.add(z, there)
                    if not torch.isfinite(moments.total).all():
                        raise CalibrationError(
                            f"The input of layer {name!r} holds NaN or infinite values in calibration batch "
                            f"{count - 1}; finite activations are needed."
                        )
                    if sensitivity:
                        shares = _shares(intakes[name], x)
                        old = moments.sensitivity
                        moments.sensitivity = shares if old is None else torch.maximum(old, shares)
            for seen in inputs:
                for calls in seen.values():
                    calls.clear()
    unread = [name for name, moments in found.items() if not moments.rows]
    if not count or unread:
        raise CalibrationError(
            f"The statistics are empty after {count} calibration batches ({unread[:3]} ...)."
        )
    for moments in found.values():
        for key in ("total", "square", "target", "cross", "sensitivity"):
            value = getattr(moments, key)
            setattr(moments, key, None if value is None else value.cpu())
    return found


class _AllSeen(Exception):
    """Every input that was asked for has been seen."""


@contextmanager
def _inputs_of(
    models: list[nn.Module], intakes: Mapping[str, Intake]
) -> Iterator[list[dict[str, list[Tensor]]]]:
    """Per model and layer the inputs of every call, while the context is open."""
    inputs: list[dict[str, list[Tensor]]] = [{name: [] for name in intakes} for _ in models]
    handles = []
    calls_in_all = sum(intake.layer.calls for intake in intakes.values())
    known = all(intake.layer.calls for intake in intakes.values())

    def listen(module: nn.Module, calls: list[Tensor], seen: dict[str, list[Tensor]]) -> None:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            calls.append(next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)))
            if known and sum(map(len, seen.values())) == calls_in_all:
                raise _AllSeen

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    with preserved(models[0]), preserved(models[-1]), unfused():
        try:
            for model, seen in zip(models, inputs, strict=True):
                model.eval()
                for name, calls in seen.items():
                    listen(model.get_submodule(name), calls, seen)
            yield inputs
        finally:
            for handle in handles:
                handle.remove()


def _patch_rows(intake: Intake, x: Tensor) -> Tensor:
    """The input patches of a layer with one group as float64 rows, one per output position."""
    rows = patches(intake.layer, x)  # (N, positions, 1, columns)
    return rows.reshape(-1, rows.shape[-1]).double()


def _outputs(module: nn.Module, intake: Intake, x: Tensor) -> Tensor:
    """What ``module`` makes of ``x``, as float64 rows in the order of the patches; no hook is called."""
    y: Tensor = type(module).forward(module, x)
    if intake.layer.geometry.kind != "linear":
        y = as_examples(intake.layer.geometry, y).movedim(1, -1)
    return y.reshape(-1, y.shape[-1]).double()


def _shares(intake: Intake, x: Tensor, rows: int = 32) -> Tensor:
    """Largest share (channels,) of any input of a channel in the positive or negative part of an output.

    Source: Liebenwein et al., "Provable filter pruning for efficient neural networks", ICLR 2020,
    definition 1; the largest over at most ``rows`` evenly spaced positions of ``x``.
    """
    u = _patch_rows(intake, x)  # (positions, columns)
    u = u[:: max(1, len(u) // rows)][:rows]
    weight = intake.layer.kernel().flatten(1).to(u.device)  # (out, columns)
    largest = u.new_zeros(u.shape[1])
    for row in u:
        parts = weight * row
        for part in (parts.clamp_min(0.0), (-parts).clamp_min(0.0)):
            whole = part.sum(1, keepdim=True)
            share = torch.where(whole > 0, part / whole.clamp_min(torch.finfo(part.dtype).tiny), 0.0)
            largest = torch.maximum(largest, share.amax(0))
    return largest.reshape(intake.channels, -1).amax(1)
