import copy
import json
from typing import Any

import pytest
import torch
from tests.conformance.layer_cases import LAYER_CASES, LayerCase, build
from torch import nn

from rankwise.errors import PlanError
from rankwise.network.layer import is_hf_conv1d
from rankwise.network.spec import describe, parallel, rebuild


def round_trip(module: nn.Module, **options: Any) -> nn.Module:
    return rebuild(json.loads(json.dumps(describe(module))), **options)


@pytest.mark.parametrize("case", [c for c in LAYER_CASES if "hf" not in c.name], ids=lambda case: case.name)
def test_every_kind_comes_back(case: LayerCase) -> None:
    model, batches = build(case)
    again = round_trip(model, dtype=torch.float64)
    assert repr(again) == repr(model)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(batches[0]), model(batches[0]))


def test_nested_chains_sums_and_reshapes() -> None:
    model = nn.Sequential(
        nn.Unflatten(1, (6, 1)),
        parallel(nn.Conv1d(6, 4, 1, groups=2), nn.Sequential(nn.Conv1d(6, 2, 1), nn.Conv1d(2, 4, 1))),
        nn.Flatten(1),
        nn.Identity(),
    )
    x = torch.randn(3, 6)
    again = round_trip(model)
    assert list(again.state_dict()) == list(model.state_dict())
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    expected = model[1].branch0(x[:, :, None]) + model[1].branch1(x[:, :, None])
    torch.testing.assert_close(model(x), expected.flatten(1))
    assert describe(again) == describe(model)


def test_a_sum_is_plain_torch() -> None:
    model, x = parallel(nn.Linear(3, 2), nn.Linear(3, 2)), torch.randn(4, 3)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


def test_skeletons_and_the_generator() -> None:
    skeleton = round_trip(nn.Sequential(nn.Linear(3, 2), nn.Conv2d(1, 2, 3)), device="meta", dtype=torch.half)
    assert all(p.is_meta and p.dtype == torch.half for p in skeleton.parameters())
    description = describe(nn.Linear(3, 2))
    state = torch.random.get_rng_state()
    rebuild(description)
    assert torch.equal(torch.random.get_rng_state(), state)


class Own(nn.Linear):
    pass


@pytest.mark.parametrize("module", [nn.ReLU(), Own(2, 2), nn.Sequential(nn.LSTM(2, 2))])
def test_other_modules_are_not_described(module: nn.Module) -> None:
    with pytest.raises(PlanError, match="cannot be saved; allowed are Sequential"):
        describe(module)


def test_hugging_face_layers_are_not_described() -> None:
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(3, 2)
    assert is_hf_conv1d(module)
    with pytest.raises(PlanError, match="Conv1D cannot be saved"):
        describe(module)


LINEAR = {"type": "Linear", "in_features": 2, "out_features": 2, "bias": True}
CONV = describe(nn.Conv1d(4, 4, 3))


@pytest.mark.parametrize(
    "description",
    [
        None,
        {},
        {"type": "LSTM"},
        {"type": "__import__"},
        {"type": ["Linear"]},
        {"type": "Sequential"},
        {"type": "Sequential", "modules": 3},
        {"type": "Sequential", "modules": [{"type": "Linear"}]},
        {k: v for k, v in LINEAR.items() if k != "bias"},
        {**LINEAR, "in_features": -1},
        {**LINEAR, "in_features": "2"},
        {**LINEAR, "in_features": 10**40},
        {**CONV, "groups": 0},
        {**CONV, "groups": 3},
        {**CONV, "padding_mode": "sideways"},
        {"type": "Unflatten", "dim": 1, "unflattened_size": 4.5},
    ],
)
def test_malformed_descriptions(description: Any) -> None:
    with pytest.raises(PlanError):
        rebuild(description)


def test_unknown_keys_are_not_passed_on() -> None:
    assert isinstance(rebuild({**LINEAR, "dtype": "anything", "weight": 3}), nn.Linear)
