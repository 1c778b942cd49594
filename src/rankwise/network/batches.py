"""Feeding batches of any form to a model: tensors, tuples, dicts, Hugging Face ``BatchEncoding``."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.network.state import version_of
from rankwise.network.usage import tensors_in

_CHANGES: MutableMapping[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
"""Whether models change their inputs in place, in training and in evaluation mode."""


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of ``forward``, of the wrapped model for data-parallel and compiled wrappers."""
    for attribute in ("module", "_orig_mod"):
        wrapped = getattr(model, attribute, None)
        if isinstance(wrapped, nn.Module) and len(list(model.children())) == 1:
            return _parameters(wrapped)
    return inspect.signature(model.forward).parameters


def _required_positional(model: nn.Module) -> int | None:
    """How many positional parameters ``model.forward`` requires; None when it takes ``*args`` only."""
    parameters = list(_parameters(model).values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not positional and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return max(1, sum(p.default is p.empty for p in positional))


def split_batch(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """``(args, kwargs, target)`` with which ``model`` is called on ``batch``.

    A tensor is the only argument. A mapping (dict, ``BatchEncoding``) gives keyword arguments; its
    ``labels`` entry is the target and is passed on only where ``forward`` has that parameter. Of a
    tuple or list, as many leading elements as ``forward`` requires are arguments; the first of the
    rest, if any, is the target.
    """
    if isinstance(batch, torch.Tensor):
        return (batch,), {}, None
    if isinstance(batch, Mapping):
        kwargs = dict(batch)
        target = kwargs.get("labels")
        parameters = _parameters(model)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if "labels" in kwargs and "labels" not in parameters and not takes_any:
            del kwargs["labels"]
        return (), kwargs, target
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 0:
        required = _required_positional(model)
        count = len(batch) if required is None else min(required, len(batch))
        return tuple(batch[:count]), {}, batch[count] if len(batch) > count else None
    raise CalibrationError(
        f"A batch of type {type(batch).__name__} was given; allowed are a tensor, a non-empty tuple or "
        "list (inputs first, targets after), and a mapping of keyword arguments."
    )


def device_of(model: nn.Module) -> torch.device:
    """Where ``model`` takes its inputs: the device of its first parameter or buffer; without any, the CPU."""
    return next((t.device for t in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``model`` is called with on ``batch``, as :func:`split_batch` says, moved to its device."""
    args, kwargs, _ = split_batch(model, to_device(batch, device_of(model)))
    return args, kwargs


def forward(model: nn.Module, batch: Any) -> Any:
    """What ``model`` returns, called on ``batch`` as :func:`split_batch` says, moved to its device.

    The batch stays as it is, see :func:`call`.
    """
    return call(model, to_device(batch, device_of(model)))


def call(model: nn.Module, batch: Any, wrapped: nn.Module | None = None) -> Any:
    """What ``model``, or ``wrapped`` around it, returns on ``batch``, which stays as it is.

    A model that changes its input in place is given a copy, as is every model until a first pass in the
    same mode (training or not) has shown that it does not.
    """
    args, kwargs, _ = split_batch(model, batch)
    modes = _CHANGES.setdefault(model, {})
    if modes.get(model.training, True):
        args, kwargs = mapped(args, torch.clone), mapped(kwargs, torch.clone)
    given = list(tensors_in((args, kwargs)))
    versions = list(map(version_of, given))
    output = (wrapped or model)(*args, **kwargs)
    modes.setdefault(model.training, versions != list(map(version_of, given)))
    return output


def output_tensor(output: Any) -> torch.Tensor:
    """The main tensor of a model's output: itself, its ``logits``, or the first tensor that it holds.

    A tensor of floating-point numbers is preferred: of (argmax, logits) it is the second.

    Raises:
        CalibrationError: the output holds no tensor.
    """
    found = list(_held(output))
    if not found:
        raise CalibrationError(f"The model returned {type(output).__name__}, which holds no tensor.")
    return next((tensor for tensor in found if tensor.is_floating_point()), found[0])


def _held(output: Any) -> Iterator[torch.Tensor]:
    """Every tensor in ``output``, in order but for ``logits``, which come first."""
    if isinstance(output, torch.Tensor):
        yield output
        return
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        yield logits
    if isinstance(output, (list, tuple, Mapping)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _held(value)


def tensors_of(batch: Any) -> list[torch.Tensor]:
    """Every tensor in ``batch``, in order."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, Mapping) else batch
    return [value for value in values if isinstance(value, torch.Tensor)]


def batch_size(batch: Any) -> int:
    """Examples in ``batch``: the first dimension of its first tensor."""
    tensors = tensors_of(batch)
    if not tensors or tensors[0].ndim == 0:
        raise CalibrationError("A batch without a tensor of at least one dimension was given.")
    return int(tensors[0].shape[0])


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with every tensor on ``device``, in the same kind of container; itself where it is there."""
    if not isinstance(batch, (torch.Tensor, Mapping, Sequence)) or isinstance(batch, str):
        return batch
    if all(tensor.device == device for tensor in tensors_of(batch)):
        return batch
    return mapped(batch, lambda tensor: tensor.to(device))


def mapped(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``batch`` with ``change`` of every tensor, in the same kind of container."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    values = [change(v) if isinstance(v, torch.Tensor) else v for v in batch]
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)


def detached(batch: Any) -> Any:
    """``batch`` with tensors that a backward pass may use and leaves as they are; itself where it has such.

    Tensors that require gradients would be given some; those made in inference mode are refused.
    """
    if not any(tensor.requires_grad or tensor.is_inference() for tensor in tensors_of(batch)):
        return batch
    return mapped(batch, lambda tensor: tensor.detach().clone())


def first_batch(calibration: Iterable[Any] | None) -> Any:
    """The first of the calibration batches.

    Raises:
        CalibrationError: there is none, or ``calibration`` can be iterated only once.
    """
    if calibration is None:
        raise CalibrationError(
            "Neither calibration batches nor an example were given; one batch is needed to count cost."
        )
    if isinstance(calibration, (torch.Tensor, Mapping)):
        raise CalibrationError(
            f"A {type(calibration).__name__} was given as calibration data; allowed is an iterable of "
            "batches, for one batch a list: [batch]."
        )
    if iter(calibration) is calibration:
        raise CalibrationError(
            "The calibration data can be iterated only once (a generator or iterator was given); "
            "pass a DataLoader or a list of batches, or give example= too."
        )
    for batch in calibration:
        return batch
    raise CalibrationError("The calibration loader is empty: it gave no batch. At least one is needed.")


def reusable(batches: Iterable[Any] | None) -> Iterable[Any] | None:
    """``batches``, or a list of them where they could be iterated over once only."""
    return list(batches) if batches is not None and iter(batches) is batches else batches


def length_of(batches: Iterable[Any]) -> int | None:
    """How many batches there are, where the container tells; a DataLoader of a stream does not."""
    try:
        return len(batches)  # type: ignore[arg-type] # not all have a length, which is what is found out
    except TypeError:
        return None
