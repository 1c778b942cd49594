"""The closed-form refit against least squares by numpy, and what it must leave alone."""

import copy

import numpy as np
import pytest
import torch
from tests.network.skip_net import SkipNet, images
from torch import nn

import rankwise
from rankwise.errors import CalibrationError
from rankwise.methods import get_method
from rankwise.network import find_layers
from rankwise.network.additions import sights
from rankwise.network.surgery import replace_
from rankwise.plan import outputs_left, plan_of
from rankwise.recovery import Refit, divergence, get_recovery, refit_
from rankwise.recovery.mixing import mixed
from rankwise.recovery.wanted import Wanted, shared_batchnorm
from rankwise.statistics.patches import patches

TINY = 1e-9


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SkipNet().double().eval()


def batches(count: int = 8) -> list[torch.Tensor]:
    return [images(16, seed).double() for seed in range(count)]


def factorised(model: nn.Module, ranks: dict[str, int], method: str = "svd") -> nn.Module:
    work = copy.deepcopy(model)
    for layer in find_layers(model, images(2).double()):
        if layer.name in ranks:
            chosen = get_method(method)
            candidates = chosen.candidates(layer, None)
            index = int(np.flatnonzero(candidates.choices["rank"] == ranks[layer.name])[0])
            replace_(work, layer.name, chosen.build(layer, None, candidates.choice(index)))
    return work


def seen(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Input patches with a 1 appended, and outputs, one row per position."""
    (found,) = find_layers(nn.Sequential(layer), x)
    u = patches(found, x).flatten(0, 2).numpy()
    return np.c_[u, np.ones(len(u))], y.movedim(1, -1).flatten(0, -2).detach().numpy()


def test_a_dense_layer_is_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    original, model = nn.Sequential(nn.Identity(), conv), nn.Sequential(nn.Tanh(), copy.deepcopy(conv))
    data = batches(3)  # fewer than four: all of them fit
    done = refit_(model, original, data, settings=Refit(ridges=(TINY,), mixup=0.0))
    x = torch.cat(data)
    u, t = seen(conv, x.tanh(), original(x))
    expected = np.linalg.lstsq(u, t, rcond=None)[0].T
    found = np.c_[model[1].weight.detach().flatten(1).numpy(), model[1].bias.detach().numpy()]
    assert np.allclose(found, expected, atol=1e-5)
    assert np.isclose(done["1"].after, ((u @ expected.T - t) ** 2).sum() / len(t))


def test_a_factorised_layer_is_the_reduced_rank_regression() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 3, padding=1).double()
    original = nn.Sequential(nn.Identity(), conv)
    model = factorised(nn.Sequential(nn.Tanh(), conv), {"1": 2})
    data = batches(3)
    done = refit_(model, original, data, settings=Refit(ridges=(TINY,), gradient=False, mixup=0.0))
    x = torch.cat(data)
    u, t = seen(conv, x.tanh(), original(x))
    free = u @ np.linalg.lstsq(u, t, rcond=None)[0]
    tail = np.linalg.svd(free - free.mean(0), compute_uv=False)[2:]  # Izenman 1975
    expected = ((t - free) ** 2).sum() + (tail**2).sum()
    reached = ((model(x) - original(x)) ** 2).sum().item()
    assert np.isclose(reached, expected, rtol=1e-6)
    assert np.isclose(done["1"].after * len(t), expected, rtol=1e-6)


def test_what_is_wanted_restores_the_sum_behind_the_skip() -> None:
    original, model = net(), net()
    with torch.no_grad():
        model.stem.weight.mul_(0.7)
        model.first.bn2.running_mean.add_(0.1)
    x = images(4).double()
    (first,), (second,) = sights(original, x, "first.conv2"), sights(model, x, "first.conv2")
    pair = shared_batchnorm(original, model, first, second)
    target = Wanted(None, 1, residual=True).target(first, second, pair)
    with torch.no_grad():
        sums = [
            net.get_submodule("first.bn2")(y) + sight.skip
            for net, y, sight in ((original, first.output, first), (model, target, second))
        ]
    assert torch.allclose(sums[0], sums[1], atol=1e-10)
    assert not torch.allclose(first.skip, second.skip, atol=1e-2)


def test_every_layer_behind_a_compressed_one_makes_up_for_it() -> None:
    original = net()
    model = factorised(original, {"first.conv1": 3, "first.conv2": 3, "second.conv1": 3})
    data = batches()
    before = divergence(model, original, data[-1:])
    whole = copy.deepcopy(model)
    found = refit_(whole, original, data)
    assert divergence(whole, original, data[-1:]) < 0.5 * before
    assert [n for n, f in found.items() if f.reason is None and f.after > f.before] == []
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert [tuple(p.shape) for p in whole.parameters()] == shapes


@pytest.mark.parametrize("method", ["cp", "tucker2", "alds", "spatial_svd"])
def test_chains_of_any_method_are_refitted(method: str) -> None:
    original = net()
    data = batches()
    chosen = get_method("cp", effort=0.1, polish=0) if method == "cp" else method
    small = rankwise.compress(
        original, data, rankwise.Budget(params=0.8), method=chosen, include=["first.*"], seed=0
    )
    before = divergence(small, original, data[-1:])
    found = refit_(small, original, data)
    assert any(f.reason is None and f.after < f.before for f in found.values())
    assert divergence(small, original, data[-1:]) < before


def test_narrowed_layers_are_fitted_onto_the_outputs_that_are_left() -> None:
    original = net()
    data = batches()
    small = rankwise.compress(original, data, rankwise.Budget(macs=0.6), method="l2")
    left = outputs_left(original, plan_of(small).edits)
    assert any(kept is not None and len(kept) < 8 for kept in left.values())
    stem = small.stem.weight  # slicing alone: the rows that are left are the original's
    assert torch.equal(stem, original.stem.weight[left.get("stem") or slice(None)])
    before = divergence(small, original, data[-1:])
    refit_(small, original, data, left)
    assert divergence(small, original, data[-1:]) < 0.7 * before


def test_an_unchanged_network_stays_as_it_is() -> None:
    original = net()
    model = copy.deepcopy(original)
    refit_(model, original, batches())
    x = images(4, 77).double()
    with torch.no_grad():
        assert torch.allclose(model(x), original(x), atol=1e-6)


def test_memory_is_bounded_layer_by_layer() -> None:
    original, data = net(), batches()
    ranks = {"first.conv1": 3, "first.conv2": 3}
    free, bound, tight, partly = (factorised(original, ranks) for _ in range(4))
    order = list(refit_(free, original, data))
    told: list[tuple[str, int, int]] = []
    refit_(bound, original, data, settings=Refit(max_memory=2**30), progress=lambda *a: told.append(a))
    assert all(torch.equal(v, bound.state_dict()[n]) for n, v in free.state_dict().items())
    layers = [call for call in told if call[0] == "refit"]
    assert layers == [("refit", done, len(layers)) for done in range(len(layers))] and len(layers) > 1
    before = copy.deepcopy(tight.state_dict())
    columns = {layer.name: layer.geometry.columns for layer in find_layers(original, data[0])}
    limit = 16 * 8 * min(columns.values())
    done = refit_(tight, original, data, settings=Refit(max_memory=limit))
    assert all(f"max_memory={limit}" in (fitted.reason or "") for fitted in done.values())
    assert all(torch.equal(v, before[n]) for n, v in tight.state_dict().items())
    some = refit_(partly, original, data, settings=Refit(max_memory=24 * max(columns.values()) ** 2))
    assert list(some) == order and len({fitted.reason is None for fitted in some.values()}) == 2


def test_the_recovery_by_name_is_undone_where_it_would_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    original = net()
    model = factorised(original, {"first.conv1": 3})
    before = copy.deepcopy(model.state_dict())
    get_recovery("closed-form")(model, original, batches(), ["first.conv1"])
    assert any(not torch.equal(v, before[n]) for n, v in model.state_dict().items())

    def ruin(model: nn.Module, *args: object) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(-3)

    monkeypatch.setattr("rankwise.recovery.refit.refit_", ruin)
    kept = copy.deepcopy(model.state_dict())
    get_recovery("closed-form")(model, original, batches(), ["first.conv1"])
    assert all(torch.equal(v, kept[n]) for n, v in model.state_dict().items())


def test_flags_and_the_original_are_left_alone() -> None:
    original = net()
    model = factorised(original, {"first.conv1": 3}).train()
    original.train()
    kept = copy.deepcopy(original.state_dict())
    refit_(model, original, batches())
    assert all(m.training for m in (*model.modules(), *original.modules()))
    assert all(torch.equal(v, kept[n]) for n, v in original.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*model.modules(), *original.modules()))


def test_no_batches_and_nan_are_errors() -> None:
    original = net()
    with pytest.raises(CalibrationError, match="no calibration batches"):
        refit_(copy.deepcopy(original), original, [])
    with pytest.raises(CalibrationError, match="NaN"):
        refit_(copy.deepcopy(original), original, [images(2).double() * float("nan")])
    data = [*batches(4), images(2).double() * float("nan")]  # the last one is held out
    with pytest.raises(CalibrationError, match="In calibration batch 4: the output of layer 'stem'"):
        refit_(copy.deepcopy(original), original, data)


def test_inside_inference_mode_it_is_the_same() -> None:
    original = net()
    models = [factorised(original, {"first.conv1": 3, "second.conv1": 3}) for _ in range(2)]
    refit_(models[0], original, batches())
    with torch.inference_mode():
        refit_(models[1], original, batches())
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other) and not other.is_inference()


def test_compress_does_it() -> None:
    original, data = net(), batches()
    options = {"method": "svd", "budget": rankwise.Budget(macs=0.5)}
    raw = rankwise.compress(original, data, **options)
    recovered = rankwise.compress(original, data, recovery=("closed-form",), **options)
    assert divergence(recovered, original, data[-1:]) < divergence(raw, original, data[-1:])
    assert plan_of(recovered).settings[0]["recovery"] == ["closed-form"]


def test_blends_are_further_examples_to_fit_on() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 3, padding=1).double()
    original = nn.Sequential(nn.Identity(), conv)
    data = batches(8)
    by_hand = [b for batch in data[:7] for b in (batch, mixed(original, batch, 0.35))]
    found = []
    for given, settings in (
        (data, Refit(ridges=(1e-3,), gradient=False)),
        ([*by_hand, data[7]], Refit(ridges=(1e-3,), gradient=False, holdout=1 / 15, mixup=0.0)),
        (data, Refit(ridges=(1e-3,), gradient=False, mixup=0.0)),
    ):
        model = factorised(nn.Sequential(nn.Tanh(), conv), {"1": 2})
        refit_(model, original, given, settings=settings)
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=1e-3)


def test_what_no_gradient_reaches_is_refitted_without_one() -> None:
    class Detached(SkipNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.flatten(self.second(self.first(self.stem(x))).mean((2, 3)), 1).detach())

    torch.manual_seed(0)
    original = Detached().double().eval()
    models = [factorised(original, {"first.conv1": 3}) for _ in range(2)]
    for model, gradient in zip(models, (True, False), strict=True):
        refit_(model, original, batches(), settings=Refit(gradient=gradient))
    assert all(map(torch.equal, *(list(model.parameters()) for model in models)))
