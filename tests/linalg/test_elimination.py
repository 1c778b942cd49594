"""Orders of removal and their error curves against brute force."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.linalg.elimination import (
    Reader,
    backward_elimination,
    greedy_removal,
    refitted_losses,
    sample_distinct,
    sampling_probabilities,
    sliced_losses,
)


def _reader(
    seed: int, n: int = 6, out: int = 4, units: list[list[int]] | None = None
) -> tuple[Reader, np.ndarray, np.ndarray]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(40, n, generator=g, dtype=torch.float64) @ torch.randn(
        n, n, generator=g, dtype=torch.float64
    )
    w = torch.randn(out, n, generator=g, dtype=torch.float64)
    units = [[i] for i in range(n)] if units is None else units
    return Reader(z.T @ z / 40, w.T @ w, units), z.numpy(), w.numpy()


def _refit_error(z: np.ndarray, w: np.ndarray, kept: list[int]) -> float:
    y = z @ w.T
    solution = np.linalg.lstsq(z[:, kept], y, rcond=None)[0]
    return float(((y - z[:, kept] @ solution) ** 2).sum() / len(z))


@given(st.integers(0, 1000))
def test_backward_elimination_takes_the_cheapest_unit_each_time(seed: int) -> None:
    reader, z, w = _reader(seed)
    order, errors = backward_elimination([reader], 6, ridge=1e-12)
    for k in range(1, 6):
        kept = order[:k].tolist()
        np.testing.assert_allclose(float(errors[k]), _refit_error(z, w, kept), rtol=1e-5, atol=1e-7)
        before = order[: k + 1].tolist()
        best = min(_refit_error(z, w, [c for c in before if c != gone]) for gone in before)
        np.testing.assert_allclose(float(errors[k]), best, rtol=1e-5, atol=1e-7)
    assert errors[6] == 0.0 and (errors.diff() <= 1e-9).all()


def test_units_of_several_channels_and_several_readers() -> None:
    first, z1, w1 = _reader(1, units=[[0, 1], [2, 3], [4, 5]])
    second, z2, w2 = _reader(2, n=4, units=[[3], [0], []])
    order, errors = backward_elimination([first, second], 3, ridge=1e-12)
    torch.testing.assert_close(refitted_losses([first, second], order, 1e-12), errors)
    kept = order[:2].tolist()
    gone = order[2].item()
    parts = [_refit_error(z1, w1, [c for u in kept for c in first.units[u]])]
    parts.append(_refit_error(z2, w2, [c for c in range(4) if c not in second.units[gone]]))
    np.testing.assert_allclose(float(errors[2]), sum(parts), rtol=1e-6)


def test_slicing_costs_what_it_costs() -> None:
    reader, z, w = _reader(3)
    order = torch.tensor([4, 0, 2, 5, 1, 3])
    errors = sliced_losses([reader], order)
    for k in range(7):
        gone = order[k:].tolist()
        expected = float(((z[:, gone] @ w[:, gone].T) ** 2).sum() / len(z))
        np.testing.assert_allclose(float(errors[k]), expected, rtol=1e-9, atol=1e-12)
    assert (refitted_losses([reader], order, 1e-12) <= errors + 1e-9).all()


def test_greedy_removal_adds_the_least_each_time() -> None:
    reader, _, _ = _reader(4)
    loss = (reader.moment * reader.weight).numpy()
    order = greedy_removal(torch.from_numpy(loss)).tolist()
    assert sorted(order) == list(range(6))
    gone: list[int] = []
    for j in order[::-1]:
        costs = {c: loss[np.ix_([*gone, c], [*gone, c])].sum() for c in range(6) if c not in gone}
        assert costs[j] <= min(costs.values()) + 1e-12
        gone.append(j)


def test_sampling_is_unbiased() -> None:
    p = sampling_probabilities(torch.tensor([1.0, 2.0, 3.0, 2.0]))
    assert p.tolist() == [0.125, 0.25, 0.375, 0.25]
    assert sampling_probabilities(torch.zeros(4)).tolist() == [0.25] * 4
    kept, factors = sample_distinct(p, 4, torch.Generator().manual_seed(0))
    assert sorted(kept.tolist()) == [0, 1, 2, 3]
    draws = [f * q for f, q in zip(factors.tolist(), p[kept].tolist(), strict=True)]
    np.testing.assert_allclose(sum(draws), 1.0)  # counts / draws
    kept, factors = sample_distinct(torch.tensor([0.0, 1.0, 0.0]), 2, torch.Generator().manual_seed(0))
    assert kept.tolist() == [1, 0] and factors.tolist() == [1.0, 1.0]
