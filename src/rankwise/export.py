"""Files that run without rankwise and without the model's code: ``.pt2`` and ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rankwise.errors import RankwiseError
from rankwise.files import write_atomically
from rankwise.network.batches import forward, output_tensor, split_batch
from rankwise.network.state import preserved


def _arguments(model: nn.Module, example: Any) -> tuple[Any, ...]:
    args, kwargs, _ = split_batch(model, example)
    if kwargs:
        raise RankwiseError("A mapping was given as example; export takes a tensor or a tuple of tensors.")
    return args


def export_pt2(model: nn.Module, example: Any, path: str | Path) -> None:
    """Write ``model``, in evaluation mode, as a ``torch.export`` program of the shapes of ``example``.

    ``torch.export.load(path).module()`` runs it without the model's code.
    """
    with preserved(model):
        program = torch.export.export(model.eval(), _arguments(model, example))
    write_atomically(Path(path), lambda temporary: torch.export.save(program, str(temporary)))


def export_onnx(model: nn.Module, example: Any, path: str | Path, tolerance: float = 1e-3) -> None:
    """Write ``model``, in evaluation mode, as ONNX, after comparing onnxruntime with torch on ``example``.

    Args:
        model: the model.
        example: a tensor or a tuple of tensors.
        path: the file.
        tolerance: the largest difference, relative to the largest output, that is accepted.

    Raises:
        RankwiseError: onnx, onnxscript or onnxruntime is missing, or the outputs differ.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RankwiseError("ONNX export needs pip install rankwise[export].") from error
    arguments = _arguments(model, example)
    with preserved(model), torch.no_grad():
        expected = output_tensor(forward(model.eval(), example)).numpy()
        program = torch.onnx.export(model, arguments, dynamo=True, verbose=False)
    assert program is not None

    def write(temporary: Path) -> None:
        program.save(str(temporary), external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
        found = session.run(None, feed)[0]
        difference = float(np.abs(found - expected).max() / max(1e-12, float(np.abs(expected).max())))
        if not difference <= tolerance:
            raise RankwiseError(
                f"onnxruntime's output differs from torch's by {difference:.2e} of the largest output; "
                f"allowed is {tolerance:.0e}. No file was written."
            )

    write_atomically(Path(path), write)
