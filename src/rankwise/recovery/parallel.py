"""One process or many: the same training through Lightning Fabric, each rank on its own examples."""

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader

from rankwise.errors import TrainingError
from rankwise.network.batches import length_of
from rankwise.recovery.checkpoint import State

Tensor = torch.Tensor


@runtime_checkable
class Shardable(Protocol):
    """Batches that each rank takes its own part of, as :class:`rankwise.data.Batches`."""

    def shard(self, rank: int, ranks: int) -> Iterable[Any]:
        """The part of each pass that belongs to ``rank`` of ``ranks``."""
        ...


def _world() -> tuple[int, int]:
    """Processes in all, and on this machine, as torchrun sets them."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return ranks, int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks)))


def _fully_sharded(strategy: str, ranks: int) -> Any:
    """A strategy by Fabric's name; "fsdp" is torch's ``fully_shard``, which works on CPUs too."""
    if strategy != "fsdp":
        return strategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    def parallelize(module: nn.Module, mesh: Any) -> nn.Module:
        for child in module.children():
            runs = not isinstance(child, (nn.ModuleList, nn.ModuleDict))
            if runs and any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh["data_parallel"])
        fully_shard(module, mesh=mesh["data_parallel"])
        return module

    return ModelParallelStrategy(parallelize, data_parallel_size=ranks, tensor_parallel_size=1)


def make_fabric(accelerator: str, strategy: str, precision: str | None) -> Any:
    """A launched ``lightning_fabric.Fabric`` for the processes that torchrun started, or for this one.

    Args:
        accelerator: "auto", "cpu", "cuda", ... as Fabric knows them.
        strategy: "auto" (DDP where there are several processes), "fsdp", or a name that Fabric knows.
        precision: by default "bf16-mixed" on a CUDA device that has it, otherwise "32-true".

    Raises:
        TrainingError: Fabric is not installed, or refuses these settings.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise TrainingError(
            "Fine-tuning needs Lightning Fabric, which is not installed: pip install rankwise[train]."
        ) from error
    ranks, local = _world()
    if accelerator == "auto" and not torch.cuda.is_available():
        accelerator = "cpu"
    if strategy == "auto":
        strategy = "ddp" if ranks > 1 else "auto"
    if ranks == 1 and strategy in ("ddp", "fsdp"):
        strategy = "auto"
    if precision is None:
        fast = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
        precision = "bf16-mixed" if fast and torch.cuda.is_bf16_supported() else "32-true"
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=local, num_nodes=max(1, ranks // local),
            strategy=_fully_sharded(strategy, ranks), precision=cast(Any, precision),
        )  # fmt: skip
    except ValueError as error:
        raise TrainingError(f"Lightning Fabric refuses the settings: {error}") from error
    fabric.launch()
    if ranks > 1:
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Close the process group, which Fabric leaves open unless it is of NCCL, before the interpreter ends."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


class Processes:
    """What a training loop asks of the processes around it; ``rank`` of ``ranks``."""

    def __init__(self, fabric: Any) -> None:
        self.fabric = fabric
        self.rank: int = fabric.global_rank
        self.ranks: int = fabric.world_size
        self.device: torch.device = fabric.device

    def own(self, batches: Iterable[Any]) -> Iterable[Any]:
        """The part of training ``batches`` that belongs to this rank.

        :class:`Shardable` batches and DataLoaders (by a DistributedSampler) are divided by example; of
        other iterables each rank takes every ``ranks``-th batch, and a rest is left out.

        Raises:
            TrainingError: there are fewer batches than ranks.
        """
        count = length_of(batches)
        if count is None:
            batches = list(batches)
            count = len(batches)
        if self.ranks == 1:
            return batches
        if isinstance(batches, Shardable):
            return batches.shard(self.rank, self.ranks)
        if isinstance(batches, DataLoader):
            divided = self.fabric.setup_dataloaders(batches, move_to_device=False)
            return cast(Iterable[Any], divided._dataloader)  # whose epoch is ours to set
        if count < self.ranks:
            raise TrainingError(f"{count} training batches were given to {self.ranks} processes.")
        return _Strided(batches, self.rank, self.ranks, count // self.ranks)

    def summed(self, *values: float) -> list[float]:
        """Each of ``values`` added up over all ranks."""
        if self.ranks == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        total = total.to(self.device)
        distributed.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def wait(self) -> None:
        """Return when every rank has come here, so that none ends while another still reads from it."""
        if self.ranks > 1:
            distributed.barrier()

    def align_(self, buffers: Iterable[Tensor]) -> None:
        """Give every rank the buffers of rank 0 (BatchNorm statistics that each gathered by itself)."""
        if self.ranks > 1:
            for buffer in buffers:
                distributed.broadcast(buffer, 0)

    def autocast(self) -> AbstractContextManager[Any]:
        """The data type that layers compute in."""
        return cast(AbstractContextManager[Any], self.fabric.autocast())


class _Strided:
    """Every ``ranks``-th of some batches, ``count`` of them."""

    def __init__(self, batches: Iterable[Any], rank: int, ranks: int, count: int) -> None:
        self.batches, self.rank, self.ranks, self.count = batches, rank, ranks, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.rank, self.count * self.ranks, self.ranks)


def set_epoch(batches: Iterable[Any], epoch: int) -> None:
    """Tell batches, or their sampler, which pass is next."""
    for holder in (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)):
        if callable(tell := getattr(holder, "set_epoch", None)):
            tell(epoch)


def description(batches: Any) -> dict[str, Any]:
    """What tells two sources of batches apart, as far as it can be seen; JSON-able."""
    names = ("batch_size", "shuffle", "seed", "augment")
    seen = {name: getattr(batches, name) for name in names if hasattr(batches, name)}
    plain = {k: v if isinstance(v, (int, float, str, type(None))) else repr(v) for k, v in seen.items()}
    return {"batches": length_of(batches), **plain}


def whole(value: Any) -> Any:
    """``value`` with every tensor in it on the CPU in one piece; a collective call where it is sharded."""
    if isinstance(value, Tensor):
        full = getattr(value, "full_tensor", None)
        return (value.detach() if full is None else full().detach()).cpu().clone()
    if isinstance(value, dict):
        return {key: whole(held) for key, held in value.items()}
    return [whole(held) for held in value] if isinstance(value, list) else value


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """``value``, which every rank holds in one piece, on the device of ``like`` and sharded as it is."""
    if not hasattr(like, "full_tensor"):
        return value.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def optimizer_state(optimizer: Any) -> State:
    """The state of an optimizer in one piece."""
    return cast(State, whole(optimizer.state_dict()))


def load_optimizer_state_(optimizer: Any, state: State) -> None:
    """Set what :func:`optimizer_state` gave; tensors of a parameter's shape are laid out as it is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    placed = {
        index: {
            key: laid_out(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for key, value in held.items()
        }
        for index, held in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": placed})


def copy_(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy ``values`` into ``targets``, one by one."""
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(laid_out(value, target) if not hasattr(value, "full_tensor") else value)
