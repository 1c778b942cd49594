import pytest
import torch
from torch import nn

from rankwise.errors import BudgetError
from rankwise.latency import Clock, Effort, Job, Target, ratio, typical
from rankwise.latency.heap import kept_memory


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


def test_onnxruntime_runs_what_torch_runs() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from rankwise.latency.onnx import session_pass

    model, batch = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4)
    (found,) = session_pass(model, batch, 1)()  # type: ignore[misc]
    assert torch.allclose(torch.from_numpy(found), model(batch), atol=1e-5)
    with pytest.raises(BudgetError, match="no mapping"):
        session_pass(model, {"input": batch}, 1)


def test_layers_are_timed_in_the_data_type_of_the_network() -> None:
    assert Target().typed(nn.Linear(2, 2).double()).dtype == "float64"
    assert Target(dtype="bfloat16").typed(nn.Linear(2, 2)).dtype == "bfloat16"
    assert Target().typed(nn.ReLU()).dtype == "float32"


def test_memory_settings_leave_allocation_working() -> None:
    for _ in range(2):
        with kept_memory():
            torch.zeros(2**22).sum()
    assert torch.ones(2**22).sum() == 2**22
