"""Means and variances per channel, of batches and of all batches together, in float64."""

from dataclasses import dataclass

import torch

from rankwise.errors import CalibrationError


@dataclass(frozen=True)
class Moments:
    """``count`` values per channel, their mean and their variance (divided by ``count``)."""

    count: int
    mean: torch.Tensor  # (channels,) float64
    var: torch.Tensor  # (channels,) float64

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of values together (Chan, Golub and LeVeque 1979, equation 2.1)."""
        count = self.count + other.count
        share = other.count / count
        step = other.mean - self.mean
        mean = self.mean + share * step
        var = (1 - share) * self.var + share * other.var + share * (1 - share) * step.square()
        return Moments(count, mean, var)


def channel_moments(values: torch.Tensor, dim: int, where: str) -> Moments:
    """Moments over all dimensions of ``values`` but ``dim``, the channels'.

    Raises:
        CalibrationError: a value is NaN or infinite, or there is none; the message names ``where``.
    """
    others = [d for d in range(values.ndim) if d != dim % values.ndim]
    count = values.numel() // max(1, values.shape[dim])
    if count == 0:
        raise CalibrationError(f"An empty batch reached {where}: its shape is {tuple(values.shape)}.")
    wide = values.detach().double()
    mean = wide.mean(others, keepdim=True)
    var = (wide - mean).square_().mean(others)
    mean = mean.flatten()
    if not (torch.isfinite(mean).all() and torch.isfinite(var).all()):
        raise CalibrationError(f"NaN or infinite values reached {where} on the calibration data.")
    return Moments(count, mean, var)


def merged(parts: list[Moments]) -> Moments:
    """The moments of all ``parts`` together; ``parts`` is not empty."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
