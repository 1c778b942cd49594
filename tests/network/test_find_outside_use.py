"""Layers that something beside their own call uses are left alone; the spies that see it come off."""

import threading
import time

import pytest
import torch
from tests.network.test_find import found
from torch import nn
from torch.nn import functional

from rankwise.network.find import find_layers


class Functional(nn.Module):
    """Uses ``a`` as a module and reads its weight in one of several ways as well."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.how = nn.Linear(3, 3), how
        self.held = [self.a.weight]  # not registered here

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.how == "functional":
            return y + functional.linear(x, self.a.weight)
        if self.how == "held":
            return y + x @ self.held[0].T
        if self.how == "dtype":
            return y.to(self.a.weight.dtype)
        return y.to(next(self.parameters()).dtype)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("functional", "its weight is read outside its own forward"),
        ("held", "its weight is used functionally"),
        ("dtype", "its weight is read outside its own forward"),
        ("parameters", None),  # the data type of the first parameter: harmless
    ],
)
def test_weights_used_outside_their_layer(how: str, expected: str | None) -> None:
    why = found(Functional(how), torch.randn(2, 3))["a"].reason
    assert why == expected if expected is None else (why or "").startswith(expected)


class Listed(nn.Module):
    """Calls its layers through a list or dict beside their registration, as detectron2's FPN does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.blocks = nn.Linear(3, 3), nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))
        self.order = {"list": [self.a], "dict": {"first": (self.a,)}, "block": [self.blocks]}[how]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.b(self.a(x)))


@pytest.mark.parametrize(("how", "kept"), [("list", {"a"}), ("dict", {"a"}), ("block", set())])
def test_layers_kept_in_a_list_beside_their_registration(how: str, kept: set[str]) -> None:
    layers = found(Listed(how), torch.randn(2, 3)).values()
    assert {layer.name for layer in layers if layer.reason} == kept
    assert all("attribute 'order'" in layer.reason for layer in layers if layer.reason)


def test_attributes_of_a_layer_that_others_read() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            width = self.c.in_features
            return self.c(self.b(self.a(x).reshape(-1, width))) * self.b.training

    layers = find_layers(Reads(), torch.randn(2, 3))
    assert [layer.name for layer in layers] == ["a", "b", "c"]  # in the order of calls, not of reading
    assert [layer.reason for layer in layers] == [
        None,
        None,
        "its in_features is read outside its own forward",
    ]
    assert "__getattribute__" not in vars(nn.Module)


def test_layers_with_hooks_of_the_user() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    model[0].register_forward_hook(lambda _, __, output: output * 3)
    model[1].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    model[2].register_forward_hook(lambda _, __, output: output + 1)  # its module stays
    reasons = [layer.reason for layer in find_layers(model, torch.randn(2, 3))]
    assert reasons == ["it has forward hooks, which its replacement would lack"] * 2 + [None]


def test_two_threads_look_one_after_the_other() -> None:
    class Slow(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.a, self.seconds = nn.Linear(3, 3), seconds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(self.seconds)
            return self.a(x)

    plain, models, failed = nn.Module.__getattr__, [Slow(0.1), Slow(0.3)], []

    def look(model: nn.Module) -> None:
        try:
            find_layers(model, torch.randn(2, 3))
        except AttributeError as error:
            failed.append(error)

    threads = [threading.Thread(target=look, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert nn.Module.__getattr__ is plain and "__getattribute__" not in vars(nn.Module)
    assert not any(model.a._forward_hooks for model in models)
