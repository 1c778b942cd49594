"""What a network costs: parameters, multiply-accumulates (MACs) and bytes, per layer and in whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rankwise.errors import CalibrationError
from rankwise.network.batches import batch_size, forward
from rankwise.network.state import preserved, unfused


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters (numbers), MACs of one example, and bytes of the stored state.

    ``latency`` is nanoseconds of one batch on the target of a latency budget; 0 where nobody asked.
    One MAC is two FLOPs; ``torch.utils.flop_counter`` counts FLOPs, rankwise counts MACs.
    """

    params: int = 0
    macs: int = 0
    bytes: int = 0
    latency: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.params + other.params,
            self.macs + other.macs,
            self.bytes + other.bytes,
            self.latency + other.latency,
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return self + Cost(-other.params, -other.macs, -other.bytes, -other.latency)

    def as_dict(self) -> dict[str, int]:
        """Parameters, MACs and bytes by name: what depends on no machine."""
        return {"params": self.params, "macs": self.macs, "bytes": self.bytes}


def _stored_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    for tensor in model.state_dict(keep_vars=True).values():
        if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def count_params(model: nn.Module) -> int:
    """All parameters of ``model``, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """Bytes of the tensors in ``model.state_dict()``, shared ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _stored_tensors(model))


def count_macs(model: nn.Module, example: Any) -> int:
    """MACs of one example, by ``torch.utils.flop_counter`` over one forward pass of ``example``.

    ``example`` is a batch in any form that :func:`rankwise.network.batches.forward` takes; the
    count is divided by its batch size.

    Raises:
        CalibrationError: the batch holds no example.
    """
    size = batch_size(example)
    if size == 0:
        raise CalibrationError("An example batch without an example was given; at least one is needed.")
    counter = FlopCounterMode(display=False)
    by_products = sdpa_kernel(SDPBackend.MATH)  # not every torch counts its fused attention kernels
    with preserved(model), unfused(), by_products, torch.no_grad(), counter:
        model.eval()
        forward(model, example)
    return int(counter.get_total_flops()) // (2 * size)


def model_cost(model: nn.Module, example: Any) -> Cost:
    """The :class:`Cost` of the whole model, for one example of the batch ``example``."""
    return Cost(count_params(model), count_macs(model, example), count_bytes(model))
