from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankwise.data import CropFlip, load_data
from rankwise.errors import DataError
from rankwise.models import load_model, train, train_classifier_, train_digits, trapezoid


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


class _Interrupted(Exception):
    pass


class _Until:
    """Batches that break off after ``steps`` of them in all."""

    def __init__(self, batches: Any, steps: int) -> None:
        self.batches, self.left = batches, steps

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if not self.left:
                raise _Interrupted
            self.left -= 1
            yield batch


@pytest.mark.parametrize("steps", [4, 6])  # at the end of a pass, and within one
def test_training_goes_on_from_a_checkpoint_as_if_never_interrupted(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVED_EVERY", 2)

    def trained(checkpoint: Path | None, until: int = -1) -> dict[str, torch.Tensor]:
        module = load_model("digits_cnn", seed=3).module
        batches = load_data("digits").calibration(128).batches(32, shuffle=True, augment=CropFlip(1))
        train.train_classifier_(
            module, _Until(batches, until), epochs=3, learning_rate=1e-3, checkpoint=checkpoint
        )
        return module.state_dict()

    whole = trained(None)
    with pytest.raises(_Interrupted):
        trained(tmp_path / "c.pt", steps)
    assert torch.load(tmp_path / "c.pt")["step"] == steps
    resumed = trained(tmp_path / "c.pt")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_number_of_steps_may_be_changed_before_the_rate_falls(tmp_path: Path) -> None:
    rates: list[float] = []

    def noted(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LRScheduler:
        schedule = trapezoid(2, 3)(optimizer, total)
        optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
        return schedule

    def trained(steps: int, checkpoint: Path | None) -> dict[str, torch.Tensor]:
        module = load_model("digits_cnn", seed=3).module
        batches = load_data("digits").calibration(128).batches(32, shuffle=True)
        train_classifier_(
            module, batches, epochs=3, learning_rate=1e-3, steps=steps, schedule=noted, checkpoint=checkpoint
        )
        return module.state_dict()

    whole = trained(9, None)
    assert rates == pytest.approx([1e-3 * part for part in (0.5, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3)])
    rates.clear()
    trained(6, tmp_path / "c.pt")
    assert len(rates) == 6
    rates.clear()
    state = torch.load(tmp_path / "c.pt")
    assert state["step"] == 6
    trained(9, tmp_path / "c.pt")
    assert rates == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert whole.keys() == state["module"].keys()
