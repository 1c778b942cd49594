import pytest
import torch
from torch import nn

from rankwise.errors import RankwiseError
from rankwise.evaluation import latency


def test_every_model_is_timed_the_same_number_of_rounds_and_left_alone() -> None:
    models = {"small": nn.Linear(4, 2).train(), "deep": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))}
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    results = latency(models, torch.randn(3, 4, generator=torch.Generator()), rounds=3, round_seconds=1e-4)
    assert list(results) == ["small", "deep"]
    for result in results.values():
        assert (result.rounds, result.threads, result.batch_size) == (3, 1, 3)
        assert result.passes >= 1
        assert result.median > 0
        assert result.spread >= 0
    assert models["small"].training
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("options", [{"rounds": 0}, {"threads": 0}, {"models": {}}])
def test_nothing_to_time_is_refused(options: dict[str, object]) -> None:
    arguments = {"models": {"a": nn.Linear(1, 1)}, "batch": torch.ones(1, 1)} | options
    with pytest.raises(RankwiseError, match="at least one of each"):
        latency(**arguments)  # type: ignore[arg-type]
