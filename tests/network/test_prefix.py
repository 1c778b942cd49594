"""Replayed prefixes: the same outputs, less computed, nothing left behind."""

from collections.abc import Callable

import pytest
import torch
from tests.network.skip_net import Counting, SkipNet
from torch import nn

from rankwise.network.additions import sights
from rankwise.network.find import find_layers
from rankwise.network.replay import Prefix


def test_a_replayed_pass_sees_what_a_whole_pass_sees_and_computes_less() -> None:
    torch.manual_seed(0)
    model = SkipNet().eval()
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    names = ["stem", "first.conv1", "first.conv2", "second.conv1", "second.conv2", "head"]
    expected = {n: [sights(model, b, n)[0] for b in batches] for n in names}
    replay = Prefix(model, batches[0])
    with Counting(model) as counted:
        for name in names:
            for index, batch in enumerate(batches):
                with replay.until(name, index, batch):
                    (seen,) = sights(model, batch, name)
                assert torch.equal(seen.input, expected[name][index].input)
                assert torch.equal(seen.output, expected[name][index].output)
                assert (seen.skip is None) == (expected[name][index].skip is None)
                if seen.skip is not None:
                    assert torch.equal(seen.skip, expected[name][index].skip)
    assert counted.calls["stem"] == 4  # twice for itself, twice to be remembered
    assert counted.calls["first.conv1"] == 6  # also where the pass for the stem ends
    assert counted.calls["first.conv2"] == 4
    assert all("forward" not in vars(m) for m in model.modules())
    assert expected["first.conv2"][0].batchnorm == "first.bn2"
    assert expected["first.conv2"][0].skip is not None
    assert expected["first.conv1"][0].skip is None


def test_a_layer_that_changed_later_in_order_is_seen_changed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    x = torch.randn(3, 2)
    replay = Prefix(model, x)
    with replay.until("0", 0, x):
        sights(model, x, "0")
    with torch.no_grad():
        model[0].weight.mul_(2)
    with replay.until("1", 0, x):
        (seen,) = sights(model, x, "1")
    assert torch.allclose(seen.input, model[0](x))


def test_without_memory_everything_is_computed_again() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    x = torch.randn(3, 2)
    replay = Prefix(model, x, memory=0)
    for _ in range(2):
        with replay.until("1", 0, x):
            (seen,) = sights(model, x, "1")
        assert torch.equal(seen.input, model[0](x))
    assert not any(replay._replay._outputs.values())


def test_another_batch_at_the_same_place_is_computed_anew() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    replay = Prefix(model, torch.randn(3, 2))
    for x in (torch.randn(3, 2), torch.randn(3, 2)):  # as when batches are augmented anew in every pass
        for layer in ("1", "2"):
            with replay.until(layer, 0, x):
                (seen,) = sights(model, x, layer)
            expected = model[0](x) if layer == "1" else model[1](model[0](x))
            assert torch.equal(seen.input, expected)


class Encoder(nn.Module):
    """Keeps a skip connection: as an attribute, or in a list that it has."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.listed, self.kept = listed, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.first(x).relu()
        if self.listed:
            self.kept.clear()
            self.kept.append(skip)
        else:
            self.kept = [skip]
        return self.second(skip)


class Skipping(nn.Module):
    def __init__(self, listed: bool) -> None:
        super().__init__()
        self.encoder, self.middle, self.last = Encoder(listed), nn.Linear(6, 6), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.middle(self.encoder(x)), *self.encoder.kept], 1))


class InPlaceResidual(nn.Module):
    """As in VQ-VAEs: the branch begins with a ReLU in place, so that x itself is rectified."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class SameTensor(nn.Module):
    """A shortcut that is the tensor itself, which changes afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.short, self.second, self.last = (
            nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4), nn.Linear(4, 3)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        short = self.short(x)
        return self.last(self.second(x.relu_()) + short)


class Steps(nn.Module):
    """As many steps as there are rows in an example."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.carry, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(len(x), 6)
        for row in x.unbind(1):
            state = torch.tanh(self.read(row) + self.carry(state))
        return self.last(state)


class Counted(nn.Linear):
    """Keeps how long the batch was."""

    rows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows = len(x)
        return super().forward(x)


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Counted(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x / self.first.rows)


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 3))
    model[0].register_forward_hook(lambda _, __, output: output * 3 + 1)
    model[1].register_forward_hook(lambda _, __, output: output.mul_(2))
    return model


def _listening() -> nn.Module:
    """A hook inside a module hands its activations to a later one."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 3))
    seen: list[torch.Tensor] = []
    model[0][0].register_forward_hook(lambda _, __, output: seen.append(output))
    model[1].register_forward_hook(lambda _, __, output: output + seen.pop())
    return model


class Script(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.script = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.script(self.first(x)))


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize(
    ("build", "batches"),
    [
        (lambda: Skipping(listed=False), [X, X[:2] + 1]),
        (lambda: Skipping(listed=True), [X, X[:2] + 1]),
        (lambda: nn.Sequential(nn.Linear(4, 4), InPlaceResidual(), InPlaceResidual()), [X, X + 1]),
        (SameTensor, [X, X + 1]),
        (Steps, [ROWS[:, :1], ROWS, ROWS[:, :2]]),
        (Mean, [X, X[:2] + 1]),
        (_hooked, [X, X + 1]),
        (_listening, [X, X + 1]),
        (Script, [X, X + 1]),
    ],
    ids=["attribute", "list", "in place", "same tensor", "steps", "size", "hooks", "inner hooks", "script"],
)
def test_modules_that_do_more_than_give_a_tensor_are_run(
    build: Callable[[], nn.Module], batches: list[torch.Tensor]
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    layers = [x for x in find_layers(model, batches[0]) if x.calls]
    expected = {x.name: [sights(model, b, x.name, calls=9) for b in batches] for x in layers}
    replay = Prefix(model, batches[0])
    for name, seen in expected.items():
        for _ in range(2):
            for index, batch in enumerate(batches):
                with replay.until(name, index, batch):
                    again = sights(model, batch, name, calls=9)
                for one, two in zip(again, seen[index], strict=True):
                    assert torch.equal(one.input, two.input) and torch.equal(one.output, two.output)


def test_blocks_with_rectifiers_in_place_are_answered_for() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
            self.short = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.relu(self.norm(self.conv(x)))
            y += self.short(x)
            return self.relu(y)

    model, x = nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(12, 2)).eval(), torch.randn(2, 3, 2, 2)
    replay = Prefix(model, x)
    with Counting(model) as counted:
        for _ in range(5):
            with replay.until("3", 0, x):
                sights(model, x, "3")
    assert counted.calls["0.conv"] == counted.calls["1.conv"] == 1
