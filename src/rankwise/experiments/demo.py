"""The demonstration: train, compress by ``auto``, distil, evaluate, save, reload."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rankwise.budget import Budget
from rankwise.compress import compression
from rankwise.data import load_data
from rankwise.evaluation import compare, evaluate
from rankwise.experiments.recovering import Recovering
from rankwise.experiments.single import MODEL_FILE, PLAN_FILE, beside
from rankwise.io import load, save
from rankwise.models import load_model, train_digits
from rankwise.progress import Progress, silent

RECOVERY = ("distill",)


def run_demo(out: Path, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Do the whole job on scikit-learn's digits; files go into ``out``.

    Returns ``original``, ``compressed`` and ``recovered`` metrics, ``seconds``, and
    ``reloaded_identical``: whether the saved file, loaded by a new process, gave bit for bit the outputs of
    the recovered model.
    """
    data = load_data("digits")
    progress("train", 0, 1)
    model = train_digits(data.training().batches(64, shuffle=True, seed=seed), seed)
    calibration = data.calibration(512, seed).batches(128)
    recovering = Recovering(data, calibration, seed, progress=progress)
    done = compression(
        model, calibration, Budget(macs=0.5), recovery=recovering.all(RECOVERY), seed=seed,
        progress=progress, notes={"model": "digits_cnn", "data": "digits"},
    )  # fmt: skip
    test = data.testing().batches(128)
    progress("evaluate", 0, 1)
    metrics = beside(done, compare(model, done.compressed, test), evaluate(done.model, test, model))
    metrics["recovered"]["seconds"] = recovering.seconds
    path = out / MODEL_FILE
    save(done.model, path)
    done.plan.save(out / PLAN_FILE)
    progress("reload", 0, 1)
    metrics["recovered"]["file_bytes"] = path.stat().st_size
    identical = _same_in_new_process(done.model, path, next(iter(test))[0])
    return {**metrics, "seconds": done.seconds, "reloaded_identical": identical}


def _same_in_new_process(model: torch.nn.Module, path: Path, inputs: torch.Tensor) -> bool:
    model.eval()
    with torch.no_grad():
        outputs = model(inputs)
    kept = path.with_name("outputs.safetensors")
    save_file({"inputs": inputs.contiguous(), "outputs": outputs.contiguous()}, kept)
    command = [sys.executable, "-m", "rankwise.experiments.demo", str(path), str(kept)]
    return subprocess.run(command, check=False).returncode == 0


def _compare(path: str, kept: str) -> int:
    """Exit code 0 when the model in ``path`` gives exactly the stored outputs."""
    tensors = load_file(kept)
    model = load(path, load_model("digits_cnn").module).eval()
    with torch.no_grad():
        outputs = model(tensors["inputs"])
    return 0 if torch.equal(outputs, tensors["outputs"]) else 1


if __name__ == "__main__":
    sys.exit(_compare(*sys.argv[1:3]))
