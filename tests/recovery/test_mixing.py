"""Blends of calibration examples, against the formula by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.recovery.mixing import mixed

X = torch.arange(12.0).view(4, 3)
LABELS = torch.tensor([0, 1, 0, 1])
CAUSAL = torch.full((4, 4), -torch.inf).triu(1)  # as many rows as there are examples


class Two(nn.Module):
    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x * scale


class Named(nn.Module):
    def forward(self, x: torch.Tensor, width: int = 3) -> torch.Tensor:
        return x[:, :width]


def by_hand(x: torch.Tensor, share: float) -> np.ndarray:
    values = x.numpy()
    count = len(values)
    rows = [(1 - share) * values[i] + share * values[(i - count // 2) % count] for i in range(count)]
    return np.stack(rows)


def test_each_example_has_a_share_of_the_one_half_a_batch_further_on() -> None:
    assert np.allclose(mixed(nn.Identity(), X, 0.35), by_hand(X, 0.35), atol=1e-6)
    assert np.allclose(mixed(nn.Identity(), X[:3], 0.2), by_hand(X[:3], 0.2), atol=1e-6)
    assert mixed(nn.Identity(), X.half(), 0.5).dtype == torch.float16


def test_labels_are_left_out_and_every_input_is_blended_alike() -> None:
    (found,) = mixed(nn.Linear(3, 2), (X, LABELS), 0.35)
    assert np.allclose(found, by_hand(X, 0.35), atol=1e-6)
    x, scale = mixed(Two(), [X, X + 1, LABELS], 0.35)
    assert np.allclose(scale - x, 1.0, atol=1e-6)
    found = mixed(Named(), {"x": X, "width": 2, "labels": LABELS}, 0.35)
    assert found.keys() == {"x", "width"} and found["width"] == 2
    assert np.allclose(found["x"], by_hand(X, 0.35), atol=1e-6)


@pytest.mark.parametrize(
    "batch",
    [LABELS, (X, LABELS), X[:1], (X, torch.tensor(2.0)), (X, X[:2]), (X, CAUSAL)],
    ids=["tokens", "a mask", "one example", "a scale of no dimension", "other lengths", "a mask of numbers"],
)
def test_what_cannot_be_blended_is_left(batch: Any) -> None:
    assert mixed(Two() if isinstance(batch, tuple) else nn.Identity(), batch, 0.35) is None
