"""Fine-tuning: the settings act as they say, ranks share the work, runs resume, bad input is named."""

import copy
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.recovery.digits import batches, loader, network
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from rankwise.errors import DataError, TrainingError
from rankwise.recovery import checkpoint
from rankwise.recovery.finetune import CHECKPOINT_FILE, finetune
from rankwise.recovery.parallel import Processes, make_fabric
from rankwise.recovery.training import FineTuning, decay_groups

pytest.importorskip("lightning_fabric")
ROOT = Path(__file__).parents[2]


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


# --- what is trained


def test_plain_steps_are_those_of_a_loop_by_hand() -> None:
    train, validation = batches(size=100, train=200)
    model = network()
    by_hand = copy.deepcopy(model)
    settings = FineTuning(
        epochs=2, lr=0.1, momentum=0.0, weight_decay=0.0, warmup=0.0, schedule="constant", clip=None
    )
    done = finetune(model, train, validation, settings)
    train.set_epoch(0)
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.1)
    for _ in range(2):
        for inputs, labels in train:
            optimizer.zero_grad()
            cross_entropy(by_hand(inputs), labels).backward()
            optimizer.step()
    assert done.best == 2 and same(model, network())
    for a, b in zip(done.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_best_epoch_on_validation_data_is_kept_and_the_start_counts() -> None:
    train, validation = batches(size=100, train=200)
    done = finetune(network(), train, validation, epochs=3, lr=0.05)
    best = max(row["top1"] for row in done.history)
    assert done.history[done.best]["top1"] == best and [row["epoch"] for row in done.history] == [0, 1, 2, 3]
    worse = finetune(done.model, train, validation, epochs=1, lr=1e-9, label_smoothing=0.9, warmup=0.0)
    assert worse.best == 0 and same(worse.model, done.model)


def test_a_learning_rate_is_found() -> None:
    train, validation = batches(size=50, train=300)
    random = torch.get_rng_state()
    done = finetune(network(), train, validation, epochs=2)
    assert done.lr >= 0.03 and done.history[-1]["top1"] > 0.5
    assert torch.equal(random, torch.get_rng_state())


def test_no_weight_decay_on_biases_and_norms() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.Linear(4, 2))
    net[3].weight.requires_grad_(False)
    decayed, free = decay_groups(net)
    assert [id(p) for p in decayed] == [id(net[0].weight)]
    assert {id(p) for p in free} == {
        id(p) for p in (net[0].bias, *net[1].parameters(), *net[2].parameters(), net[3].bias)
    }
    groups = FineTuning(epochs=1, weight_decay=0.1).make_optimizer(net, 0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_schedules() -> None:
    cosine = FineTuning(epochs=1, warmup=0.2)
    rates = [cosine.factor(step, 10) for step in range(10)]
    assert rates[0] == pytest.approx(1 / 3) and rates[2] == 1.0 and rates[6] == pytest.approx(0.5)
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    multistep = FineTuning(epochs=1, warmup=0.0, schedule="multistep", milestones=(0.5, 0.8), gamma=0.1)
    assert [multistep.factor(step, 10) for step in (0, 4, 5, 7, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_the_teacher_alone_needs_no_good_labels() -> None:
    train, validation = batches(size=50, train=400)
    teacher = finetune(network(), train, validation, epochs=6, lr=0.1).model
    wrong = [(inputs, (labels + 1) % 10) for inputs, labels in train]
    right = finetune(network(5), wrong, validation, epochs=4, lr=0.1, mix=1.0, teacher=teacher)
    assert right.history[-1]["top1"] > 0.6
    with pytest.raises(TrainingError, match="without a teacher"):
        finetune(network(), train, validation, epochs=1, mix=0.5)


def test_averaged_weights_are_what_is_validated() -> None:
    train, validation = batches(size=50, train=200)
    plain, averaged = (
        finetune(network(), train, validation, epochs=1, lr=0.05, ema=ema) for ema in (0.0, 0.99)
    )
    moved = [(a - b).norm() for a, b in zip(averaged.model.parameters(), network().parameters(), strict=True)]
    whole = [(a - b).norm() for a, b in zip(plain.model.parameters(), network().parameters(), strict=True)]
    assert all(0 < m < w for m, w in zip(moved, whole, strict=True))


def test_batchnorm_can_be_frozen_and_gradients_adjusted() -> None:
    train, validation = batches(size=50, train=100)
    net = nn.Sequential(nn.BatchNorm2d(1), *network())
    frozen, free = (
        finetune(net, train, validation, epochs=1, lr=0.05, freeze_batchnorm=freeze).model
        for freeze in (True, False)
    )
    assert torch.equal(frozen[0].running_mean, net[0].running_mean)
    assert not torch.equal(free[0].running_mean, net[0].running_mean)
    adjust = {"1.weight": lambda parameter, gradient: torch.zeros_like(gradient)}
    held = finetune(net, train, validation, epochs=1, lr=0.05, weight_decay=0.0, adjust=adjust).model
    assert torch.equal(held[1].weight, net[1].weight) and not torch.equal(held[5].weight, net[5].weight)


def test_inputs_that_the_network_changes_in_place_stay() -> None:
    train, validation = (list(part) for part in batches(size=50, train=100))
    kept = copy.deepcopy([*train, *validation])
    changing, plain = (
        nn.Sequential(nn.Threshold(0.5, -1.0, inplace), *network()) for inplace in (True, False)
    )
    first, second = (finetune(net, train, validation, epochs=2, lr=0.05).model for net in (changing, plain))
    assert same(first, second)
    assert all(torch.equal(a[0], b[0]) for a, b in zip([*train, *validation], kept, strict=True))


def test_token_labels_train_a_language_model() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, (64, 1), generator=generator) + torch.arange(9)
    data = [{"x": part} for part in (tokens % 7).split(16)]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 7)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.table(x)}

    done = finetune(Model(), data, data[:1], epochs=20, optimizer="adamw", lr=0.3, task="language")
    assert done.history[-1]["top1"] is None and done.history[-1]["loss"] < 0.1


# --- many processes


def test_shards_are_disjoint_and_cover_the_pass() -> None:
    def keys(data: Any) -> list[bytes]:
        return [x.numpy().tobytes() for batch, _ in data for x in batch]

    train, _ = batches(size=8, train=52)
    parts = [keys(train.shard(rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [18, 17, 17]  # 24 + 24 + 4
    assert sorted(key for part in parts for key in part) == sorted(keys(train))
    assert [len(train.shard(rank, 3)) for rank in range(3)] == [3, 3, 3]
    short, _ = batches(size=8, train=50)  # the last 2 would leave a rank without an example
    assert [len(keys(short.shard(rank, 3))) for rank in range(3)] == [16, 16, 16]


class FakeFabric:
    def __init__(self, rank: int) -> None:
        self.global_rank, self.world_size, self.device = rank, 2, torch.device("cpu")


def test_lists_of_batches_are_dealt_out() -> None:
    data = [torch.full((1,), float(i)) for i in range(7)]
    parts = [list(Processes(FakeFabric(rank)).own(data)) for rank in (0, 1)]
    assert [[int(x) for x in part] for part in parts] == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(TrainingError, match="1 training batches"):
        Processes(FakeFabric(0)).own(data[:1])


def launch(folder: Path, processes: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    done = subprocess.run(
        [*command, str(ROOT / "tests/recovery/digits.py"), str(folder), json.dumps(options)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"result{rank}.pt") for rank in range(processes)]


@pytest.mark.parametrize("settings", [("cpu", "foo", None), ("cpu", "auto", "foo")])
def test_settings_that_fabric_does_not_know_are_refused(settings: tuple[str, str, str | None]) -> None:
    with pytest.raises(TrainingError, match=r"Lightning Fabric refuses the settings.*foo"):
        make_fabric(*settings)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built in")
@pytest.mark.parametrize(
    "options", [{}, {"strategy": "fsdp"}, {"loader": True}], ids=["ddp", "fsdp", "loader"]
)
def test_two_processes_are_one_with_the_doubled_batch(tmp_path: Path, options: dict[str, Any]) -> None:
    common = {"epochs": 2, "lr": 0.05, "optimizer": "adamw"}
    train, validation = batches(32)
    data = loader(32) if "loader" in options else train
    expected = finetune(network(), data, validation, **common)
    for found in launch(tmp_path / "two", 2, {**common, "size": 16, **options}):
        for name, value in expected.model.state_dict().items():
            torch.testing.assert_close(found["state"][name], value, rtol=1e-4, atol=1e-5)
        for row, reference in zip(found["history"], expected.history, strict=True):
            assert row["top1"] == reference["top1"]
            assert row["loss"] == pytest.approx(reference["loss"], rel=1e-5)


# --- interruption


def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    steps = torch.randint(1, 8, (2,)).tolist()
    moments = [f"step:{steps[0]}", "write:2", f"step:{steps[1]}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.recovery.killed", str(tmp_path), "sgd,adamw", *moments],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    expected = {"codes": [0, -9, -9, -9, 0], "same": True}
    assert json.loads(done.stdout.splitlines()[-1]) == {"sgd": expected, "adamw": expected}, moments


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    train, validation = batches(size=100, train=200)
    first = finetune(network(), train, validation, epochs=1, lr=0.05, out=tmp_path)
    again = finetune(
        network(), train, validation, epochs=1, lr=0.05, out=tmp_path, progress=lambda *_: pytest.fail("step")
    )
    assert same(first.model, again.model) and again.history == first.history
    log = (tmp_path / "log.csv").read_text().splitlines()
    assert log[0].startswith("epoch,lr,train_loss,loss,top1") and len(log) == 3


def test_a_changed_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    train, validation = batches(size=100, train=200)
    finetune(network(), train, validation, epochs=1, lr=0.05, out=tmp_path)
    with pytest.raises(TrainingError, match=r"epochs was 1, now 2; lr was 0.05, now 0.1"):
        finetune(network(), train, validation, epochs=2, lr=0.1, out=tmp_path)
    with pytest.raises(TrainingError, match="model was"):
        finetune(network(3), train, validation, epochs=1, lr=0.05, out=tmp_path)
    with pytest.raises(TrainingError, match="train batch_size was 100, now 50"):
        finetune(network(), batches(size=50, train=100)[0], validation, epochs=1, lr=0.05, out=tmp_path)
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"PK nonsense")
    with pytest.raises(TrainingError, match="cannot be read"):
        finetune(network(), train, validation, epochs=1, lr=0.05, out=tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = batches(size=100, train=200)
    run = {"epochs": 3, "lr": 0.05, "out": tmp_path, "checkpoint_seconds": 1e9}
    whole = finetune(network(), train, validation, **{**run, "out": None}).model
    save, calls = torch.save, []

    def full(content: Any, path: Path) -> None:
        save(content, path)
        calls.append(path)
        if len(calls) == 2:
            os.truncate(path, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*the one written before is intact"):
        finetune(network(), train, validation, **run)
    assert torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)["state"]["epoch"] == 1
    assert not list(tmp_path.glob("*.part*"))
    assert same(finetune(network(), train, validation, **run).model, whole)


# --- bad input


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rate(tmp_path: Path) -> None:
    train, validation = batches(size=100, train=200)
    data = [*train, *train]
    data[3] = (torch.full_like(data[3][0], float("nan")), data[3][1])
    settings = {"epochs": 1, "lr": 0.05, "warmup": 0.0, "schedule": "constant"}
    with pytest.raises(
        TrainingError, match=r"loss became nan at step 4 of 4 .epoch 1., at learning rate 0.05"
    ):
        finetune(network(), data, validation, **settings)
    with pytest.raises(TrainingError, match=r"The last good checkpoint is kept: .*checkpoint.pt"):
        finetune(network(), data, validation, out=tmp_path, checkpoint_seconds=-1.0, **settings)
    state = torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)["state"]
    assert state["index"] == 3 and all(bool(t.isfinite().all()) for t in state["tensors"])


def test_labels_have_to_fit() -> None:
    train, validation = batches(size=100, train=200)
    outside = [(inputs, labels + 5) for inputs, labels in train]
    with pytest.raises(DataError, match=r"Labels from 5 to 14 .* 10 outputs, so allowed are 0 to 9"):
        finetune(network(), outside, validation, epochs=1, lr=0.1)
    with pytest.raises(DataError, match="without labels"):
        finetune(network(), [inputs for inputs, _ in train], validation, epochs=1, lr=0.1)
    with pytest.raises(DataError, match="no validation examples"):
        finetune(network(), train, [], epochs=1, lr=0.1)
    with pytest.raises(DataError, match="no training batches"):
        finetune(network(), [], validation, epochs=1, lr=0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"optimizer": "adam"}, {"lr": 0.0}, {"schedule": "linear"}, {"mix": 2.0}, {"ema": 1.0}],
)
def test_settings_have_to_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=f"{next(iter(wrong))}=.*allowed"):
        FineTuning(**{"epochs": 1, **wrong})


def test_a_data_loader_that_shuffles_resumes_within_its_pass(tmp_path: Path) -> None:
    split = batches()[0].split
    inputs = split.transform(split.fetch(torch.arange(200)))
    assert split.labels is not None
    data = TensorDataset(inputs, split.labels[:200])

    def run(out: Path | None, stop: int = 10**9) -> nn.Module:
        def progress(stage: str, done: int, total: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        shuffling = DataLoader(data, 50, shuffle=True)
        done = finetune(
            network(), shuffling, batches()[1], epochs=2, lr=0.1, out=out, checkpoint_seconds=-1.0,
            progress=progress,
        )  # fmt: skip
        return done.model

    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=6)
    assert same(run(tmp_path), whole)
