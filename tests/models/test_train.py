from pathlib import Path

import pytest
import torch
from torch import nn

from rankwise.data import load_data
from rankwise.errors import DataError
from rankwise.models import load_model, train_classifier_, train_digits
from rankwise.progress import Progress, silent


def test_the_digits_network_exceeds_97_percent() -> None:
    data = load_data("digits")
    module = train_digits(data.train.batches(64, shuffle=True))
    images, labels = next(iter(data.test.batches(360)))
    assert not module.training
    assert float((module(images).argmax(1) == labels).double().mean()) > 0.97


def test_training_repeats_bit_for_bit_and_leaves_the_global_state() -> None:
    split = load_data("digits").train.take(128)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first, again, other = (
        train_digits(split.batches(64, shuffle=True, seed=s), seed=s, epochs=1).fc2.weight for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_training_without_batches_is_refused() -> None:
    with pytest.raises(DataError, match="no batches"):
        train_classifier_(nn.Linear(1, 1), [], epochs=1, learning_rate=0.1)


def test_training_goes_on_from_a_checkpoint_as_if_never_interrupted(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(stage: str, epoch: int, epochs: int) -> None:
        if epoch == 1:
            raise Interrupted

    def train(checkpoint: Path | None, progress: Progress = silent) -> dict[str, torch.Tensor]:
        data = load_data("digits")
        module = load_model("digits_cnn", seed=3).module
        batches = data.calibration(128).batches(32, shuffle=True)
        train_classifier_(
            module, batches, epochs=3, learning_rate=1e-3, checkpoint=checkpoint, progress=progress
        )
        return module.state_dict()

    whole = train(None)
    with pytest.raises(Interrupted):
        train(tmp_path / "c.pt", stop)
    resumed = train(tmp_path / "c.pt")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
