"""The command line: what it prints, the files it writes, its exit codes."""

import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from safetensors import SafetensorError
from tests.report.synthetic import write_json, write_results
from typer.main import get_command

from rankwise.cli import console
from rankwise.cli.main import app, main
from rankwise.plan import Plan


@dataclass(frozen=True)
class Done:
    """What a finished command left."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, as in a pipe 80 columns wide."""
    for name, value in {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)

    def command(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["rankwise", *arguments])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return Done(int(code or 0), out, err)  # type: ignore[call-overload]

    return command


def test_compress_evaluate_and_compare_on_embedded_data(run: Run, tmp_path: Path) -> None:
    arguments = ("compress", "digits_cnn", "--data", "digits", "--budget", "macs=0.6", "--calibration", "64")
    first = run(*arguments, "--out", str(tmp_path / "a"), "--json")
    assert first.returncode == 0, first.stderr
    metrics = json.loads(first.stdout)
    assert {"original", "compressed", "seconds"} <= metrics.keys()
    assert metrics["command"].startswith("rankwise compress digits_cnn") and metrics["versions"]["torch"]
    assert metrics["compressed"]["macs_fraction"] <= 0.6
    assert {"calibrate", "decompose", "allocate", "evaluate"} <= metrics["seconds"].keys()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "metrics.json",
        "model.safetensors",
        "plan.json",
        "report.html",
    ]
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == metrics

    second = run(*arguments, "--out", str(tmp_path / "b"))
    assert second.returncode == 0 and "top-1" in second.stdout
    assert (tmp_path / "a" / "plan.json").read_bytes() == (tmp_path / "b" / "plan.json").read_bytes()
    table = [line for line in second.stdout.splitlines() if not line.startswith(("written to", "page: "))]
    assert max(map(len, table)) <= 80

    file = str(tmp_path / "a" / "model.safetensors")
    evaluated = run("evaluate", file, "--data", "digits", "--json")
    assert json.loads(evaluated.stdout)["top1"] == metrics["compressed"]["top1"]
    compared = run("compare", "digits_cnn", file, "--data", "digits", "--json")
    assert json.loads(compared.stdout)["b"]["agreement"] == metrics["compressed"]["agreement"]
    assert "B per class" in run("compare", file, file, "--data", "digits").stdout


def test_plan_then_apply_gives_what_compress_gives(run: Run, tmp_path: Path) -> None:
    plan, model = str(tmp_path / "plan.json"), str(tmp_path / "model.safetensors")
    common = ("--data", "digits", "--calibration", "64")
    planned = run("plan", "digits_cnn", *common, "--budget", "params=0.7", "--method", "pca",
                  "--fold-batchnorm", "--out", plan)  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    applied = run("apply", plan, "digits_cnn", *common, "--out", model, "--json")
    assert applied.returncode == 0, applied.stderr
    whole = run("evaluate", "digits_cnn", "--data", "digits", "--json")
    assert json.loads(applied.stdout)["params"] <= 0.7 * json.loads(whole.stdout)["params"]
    folded = [edit.target for edit in Plan.load(plan).edits if edit.op == "fold_batchnorm"]
    assert folded == ["conv1", "conv2", "conv3"]


def test_a_network_of_one_s_own_goes_all_the_way(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
"""
    (tmp_path / "ones_own.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    out, again = tmp_path / "out", str(tmp_path / "again.safetensors")
    common = ("ones_own:net", "--data", "digits", "--calibration", "64")
    compressed = run("compress", *common, "--budget", "macs=0.5", "--out", str(out), "--json")
    assert compressed.returncode == 0, compressed.stderr
    applied = run("apply", str(out / "plan.json"), *common, "--out", again, "--json")
    assert applied.returncode == 0, applied.stderr
    assert json.loads(applied.stdout)["macs"] == json.loads(compressed.stdout)["compressed"]["macs"]
    files = (str(out / "model.safetensors"), again)
    figures = [json.loads(run("evaluate", file, "--data", "digits", "--json").stdout) for file in files]
    assert figures[0]["loss"] == figures[1]["loss"]


def test_inspect_lists_every_layer_with_its_cost_and_reason(run: Run) -> None:
    found = json.loads(
        run("inspect", "torchvision:mobilenet_v2", "--data", "random:3,224,224", "--json").stdout
    )
    layers = found["layers"]
    assert len(layers) == 53
    assert sum(layer["macs"] for layer in layers) == found["cost"]["macs"]
    depthwise = [layer for layer in layers if layer["groups"] > 1]
    assert len(depthwise) == 17 and all("depthwise" in layer["reason"] for layer in depthwise)
    assert all(
        layer["reason"] is None for layer in layers if layer["groups"] == 1 and layer["in_channels"] > 8
    )


def test_methods_lists_what_each_needs(run: Run) -> None:
    found = json.loads(run("methods", "--json").stdout)
    needs = {method["name"]: method["needs"] for method in found["methods"]}
    assert needs["svd"] == ["weights only"] and needs["pca"] == ["output"]
    assert "knapsack" in {allocator["name"] for allocator in found["allocators"]}
    assert "whitened" in run("methods").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compress", "digits_cnn", "--data", "digits", "--budget", "params=0.0001"), "smallest reachable"),
        (("compress", "digits_cnn", "--data", "digits", "--method", "whitend"), "Did you mean 'whitened'"),
        (("compress", "digits_cn", "--data", "digits"), "Did you mean 'digits_cnn'"),
        (("compress", "digits_cnn", "--data", "digts"), "Did you mean 'digits'"),
        (("compress", "digits_cnn", "--data", "digits", "--budget", "half"), "NAME=VALUE"),
        (("compress", "digits_cnn", "--data", "imagefolder:/nowhere"), "/nowhere"),
        (("evaluate", "nothing.safetensors", "--data", "digits"), "nothing.safetensors"),
        (("compress", "digits_cnn", "--data", "digits", "--method-option", "sid=input"), "option of method"),
        (("compress", "digits_cnn", "--data", "digits", "--device", "cuda:99"), "device='cuda:99' was given"),
        (("evaluate", "digits_cnn", "--data", "digits", "--device", "gpu"), "which torch does not know"),
        (("compare", "digits_cnn", "digits_cnn", "--data", "digits", "--device", "meta"), "cpu and cuda"),
        (("tradeoff", "digits_cnn", "--data", "digits", "--device", "cuda:99"), "device='cuda:99' was given"),
        (("compress", "digits_cnn", "--data", "digits", "--method", "foo"), "auto, bn_scale"),
        (("compress", "digits_cnn", "--data", "digits", "--method", "auto,svd"), "itself brings the methods"),
        (("compress", "digits_cnn", "--data", "digits", "--max-memory", "0"), "above 0"),
        (("plan", "digits_cnn", "--data", "digits", "--max-memory", "-1"), "above 0"),
        (
            ("compress", "digits_cnn", "--data", "random:3,32,32"),
            "3x32x32; allowed are such as 1x8x8",
        ),
        (("evaluate", "cifar10_resnet20", "--data", "random:7"), "cannot read what 'random:7' gives"),
        (("inspect", "digits_cnn", "--data", "random:3,32,32"), "'digits_cnn' cannot read"),
        (("tradeoff", "digits_cnn", "--data", "random:3,32,32"), "'digits_cnn' cannot read"),
        (("evaluate", "digits_cnn", "--data", "digits", "--weights", "."), "is a folder"),
        (("compress", "digits_cnn", "--data", "digits", "--budget", "latency=abc"), "such as 0.8ms"),
        (
            ("compress", "digits_cnn", "--data", "digits", "--budget", "latency=0.5,batch_size=0"),
            "batch_size=0 was",
        ),
    ],
)
def test_failures_are_one_message_and_exit_code_1(run: Run, arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "pca", "--method-option", "centred=maybe"), "centred='maybe' was given"),
        (("--method", "pfp", "--method-option", "randomized=x"), "allowed: true, false"),
        (("--method", "svd", "--method-option", "folding=al"), "folding='al' was given"),
        (("--method", "svd", "--method-option", "metric=foo"), "allowed: identity, input"),
        (("--method", "svd", "--method-option", "ratio=2"), "Options of method 'svd'"),
        (("--method", "svd", "--method-option", "energy=abc"), "allowed: a number, null"),
        (("--method", "relu_aware", "--method-option", "iterations=x"), "allowed: a whole number"),
        (
            ("--method", "relu_aware", "--method-option", 'penalties=["x"]'),
            "a list of which each is a number",
        ),
        (("--method", "auto", "--method-option", "effort=3"), "Unknown effort '3'"),
        (("--method", "svd", "--allocator-option", "gap=x"), "option of allocator 'knapsack'"),
        (("--allocator", "iterative", "--allocator-option", "step=2"), "below 1"),
    ],
)
def test_options_of_wrong_values_are_told(run: Run, arguments: tuple[str, ...], message: str) -> None:
    done = run("compress", "digits_cnn", "--data", "digits", *arguments)
    assert done.returncode == 1 and message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and max(map(len, done.stderr.splitlines())) <= 80


@pytest.mark.parametrize("command", ["compress", "plan", "apply", "finetune", "demo", "run", "results"])
def test_a_place_that_cannot_be_written_is_told_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def at_work(*_: object, **__: object) -> None:
        raise AssertionError

    for name in ("cli.compression.load_model", "experiments.single.load_any", "cli.demo.run_demo"):
        monkeypatch.setattr(f"rankwise.{name}", at_work)
    taken = tmp_path / "file"
    taken.write_text("")
    words = {
        "compress": ("digits_cnn", "--data", "digits"),
        "plan": ("digits_cnn", "--data", "digits"),
        "apply": ("plan.json", "digits_cnn"),
        "finetune": ("digits_cnn", "--data", "digits", "--epochs", "1"),
        "run": ("none.yaml",),
        "results": (str(tmp_path),),
    }.get(command, ())
    option = "--csv" if command == "results" else "--out"
    done = run(command, *words, option, str(taken / "in"))
    assert done.returncode == 1 and done.stdout == ""
    assert f"{taken} is a file; allowed is a folder" in done.stderr.replace("\n", " ").replace("  ", " ")


def test_no_input_is_overwritten(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("--data", "digits", "--calibration", "64", "--method", "svd", "--out", str(out))
    done = run("compress", "digits_cnn", *common)
    assert done.returncode == 0 and "digits_cnn has random weights" in done.stderr
    assert run("compress", "digits_cnn", *common).returncode == 0  # an earlier result may be
    kept = {file: file.read_bytes() for file in out.iterdir()}
    model = str(out / "model.safetensors")
    for command in (
        ("compress", model, *common),
        ("compress", "digits_cnn", *common, "--weights", model),
        (
            "finetune",
            model,
            "--data",
            "digits",
            "--epochs",
            "1",
            "--out",
            str(tmp_path / "other" / ".." / "out"),
        ),
        ("apply", str(out / "plan.json"), "digits_cnn", "--out", str(out / "plan.json")),
    ):
        refused = run(*command)
        assert refused.returncode == 1 and "read and overwritten" in " ".join(refused.stderr.split())
    assert kept == {file: file.read_bytes() for file in out.iterdir()}
    weights = run("evaluate", model, "--data", "digits", "--weights", model)
    assert weights.returncode == 1 and "holds its own" in " ".join(weights.stderr.split())
    assert run("inspect", model).returncode == 0


def test_what_was_not_saved_is_said_and_flips_are_shown(run: Run) -> None:
    common = ("--data", "digits", "--calibration", "64", "--method", "svd")
    assert "nothing was saved" in run("compress", "digits_cnn", *common).stdout
    shown = run("evaluate", "digits_cnn", "--data", "digits", "--reference", "digits_cnn")
    assert "of digits_cnn's right decisions the network gets 0 wrong" in shown.stdout
    assert "confidence" not in shown.stdout and "100.00 %" in shown.stdout


def test_a_full_disk_is_a_message(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("rankwise.io.save_file", full)
    common = ("--data", "digits", "--calibration", "64", "--method", "svd", "--out", str(tmp_path))
    done = run("compress", "digits_cnn", *common)
    assert done.returncode == 1 and "could not be written: No space left" in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_missing_data_says_what_was_looked_for_and_how_to_get_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKWISE_DATA", str(tmp_path))
    done = run("compress", "cifar10_resnet20", "--data", "cifar10")
    assert done.returncode == 1 and str(tmp_path) in done.stderr.replace("\n", "")
    assert "RANKWISE_DATA" in done.stderr


def test_weights_that_do_not_fit_name_the_keys(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"stem.weight": zeros(3)}, tmp_path / "w.safetensors")
    done = run("compress", "digits_cnn", "--data", "digits", "--weights", str(tmp_path / "w.safetensors"))
    assert done.returncode == 1 and "stem.weight" in done.stderr


def test_an_interruption_is_one_line_and_exit_code_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.io.save_file", interrupted)
    out = tmp_path / "out"
    common = ("--data", "digits", "--calibration", "64", "--method", "whitened")
    done = run("compress", "digits_cnn", *common, "--out", str(out))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == "interrupted; no file is half-written"
    assert list(out.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_message(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "out")
    common = ("--data", "digits", "--calibration", "64", "--method", "whitened")
    done = run("plan", "digits_cnn", *common, "--out", out)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert "error: " in done.stderr and "file" in done.stderr


@pytest.mark.parametrize(("total", "first", "last"), [(3, "0/3", "3/3"), (0, "0/?", "2/?")])
def test_bars_count_what_is_finished(
    total: int, first: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "errors", Console(file=screen, force_terminal=True, width=80))
    with console.progress_bars(quiet=False) as progress:
        progress("calibrate", 0, total)
        progress("calibrate", 2, total)
        progress("decompose", 0, 5)
    shown = screen.getvalue()
    assert shown.index(first) < shown.index(last) and "0/5" in shown


def test_a_command_that_is_not_understood_exits_with_2(run: Run) -> None:
    assert run("compres").returncode == 2
    assert run("compress", "digits_cnn").returncode == 2


def test_no_help_loses_its_defaults_or_cuts_a_name(run: Run) -> None:
    for name, command in get_command(app).commands.items():
        shown = " ".join(run(name, "--help").stdout.split())
        for option in command.params:
            assert " ".join(str(getattr(option, "help", None) or "").split()) in shown
            assert all(flag in shown for flag in option.opts if flag.startswith("-"))


def test_the_help_names_every_command(run: Run) -> None:
    shown = run("--help").stdout
    for command in ("demo", "compress", "evaluate", "compare", "inspect", "methods", "plan", "apply"):
        assert command in shown


def test_the_demo_shows_every_stage_and_reloads_identically(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rankwise", "demo", "--out", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert 0.49 <= metrics["recovered"]["macs_fraction"] <= 0.5
    assert metrics["reloaded_identical"] is True
    assert metrics["recovered"]["agreement"] >= metrics["compressed"]["agreement"] > 0.9
    assert set(metrics["recovered"]["seconds"]) == {"distill"}


def test_report_writes_the_page_and_names_what_it_cannot_read(run: Run, tmp_path: Path) -> None:
    results = write_results(tmp_path / "runs", ["svd"], [0.3, 0.6], 2)
    (results / "trials" / "0000" / "metrics.json").write_text("{")
    shown = run("report", str(results), "--png", str(tmp_path / "figures"), "--out", str(tmp_path / "a.html"))
    assert shown.returncode == 0 and "3 trials, 0 failed, unreadable: 1 file" in shown.stdout
    assert "0000/metrics.json: it is no JSON" in shown.stderr.replace("\n", "")
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert len(list((tmp_path / "figures").glob("*.png"))) == 6
    told = json.loads(run("report", str(results), "--json").stdout)
    assert (
        told["page"] == str(results / "report.html") and told["trials"] == 3 and len(told["unreadable"]) == 1
    )


def test_report_of_nothing_is_an_error(run: Run, tmp_path: Path) -> None:
    assert run("report", str(tmp_path)).returncode == 1
    assert "No trials under" in run("report", str(tmp_path)).stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write_json(tmp_path / "metrics.json", {"failed": "no"})
        given = run("report", str(tmp_path), "--watch", "--port", str(taken.getsockname()[1]))
        assert given.returncode == 1 and "cannot be had" in given.stderr
    assert "one or the other" in run("report", str(tmp_path), "--watch", "--json").stderr
