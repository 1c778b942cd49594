"""Latency budgets on the command line, with a clock that counts instead of timing."""

import json
import sys
from pathlib import Path

import pytest
from tests.latency.fake import FakeTimer

from rankwise.cli.main import main


def _run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["rankwise", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main()
    return capfd.readouterr().out


def test_compress_and_evaluate_print_the_time(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in ("rankwise.timed", "rankwise.latency.table", "rankwise.evaluation.latency"):
        monkeypatch.setattr(sys.modules[module], "timer_for", lambda target: FakeTimer())
    common = ("compress", "digits_cnn", "--data", "digits", "--method", "whitened", "--calibration", "64")
    options = ("--budget", "latency=0.8,batch_size=4", "--out", str(tmp_path / "run"))
    printed = _run(monkeypatch, capfd, *common, *options)
    assert "latency" in printed and " ms" in printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["budget"]["batch_size"] == 4
    assert 0.6 <= metrics["latency"]["measured"] <= 0.8
    saved = str(tmp_path / "run" / "model.safetensors")
    found = json.loads(_run(monkeypatch, capfd, "evaluate", saved, "--data", "digits", "--json"))
    expected = metrics["latency"]["measured"] * metrics["latency"]["original_ms"]
    assert found["latency_ms"] == pytest.approx(expected, rel=1e-2)
