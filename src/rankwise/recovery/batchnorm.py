"""New running statistics for BatchNorm layers, without labels."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rankwise.errors import CalibrationError
from rankwise.network.batches import forward
from rankwise.network.state import preserved
from rankwise.recovery.holdout import hold_out, unless_harmful_
from rankwise.recovery.moments import Moments, channel_moments, merged
from rankwise.recovery.registry import Layers, register_recovery

RATIO = 1e4  # the variance changes at most by this factor, so that dead channels stay harmless


def _batchnorms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that keep running statistics, by name."""
    named = model.named_modules()
    return {n: m for n, m in named if isinstance(m, _BatchNorm) and m.running_mean is not None}


def _table(norm: _BatchNorm) -> torch.Tensor:
    """``(channels, 4)``: everything the layer holds per channel."""
    ones = torch.ones(norm.num_features, device=_mean(norm).device)
    weight = ones if norm.weight is None else norm.weight.detach()
    bias = 0 * ones if norm.bias is None else norm.bias.detach()
    return torch.stack([weight, bias, _mean(norm), _var(norm)], 1)


def _mean(norm: _BatchNorm) -> torch.Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


def _var(norm: _BatchNorm) -> torch.Tensor:
    assert norm.running_var is not None
    return norm.running_var


def _kept_channels(norm: _BatchNorm, original: _BatchNorm) -> torch.Tensor | None:
    """Which of the original's channels ``norm`` still has, or None when that cannot be told.

    Channel selection copies what a channel holds, so a kept channel is recognised by its four numbers.
    """
    if norm.num_features == original.num_features:
        return torch.arange(norm.num_features)
    same = (_table(norm)[:, None] == _table(original)[None].to(_mean(norm).device)).all(2)
    return same.int().argmax(1) if bool((same.sum(1) == 1).all()) else None


class _Target:
    """What one layer's running statistics should become, given moments of its input.

    Without an anchor, those moments. With one, the statistics with which the layer's output has the
    mean and variance that the original layer's output has on the same examples.
    """

    def __init__(self, norm: _BatchNorm, original: _BatchNorm | None) -> None:
        kept = None if original is None else _kept_channels(norm, original)
        self.anchor = original if kept is not None else None
        self.kept = kept
        if original is not None and kept is not None:
            self.mean, self.var = _mean(original)[kept].double(), _var(original)[kept].double() + original.eps
            self.eps = norm.eps

    def statistics(
        self, own: Moments, anchor: Moments | None, unbiased: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Running mean and running variance, float64 ``(channels,)``."""
        if anchor is None or self.kept is None:
            return own.mean, own.var * (own.count / max(1, own.count - 1) if unbiased else 1.0)
        was, spread = anchor.mean[self.kept], anchor.var[self.kept]
        floor = 1e-12 * self.var
        ratio = ((own.var + floor) / (spread + floor)).clamp(1 / RATIO, RATIO)
        var = (self.var * ratio - self.eps).clamp_min(0.0)
        return own.mean - (was - self.mean) * ratio.sqrt(), var


class _Recorder:
    """Moments of the input of every BatchNorm layer, one entry per call, for one batch."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Moments]] = {}

    def record(self, name: str, values: torch.Tensor) -> Moments:
        moments = channel_moments(values, 1, f"BatchNorm layer {name!r}")
        self.calls.setdefault(name, []).append(moments)
        return moments


@contextmanager
def _watching(norms: dict[str, _BatchNorm], react: Any) -> Iterator[None]:
    """Call ``react(name, input)`` before every call of a BatchNorm layer."""
    with ExitStack() as stack:
        for name, norm in norms.items():

            def hook(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                react(name, args[0])

            stack.callback(norm.register_forward_pre_hook(hook).remove)
        yield


def _store(norm: _BatchNorm, mean: torch.Tensor, var: torch.Tensor) -> None:
    _mean(norm).copy_(mean)
    _var(norm).copy_(var)


def _collect(
    model: nn.Module, batches: Iterable[Any], original: nn.Module | None, targets: dict[str, _Target]
) -> tuple[dict[str, list[Moments]], dict[str, list[Moments]]]:
    """Moments of all batches in ``model`` and in ``original``.

    While a batch runs, each layer of ``model`` normalises by statistics made from this batch, so
    that the layers after it see what they will see once the new statistics are in place.
    """
    norms = _batchnorms(model)
    anchors = {} if original is None else {n: m for n, m in _batchnorms(original).items() if n in targets}
    own: dict[str, list[Moments]] = {}
    expected: dict[str, list[Moments]] = {}
    for batch in batches:
        before, after = _Recorder(), _Recorder()
        if original is not None:
            with _watching(anchors, before.record):
                forward(original, batch)

        def react(
            name: str, values: torch.Tensor, after: _Recorder = after, before: _Recorder = before
        ) -> None:
            moments = after.record(name, values)
            position = len(after.calls[name]) - 1
            calls = before.calls.get(name, [])
            anchor = calls[position] if position < len(calls) else None
            _store(norms[name], *targets[name].statistics(moments, anchor, unbiased=False))

        with _watching(norms, react):
            forward(model, batch)
        for total, part in ((own, after.calls), (expected, before.calls)):
            for name, calls in part.items():
                total.setdefault(name, []).extend(calls)
    return own, expected


def recalibrate_batchnorm_(
    model: nn.Module, batches: Iterable[Any], *, original: nn.Module | None = None
) -> list[str]:
    """Give every BatchNorm layer that runs new running statistics, measured on ``batches``.

    One pass, in evaluation mode; mean and variance are those of all values of all batches together
    (not a moving average), so the sizes of the batches do not weigh. Layers that are not reached,
    or that keep no running statistics, stay as they are; so do momentum and the training flags.

    Args:
        model: changed in place.
        batches: inputs; labels are not read.
        original: the model before compression. With it, the new statistics give every channel of a
            layer's output the mean and variance that it has in ``original`` on the same batches. The
            statistics that training left there then stay valid where they differ from those of
            clean images (networks trained on padded crops); an unchanged model stays unchanged. A
            layer that cannot be matched to one of ``original`` gets the plain statistics.

    Returns:
        The names of the layers with new statistics.

    Raises:
        CalibrationError: no batches, or NaN or infinite values (names the layer); ``model`` is then
            as it was.
    """
    anchors = {} if original is None else _batchnorms(original)
    norms = _batchnorms(model)
    targets = {name: _Target(norm, anchors.get(name)) for name, norm in norms.items()}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for network in (model, original):
            if network is not None:
                stack.enter_context(preserved(network)).eval()
        batches = list(batches) if iter(batches) is batches else batches
        own, expected = _collect(model, batches, original, targets)
    if norms and not own:
        raise CalibrationError("BatchNorm recalibration was given no batches, or no BatchNorm layer runs.")
    with torch.no_grad():
        for name, calls in own.items():
            anchor = merged(expected[name]) if name in expected else None
            _store(norms[name], *targets[name].statistics(merged(calls), anchor, unbiased=True))
    return list(own)


@register_recovery("batchnorm")
def _anchored(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Layers) -> None:
    """BatchNorm recalibration that keeps what training left in the original's statistics, where it helps."""
    fit, held = hold_out(batches)
    unless_harmful_(model, original, held, lambda: recalibrate_batchnorm_(model, fit, original=original))


@register_recovery("batchnorm-plain")
def _plain(model: nn.Module, original: nn.Module, batches: Iterable[Any], layers: Layers) -> None:
    """BatchNorm recalibration to the statistics of the calibration examples as they are, where it helps."""
    fit, held = hold_out(batches)
    unless_harmful_(model, original, held, lambda: recalibrate_batchnorm_(model, fit))
