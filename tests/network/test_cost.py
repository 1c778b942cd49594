import pytest
import torch
from torch import nn

from rankwise.network.cost import Cost, count_bytes, count_macs, count_params, model_cost


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.zeros(5, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(9), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


def test_shared_parameters_count_once() -> None:
    model = Tied()
    assert count_params(model) == 28
    assert count_bytes(model) == 4 * 28 + 8 * 5
    assert count_macs(model, {"ids": torch.zeros(3, 6, dtype=torch.int64)}) == 6 * 28


def test_a_network_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)
    ).half().float()  # fmt: skip
    cost = model_cost(model, torch.randn(5, 3, 6, 6))
    params = 3 * 4 * 9 + 4 + 8 + 144 * 10 + 10
    assert cost == Cost(params, 3 * 4 * 9 * 36 + 1440, 4 * (params + 8) + 8)
    assert cost.as_dict() == {"params": cost.params, "macs": cost.macs, "bytes": cost.bytes}


def test_sums_and_differences() -> None:
    assert Cost(3, 5, 7) + Cost(1, 1, 1) == Cost(4, 6, 8)
    assert Cost(3, 5, 7) - Cost(1, 1, 1) == Cost(2, 4, 6)
    assert sum([Cost(1, 2, 3)] * 3, Cost()) == Cost(3, 6, 9)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("training", [False, True])
def test_transformers_are_counted_through_their_modules(batch: int, training: bool) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).train(training)
    tokens = 5
    projections, feed_forward, attention = 4 * 8 * 8 * tokens, 2 * 8 * 12 * tokens, 2 * tokens * tokens * 8
    assert count_macs(model, torch.randn(batch, tokens, 8)) == projections + feed_forward + attention
    assert model.training is training


def test_counting_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    state = torch.random.get_rng_state()
    example = torch.ones(2, 3)
    model_cost(model, example)
    assert model.training and model[1].num_batches_tracked == 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3))
        assert model_cost(model, torch.zeros(2, 2, 7)).macs == 2 * 3 * 3 * 5
