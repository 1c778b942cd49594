"""What ``compress`` must not assume of a network: its mode, finite logits, gradients, inputs left alone."""

from typing import Any

import pytest
import torch
from torch import nn

import rankwise
from rankwise import Budget, compress, plan_of
from rankwise.errors import BudgetError, CalibrationError
from tests.test_compress import batches, small_cnn


def test_the_result_is_judged_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)).train()
    one = torch.randn(1, 48)  # of which no BatchNorm in training mode can be computed
    assert compress(model, [one], Budget(params=0.6), method="svd").training


@pytest.mark.parametrize("method", ["svd", rankwise.Automatic("fast")])
def test_classes_that_the_model_rules_out_may_be_infinite(method: Any) -> None:
    class Masked(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.body, self.value = small_cnn(), value

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x).masked_fill(torch.arange(10) == 3, self.value)

    options: dict[str, Any] = {"budget": Budget(params=0.8), "method": method}
    small = compress(Masked(-torch.inf), batches(6), **options)
    assert torch.isfinite(small(batches()[0])).all(0).sum() == 9
    with pytest.raises(CalibrationError, match="NaN"):
        compress(Masked(torch.nan), batches(6), **options)


class Detached(nn.Module):
    """A body that no gradient reaches, below a head, beside a second output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.other = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 12)
        self.last = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(x).relu().detach()
        return self.last(self.head(x).relu()), self.other(x)


@pytest.mark.parametrize("method", ["kfac", "hessian", rankwise.Automatic("fast")])
def test_what_no_gradient_reaches_is_left_by_methods_that_need_one(method: Any) -> None:
    model = Detached()
    data = list(torch.randn(6, 40, 16, generator=torch.Generator().manual_seed(1)))
    plan = plan_of(compress(model, data, Budget(params=0.75), method=method))
    assert {edit.target for edit in plan.changes()} <= {"head", "last"} and plan.changes()
    reasons = {edit.target: edit.reason for edit in plan.edits if edit.op == "keep"}
    for name in ("body", "other"):
        assert reasons[name] == "no gradient of the compared output reached it"
    none = NoGradient(nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8)))
    with pytest.raises(BudgetError, match=r"No layer can be changed.*no gradient of the compared output"):
        compress(none, data, Budget(params=0.5), method=method)
    both = compress(model, data, Budget(params=0.4), method="whitened")
    assert {edit.target for edit in plan_of(both).changes()} & {"body", "other"}


class NoGradient(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize(
    ("choice", "kept", "budget"), [({"exclude": "4"}, [4], 0.6), ({"include": "0"}, [2, 4], 0.9)]
)
@pytest.mark.parametrize(
    ("method", "recovery"),
    [(rankwise.Automatic("fast"), ()), ("whitened", ("closed-form",)), ("whitened", ("distill",))],
    ids=["auto", "closed-form", "distill"],
)
def test_layers_left_out_by_name_keep_weight_and_bias(
    method: Any, recovery: Any, choice: dict[str, Any], kept: list[int], budget: float
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    data = list(torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(1)))
    options: dict[str, Any] = {"budget": Budget(params=budget), "method": method, **choice}
    small = compress(model, data, recovery=recovery, **options)
    again = rankwise.apply(plan_of(small), model, data)
    for network in (small, again):
        for index in kept:
            assert torch.equal(network[index].weight, model[index].weight)
            assert torch.equal(network[index].bias, model[index].bias)
    if recovery:  # which did something, and is not repeated
        assert not any(map(torch.equal, small[0].parameters(), again[0].parameters()))
    else:
        assert all(map(torch.equal, small.parameters(), again.parameters()))
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_a_model_that_scales_its_inputs_in_place_is_compressed_as_its_twin() -> None:
    class Scaling(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.inplace, self.body = inplace, small_cnn()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x.mul_(4).sub_(1) if self.inplace else x.mul(4).sub(1))

    data, found = batches(6), []
    for inplace in (False, True):
        found.append(
            compress(Scaling(inplace), data, Budget(macs=0.5), method="whitened", recovery=["closed-form"])
        )
    assert all(map(torch.equal, data, batches(6)))
    first, second = (model.state_dict() for model in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
