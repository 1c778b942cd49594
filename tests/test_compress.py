"""The whole flow on small models: budgets met, models left alone, errors a stranger meets."""

import copy
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import rankwise
from rankwise import Budget, compress, compression, plan_of
from rankwise.errors import BudgetError, CalibrationError, RankwiseError, UnknownNameError
from rankwise.models import load_model
from rankwise.recovery.checkpoint import own_randomness, seed_all
from rankwise.settings import Settings


def small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    ).eval()


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(count)]


def measured(model: nn.Module) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batches()[0][:1])
    return {"params": sum(p.numel() for p in model.parameters()), "macs": counter.get_total_flops() // 2}


@pytest.mark.parametrize("method", ["svd", "whitened", "pca"])
@pytest.mark.parametrize("allocator", ["uniform", "energy", "knapsack"])
@pytest.mark.parametrize("budget", [{"params": 0.6}, {"macs": 0.6}, {"params": 0.8, "macs": 0.6}])
def test_the_budget_is_met_and_used(method: str, allocator: str, budget: dict[str, float]) -> None:
    model = small_cnn()
    result = compress(model, batches(), Budget(**budget), method=method, allocator=allocator)
    before, after = measured(model), measured(result)
    kept = {name: after[name] / before[name] for name in budget}
    assert all(kept[name] <= budget[name] for name in budget)
    assert any(kept[name] > budget[name] - 0.02 for name in budget)
    assert not any(type(m).__module__.startswith("rankwise") for m in result.modules())


def test_several_methods_compete_for_every_layer() -> None:
    both = compression(small_cnn(), batches(), Budget(macs=0.5), method=["whitened", "pca"])
    chosen = {edit.method for edit in both.plan.changes()}
    assert chosen <= {"whitened", "pca"} and chosen


def test_the_model_is_left_exactly_as_it_was() -> None:
    model = small_cnn().train()
    model[3].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    result = compress(model, batches(), Budget(macs=0.6), method="whitened")
    assert torch.equal(random, torch.get_rng_state())
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert result.training and not result[3].training


def test_same_inputs_same_plan_byte_for_byte() -> None:
    first, second = (
        compression(small_cnn(), batches(), Budget(macs=0.5), method="whitened").plan.to_json()
        for _ in range(2)
    )
    assert first == second


def test_every_layer_is_in_the_plan_with_a_reason_or_a_replacement() -> None:
    plan = compression(small_cnn(), batches(), Budget(macs=0.6), method="whitened", exclude=["8"]).plan
    assert [edit.target for edit in plan.edits] == ["0", "3", "5", "8", "10"]
    kept = {edit.target: edit.reason for edit in plan.edits if edit.op == "keep"}
    assert "depthwise" in (kept["5"] or "") and "exclude" in (kept["8"] or "")
    assert all(kept.values())


def test_rank_multiples_and_overrides_hold() -> None:
    wishes = {"8": {"rank": 8}, "3": {"dense": True}}
    plan = compression(
        small_cnn(), batches(), Budget(macs=0.8), method="whitened", multiple_of=4, overrides=wishes
    ).plan
    changed = {edit.target: edit.choice["rank"] for edit in plan.changes()}
    assert changed["8"] == 8 and "3" not in changed
    assert all(rank % 4 == 0 for rank in changed.values())


@pytest.mark.parametrize("method", ["svd", "l2"])
def test_the_costs_of_edits_add_up_to_those_of_the_plan(method: str) -> None:
    """Those of a layer where it is replaced, those of the whole model where channels are selected."""
    plan = compression(
        small_cnn(), batches(), Budget(macs=0.7), method=method, fold_batchnorm=True, exclude=["8"]
    ).plan
    now = plan.original
    assert {edit.op for edit in plan.edits} >= {"fold_batchnorm", "keep"} and len(plan.changes()) > 1
    for edit in plan.changes():
        saved = {name: edit.before[name] - edit.after[name] for name in ("params", "macs")}
        assert edit.op == "replace" or edit.before == {name: now[name] for name in saved}
        now = {name: now[name] - saved[name] for name in saved}
    assert now == {name: plan.final[name] for name in now}


def test_the_lists_that_the_docstring_names_are_there() -> None:
    named = re.findall(r"``(rankwise\.[\w.]*\(\))``", compress.__doc__ or "")
    assert len(named) == 3
    assert all(eval(name, {"rankwise": rankwise}) for name in named)


def test_compressing_twice_concatenates_the_plans() -> None:
    once = compress(small_cnn(), batches(), Budget(macs=0.7), method="pca")
    twice = compress(once, batches(), Budget(macs=0.8), method="svd")
    plan = plan_of(twice)
    assert len(plan.settings) == 2
    assert plan.edits[: len(plan_of(once).edits)] == plan_of(once).edits
    assert measured(twice)["macs"] <= 0.8 * measured(once)["macs"]
    assert plan.original == plan_of(once).original


def test_dict_and_tuple_batches_are_understood() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small_cnn()

        def forward(self, pixels: torch.Tensor, mask: Any = None) -> dict[str, torch.Tensor]:
            return {"logits": self.body(pixels)}

    result = compress(Named(), [{"pixels": b} for b in batches()], Budget(macs=0.6), method="whitened")
    assert result(pixels=batches()[0])["logits"].shape == (8, 10)
    labels = torch.zeros(8, dtype=torch.long)
    labelled = compress(small_cnn(), [(b, labels) for b in batches()], Budget(macs=0.6), method="whitened")
    assert labelled(batches()[0]).shape == (8, 10)


def test_transformer_feed_forward_layers_compress_and_run_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 64, batch_first=True), 2).eval()
    data = [torch.randn(4, 6, 16) for _ in range(2)]
    done = compression(model, data, Budget(params=0.8), method="whitened")
    assert {edit.target.split(".")[-1] for edit in done.plan.changes()} <= {"linear1", "linear2"}
    mask = torch.zeros(4, 6, dtype=torch.bool)
    with torch.no_grad():
        assert done.model(data[0], src_key_padding_mask=mask).shape == (4, 6, 16)


def test_a_model_that_is_one_layer_says_why_it_cannot_be_replaced() -> None:
    with pytest.raises(BudgetError, match="the smallest reachable is"):
        compress(nn.Linear(32, 32), [torch.randn(8, 32)], Budget(macs=0.5))
    plan = compression(nn.Linear(32, 32), [torch.randn(8, 32)], Budget(macs=1.0), method="whitened").plan
    assert [edit.op for edit in plan.edits] == ["keep"] and "nn.Sequential" in str(plan.edits[0].reason)


def test_an_impossible_budget_names_the_smallest_reachable() -> None:
    message = r"cannot be met by whitened: the smallest reachable is \d+ \(0\.\d+\)"
    with pytest.raises(BudgetError, match=message):
        compress(small_cnn(), batches(), Budget(params=0.01), method="whitened")


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'whitened'"):
        compress(small_cnn(), batches(), Budget(macs=0.5), method="whitend")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((small_cnn(), batches(), "macs=0.5"), "A budget of type str was given"),
        ((small_cnn(), batches(), None), "No budget was given"),
        ((torch.relu, batches(), Budget(macs=0.5)), "allowed is an nn.Module"),
        ((small_cnn().to("meta"), batches(), Budget(macs=0.5)), "'0.weight' and 10 other parameters"),
        ((small_cnn(), batches()[0], Budget(macs=0.5)), r"for one batch a list: \[batch\]"),
        ((small_cnn(), {"x": batches()[0]}, Budget(macs=0.5)), "A dict was given as calibration data"),
        ((small_cnn(), [batches()[0][:0]], Budget(macs=0.5)), "without an example"),
    ],
)
def test_what_is_not_a_model_a_loader_or_a_budget_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RankwiseError, match=message):
        compress(*arguments)


def test_a_model_compressed_in_inference_mode_can_be_trained() -> None:
    model = small_cnn()
    with torch.inference_mode():
        small = compress(model, batches(), Budget(macs=0.6), method="whitened", recovery="batchnorm")
    small.train()(batches()[0]).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'multiple_of'"):
        compression(small_cnn(), batches(), Budget(macs=0.5), multiple_off=8)


def test_the_options_of_compress_are_those_of_the_settings() -> None:
    own = {name: p.default for name, p in inspect.signature(compress).parameters.items()}
    settings = {f.name: f.default for f in fields(Settings)}
    del own["model"], own["calibration"], own["budget"], own["example"]
    del settings["notes"], settings["survey"], settings["moments"]
    assert own == settings


def test_nan_in_a_weight_names_the_layer() -> None:
    model = small_cnn()
    with torch.no_grad():
        model[8].weight[3, 5] = float("nan")
    with pytest.raises(CalibrationError, match="'8'"):
        compress(model, batches(), Budget(macs=0.5), method="svd")
    with pytest.raises(CalibrationError, match="'8'"):
        compress(model, batches(), Budget(macs=0.5), method="whitened")


def test_an_empty_loader_is_named() -> None:
    with pytest.raises(CalibrationError, match="empty"):
        compress(small_cnn(), [], Budget(macs=0.5))


def test_a_generator_is_refused_before_it_is_consumed() -> None:
    def once() -> Iterator[torch.Tensor]:
        yield from batches()

    stream = once()
    with pytest.raises(CalibrationError, match="only once"):
        compress(small_cnn(), stream, Budget(macs=0.5))
    assert len(list(stream)) == 3
    assert measured(compress(small_cnn(), once(), Budget(macs=0.5), example=batches()[0]))["macs"] > 0


def test_data_aware_methods_ask_for_data_and_weight_only_ones_do_not() -> None:
    example = batches()[0]
    with pytest.raises(CalibrationError, match="'whitened' needs calibration batches"):
        compress(small_cnn(), None, Budget(macs=0.5), method="whitened", example=example)
    result = compress(small_cnn(), None, Budget(macs=0.5), method="svd", example=example)
    assert measured(result)["macs"] <= 0.5 * measured(small_cnn())["macs"]


def test_an_exception_in_forward_leaves_the_model_clean() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = small_cnn(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() == 0:
                raise RuntimeError("no empty images")
            return self.body(x)

    model = Fails()
    with pytest.raises(RuntimeError, match="no empty images"):
        compress(model, [batches()[0], torch.zeros(8, 3, 8, 8)], Budget(macs=0.5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training and not hasattr(model, "rankwise_plan")


def test_apply_does_again_what_the_plan_says() -> None:
    model = small_cnn()
    done = compression(model, batches(), Budget(macs=0.5), method="pca")
    again = rankwise.apply(done.plan, model, batches())
    with torch.no_grad():
        assert torch.equal(again(batches()[0]), done.model(batches()[0]))


def test_apply_inside_inference_mode_gives_the_same_network() -> None:
    model = small_cnn()
    done = compression(model, batches(6), Budget(params=0.6), method=rankwise.Automatic("fast"))
    with torch.inference_mode():
        again = rankwise.apply(done.plan, model, batches(6))
    assert not any(parameter.is_inference() for parameter in again.parameters())
    with torch.no_grad():
        assert torch.equal(again(batches()[0]), done.model(batches()[0]))


@pytest.mark.parametrize("method", ["svd", rankwise.Automatic("fast")])
def test_a_loader_leaves_the_random_generators_alone(method: Any) -> None:
    model, loader = small_cnn(), DataLoader(torch.cat(batches(4)), 8)
    before = torch.get_rng_state()
    done = compression(model, loader, Budget(params=0.8), method=method)
    assert torch.equal(before, torch.get_rng_state())
    rankwise.apply(done.plan, model, loader)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="nothing is queued once CUDA is initialised")
def test_the_seed_that_cuda_will_start_from_is_left_alone() -> None:
    model = small_cnn()
    torch.manual_seed(123)
    queued = list(torch.cuda._lazy_seed_tracker.get_calls())
    compress(model, batches(), Budget(params=0.8), method="svd")
    load_model("digits_cnn")
    with own_randomness():
        seed_all(7)
    assert torch.cuda._lazy_seed_tracker.get_calls() == queued


@pytest.mark.parametrize("method", ["asymmetric", "interpolative+pca"])
def test_an_iterator_is_kept_for_methods_that_read_it_again(method: str) -> None:
    data = batches(6)
    options: dict[str, Any] = {"budget": Budget(macs=0.5), "method": method, "example": data[0]}
    found = [compress(small_cnn(), given, **options) for given in (iter(data), data)]
    with torch.no_grad():
        assert torch.equal(found[0](data[0]), found[1](data[0]))
