import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.conformance.layer_cases import LAYER_CASES, LayerCase, build
from torch import nn
from torch.nn import functional

from rankwise.errors import CalibrationError
from rankwise.network.find import find_layers
from rankwise.network.layer import Layer
from rankwise.statistics import LayerStatistics, Statistic, collect, patches

ALL: frozenset[Statistic] = frozenset(("input", "output", "gradient", "samples", "target"))


class Net(nn.Module):
    """Convolutions with in-place activations, a layer called twice, a wide linear layer, a spare one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.expand = nn.Conv2d(8, 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12 * 16, 5)
        self.spare = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu_(self.conv(x))
        x = functional.relu_(self.twice(x))
        x = self.twice(functional.avg_pool2d(x, 2))
        return self.head(self.norm(self.expand(x)).flatten(1))


@pytest.fixture
def model() -> nn.Module:
    return Net().double().train()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return [torch.randn(n, 3, 8, 8).double() + 0.3 for n in (4, 3)]


def layers_of(model: nn.Module, batches: list[Any]) -> list[Layer]:
    return [layer for layer in find_layers(model, batches[0]) if layer.reason is None]


def wanting(layers: list[Layer], *names: Statistic) -> dict[str, frozenset[Statistic]]:
    return {layer.name: frozenset(names) for layer in layers}


def recorded(model: nn.Module, batches: list[Any], name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and outputs of a layer, by the plainest of hooks."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda m, a, y: calls.append((a[0].clone(), y.clone()))
    )
    twin_mode = model.training
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch)
    model.train(twin_mode)
    handle.remove()
    return iter(calls)


def rows_of(layer: Layer, model: nn.Module, batches: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """All patches ``(n, G, d)`` and outputs ``(n, G, o)`` that a layer sees."""
    u, y = [], []
    for x, out in recorded(model, batches, layer.name):
        u.append(patches(layer, x).flatten(0, 1))
        rows = (
            out.reshape(-1, out.shape[-1])
            if layer.geometry.kind == "linear"
            else out.flatten(2).mT.flatten(0, 1)
        )
        y.append(rows.unflatten(1, (layer.geometry.groups, -1)))
    return torch.cat(u).double().numpy(), torch.cat(y).double().numpy()


def compare(found: LayerStatistics, u: np.ndarray, y: np.ndarray, w: np.ndarray | None = None) -> None:
    w = np.ones(len(u)) if w is None else w
    assert found.positions == pytest.approx(w.sum(), rel=1e-14)
    if found.input_sum is not None:
        np.testing.assert_allclose(found.input_mean, np.einsum("n,ngd->gd", w, u) / w.sum(), atol=1e-12)
        moment = np.einsum("n,ngd,nge->gde", w, u, u) / w.sum()
        np.testing.assert_allclose(found.input_moment, moment, rtol=1e-9, atol=1e-10)
    if found.output_sum is not None:
        np.testing.assert_allclose(found.output_mean, np.einsum("n,ngo->go", w, y) / w.sum(), atol=1e-11)
        moment = np.einsum("n,ngo,ngp->gop", w, y, y) / w.sum()
        np.testing.assert_allclose(found.output_moment, moment, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("names", [("input",), ("output",), ("input", "output")], ids="+".join)
def test_moments_of_every_kind(case: LayerCase, names: tuple[Statistic, ...]) -> None:
    model, batches = build(case)
    layers = layers_of(model, batches)
    found = collect(model, layers, batches, wanting(layers, *names))["0"]
    assert found.examples == 3 * case.shape[0]
    assert found.positions == found.examples * layers[0].positions
    assert (found.input_sum is not None) == ("input" in names)
    assert (found.output_square is not None) == ("output" in names)
    compare(found, *rows_of(layers[0], model, batches))


def test_moments_in_a_network(model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    assert [layer.name for layer in layers] == ["conv", "twice", "expand", "head"]
    found = collect(model, layers, batches, wanting(layers, "input", "output"))
    for layer in layers:
        assert found[layer.name].examples == 7
        compare(found[layer.name], *rows_of(layer, model, batches))
    assert found["head"].input_square is None  # 7 rows of 192 inputs: the factor is kept
    assert found["head"].input_rows is not None and found["head"].input_rows.shape == (1, 7, 192)


@pytest.mark.parametrize("name", ["input", "output", "samples", "gradient", "target"])
def test_waves_give_the_same(name: Statistic, model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    told: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"reference": copy.deepcopy(model), "samples": 4, "seed": 3}
    whole = collect(model, layers, batches, wanting(layers, name), **options)
    parts = collect(
        model, layers, batches, wanting(layers, name), max_memory=50_000,
        progress=lambda *step: told.append(step), **options,
    )  # fmt: skip
    assert told[-1][1] == told[-1][2] and told[-1][0] == "calibrate"
    for layer, held in whole.items():
        for key, value in held.tensors().items():
            assert torch.equal(value, parts[layer].tensors()[key]), (layer, key)


def test_memory_limits(model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    told: list[tuple[str, int, int]] = []
    need = wanting(layers, "input")
    limit = 22_000  # conv 8*27*28, twice 8*2*36*37, expand 8*8*9, head 8*192*(7+1): three waves
    collect(model, layers, batches, need, max_memory=limit, progress=lambda *step: told.append(step))
    assert told[-1][1:] == (6, 6)
    with pytest.raises(CalibrationError, match="read once"):
        collect(model, layers, iter(batches), need, max_memory=300_000)  # how many rows come is unknown
    with pytest.raises(CalibrationError, match=r"layer 'conv' take up to \d+ bytes, max_memory=100"):
        collect(model, layers, batches, need, max_memory=100)


def test_an_iterator_is_enough_for_one_wave_and_is_consumed_lazily(
    model: nn.Module, batches: list[torch.Tensor]
) -> None:
    layers = layers_of(model, batches)
    alive: list[int] = []

    def stream() -> Iterator[torch.Tensor]:
        for index, batch in enumerate(batches):
            alive.append(index)
            yield batch

    seen: list[list[int]] = []
    found = collect(
        model, layers, stream(), wanting(layers, "output"), progress=lambda *_: seen.append(list(alive))
    )
    assert seen == [[0], [0, 1]]
    again = collect(model, layers, batches, wanting(layers, "output"))
    assert torch.equal(found["conv"].output_moment, again["conv"].output_moment)


def test_example_weights(model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    weight = {4: torch.tensor([0.0, 2.0, 1.0, 0.5]), 3: torch.tensor([1.0, 3.0, 0.25])}
    found = collect(
        model, layers, batches, wanting(layers, "input", "output"), weights=lambda batch: weight[len(batch)]
    )
    for layer in layers:
        per_call = [len(x) for x, _ in recorded(model, batches, layer.name)]
        u, y = rows_of(layer, model, batches)
        positions = [shape[1:] for shape in layer.output_shapes]
        counts = [int(np.prod(p)) for p in positions] * 2
        w = np.concatenate(
            [np.repeat(weight[n].double().numpy(), c) for n, c in zip(per_call, counts, strict=True)]
        )
        assert found[layer.name].examples == pytest.approx(7.75)
        compare(found[layer.name], u, y, w)


@pytest.mark.parametrize(
    "weights", [torch.ones(3), torch.tensor([1.0, -1, 1, 1]), torch.full((4,), torch.nan)]
)
def test_bad_weights(weights: torch.Tensor, model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    with pytest.raises(CalibrationError, match="one finite, non-negative number per example"):
        collect(model, layers, batches, wanting(layers, "output"), weights=lambda batch: weights)


def test_weights_of_sequences_that_come_first() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.transpose(0, 1)).transpose(0, 1)

    model, x, w = First().double(), torch.randn(2, 5, 3).double(), torch.tensor([1.0, 3.0])
    layers = layers_of(model, [x])
    found = collect(model, layers, [x], wanting(layers, "input"), weights=lambda batch: w)["layer"]
    expected = torch.einsum("n,npd->d", w.double(), x) / 20
    assert found.positions == 20.0
    torch.testing.assert_close(found.input_mean[0], expected)


def test_targets_come_from_the_reference(model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    compressed = copy.deepcopy(model)
    with torch.no_grad():
        compressed.conv.weight.mul_(0.7)  # type: ignore[operator, union-attr]
    found = collect(compressed, layers, batches, wanting(layers, "target"), reference=model)
    for layer in layers:
        u, _ = rows_of(layer, compressed, batches)
        _, t = rows_of(layer, model, batches)
        held, n = found[layer.name], len(u)
        np.testing.assert_allclose(held.cross_moment, np.einsum("ngo,ngd->god", t, u) / n, atol=1e-10)
        np.testing.assert_allclose(held.target_mean, t.mean(0), atol=1e-11)
        np.testing.assert_allclose(held.target_moment, np.einsum("ngo,ngp->gop", t, t) / n, atol=1e-10)
        np.testing.assert_allclose(held.input_moment, np.einsum("ngd,nge->gde", u, u) / n, atol=1e-10)
    with pytest.raises(CalibrationError, match=r"'target' of layer 'conv' needs reference="):
        collect(model, layers, batches, wanting(layers, "target"))


def test_a_replaced_layer_is_seen_by_its_name(model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    model.expand = nn.Sequential(nn.Conv2d(8, 3, 1), nn.Conv2d(3, 12, 1)).double()
    found = collect(model, layers, batches, wanting(layers, "input", "output"))
    compare(found["expand"], *rows_of(layers[2], model, batches))


def test_samples_are_true_rows(model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    found = collect(model, layers, batches, wanting(layers, "samples"), samples=10, seed=1)
    for layer in layers:
        u, y = rows_of(layer, model, batches)
        held = found[layer.name]
        assert held.sample_inputs is not None and held.sample_outputs is not None
        assert len(held.sample_inputs) == min(10, len(u))
        distance = np.abs(held.sample_inputs.numpy()[:, None] - u[None]).sum((2, 3))
        nearest = distance.argmin(1)
        assert distance.min(1).max() < 1e-12 and len(set(nearest)) == len(nearest)
        np.testing.assert_allclose(held.sample_outputs, y[nearest], atol=1e-12)
    again = collect(model, layers, batches, wanting(layers, "samples"), samples=10, seed=1)
    other = collect(model, layers, batches, wanting(layers, "samples"), samples=10, seed=2)
    assert torch.equal(found["conv"].sample_inputs, again["conv"].sample_inputs)  # type: ignore[arg-type]
    assert not torch.equal(found["conv"].sample_inputs, other["conv"].sample_inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["generator", "list"])
def test_no_batch_at_all(kind: str, model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    empty: Any = iter(()) if kind == "generator" else []
    with pytest.raises(CalibrationError, match="empty"):
        collect(model, layers, empty, wanting(layers, "output"))


def test_a_layer_that_no_batch_reaches_has_empty_statistics(
    model: nn.Module, batches: list[torch.Tensor]
) -> None:
    layers = find_layers(model, batches[0])
    held = collect(model, layers, batches, wanting(layers, *ALL - {"target"}))["spare"]
    assert held.positions == 0.0 and held.examples == 7.0 and held.input_sum is None
    with pytest.raises(CalibrationError, match="not collected"):
        _ = held.output_mean


class Experts(nn.Module):
    """Sends every row to one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, low = torch.zeros_like(x), x[:, 0] < 0
        y[low], y[~low] = self.low(x[low]), self.high(x[~low])
        return y


def test_a_layer_called_on_no_rows_at_all() -> None:
    model, batches = Experts().double(), [torch.rand(4, 3).double(), -torch.rand(2, 3).double()]
    layers = layers_of(model, batches)
    found = collect(model, layers, batches, wanting(layers, *ALL - {"target"}))
    assert {name: held.positions for name, held in found.items()} == {"low": 2.0, "high": 4.0}
    assert {held.examples for held in found.values()} == {6.0}
    torch.testing.assert_close(found["low"].input_mean[0], batches[1].mean(0))


def test_nothing_wanted_runs_nothing(model: nn.Module) -> None:
    assert collect(model, [], [], {}) == {}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("names", [("input",), ("output",), ("gradient",), ("samples",)], ids="+".join)
def test_nan_names_layer_and_batch(
    value: float, names: tuple[Statistic, ...], model: nn.Module, batches: list[torch.Tensor]
) -> None:
    layers = layers_of(model, batches)
    batches[1][2, 0, 0, 0] = value
    with pytest.raises(CalibrationError, match=r"calibration batch 1: .* of layer 'conv' holds NaN or inf"):
        collect(model, layers, batches, wanting(layers, *names))


def test_nan_in_a_weight_names_the_layer(model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    with torch.no_grad():
        model.expand.weight[0] = torch.nan  # type: ignore[operator, index, union-attr]
    with pytest.raises(CalibrationError, match="layer 'expand'"):
        collect(model, layers, batches, wanting(layers, "output"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, model: nn.Module, batches: list[torch.Tensor]) -> None:
    model = model.to(dtype)
    batches = [batch.to(dtype) for batch in batches]
    layers = layers_of(model, batches)
    found = collect(model, layers, batches, wanting(layers, "input", "output"))
    u, y = rows_of(layers[0], model, batches)
    assert found["conv"].output_square is not None and found["conv"].output_square.dtype == torch.float64
    moment = np.einsum("ngo,ngp->gop", y, y) / len(y)
    np.testing.assert_allclose(found["conv"].output_moment, moment, rtol=0.05, atol=0.05)
    np.testing.assert_allclose(found["conv"].input_mean, u.mean(0), atol=1e-12)


class Doomed(Net):
    """Fails on the second batch, after having drawn random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        self.count += 1
        if self.count > 2:
            raise RuntimeError("the model's own failure")
        return super().forward(x)


@pytest.mark.parametrize("make", [Net, Doomed])
def test_the_model_is_left_as_it_was(make: Callable[[], nn.Module], batches: list[torch.Tensor]) -> None:
    model = make().double().train()
    model.norm.eval()  # type: ignore[union-attr]
    model.conv.weight.requires_grad_(False)  # type: ignore[operator, union-attr]
    layers = layers_of(model, batches)
    model.head.weight.grad = torch.ones_like(model.head.weight)  # type: ignore[union-attr, arg-type]
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    options: dict[str, Any] = {"reference": model, "samples": 3}
    if make is Doomed:
        with pytest.raises(RuntimeError, match="own failure"):
            collect(model, layers, batches, wanting(layers, *ALL), **options)
    else:
        collect(model, layers, batches, wanting(layers, *ALL), **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and not model.norm.training  # type: ignore[union-attr]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name != "conv.weight")
        expected = torch.ones_like(parameter) if name == "head.weight" else None
        assert (parameter.grad is None) == (expected is None)
        if expected is not None:
            assert torch.equal(parameter.grad, expected)  # type: ignore[arg-type]
    assert torch.is_grad_enabled()


def test_inputs_that_require_gradients_get_none(model: nn.Module, batches: list[torch.Tensor]) -> None:
    wanted = [batch.clone().requires_grad_() for batch in batches]
    layers = layers_of(model, batches)
    found = collect(model, layers, wanted, wanting(layers, "gradient"))
    same = collect(model, layers, batches, wanting(layers, "gradient"))
    assert all(batch.grad is None and batch.requires_grad for batch in wanted)
    assert all(torch.equal(found[n].gradient_square, same[n].gradient_square) for n in found)


def test_inside_inference_mode_it_is_the_same(model: nn.Module, batches: list[torch.Tensor]) -> None:
    layers = layers_of(model, batches)
    expected = collect(model, layers, batches, wanting(layers, "input", "gradient"))
    with torch.inference_mode():
        found = collect(model, layers, [b.clone() for b in batches], wanting(layers, "input", "gradient"))
    for name, statistics in expected.items():
        assert torch.equal(found[name].gradient_square, statistics.gradient_square)
        assert not any(tensor.is_inference() for tensor in found[name].tensors().values())
