"""Outputs that are kept between passes: the same figures, less work."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankwise.network import find_layers
from rankwise.network.replay import Replay
from rankwise.statistics.channels import ChannelMoments, Intake, collect_channels

NAMES = ["0", "2", "4"]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3)]
    net = nn.Sequential()
    for convolution in convolutions:
        net.extend([convolution, nn.ReLU(inplace=True)])
    return net.eval()


def _pass(
    net: nn.Sequential, batches: list[torch.Tensor], replay: Replay | None
) -> tuple[ChannelMoments, int]:
    """What the last layer reads, and the flops of the pass."""
    layer = next(x for x in find_layers(net, batches[0]) if x.name == "4")
    with FlopCounterMode(display=False) as counter:
        found = collect_channels(net, {"4": Intake(layer)}, batches, replays=[replay] if replay else [])
    return found["4"], counter.get_total_flops()


def test_only_layers_that_changed_are_computed_again() -> None:
    net, batches = _net(), [torch.randn(4, 3, 10, 10) for _ in range(2)]
    replay = Replay(NAMES)
    _, whole = _pass(net, batches, replay)
    again, none = _pass(net, batches, replay)
    assert (whole > 0, none) == (True, 0)
    torch.testing.assert_close(again.moment, _pass(net, batches, None)[0].moment, rtol=0, atol=0)
    with torch.no_grad():
        net[2].weight.mul_(2.0)
    replay.forget(["2", "4"])
    changed, part = _pass(net, batches, replay)
    assert part == 2 * 2 * 4 * 6 * 6 * 6 * 8 * 9  # of layer "2": twice, batches, examples, positions, weights
    torch.testing.assert_close(changed.moment, _pass(net, batches, None)[0].moment, rtol=0, atol=0)
    assert all("forward" not in vars(module) and not module._forward_hooks for module in net)


def test_another_batch_is_noticed() -> None:
    net, batches = _net(), [torch.randn(4, 3, 10, 10) for _ in range(2)]
    replay = Replay(NAMES)
    _, whole = _pass(net, batches, replay)
    other = [batches[0], torch.randn(4, 3, 10, 10)]
    found, flops = _pass(net, other, replay)
    assert flops == whole // 2
    torch.testing.assert_close(found.moment, _pass(net, other, None)[0].moment, rtol=0, atol=0)


def test_no_more_than_the_limit_is_kept() -> None:
    net, batches = _net(), [torch.randn(4, 3, 10, 10) for _ in range(2)]
    first = 4 * 4 * 8 * 8 * 8  # bytes of what layer "0" gives for one batch
    replay = Replay(NAMES, limit=first + 2 * 4 * 4 * 3 * 100)
    _, whole = _pass(net, batches, replay)
    found, flops = _pass(net, batches, replay)
    assert whole // 2 <= flops < whole
    torch.testing.assert_close(found.moment, _pass(net, batches, None)[0].moment, rtol=0, atol=0)
