"""Files that run without rankwise: ``.pt2`` in a process without the class, ONNX in onnxruntime."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rankwise import Budget, compress
from rankwise.errors import RankwiseError
from rankwise.export import export_onnx, export_pt2

RUN = """
import sys, torch
from safetensors.torch import load_file
tensors = load_file(sys.argv[2])
program = torch.export.load(sys.argv[1]).module()
found = program(tensors["image"], tensors["scale"])
torch.testing.assert_close(found, tensors["expected"])
assert not [name for name in sys.modules if name.split(".")[0] in ("rankwise", "tests")]
"""


class Scaled(nn.Module):
    """Two inputs, a convolution with unequal padding, BatchNorm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, (3, 5), padding=(1, 2)), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.ReLU(), nn.Dropout(0.5),
        )  # fmt: skip
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.body(image).mean((2, 3))) * scale
        return result


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 8, 8, generator=generator), torch.rand(4, 1, generator=generator)


@pytest.fixture(scope="module")
def small(inputs: tuple[torch.Tensor, torch.Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return compress(Scaled(), [inputs], Budget(macs=0.6), method="whitened")


def outputs(model: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    training = model.training
    with torch.no_grad():
        result: torch.Tensor = model.eval()(*inputs)
    model.train(training)
    return result


def test_a_pt2_file_runs_in_a_process_without_the_class_or_rankwise(
    small: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    assert small.training
    export_pt2(small, inputs, tmp_path / "small.pt2")
    assert small.training
    tensors = {"image": inputs[0], "scale": inputs[1], "expected": outputs(small, inputs)}
    save_file(tensors, tmp_path / "tensors.safetensors")
    command = [sys.executable, "-c", RUN, str(tmp_path / "small.pt2"), str(tmp_path / "tensors.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_onnx_file_gives_torch_s_outputs_in_onnxruntime(
    small: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "small.onnx"
    export_onnx(small, inputs, path)
    assert small.training
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {n: value.numpy() for n, value in zip(names, inputs, strict=True)})[0]
    np.testing.assert_allclose(found, outputs(small, inputs).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(RankwiseError, match="differs from torch's"):
        export_onnx(small, inputs, tmp_path / "strict.onnx", tolerance=-1.0)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_mapping_as_example_is_refused(small: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(RankwiseError, match="a tensor or a tuple"):
        export_pt2(small, {"image": torch.zeros(1, 3, 8, 8), "scale": torch.ones(1, 1)}, tmp_path / "x.pt2")
    assert list(tmp_path.iterdir()) == []


def test_an_example_that_the_network_changes_in_place_stays(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, example = (
        nn.Sequential(nn.Threshold(0.5, -1.0, inplace=True), nn.Linear(4, 3)),
        torch.ones(2, 4) / 4,
    )
    export_onnx(model, example, tmp_path / "model.onnx")
    assert torch.equal(example, torch.ones(2, 4) / 4)
