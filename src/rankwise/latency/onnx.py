"""A forward pass through onnxruntime."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankwise.errors import BudgetError
from rankwise.network.batches import split_batch


def session_pass(model: nn.Module, batch: Any, threads: int) -> Callable[[], object]:
    """What runs ``model``, exported to ONNX, once on ``batch`` with ``threads`` threads.

    Raises:
        BudgetError: the batch is a mapping, or the model cannot be exported.
    """
    import onnxruntime

    arguments, named, _ = split_batch(model, batch)
    if named:
        raise BudgetError(
            "runtime='onnxruntime' takes a tensor or a tuple of tensors as example, no mapping."
        )
    try:
        with torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(model, arguments, dynamo=True, verbose=False)
        assert program is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            program.save(str(path), external_data=False)
            session = onnxruntime.InferenceSession(
                str(path), _options(threads), providers=["CPUExecutionProvider"]
            )
        names = [entry.name for entry in session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
    except Exception as error:
        raise BudgetError(f"The model cannot be run by onnxruntime: {error}") from error
    return lambda: session.run(None, feed)


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options
