"""Replayed prefixes: the same outputs, less computed, nothing left behind."""

import torch
from tests.network.skip_net import Counting, SkipNet
from torch import nn

from rankwise.network.additions import sights
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
