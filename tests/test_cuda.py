"""On a GPU: the calls that work on the CPU, with the network there and the batches left where they are."""

import copy
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import rankwise
from rankwise.cli.main import main
from rankwise.evaluation import evaluate, record_decisions
from rankwise.io import load, save
from rankwise.methods import methods
from rankwise.models import load_model
from rankwise.plan import plan_of
from rankwise.recovery import divergence, recoveries

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: CI has none")

BUDGET = rankwise.Budget(macs=0.6)
IMPOSSIBLE = {"diagonal"}  # the budget cannot be met by it: the convolutions are not fully connected


def batches(seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 1, 8, 8, generator=generator) for _ in range(8)]


@cache
def net(device: str) -> nn.Module:
    torch.manual_seed(0)
    return load_model("digits_cnn").module.eval().to(device)


def everything_on_the_gpu(model: nn.Module) -> bool:
    return all(t.is_cuda for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("name", sorted({*methods(), "auto"} - IMPOSSIBLE))
def test_every_method_gives_what_it_gives_on_the_cpu(name: str) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        model = net(device)
        before = copy.deepcopy(model.state_dict())
        small = rankwise.compress(model, batches(), BUDGET, method=name)
        assert all(torch.equal(before[key], now) for key, now in model.state_dict().items())
        found[device] = small
    assert everything_on_the_gpu(found["cuda"])
    errors = {d: divergence(small, net(d), batches(2)) for d, small in found.items()}
    assert errors["cuda"] == pytest.approx(errors["cpu"], rel=0.25, abs=1e-4)
    kept = {d: [(e.target, e.method) for e in plan_of(small).changes()] for d, small in found.items()}
    assert kept["cuda"] == kept["cpu"]


@pytest.mark.parametrize("name", sorted(recoveries()))
def test_every_recovery_runs_there(name: str) -> None:
    small = rankwise.compress(net("cuda"), batches(), BUDGET, method="svd", recovery=[name])
    plain = rankwise.compress(net("cuda"), batches(), BUDGET, method="svd")
    assert everything_on_the_gpu(small)
    assert divergence(small, net("cuda"), batches(2)) <= 1.05 * divergence(plain, net("cuda"), batches(2))


def test_it_is_judged_there_by_decisions_recorded_once() -> None:
    labelled = [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in batches()]
    decisions = record_decisions(net("cuda"), labelled)
    assert evaluate(net("cuda"), labelled, decisions, resamples=1).agreement == 1.0


def test_saved_there_and_loaded_on_the_cpu(tmp_path: Path) -> None:
    small = rankwise.compress(net("cuda"), batches(), BUDGET)
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", net("cpu"))
    fresh = batches(2)[0]
    with torch.no_grad():
        torch.testing.assert_close(again(fresh), small(fresh.cuda()).cpu(), rtol=1e-2, atol=1e-2)


def test_the_commands_run_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    command(monkeypatch, "compress", "digits_cnn", "--out", str(out))
    command(monkeypatch, "compare", "digits_cnn", str(out / "model.safetensors"))
    command(monkeypatch, "apply", str(out / "plan.json"), "digits_cnn", "--out", str(tmp_path / "again"))
    command(monkeypatch, "tradeoff", "digits_cnn", "--effort", "fast")
    first, second = (load_file(path) for path in (out / "model.safetensors", tmp_path / "again"))
    assert first.keys() == second.keys()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command line on the card, which must succeed and run modules there."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(sys, "argv", ["rankwise", *arguments, "--data", "digits", "--device", "cuda"])
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(output) if isinstance(output, torch.Tensor) else None
    )
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        handle.remove()
    assert not stop.value.code
    assert any(output.is_cuda for output in seen)


def test_a_latency_budget_is_met_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large enough for its time to depend on its width, which most small networks' does not on a GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = nn.Sequential(nn.Conv2d(3, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3)).cuda()
    budget = rankwise.Budget(latency=0.7, batch_size=32, device="cuda")
    small = rankwise.compress(
        model,
        None,
        budget,
        method="l2",
        example=torch.randn(32, 3, 64, 64),
        allocator="uniform",
        multiple_of=8,
    )
    noted = plan_of(small).settings[-1]["latency"]
    assert noted["measured"] <= 0.7
    first = small[0]
    assert isinstance(first, nn.Conv2d) and first.out_channels < 256
