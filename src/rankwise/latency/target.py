"""Where time is counted: the device, batch, threads, data type and runtime of a latency budget."""

import importlib.util
import platform
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from rankwise.errors import BudgetError
from rankwise.network.batches import batch_size, mapped, to_device
from rankwise.network.device import device_named
from rankwise.network.state import duplicate

Runtime = Literal["torch", "onnxruntime"]
DTYPES = {
    name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")
}  # what a model may be cast to before it is timed


@dataclass(frozen=True)
class Target:
    """What a network is timed on: ``batch_size`` examples at once on ``threads`` threads of ``device``.

    ``dtype`` None times the model in its own data type. ``runtime`` "onnxruntime" runs the exported
    model in an ``InferenceSession`` on the CPU.

    Raises:
        BudgetError: a value that is not understood, a device that is not there, a missing package.
    """

    device: str = "cpu"
    batch_size: int = 1
    threads: int = 1
    runtime: Runtime = "torch"
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BudgetError(f"{name}={value!r} was given; allowed is a whole number of at least 1.")
        if self.runtime not in get_args(Runtime):
            raise BudgetError(f"runtime={self.runtime!r} was given; allowed: {', '.join(get_args(Runtime))}.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise BudgetError(f"dtype={self.dtype!r} was given; allowed: {', '.join(DTYPES)}.")
        self._check_device()

    def _check_device(self) -> None:
        kind = device_named(self.device, BudgetError).type
        if self.runtime == "onnxruntime":
            if kind != "cpu":
                raise BudgetError("runtime='onnxruntime' was given with a CUDA device; allowed is the CPU.")
            if importlib.util.find_spec("onnxruntime") is None:
                raise BudgetError("runtime='onnxruntime' needs pip install rankwise[export].")

    def as_dict(self) -> dict[str, Any]:
        """Everything by name; ``dtype`` only where it is set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def on_torch(self) -> "Target":
        """The same target with torch as its runtime, which single layers are timed by."""
        return replace(self, runtime="torch")

    def typed(self, model: nn.Module) -> "Target":
        """The same target with the data type that ``model`` is timed in, by name."""
        own = next((p.dtype for p in model.parameters() if p.dtype in DTYPES.values()), torch.float32)
        name = next(name for name, dtype in DTYPES.items() if dtype == own)
        return replace(self, dtype=self.dtype or name)

    def ready(self, model: nn.Module) -> nn.Module:
        """A copy of ``model`` in evaluation mode, on the device, in the data type."""
        copied = duplicate(model).eval()
        return copied.to(self.device, DTYPES[self.dtype]) if self.dtype else copied.to(self.device)

    def batch(self, example: Any) -> Any:
        """The batch to time with: the examples of ``example``, repeated or cut to ``batch_size``."""
        size = batch_size(example)

        def fit(value: torch.Tensor) -> torch.Tensor:
            if value.ndim == 0 or value.shape[0] != size:
                return value
            many = value.repeat(ceil(self.batch_size / size), *[1] * (value.ndim - 1))
            chosen = many[: self.batch_size].contiguous()
            return chosen.to(DTYPES[self.dtype]) if self.dtype and chosen.is_floating_point() else chosen

        return to_device(mapped(example, fit), torch.device(self.device))

    def machine(self) -> dict[str, str]:
        """What times depend on beside the network: processor or GPU, and versions."""
        found = {
            "processor": _processor(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        }
        if torch.device(self.device).type == "cuda":
            found["gpu"] = torch.cuda.get_device_name(self.device)
        return found


def _processor() -> str:
    """The processor's name as Linux gives it, or as Python knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(named)} x {named[0]}" if named else f"{platform.machine()} {platform.processor()}"
