"""The sweep: figures as one gets them by hand, work on disk, and reasons where a budget cannot be met."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankwise import Budget, compression
from rankwise.data import load_data
from rankwise.evaluation import evaluate
from rankwise.experiments import compress_only, workbench
from rankwise.experiments.compress_only import CompressOnly, Sweep
from rankwise.experiments.variants import Variant
from rankwise.models import load_model

SWEEP = Sweep(measure="macs", fractions=(0.6,), calibration=96, limit_test=100)


def bench(out: Path, sweep: Sweep = SWEEP, **more: Any) -> CompressOnly:
    return CompressOnly(load_model("digits_cnn", seed=3), load_data("digits"), out, sweep, **more)


@pytest.mark.parametrize(
    "variant", [Variant("whitened"), Variant("svd", {}, "energy"), Variant("asymmetric")]
)
def test_a_row_says_what_compress_and_evaluate_say(variant: Variant, tmp_path: Path) -> None:
    made = bench(tmp_path)
    row = made.row(variant, 0.6)
    done = compression(
        made.model, made.calibration, Budget(macs=0.6), method=variant.method, allocator=variant.allocator
    )
    found = evaluate(done.model, made.data.testing().take(100).batches(128), made.model)
    assert (row["params"], row["macs"]) == (done.final.params, done.final.macs)
    assert row["macs_fraction"] <= 0.6
    assert row["top1"] == pytest.approx(found.top1) and row["agreement"] == pytest.approx(found.agreement)
    assert row["kl"] == pytest.approx(found.kl, rel=1e-3, abs=1e-6)
    assert set(row["seconds"]) == {"calibrate", "decompose", "allocate", "build"}
    assert row["examples"] == 100


def test_what_is_on_disk_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [Variant("whitened"), Variant("diagonal")]
    first = bench(tmp_path).run(variants)
    monkeypatch.setattr(compress_only, "measure", None)
    monkeypatch.setattr(workbench, "collect", None)
    again = bench(tmp_path)
    assert again.run(variants) == first == again.rows()


def test_statistics_are_collected_once_for_equal_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    collect = workbench.collect
    monkeypatch.setattr(workbench, "collect", lambda *a, **k: calls.append(a[3]) or collect(*a, **k))
    sweep = replace(SWEEP, fractions=(0.7, 0.6))
    rows = bench(tmp_path, sweep).run([Variant("whitened"), Variant("pca"), Variant("pca", {}, "uniform")])
    assert len(rows) == 6 and len(calls) == 1
    bench(tmp_path, replace(sweep, measure="params")).run([Variant("pca")])
    assert len(calls) == 1  # they are on disk


def test_a_budget_out_of_reach_is_a_row_with_the_reason(tmp_path: Path) -> None:
    row = bench(tmp_path).row(Variant("diagonal"), 0.6)
    assert "smallest reachable" in row["failed"] and "top1" not in row


def test_a_recovery_is_added_to_a_row_that_is_there(tmp_path: Path) -> None:
    before = bench(tmp_path).row(Variant("svd"), 0.6)
    after = bench(tmp_path, replace(SWEEP, recovery=("batchnorm",))).row(Variant("svd"), 0.6)
    assert after["key"] == before["key"] and after["top1"] == before["top1"]
    assert after["recovered"]["batchnorm"].keys() >= {"top1", "agreement", "kl", "seconds"}


def test_narrower_layers_are_refitted_too(tmp_path: Path) -> None:
    row = bench(tmp_path, replace(SWEEP, recovery=("closed-form",))).row(Variant("l2"), 0.6)
    assert row["recovered"]["closed-form"]["kl"] < row["kl"]


def test_hopeless_rows_end_after_the_first_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress_only, "HOPELESS", 1.1)
    row = bench(tmp_path, replace(SWEEP, screen=40)).row(Variant("svd"), 0.6)
    assert row["examples"] == 40 and row["images"] == 100


def test_validation_images_come_from_the_training_split(tmp_path: Path) -> None:
    made = bench(tmp_path, replace(SWEEP, select="validation", limit_test=None))
    assert made.parts[0].indices.tolist() == made.data.validation(seed=0).indices.tolist()


def test_other_compressors_are_judged_in_the_same_way(tmp_path: Path) -> None:
    def unchanged(model: nn.Module, *rest: Any) -> nn.Module:
        return model

    made = bench(tmp_path, peers={"other code": unchanged})
    row = made.row(Variant("other code", {}, "its own"), 0.6)
    assert row["agreement"] == 1.0 and row["macs_fraction"] == 1.0 and row["kl"] < 1e-6
    assert row["top1"] == pytest.approx(made.original()["top1"])


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    made = bench(tmp_path)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    made.run([Variant("whitened"), Variant("asymmetric")])
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
