"""Plans done again: several steps, edited by hand, with folding, and the file that holds the result."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import rankwise
from rankwise import Budget, Plan, compress, compression, plan_of
from rankwise.errors import PlanError
from rankwise.methods import Method, get_method
from tests.test_compress import batches, measured, small_cnn


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(batches()[0])
    return result


def with_statistics(model: nn.Sequential) -> nn.Sequential:
    """BatchNorm as training leaves it: statistics and an affine map that matter."""
    generator = torch.Generator().manual_seed(3)
    norm = model[1]
    with torch.no_grad():
        for values in (norm.weight, norm.running_var):
            values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
        for values in (norm.bias, norm.running_mean):
            values.copy_(torch.randn(values.shape, generator=generator))
    return model


def edited(plan: Plan, target: str, **choice: int) -> Plan:
    edits = [replace(e, choice={**e.choice, **choice}) if e.target == target else e for e in plan.edits]
    return replace(plan, edits=tuple(edits))


@pytest.mark.parametrize("second", ["svd", "asymmetric"])
def test_two_steps_are_done_one_after_the_other(second: str) -> None:
    once = compress(small_cnn(), batches(), Budget(macs=0.7), method="pca")
    twice = compress(once, batches(), Budget(macs=0.8), method=second)
    plan = plan_of(twice)
    assert [len(step) for step in plan.steps()] == [5, len(plan.edits) - 5]
    again = rankwise.apply(plan, small_cnn(), batches())
    assert torch.equal(outputs(again), outputs(twice))
    assert plan_of(again) == plan


def test_an_edited_rank_is_built_saved_and_loaded(tmp_path: Path) -> None:
    plan = compression(small_cnn(), batches(), Budget(macs=0.5), method="whitened").plan
    before = next(edit for edit in plan.edits if edit.target == "8")
    model = rankwise.apply(edited(plan, "8", rank=3), small_cnn(), batches())
    assert model[8][0].out_features == 3
    after = next(edit for edit in plan_of(model).edits if edit.target == "8")
    assert after.after["params"] == sum(p.numel() for p in model[8].parameters())
    assert after.after["macs"] == 3 * (24 * 16 + 32) and after.error is None and before.error is not None
    others = [edit for edit in plan.edits if edit.target != "8"]
    assert [edit for edit in plan_of(model).edits if edit.target != "8"] == others
    assert plan_of(model).final["macs"] == measured(model)["macs"]
    rankwise.save(model, tmp_path / "model.safetensors")
    assert torch.equal(outputs(rankwise.load(tmp_path / "model.safetensors", small_cnn())), outputs(model))


@pytest.mark.parametrize("method", [get_method("svd", batchnorm=True), get_method("relu_aware")])
def test_methods_that_look_at_what_follows_a_layer_see_it_again(method: Method) -> None:
    model = with_statistics(small_cnn())
    done = compression(model, batches(), Budget(macs=0.8), method=method, include=["0", "3", "8"])
    assert done.plan.changes()
    assert torch.equal(outputs(rankwise.apply(done.plan, model, batches())), outputs(done.model))


def test_a_method_that_cannot_treat_the_layer_is_refused() -> None:
    plan = compression(small_cnn(), batches(), Budget(macs=0.5), method="whitened").plan
    edits = [replace(e, method="relu_aware", config={}) if e.target == "8" else e for e in plan.edits]
    model = small_cnn()
    model[9] = nn.Tanh()
    with pytest.raises(PlanError, match="'8' by 'relu_aware', which cannot"):
        rankwise.apply(replace(plan, edits=tuple(edits)), model, batches())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_edit_that_leaves_nothing_is_refused() -> None:
    plan = compression(small_cnn(), batches(), Budget(macs=0.5), method="whitened").plan
    with pytest.raises(PlanError, match="'8'"):
        rankwise.apply(edited(plan, "8", rank=0), small_cnn(), batches())


def test_a_plan_of_another_model_names_the_layer() -> None:
    plan = compression(small_cnn(), batches(), Budget(macs=0.5), method="whitened").plan
    with pytest.raises(PlanError, match="which the model does not have as a compressible layer"):
        rankwise.apply(plan, nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), batches())


@pytest.mark.parametrize("method", ["svd", "pca", "asymmetric", "interpolative"])
def test_folded_models_are_equal_within_the_budget_saved_loaded_and_done_again(
    method: str, tmp_path: Path
) -> None:
    model = with_statistics(small_cnn())
    done = compression(model, batches(), Budget(macs=0.6), method=method, fold_batchnorm=True)
    fold = done.plan.edits[0]
    assert (fold.op, fold.target, fold.choice) == ("fold_batchnorm", "0", {"batchnorm": "1"})
    assert fold.before["params"] - fold.after["params"] == 16  # one bias instead of scale and shift
    assert isinstance(done.model[1], nn.Identity) and isinstance(model[1], nn.BatchNorm2d)
    assert measured(done.model)["macs"] <= 0.6 * measured(model)["macs"]
    rankwise.save(done.model, tmp_path / "model.safetensors")
    assert torch.equal(
        outputs(rankwise.load(tmp_path / "model.safetensors", small_cnn())), outputs(done.model)
    )
    with torch.device("meta"):
        skeleton = small_cnn()
    assert torch.equal(outputs(rankwise.load(tmp_path / "model.safetensors", skeleton)), outputs(done.model))
    again = rankwise.apply(done.plan, model, batches())
    assert torch.equal(outputs(again), outputs(done.model))


def test_folding_alone_changes_no_output_and_recoveries_follow_it() -> None:
    model = with_statistics(small_cnn())
    folded = compress(model, batches(), Budget(macs=1.0), method="svd", fold_batchnorm=True)
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(outputs(folded), outputs(model), rtol=1e-4, atol=1e-5)
    recovered = compress(
        model,
        batches(),
        Budget(macs=0.6),
        method="whitened",
        fold_batchnorm=True,
        recovery=("bias", "batchnorm"),
    )
    assert torch.isfinite(outputs(recovered)).all()


def test_a_layer_that_must_not_change_is_not_folded_into() -> None:
    model = with_statistics(small_cnn())
    small = compress(
        model, batches(), Budget(macs=0.8), method="whitened", fold_batchnorm=True, exclude=["0"]
    )
    assert isinstance(small[1], nn.BatchNorm2d) and torch.equal(small[0].weight, model[0].weight)


def test_a_selection_that_names_no_units_is_refused() -> None:
    small = compress(small_cnn(), batches(), Budget(macs=0.6), method="l2")
    first, *others = plan_of(small).changes()
    plan = Plan((replace(first, choice={"rank": 3}), *others))
    with pytest.raises(PlanError, match=f"{first.target!r} does not say which units it keeps"):
        rankwise.apply(plan, small_cnn(), batches())
