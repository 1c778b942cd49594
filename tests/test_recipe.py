"""Two methods under one budget: the split is the best of those tried, and the plan holds both."""

from pathlib import Path

import pytest
import torch

from rankwise import Budget, Plan, compress, compression, load, plan_of, save
from rankwise.errors import CalibrationError, RankwiseError, UnknownNameError
from rankwise.network import Cost
from rankwise.recipe import SHARES, intermediate
from tests.test_compress import batches, measured, small_cnn


def test_a_recipe_meets_the_budget_and_its_plan_holds_both_methods(tmp_path: Path) -> None:
    done = compression(small_cnn(), batches(), Budget(macs=0.5), method="interpolative+pca")
    assert measured(done.model)["macs"] <= 0.5 * measured(small_cnn())["macs"]
    assert done.plan.changes()[0].method == "interpolative"
    assert {edit.method for edit in done.plan.changes()} == {"interpolative", "pca"}
    assert Plan.from_json(done.plan.to_json()) == done.plan == plan_of(done.model)
    save(done.model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors", small_cnn())
    with torch.no_grad():
        assert torch.equal(loaded(batches()[0]), done.model(batches()[0]))


def test_the_split_with_the_highest_agreement_is_taken() -> None:
    model = small_cnn()
    done = compression(model, batches(), Budget(macs=0.4), method="svd+pca")
    tried = done.plan.settings[-1]["agreement"]
    assert set(tried) <= {f"{share:g}" for share in SHARES}
    with torch.no_grad():
        same = [(done.model(b).argmax(1) == model(b).argmax(1)).double().mean() for b in batches()]
    assert float(torch.stack(same).mean()) == pytest.approx(max(tried.values()), abs=1e-6)


def test_shares_count_in_factors_of_the_reduction() -> None:
    original = Cost(params=10_000, macs=1_000_000, bytes=40_000)
    assert intermediate(Budget(macs=0.25, params=0.81), original, 0.5) == Budget(macs=500_000, params=9_000)


def test_bad_recipes_say_what_is_allowed() -> None:
    with pytest.raises(RankwiseError, match="FIRST"):
        compress(small_cnn(), batches(), Budget(macs=0.5), method="svd+pca+svd")
    with pytest.raises(UnknownNameError, match="pca"):
        compress(small_cnn(), batches(), Budget(macs=0.5), method="svd+pcaa")
    with pytest.raises(CalibrationError, match="calibration batches"):
        compress(small_cnn(), None, Budget(macs=0.5), method="svd+svd", example=batches()[0])
