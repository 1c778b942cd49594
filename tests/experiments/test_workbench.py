"""Work that several compressions share gives what each of them gives alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise import Budget, RankwiseError, compress, compression, plan_of, scene
from rankwise.data import load_data
from rankwise.experiments import workbench
from rankwise.experiments.variants import Variant, methods_of
from rankwise.experiments.workbench import Workbench, digest
from rankwise.models import load_model


def bench(folder: Path) -> Workbench:
    model = load_model("digits_cnn", seed=3).module
    calibration = load_data("digits").calibration(96, 0).batches(64)
    return Workbench(model, calibration, folder, {"weights": digest(model)})


@pytest.mark.parametrize(
    "variant",
    [
        Variant("whitened"),
        Variant("svd", {"folding": "all"}, "energy"),
        Variant("whitened,pca"),
        Variant("asymmetric", exclude=("fc2",)),
        Variant("whitened", include=("conv*",)),
        Variant("interpolative"),
        Variant("thinet", {"reconstruct": True}, "uniform"),
        Variant("pfp", {}, "uniform"),
        Variant("interpolative", {}, "iterative"),
        Variant("l2+svd"),
    ],
    ids=lambda variant: variant.label,
)
def test_the_result_is_that_of_compress(variant: Variant, tmp_path: Path) -> None:
    made = bench(tmp_path)
    budgets = [Budget(params=0.6), Budget(macs=0.7)]
    for budget in budgets:
        found = made.compress(variant, budget).model
        alone = compress(
            made.model,
            made.calibration,
            budget,
            method=methods_of(variant.method, variant.options),
            allocator=variant.allocator,
            include=variant.include or None,
            exclude=variant.exclude or None,
        )
        assert plan_of(found) == plan_of(alone)
        for name, value in alone.state_dict().items():
            assert torch.equal(found.state_dict()[name], value), name


def test_statistics_on_disk_serve_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench(tmp_path).compress(Variant("whitened"), Budget(macs=0.6))
    monkeypatch.setattr(workbench, "collect", None)
    again = bench(tmp_path).compress(Variant("whitened"), Budget(macs=0.6))
    assert again.seconds["calibrate"] == first.seconds["calibrate"]
    assert again.plan == first.plan


def test_methods_are_listed_once_for_all_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(tmp_path)
    made.compress(Variant("svd"), Budget(macs=0.6))
    monkeypatch.setattr(workbench.Factorisation, "_options", None)
    made.compress(Variant("svd", {}, "uniform"), Budget(params=0.6))
    made.forget()
    with pytest.raises(TypeError):
        made.compress(Variant("svd"), Budget(macs=0.6))


def test_what_selections_measure_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = bench(tmp_path), []
    collect = scene.collect_channels
    monkeypatch.setattr(scene, "collect_channels", lambda *a, **k: calls.append(1) or collect(*a, **k))
    first = made.compress(Variant("interpolative", {"refit": "once"}), Budget(macs=0.6))
    assert len(calls) == 1
    again = made.compress(Variant("interpolative", {"refit": "once"}, "uniform"), Budget(params=0.6))
    assert len(calls) == 1 and again.seconds["calibrate"] >= first.seconds["calibrate"] > 0
    made.compress(Variant("pfp"), Budget(macs=0.6))
    assert len(calls) == 2  # it asks for more


@pytest.mark.parametrize("more", [{"method": "l2+svd"}, {"fold_batchnorm": True}])
def test_a_survey_is_refused_where_it_does_not_hold(more: dict[str, Any], tmp_path: Path) -> None:
    made = bench(tmp_path)
    made.compress(Variant("svd"), Budget(macs=0.6))
    ((survey, _),) = made._surveys.values()
    with pytest.raises(RankwiseError, match="survey"):
        compression(made.model, made.calibration, Budget(macs=0.6), survey=survey, **more)
