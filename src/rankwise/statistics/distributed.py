"""Adding statistics up over the ranks of ``torch.distributed``."""

from typing import Any

import torch
from torch import distributed

from rankwise.errors import CalibrationError
from rankwise.statistics.record import SUMS, LayerStatistics


def is_distributed() -> bool:
    """Whether a process group of more than one rank is initialised."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return distributed.get_rank() if is_distributed() else 0


def _gathered(value: Any) -> list[Any]:
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _summed(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` added up over all ranks, on the CPU."""
    device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
    total = tensor.to(device, copy=True)
    distributed.all_reduce(total)
    return total.cpu()


def all_reduce(statistics: dict[str, LayerStatistics]) -> dict[str, LayerStatistics]:
    """The statistics of all ranks' examples together, the same on every rank.

    Sums are all-reduced; the few kept rows and samples are gathered. Without a process group the
    statistics come back as they are.

    Raises:
        CalibrationError: no rank saw an example, or the ranks hold different layers.
    """
    if not is_distributed():
        return statistics
    shapes = {
        name: {key: tuple(value.shape) for key, value in held.tensors().items()}
        for name, held in statistics.items()
    }
    everywhere = _gathered(shapes)
    if any(list(other) != list(shapes) for other in everywhere):
        raise CalibrationError(
            "The ranks collected statistics of different layers; all must ask for the same."
        )
    found = {}
    for name, held in statistics.items():
        known: dict[str, tuple[int, ...]] = {}
        for other in everywhere:
            known |= other[name]
        found[name] = _reduced(held, known)
    if found and all(held.examples <= 0 for held in found.values()):
        raise CalibrationError("The calibration loader is empty on every rank. At least one batch is needed.")
    return found


def _or_zeros(value: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64) if value is None else value


def _reduced(held: LayerStatistics, known: dict[str, tuple[int, ...]]) -> LayerStatistics:
    """One layer over all ranks; ``known`` has the shape of every field that any rank holds."""
    counts = _summed(torch.tensor([held.examples, held.positions], dtype=torch.float64)).tolist()
    loose = LayerStatistics(
        positions=1.0,
        input_rows=held.input_rows,
        sample_inputs=held.sample_inputs,
        sample_outputs=held.sample_outputs,
        sample_keys=held.sample_keys,
        sample_limit=held.sample_limit,
    )
    total = LayerStatistics()
    if "input_rows" in known or "sample_keys" in known:
        for other in _gathered(loose):
            total = total + other
    if "input_square" in known:
        square = _summed(_or_zeros(held.input_square, known["input_square"]))
        total = total + LayerStatistics(positions=1.0, input_square=square)
    for name in SUMS:
        if name in known:
            own = getattr(held, name)
            setattr(
                total, name, _summed(torch.zeros(known[name], dtype=torch.float64) if own is None else own)
            )
    total.examples, total.positions = counts
    return total
