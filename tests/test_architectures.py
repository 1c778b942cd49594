"""Channel selection on every architecture: within the budget, exported, and exact where nothing goes."""

import copy

import pytest
import torch

from rankwise.budget import Budget
from rankwise.compress import compress
from rankwise.methods import get_method
from rankwise.network import model_cost
from rankwise.network.select import apply_selection_, selection_of
from rankwise.plan import plan_of
from rankwise.scene import Scene
from tests.network.architectures import ARCHITECTURES, random_batches, settled


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_at_seven_tenths_of_the_macs(name: str) -> None:
    build, shape = ARCHITECTURES[name]
    model, data = settled(build, *shape), random_batches(*shape)
    method = get_method("interpolative", refit="once")
    small = compress(model, data, Budget(macs=0.7), method=method, allocator="uniform")
    whole, left = model_cost(model, data[0]), model_cost(small, data[0])
    assert 0.65 * whole.macs < left.macs <= 0.7 * whole.macs
    assert left.params < whole.params
    assert plan_of(small).changes()
    with torch.no_grad():
        expected = small(data[0])
        exported = torch.export.export(small, (data[0],)).module()
        assert torch.isfinite(expected).all() and expected.shape == model(data[0]).shape
        torch.testing.assert_close(exported(data[0]), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_all_channels_it_is_the_original(name: str) -> None:
    """Every consumer refitted to all its channels; in float64, since 1e-5 is asked for."""
    build, shape = ARCHITECTURES[name]
    model, data = settled(build, *shape).double(), [x.double() for x in random_batches(*shape, count=2)]
    work = copy.deepcopy(model)
    method = get_method("interpolative", ridge=0.0)
    scene = Scene.of(work, data[0], method, model_cost(work, data[0]))
    scene.measure(data)
    kept = {group.name: list(range(group.size)) for group in scene.free}
    apply_selection_(work, selection_of(scene.groups, kept), scene.folds({}, kept))
    with torch.no_grad():
        torch.testing.assert_close(work(data[0]), model(data[0]), rtol=1e-5, atol=1e-5)
