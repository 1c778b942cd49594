"""What is held out stays held out, whatever kind of loader the batches come from."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import rankwise
from rankwise.data import Batches, InMemory, Split
from rankwise.errors import CalibrationError
from rankwise.recovery.holdout import Part, hold_out, settled

NUMBERS = torch.arange(64.0).view(-1, 1)


def numbers(part: Any) -> list[float]:
    return [float(v) for batch in part for v in (batch if isinstance(batch, torch.Tensor) else batch[0])]


def split(**options: Any) -> Batches:
    return Split.of("train", InMemory(NUMBERS), None, lambda x: x).batches(8, **options)


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(TensorDataset(NUMBERS), 8, shuffle=True),
        lambda: DataLoader(TensorDataset(NUMBERS), 1, shuffle=True),
        lambda: split(shuffle=True),
    ],
    ids=["a DataLoader", "batches of one", "rankwise.data"],
)
def test_a_loader_that_shuffles_never_gives_held_out_examples_to_fit_on(loader: Any) -> None:
    torch.manual_seed(0)
    fit, held = hold_out(loader())
    fitted = [set(numbers(fit)) for _ in range(3)]
    kept = [set(numbers(held)) for _ in range(3)]
    assert fitted[0] == fitted[1] == fitted[2] and kept[0] == kept[1] == kept[2]
    assert not fitted[0] & kept[0] and fitted[0] | kept[0] == set(range(64))


def test_what_is_the_same_in_each_pass_is_not_read_into_memory() -> None:
    ordered = DataLoader(TensorDataset(NUMBERS), 8)
    augmented = split(augment=lambda x, generator: x + torch.rand(1, generator=generator))
    for batches in (ordered, augmented):
        fit, held = hold_out(batches)
        assert fit.batches is batches and held.batches is batches
    first = numbers(hold_out(augmented)[0])
    assert len(first) == 56 and first != numbers(fit)  # augmented anew, as in every pass before
    assert [int(v) for v in first] == list(range(56))


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.randn(48, 16, generator=torch.Generator().manual_seed(0)))


def test_a_stream_without_a_length_is_calibrated_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    loader = DataLoader(Stream(), batch_size=8)
    whole = list(loader)
    for method in ("whitened", rankwise.Automatic("fast")):
        small = [
            rankwise.compress(model, batches, rankwise.Budget(params=0.7), method=method)
            for batches in (loader, whole)
        ]
        assert torch.equal(small[0](whole[0]), small[1](whole[0]))


class TooLong:
    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(NUMBERS.split(8))


def test_a_length_that_is_too_large_is_an_error_that_says_so() -> None:
    with pytest.raises(CalibrationError, match="has 12 batches, but gave fewer"):
        numbers(hold_out(TooLong())[1])
    with pytest.raises(CalibrationError, match="list"):
        settled(NUMBERS)
    assert len(Part([], 0, 0)) == 0 and list(Part([], 0, 0)) == []
