import copy
from typing import Any

import pytest
import torch
from tests.conformance.layer_cases import LAYER_CASES, LayerCase, build
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from rankwise.network.cost import count_macs
from rankwise.network.find import find_layers
from rankwise.network.layer import Layer


def found(model: nn.Module, example: Any, **options: Any) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(model, example, **options)}


def reason(model: nn.Module, example: Any, name: str) -> str:
    why = found(model, example)[name].reason
    assert why is not None
    return why


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_shapes_and_cost_of_every_kind(case: LayerCase) -> None:
    model, batches = build(case)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(batches[0])
    (layer,) = find_layers(model, batches[0])
    assert layer.name == "0" and layer.module is model[0] and layer.reason is None
    assert layer.cost.params == sum(p.numel() for p in model.parameters())
    assert layer.cost.bytes == 8 * layer.cost.params
    assert layer.cost.macs * 2 * case.shape[0] == counter.get_total_flops()
    assert layer.input_shapes == (case.shape[1:],)
    assert layer.output_shapes == (tuple(output.shape[1:]),)
    assert layer.positions == output[0].numel() // layer.geometry.out_channels


class Tail(nn.Module):
    """Registered in another order than run; one branch never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.unused = nn.Linear(3, 3)
        self.first = nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).mean(2))


def test_order_of_execution_and_never_reached() -> None:
    layers = find_layers(Tail(), torch.randn(2, 3, 5))
    assert [layer.name for layer in layers] == ["first", "last", "unused"]
    assert [layer.reason for layer in layers] == [None, None, "never reached by the example"]
    assert layers[2].cost.macs == 0 and layers[2].cost.params == 12


def test_a_layer_called_several_times_counts_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(functional.avg_pool2d(self.conv(x), 2))

    model, x = Twice(), torch.randn(2, 3, 8, 8)
    (layer,) = find_layers(model, x)
    assert layer.reason is None and layer.calls == 2
    assert layer.input_shapes == ((3, 8, 8), (3, 4, 4))
    assert layer.positions == 64 + 16
    assert layer.cost.macs == count_macs(model, x) == 81 * 80


def test_leading_dimensions_other_than_the_batch() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.sequence_first = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:  # (N, T, 3, H, W)
            y = self.conv(x.flatten(0, 1)).mean((2, 3)).unflatten(0, x.shape[:2])
            return self.sequence_first(y.transpose(0, 1))  # (T, N, 4)

    model, x = Frames(), torch.randn(2, 3, 3, 5, 6)
    layers = found(model, x)
    assert layers["conv"].input_shapes == ((3, 5, 6),) * 3
    assert layers["sequence_first"].input_shapes == ((3, 4),)
    assert sum(layer.cost.macs for layer in layers.values()) == count_macs(model, x)


def test_rows_that_do_not_split_into_examples_are_refused() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Linear(2, 3)
            self.register_buffer("table", torch.randn(7, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.bias(self.table).sum(0)

    assert "does not split into 2 examples" in reason(Table(), torch.randn(2, 3), "bias")


def test_include_and_exclude() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    layers = found(model, torch.randn(2, 3), include="re:[01]", exclude=["1"])
    assert [layer.reason for layer in layers.values()] == [
        None, "excluded by name", "not among the included names",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
    layers = find_layers(model, torch.randn(2, 3, dtype=dtype))
    assert [layer.cost.macs for layer in layers] == [12, 8]
    assert layers[0].dtype == dtype and layers[0].cost.bytes == 16 * dtype.itemsize


def test_the_model_itself_may_be_a_layer() -> None:
    (layer,) = find_layers(nn.Linear(3, 4), torch.randn(2, 3))
    assert layer.name == "" and layer.reason is None and layer.cost.macs == 12


def test_weight_tied_between_modules() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(x))

    assert reason(Tied(), torch.randint(0, 7, (2, 3)), "head") == "weight tied with embed.weight"


COMPUTED = "parametrised: its weight is computed from"


class OwnForward(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class PlainSubclass(nn.Linear):
    pass


def _with_instance_forward() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return layer


def _with_bound_forward() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.forward = layer.forward  # type: ignore[method-assign]
    return layer


def _legacy(function: Any) -> nn.Module:
    with pytest.warns(FutureWarning):
        module: nn.Module = function(nn.Linear(3, 3))
    return module


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(3, 3)), "parametrised: weight"),
        (lambda: parametrizations.orthogonal(nn.Linear(3, 3)), "parametrised: weight"),
        (
            lambda: _legacy(nn.utils.weight_norm),
            "parametrised: its weight is computed from weight_g, weight_v",
        ),
        (
            lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
            "parametrised: its weight is computed from weight_orig",
        ),
        (
            lambda: prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5),
            f"{COMPUTED} weight_orig, weight_mask",
        ),
        (lambda: OwnForward(3, 3), "a OwnForward with its own forward"),
        (_with_instance_forward, "a Linear with its own forward"),
        (_with_bound_forward, None),
        (lambda: PlainSubclass(3, 3), None),
    ],
)
def test_layers_that_are_not_what_they_look_like(make: Any, expected: str | None) -> None:
    model = nn.Sequential(make())
    why = found(model, torch.randn(2, 3))["0"].reason
    assert why == expected if expected is None else (why or "").startswith(expected)


def test_weights_that_are_no_plain_floating_tensors() -> None:
    class Whole(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3, bias=False)
            self.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)

    class Wrapped(torch.Tensor):
        pass

    x = torch.ones(2, 3, dtype=torch.int64)
    assert reason(nn.Sequential(Whole()), x, "0") == "its weight is of type torch.int64"
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.randn(3, 3).as_subclass(Wrapped))
    assert "Wrapped" in reason(nn.Sequential(layer), torch.randn(2, 3), "0")


def test_lazy_layers_are_named_and_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    layers = found(model, torch.randn(2, 3))
    assert "lazy" in (layers["0"].reason or "")
    assert layers["2"].reason is None and layers["2"].cost.macs == 8
    assert model[0].has_uninitialized_params()  # type: ignore[operator]


def test_more_arguments_than_the_input() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 3, 3, stride=2)
            self.named = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.named(input=self.up(x, output_size=[8]))

    layers = found(Up(), torch.randn(2, 2, 3))
    assert layers["up"].reason == "it is called with more than its input"
    assert layers["named"].reason is None


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_feed_forward_layers_of_transformers_are_reached(training: bool, norm_first: bool) -> None:
    block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(block, 2, enable_nested_tensor=False).train(training)
    layers = found(model, torch.randn(2, 5, 8))
    for index in (0, 1):
        assert layers[f"layers.{index}.linear1"].reason is None
        assert layers[f"layers.{index}.linear2"].cost.macs == 5 * 8 * 12
        why = layers[f"layers.{index}.self_attn.out_proj"].reason
        assert why == "read by the fused attention of nn.MultiheadAttention"
    assert torch.backends.mha.get_fastpath_enabled()


def test_hugging_face_models() -> None:
    from transformers import BatchEncoding, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).train()
    ids = torch.randint(0, 11, (3, 5))
    layers = found(model, BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    assert layers["lm_head"].reason == "weight tied with transformer.wte.weight"
    attention = layers["transformer.h.0.attn.c_attn"]
    assert attention.reason is None and attention.cost.macs == 5 * 8 * 24
    assert (attention.geometry.in_channels, attention.geometry.out_channels) == (8, 24)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor, fail: torch.Tensor) -> torch.Tensor:
        y = functional.dropout(self.norm(self.layer(x)), training=True)
        if fail.any():
            raise RuntimeError("the model's own failure")
        return y


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(fail: bool) -> None:
    model = Failing().train()
    model.layer.eval()
    model.layer.weight.grad = torch.ones(3, 3)
    before = copy.deepcopy(model.state_dict())
    getattr_before = nn.Module.__getattr__
    generator = torch.random.get_rng_state()
    example = (torch.randn(2, 3), torch.tensor([fail, fail]))
    torch.random.set_rng_state(generator)
    if fail:
        with pytest.raises(RuntimeError, match="own failure"):
            find_layers(model, example)
    else:
        assert len(find_layers(model, example)) == 1
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert model.training and not model.layer.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert nn.Module.__getattr__ is getattr_before
    assert torch.equal(model.layer.weight.grad, torch.ones(3, 3))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_caught_failure_inside_the_model_does_not_confuse_the_watch() -> None:
    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.a(x)
            except RuntimeError:
                return self.b(x)

    layers = found(Trying(), torch.randn(2, 3))
    assert layers["b"].reason is None and layers["b"].cost.macs == 9


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_compiled_model_is_read_without_compiling_it() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise AssertionError("compiled")

    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    compiled = torch.compile(model, backend=backend)
    layers = found(compiled, x)
    assert [(name, layer.reason) for name, layer in layers.items()] == [
        ("_orig_mod.0", None),
        ("_orig_mod.2", None),
    ]
    assert count_macs(compiled, x) == 20
