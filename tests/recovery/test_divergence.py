"""How far outputs are apart, against NumPy, and which of several networks is said to be nearest."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.errors import CalibrationError
from rankwise.recovery.divergence import Deviation, deviation, divergence, nearest
from rankwise.recovery.imitation import output_loss


class Shaped(nn.Module):
    """A linear map whose output is given another shape."""

    def __init__(self, seed: int, outputs: int, shape: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear, self.shape = nn.Linear(6, outputs), shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shape(self.linear(x))


SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "logits": lambda y: y,
    "tokens": lambda y: y.view(len(y), 3, 4),
    "maps": lambda y: y.view(len(y), 3, 2, 2),
}


def by_class(name: str, output: torch.Tensor) -> np.ndarray:
    """Logits (examples, predictions, classes)."""
    values = output.detach().double().numpy()
    return {
        "logits": lambda: values[:, None, :],
        "tokens": lambda: values,
        "maps": lambda: values.reshape(*values.shape[:2], -1).swapaxes(1, 2),
    }[name]()


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_what_numpy_says_example_by_example(name: str) -> None:
    original, model = (Shaped(seed, 12, SHAPES[name]) for seed in (0, 1))
    batches = [torch.randn(5, 6, generator=torch.Generator().manual_seed(s)) for s in (2, 3)]
    x = torch.cat(batches)
    z, y = by_class(name, original(x)), by_class(name, model(x))
    p, q = (np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in (z, y))
    difference = (y - y.mean(-1, keepdims=True)) - (z - z.mean(-1, keepdims=True))
    found = deviation(model, original, batches)
    np.testing.assert_allclose(found.divergences, (p * np.log(p / q)).sum(-1).mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.squares, (difference**2).mean((1, 2)), rtol=1e-6)
    assert divergence(model, original, batches) == pytest.approx(float(found.divergences.mean()))


def test_outputs_without_classes_are_compared_by_their_squares() -> None:
    original, model = (Shaped(seed, 1, lambda y: y[:, 0]) for seed in (0, 1))
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    found = deviation(model, original, [x])
    expected = (model(x) - original(x)).detach().double().square()
    torch.testing.assert_close(found.squares, expected)
    torch.testing.assert_close(found.divergences, expected)


def test_no_batches_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="without batches"):
        deviation(nn.Linear(2, 2), nn.Linear(2, 2), [])


def of(divergences: list[float], square: float) -> Deviation:
    return Deviation(torch.tensor(divergences).double(), torch.full((len(divergences),), square).double())


def test_a_difference_that_one_example_makes_is_left_to_the_squares() -> None:
    quiet = [0.1] * 100
    lucky, unlucky = of([*quiet, 0.0], square=2.0), of([*quiet, 3.0], square=1.0)
    assert lucky.divergence < unlucky.divergence
    assert nearest([lucky, unlucky]) == 1
    assert nearest([unlucky, lucky]) == 0


def test_a_difference_beyond_chance_decides_whatever_the_squares_are() -> None:
    noise = np.random.default_rng(0).normal(size=100) * 0.1
    near, far = of(list(1.0 + noise), square=2.0), of(list(1.2 + noise[::-1]), square=1.0)
    error = np.std(far.divergences.numpy() - near.divergences.numpy(), ddof=1) / 10
    assert 2 * error < 0.2  # as computed here, not there
    assert nearest([far, near]) == 1


def test_the_squares_decide_only_among_those_within_chance_of_the_best() -> None:
    quiet = [0.1] * 100
    far = of([5.0, *[4.0] * 100], square=0.5)
    assert nearest([far, of([*quiet, 0.0], square=2.0), of([*quiet, 3.0], square=1.0)]) == 2


def test_outputs_that_are_not_finite_are_never_nearest() -> None:
    broken, good = of([float("nan"), 0.1], square=float("nan")), of([9.0, 9.0], square=9.0)
    assert broken.divergence == broken.square == float("inf")
    assert nearest([broken, good]) == 1 and nearest([good, broken]) == 0
    assert nearest([broken]) == 0


def test_one_example_can_decide() -> None:
    assert nearest([of([0.2], square=1.0), of([0.1], square=2.0)]) == 1


def test_classes_that_both_rule_out_add_nothing() -> None:
    def ruled_out(y: torch.Tensor) -> torch.Tensor:
        return y.masked_fill(torch.arange(y.shape[1]) == 1, -torch.inf)

    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    original, model = (Shaped(seed, 4, ruled_out) for seed in (0, 1))
    found = deviation(model, original, [x])
    z, y = (network.linear(x).detach().double().numpy()[:, [0, 2, 3]] for network in (original, model))
    p, q = (np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in (z, y))
    np.testing.assert_allclose(found.divergences, (p * np.log(p / q)).sum(1), rtol=1e-6)
    assert torch.isfinite(found.squares).all()
    loss = output_loss(original(x), model(x), "kl")
    loss.backward()
    assert loss.item() == pytest.approx(found.divergence, rel=1e-5)
    assert torch.isfinite(model.linear.weight.grad).all()
    never = Shaped(1, 4, lambda y: y.masked_fill(torch.arange(4) == 2, -torch.inf))
    assert divergence(never, original, [x]) == float("inf")


def test_outputs_of_other_kinds() -> None:
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    original, model = (Shaped(seed, 3, lambda y: y.mean()) for seed in (0, 1))
    expected = (original(x) - model(x)).item() ** 2
    assert divergence(model, original, [x]) == pytest.approx(expected)  # one number for all examples
    original, model = (Shaped(seed, 3, lambda y: y > 0) for seed in (0, 1))
    wrong = (original(x) != model(x)).double().mean()
    assert divergence(model, original, [x, x[:0]]) == pytest.approx(float(wrong))
    with pytest.raises(CalibrationError, match="without batches of examples"):
        divergence(model, original, [x[:0]])
