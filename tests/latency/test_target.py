from collections import UserDict

import pytest
import torch
from torch import nn

from rankwise.errors import BudgetError
from rankwise.latency import Clock, Effort, Job, Target, ratio, typical
from rankwise.latency.heap import kept_memory


class Scaled(nn.Module):
    """Takes a number beside its tensor."""

    def forward(self, x: torch.Tensor, times: int) -> torch.Tensor:
        return x * times


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"threads": 1.5}, "threads=1.5"),
        ({"runtime": "tensorrt"}, "runtime='tensorrt'"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"device": "tpu9"}, "device='tpu9'"),
        ({"device": "meta"}, "allowed are cpu and cuda"),
        ({"device": "cuda", "runtime": "onnxruntime"}, "CUDA"),
    ],
)
def test_a_senseless_target_is_refused(options: dict[str, object], what: str) -> None:
    with pytest.raises(BudgetError, match=what):
        Target(**options)  # type: ignore[arg-type]


def test_the_batch_has_the_size_asked_for_in_the_same_container() -> None:
    example = torch.arange(6.0).view(3, 2)
    assert torch.equal(Target(batch_size=2).batch(example), example[:2])
    assert torch.equal(Target(batch_size=5).batch(example), example[[0, 1, 2, 0, 1]])
    found = Target(batch_size=1, dtype="float64").batch(
        {"x": example, "mask": torch.ones(3, dtype=torch.long)}
    )
    assert (found["x"].dtype, found["mask"].dtype) == (torch.float64, torch.int64)
    pair = Target(batch_size=4).batch((example, torch.zeros(3)))
    assert [len(t) for t in pair] == [4, 4]


def test_the_clock_gives_one_number_per_job_and_round_and_leaves_the_caller_alone() -> None:
    model, batch = nn.Linear(4, 2), torch.zeros(1, 4)
    before, state = torch.get_num_threads(), torch.get_rng_state()
    seconds = Clock(Target())([Job(model, batch), Job(model, batch)], Effort(least=3, most=3, seconds=0.0))
    assert seconds.shape == (3, 2)
    assert (seconds > 0).all()
    assert typical(seconds).shape == (2,)
    assert ratio(seconds) > 0
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_batch_is_taken_apart_once_and_not_while_the_time_runs() -> None:
    class Counted(UserDict[str, torch.Tensor]):
        reads = 0

        def __getitem__(self, name: str) -> torch.Tensor:
            Counted.reads += 1
            return super().__getitem__(name)

    def reads(rounds: int) -> int:
        Counted.reads = 0
        job = Job(nn.Linear(4, 2), Counted(input=torch.zeros(1, 4)))
        Clock(Target())([job], Effort(least=rounds, most=rounds))
        return Counted.reads

    assert reads(6) == reads(1) > 0


def test_onnxruntime_runs_what_torch_runs() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from rankwise.latency.onnx import session_pass

    model, batch = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4)
    (found,) = session_pass(model, batch, 1)()  # type: ignore[misc]
    assert torch.allclose(torch.from_numpy(found), model(batch), atol=1e-5)
    with pytest.raises(BudgetError, match="no mapping"):
        session_pass(model, {"input": batch}, 1)
    scaled = Scaled().eval()
    with pytest.raises(BudgetError, match="cannot be run by onnxruntime"):
        session_pass(scaled, (batch, 3), 1)


def test_layers_are_timed_in_the_data_type_of_the_network() -> None:
    assert Target().typed(nn.Linear(2, 2).double()).dtype == "float64"
    assert Target(dtype="bfloat16").typed(nn.Linear(2, 2)).dtype == "bfloat16"
    assert Target().typed(nn.ReLU()).dtype == "float32"


def test_freed_memory_is_kept_inside_and_given_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """What malloc is told: no blocks of their own and no trimming inside (malloc.h: -4, -1), then both again.

    Page faults themselves would tell more, but come and go with what a machine's kernel does meanwhile.
    """
    told: list[tuple[str, int, int]] = []

    class Library:
        def mallopt(self, what: int, value: int) -> None:
            told.append(("mallopt", what, value))

        def malloc_trim(self, pad: int) -> None:
            told.append(("trim", pad, 0))

    monkeypatch.setattr("rankwise.latency.heap._glibc", Library)
    with kept_memory():
        assert told == [("mallopt", -4, 0), ("mallopt", -1, 2**31 - 1)]
    assert dict((what, value) for kind, what, value in told if kind == "mallopt") == {
        -4: 65536, -3: 2**25, -1: 2**26
    }  # fmt: skip
    assert told[-1] == ("trim", 0, 0)
    monkeypatch.undo()
    with kept_memory():
        assert torch.zeros(2**22).sum() == 0
