"""Recovery on the command line: the stages in the metrics, fine-tuning, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.cli.test_cli import Run, run  # noqa: F401 (the fixture)

from rankwise.errors import RankwiseError
from rankwise.experiments.recovering import parse_recovery
from rankwise.io import read_plan

SMALL = ("digits_cnn", "--data", "digits", "--budget", "macs=0.4", "--calibration", "64")


def test_stages_and_a_file_that_is_trained_and_compressed_again(run: Run, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "small"
    done = run("compress", *SMALL, "--recover", "bias,finetune:1", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["recovery"] == ["bias", "finetune:1"]
    assert set(metrics["recovered"]["seconds"]) == {"bias", "finetune:1"}
    assert metrics["recovered"]["top1"] > metrics["compressed"]["top1"]
    assert "file_bytes" in metrics["recovered"] and "file_bytes" not in metrics["compressed"]
    file = str(out / "model.safetensors")
    assert read_plan(file).settings[-1]["recovery"] == ["bias", "finetune:1"]
    saved = json.loads(run("evaluate", file, "--data", "digits", "--json").stdout)
    assert saved["top1"] == metrics["recovered"]["top1"]
    again = run("compress", *SMALL, "--recover", "bias,finetune:1", "--out", str(out))
    assert "recovered" in again.stdout and max(map(len, again.stdout.splitlines()[:7])) <= 80

    tuned = (
        "finetune",
        file,
        "--data",
        "digits",
        "--epochs",
        "2",
        "--lr",
        "0.03",
        "--out",
        str(tmp_path / "t"),
    )
    trained = run(*tuned, "--json")
    assert trained.returncode == 0, trained.stderr
    found = json.loads(trained.stdout)
    assert found["after"]["loss"] < found["before"]["loss"] and found["lr"] == 0.03
    weights = load_file(tmp_path / "t" / "model.safetensors")
    resumed = run(*tuned)
    assert resumed.returncode == 0 and "before" in resumed.stdout
    same = load_file(tmp_path / "t" / "model.safetensors")
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
    changed = run(*tuned[:-3], "0.1", *tuned[-2:])
    assert changed.returncode == 1 and "lr was 0.03, now 0.1" in " ".join(changed.stderr.split())

    third = run(
        "compress", str(tmp_path / "t" / "model.safetensors"), *SMALL[1:], "--out", str(tmp_path / "c")
    )
    assert third.returncode == 0, third.stderr
    assert run("evaluate", str(tmp_path / "c" / "model.safetensors"), "--data", "digits").returncode == 0


def test_distillation_from_the_original(run: Run, tmp_path: Path) -> None:  # noqa: F811
    original, small = str(tmp_path / "o"), str(tmp_path / "s")
    file = f"{original}/model.safetensors"
    assert (
        run("finetune", "digits_cnn", "--data", "digits", "--epochs", "2", "--out", original).returncode == 0
    )
    assert run("compress", file, *SMALL[1:], "--out", small).returncode == 0
    arguments = (
        "finetune",
        f"{small}/model.safetensors",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--lr",
        "0.01",
    )
    refused = run(*arguments, "--distill", "--out", str(tmp_path / "t"))
    assert refused.returncode == 1 and "--teacher" in refused.stderr
    done = run(*arguments, "--teacher", file, "--out", str(tmp_path / "t"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["after"]["agreement"] > 0.8


def test_a_wrong_number_of_classes_is_named(run: Run, tmp_path: Path) -> None:  # noqa: F811
    common = ("--data", "digits", "--epochs", "1", "--out", str(tmp_path))
    done = run("finetune", "digits_cnn#3", *common)
    message = " ".join(done.stderr.split())
    assert done.returncode == 1 and "10 classes" in message and "3 outputs" in message and "#10" in message
    assert "#N" in " ".join(run("finetune", "digits_cnn#three", *common).stderr.split())


def test_recoveries_are_parsed() -> None:
    assert parse_recovery("none") == parse_recovery("") == ()
    assert parse_recovery("closed-form, distill,finetune:2") == ("closed-form", "distill", "finetune:2")
    for wrong in ("finetune", "finetune:0", "finetune:x", "none,bias"):
        with pytest.raises(RankwiseError, match=r"allowed|alone"):
            parse_recovery(wrong)
    with pytest.raises(RankwiseError, match="Did you mean"):
        parse_recovery("distil")
