from collections import namedtuple
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from rankwise.errors import CalibrationError
from rankwise.network import model_cost
from rankwise.network.batches import (
    batch_size,
    detached,
    first_batch,
    forward,
    length_of,
    output_tensor,
    split_batch,
    tensors_of,
    to_device,
)

X, Y, Z = torch.ones(2, 3), torch.zeros(2), torch.full((2,), 5.0)
Pair = namedtuple("Pair", ["image", "label"])


class One(nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return x * scale


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum() + y.sum()


class Any_(nn.Module):
    def forward(self, *args: Any) -> int:
        return len(args)


class Words(nn.Module):
    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        return input_ids, labels


class OnlyIds(nn.Module):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids


class Everything(nn.Module):
    def forward(self, **kwargs: Any) -> list[str]:
        return sorted(kwargs)


@pytest.mark.parametrize(
    ("model", "batch", "args", "keys", "target"),
    [
        (One(), X, 1, [], None),
        (One(), (X,), 1, [], None),
        (One(), (X, Y), 1, [], Y),
        (One(), [X, Y, Z], 1, [], Y),
        (One(), Pair(X, Y), 1, [], Y),
        (Two(), (X, Y), 2, [], None),
        (Two(), (X, Y, Z), 2, [], Z),
        (Any_(), (X, Y), 2, [], None),
        (Words(), {"input_ids": X}, 0, ["input_ids"], None),
        (Words(), {"input_ids": X, "labels": Y}, 0, ["input_ids", "labels"], Y),
        (OnlyIds(), {"input_ids": X, "labels": Y}, 0, ["input_ids"], Y),
        (Everything(), {"input_ids": X, "labels": Y}, 0, ["input_ids", "labels"], Y),
        (nn.DataParallel(One()), (X, Y), 1, [], Y),
        (torch.compile(One()), (X, Y), 1, [], Y),
        (nn.Sequential(nn.Linear(3, 2)), (X, Y), 1, [], Y),
    ],
)
def test_what_is_input_and_what_is_target(
    model: nn.Module, batch: Any, args: int, keys: list[str], target: torch.Tensor | None
) -> None:
    given, named, wanted = split_batch(model, batch)
    assert len(given) == args and sorted(named) == keys
    assert wanted is target


def test_forward_calls_the_model() -> None:
    assert torch.equal(forward(One(), (X, Y)), 2 * X)
    assert forward(Two(), (X, Z, Y)) == 16
    assert forward(Everything(), {"a": X, "b": Y}) == ["a", "b"]


@pytest.mark.parametrize("batch", [3, "text", (), None])
def test_batches_of_no_known_form(batch: Any) -> None:
    with pytest.raises(CalibrationError, match="allowed are a tensor"):
        split_batch(One(), batch)


@pytest.mark.parametrize(
    "output", [X, (X, Y), [X], {"out": X}, SimpleNamespace(logits=X, loss=Y), {"name": "a", "out": X}]
)
def test_main_output(output: Any) -> None:
    assert output_tensor(output) is X


def test_logits_come_first_and_nested_outputs_are_searched() -> None:
    assert output_tensor({"aux": Y, "logits": X}) is X
    assert output_tensor(({"aux": None, "logits": X}, [Y])) is X
    assert output_tensor([None, [X, Y]]) is X
    assert output_tensor((X.argmax(1), {"aux": Y, "logits": X})) is X  # numbers before decisions
    assert output_tensor(index := X.argmax(1)) is index


@pytest.mark.parametrize("output", [None, 3, [], {"a": 1}, [[None], {}]])
def test_no_tensor_in_the_output(output: Any) -> None:
    with pytest.raises(CalibrationError, match="holds no tensor"):
        output_tensor(output)


def test_sizes_and_tensors() -> None:
    assert batch_size({"ids": X, "n": 3}) == batch_size((X, Y)) == batch_size(X) == 2
    assert [t is value for t, value in zip(tensors_of([X, "a", Y]), (X, Y), strict=True)] == [True, True]
    for empty in ({"a": 1}, torch.tensor(3.0)):
        with pytest.raises(CalibrationError, match="at least one dimension"):
            batch_size(empty)


def test_moving_keeps_the_container() -> None:
    meta = torch.device("meta")
    assert to_device(X, meta).is_meta
    assert to_device({"a": X, "b": 1}, meta)["a"].is_meta
    moved = to_device(Pair(X, Y), meta)
    assert isinstance(moved, Pair) and moved.image.is_meta and moved.label.is_meta
    assert [t.is_meta for t in to_device([X, Y], meta)] == [True, True]
    assert to_device("text", meta) == "text"


def test_tensors_that_a_backward_pass_may_use() -> None:
    with torch.inference_mode():
        made = Pair(X.clone(), "a")
    free = detached(made)
    assert isinstance(free, Pair) and not free.image.is_inference() and free.label == "a"
    wanted = {"a": X.clone().requires_grad_(), "b": 1}
    assert not detached(wanted)["a"].requires_grad and wanted["a"].requires_grad
    assert detached(plain := [X, Y]) is plain


def test_lengths() -> None:
    stream = DataLoader(Numbers(), batch_size=2)
    assert length_of([X, Y]) == 2 and length_of(iter([X])) is None and length_of(stream) is None


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


def test_first_batch() -> None:
    assert first_batch([X, Y]) is X
    for given, message in ((None, "Neither"), (iter([X]), "only once"), ([], "empty")):
        with pytest.raises(CalibrationError, match=message):
            first_batch(given)


@pytest.mark.parametrize("batch", [X, (X, Y), {"input": X, "note": "text"}], ids=["tensor", "pair", "dict"])
def test_batches_go_where_the_network_is(batch: Any) -> None:
    class Reads(nn.Linear):
        def forward(self, input: torch.Tensor, note: str = "") -> torch.Tensor:
            return super().forward(input)

    assert forward(Reads(3, 2, device="meta"), batch).is_meta
    assert not forward(Reads(3, 2), batch).is_meta


def test_batches_that_are_there_stay_themselves() -> None:
    for batch in (X, (X, Y), {"input": X}, [X, 3]):
        assert to_device(batch, X.device) is batch


def test_the_cost_of_a_network_elsewhere_is_counted_with_batches_from_here() -> None:
    convolution = nn.Conv2d(3, 4, 3)
    elsewhere = nn.Conv2d(3, 4, 3, device="meta")
    example = torch.zeros(2, 3, 8, 8)
    assert model_cost(elsewhere, example) == model_cost(convolution, example)


class Scaling(nn.Module):
    """Scales its inputs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        x.mul_(4)
        return self.layer(x if shift is None else x.add_(shift))


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_works_in_place_does_not_change_the_batch(training: bool) -> None:
    model = Scaling().train(training)
    x, shift = torch.ones(2, 3), torch.ones(2, 1)
    expected = model(x.clone(), shift)
    for batch in ({"x": x, "shift": shift}, {"x": x, "shift": shift, "labels": 1}):
        for _ in range(3):
            assert torch.equal(forward(model, batch), expected)
            assert torch.equal(x, torch.ones(2, 3))
    with torch.inference_mode():
        fresh = torch.ones(2, 3)
        forward(model, fresh)
    assert torch.equal(fresh, torch.ones(2, 3))


def test_ordinary_models_are_given_the_batch_itself() -> None:
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = Same()
    assert [forward(model, X) is X for _ in range(3)] == [False, True, True]
    assert forward(model.eval(), X) is not X and forward(model, X) is X


def test_an_unfinished_pass_tells_nothing() -> None:
    model, x = Scaling(), torch.ones(2, 3)
    handle = model.register_forward_pre_hook(lambda _, __: 1 / 0)  # type: ignore[arg-type, return-value] # raises
    with pytest.raises(ZeroDivisionError):
        forward(model, x)
    handle.remove()
    forward(model, x)
    assert torch.equal(x, torch.ones(2, 3))
