from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from rankwise.errors import CalibrationError
from rankwise.network.find import find_layers
from rankwise.statistics import LayerStatistics, collect
from rankwise.statistics.gradient import class_rows, sampled_loss


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.relu_(self.conv(x)).flatten(1))


@pytest.fixture
def model() -> Net:
    return Net().double().train()


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(n, 2, 4, 4).double(), torch.arange(n) % 3) for n in (3, 2)]


def gathered(model: Net, batches: list[Any], **options: Any) -> dict[str, LayerStatistics]:
    layers = find_layers(model, batches[0])
    return collect(model, layers, batches, {n: frozenset(["gradient"]) for n in ("conv", "head")}, **options)


def by_hand(model: Net, x: torch.Tensor, loss: Any) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the loss of one example at the outputs of both layers, ``(rows, channels)`` each."""
    conv = model.conv(x[None])
    head = model.head(functional.relu(conv).flatten(1))
    first, second = torch.autograd.grad(loss(head), (conv, head))
    return first[0].flatten(1).T.numpy(), second.numpy()


def test_moments_of_per_example_gradients(model: Net, batches: list[Any]) -> None:
    found = gathered(model, batches, loss="targets")
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for x, labels in batches:
        for example, label in zip(x, labels, strict=True):
            for held, part in zip(
                rows,
                by_hand(model, example, lambda out, y=label: functional.cross_entropy(out, y[None])),
                strict=True,
            ):
                held.append(part)
    for name, parts in zip(("conv", "head"), rows, strict=True):
        g = np.concatenate(parts)
        np.testing.assert_allclose(found[name].gradient_moment[0], g.T @ g / len(g), rtol=1e-9, atol=1e-14)


def test_a_mean_and_a_loss_per_example_are_the_same(model: Net, batches: list[Any]) -> None:
    expected = gathered(model, batches, loss="targets")
    mean = gathered(model, batches, loss=functional.cross_entropy)
    each = gathered(model, batches, loss=lambda o, t: functional.cross_entropy(o, t, reduction="none"))
    for name, held in expected.items():
        torch.testing.assert_close(mean[name].gradient_moment, held.gradient_moment)
        torch.testing.assert_close(each[name].gradient_moment, held.gradient_moment)


def test_sampled_labels_give_the_fisher_information(model: Net) -> None:
    x = torch.randn(1, 2, 4, 4).double()
    found = gathered(model, [x.expand(4000, -1, -1, -1)], seed=5)["head"].gradient_moment[0]
    p = torch.softmax(model(x)[0], 0).detach()
    fisher = torch.diag(p) - p[:, None] * p[None, :]  # of the softmax's logits, exactly
    torch.testing.assert_close(found, fisher, rtol=0, atol=0.03)
    again = gathered(model, [x.expand(4000, -1, -1, -1)], seed=5)["head"].gradient_moment[0]
    other = gathered(model, [x.expand(4000, -1, -1, -1)], seed=6)["head"].gradient_moment[0]
    assert torch.equal(found, again) and not torch.equal(found, other)


def test_weights_weigh_the_squares(model: Net, batches: list[Any]) -> None:
    found = gathered(model, batches[:1], loss="targets", weights=lambda b: torch.tensor([0.0, 1.0, 0.0]))
    alone = gathered(model, [(batches[0][0][1:2], batches[0][1][1:2])], loss="targets")
    for name in ("conv", "head"):
        torch.testing.assert_close(found[name].gradient_moment, alone[name].gradient_moment)


def test_a_loss_that_does_not_depend_on_a_layer_gives_zero(model: Net, batches: list[Any]) -> None:
    found = gathered(model, batches, loss=lambda output, target: output.detach().sum())
    assert found["conv"].positions > 0
    assert torch.equal(found["conv"].gradient_moment, torch.zeros(1, 4, 4).double())


def test_a_frozen_model_and_one_used_without_gradients(model: Net, batches: list[Any]) -> None:
    expected = gathered(model, batches, loss="targets")
    model.requires_grad_(False)
    with torch.no_grad():
        found = gathered(model, batches, loss="targets")
    torch.testing.assert_close(found["conv"].gradient_moment, expected["conv"].gradient_moment)
    assert all(p.grad is None for p in model.parameters())


def test_classes_of_outputs() -> None:
    assert class_rows(torch.zeros(2, 5)).shape == (2, 5)
    assert class_rows(SimpleNamespace(logits=torch.zeros(2, 3, 5))).shape == (6, 5)
    maps = torch.randn(2, 5, 3, 4)
    assert torch.equal(class_rows(maps)[1], maps[0, :, 0, 1])
    with pytest.raises(CalibrationError, match=r"shape \(3,\)"):
        class_rows(torch.zeros(3))
    with pytest.raises(CalibrationError, match="NaN"):
        sampled_loss(torch.full((2, 3), torch.nan), torch.Generator())


def test_losses_that_cannot_be_taken(model: Net, batches: list[Any]) -> None:
    with pytest.raises(CalibrationError, match="loss='mse' was given; allowed"):
        gathered(model, batches, loss="mse")
    with pytest.raises(CalibrationError, match="needs batches that hold targets"):
        gathered(model, [x for x, _ in batches], loss="targets")


def test_hugging_face_models_bring_their_own_loss() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 11, (2, 5))
    batch = {"input_ids": ids, "labels": ids}
    name = "transformer.h.0.mlp.c_proj"
    layers = [layer for layer in find_layers(model, batch) if layer.name == name]
    need = {name: frozenset(["gradient"])}
    own = collect(model, layers, [batch], need, loss="targets")[name]  # type: ignore[arg-type]

    def shifted(output: Any, target: Any) -> torch.Tensor:
        return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())

    given = collect(model, layers, [batch], need, loss=shifted)[name]  # type: ignore[arg-type]
    torch.testing.assert_close(own.gradient_moment, given.gradient_moment, rtol=1e-4, atol=1e-10)
    sampled = collect(model, layers, [batch], need)[name]  # type: ignore[arg-type]
    assert float(sampled.gradient_moment.diagonal(dim1=1, dim2=2).min()) >= 0
